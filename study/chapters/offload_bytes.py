"""KV offload in bytes: what was stored and restored, how fast, and what memory holds.

Tidy frames, pure functions of a `Part`: arithmetic beside what files and counters say.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from study import stats
from study.chapter import Part
from study.chapters.offload_estimates import (
    CELL,
    COLD,
    FILE,
    MEMORY,
    OFF,
    RESTORED,
    TTFT,
    cells,
    sources,
    windows,
)
from study.estimates import launch_values, rows_of

AGREE = 0.01  # relative; a file has a header of about a hundred bytes
IN_FILES = "bytes of the files that grew"
OF_FILES = "these prompts' share of the bytes that cold stored"
BY_ENGINE = "the engine's byte counter"
ANSWERS_TOO = f"{BY_ENGINE}, answers too"


def bytes_moved(part: Part) -> pd.DataFrame:
    """Tokens x KV bytes per token against the bytes that were seen, from valid windows.

    Columns: arm and factors, workload, direction (`stored`, `restored`), launches (with this
    answer), tokens, bytes_per_token, arithmetic_bytes, observed_bytes, observed (what was looked
    at), files, ratio (observed / arithmetic), verdict (`agrees` within 1 %, `differs`, `cannot
    judge`). A row per different answer.
    """
    seen = windows(part)
    rows = [
        line
        for row in rows_of(seen[(seen["verdict"] == "valid") & (seen["offload"] != OFF)])
        for line in (_stored(row), _read_back(row, seen))
        if line
    ]
    columns = [*CELL, "direction", "tokens", "bytes_per_token", "arithmetic_bytes"]
    columns += ["observed_bytes", "observed", "files", "ratio", "verdict"]
    frame = pd.DataFrame(rows, columns=columns)
    counted = frame.groupby(columns, dropna=False, sort=False).size().reset_index(name="launches")
    return counted[[*columns[: len(CELL) + 1], "launches", *columns[len(CELL) + 1 :]]]


def _stored(row: Any) -> dict[str, object]:
    """What `cold` stored: whole blocks of each prompt; in files never the one of its last token.

    Natively vLLM stored the blocks of the answers as well until pull request 43797 (May 2026), and
    some of them only (36052): of both counts the nearer one is shown, and named.
    """
    if row.workload != COLD:
        return {}
    if row.offload == FILE:
        return _line(row, "stored", row.reusable_tokens, row.stored_bytes, IN_FILES)
    with_answer = row.input_tokens + row.output_tokens - 1  # on the last token nothing is computed
    lines = [
        _line(row, "stored", _whole_blocks(held, row), row.offload_store_bytes, observed)
        for held, observed in ((row.input_tokens, BY_ENGINE), (with_answer, ANSWERS_TOO))
    ]
    return min(lines, key=_off)


def _whole_blocks(tokens: int, row: Any) -> float:
    return float(tokens // row.block_size * row.block_size * row.requests)


def _off(line: dict[str, Any]) -> float:
    return abs(float(line["ratio"]) - 1)


def _read_back(row: Any, seen: pd.DataFrame) -> dict[str, object]:
    """What the phase restored, by the hit counter, against the bytes that hold it.

    Nobody counts the bytes that are read from files: there it is the tokens that are checked.
    """
    if not row.restored_tokens > 0:
        return {}
    if row.offload != FILE:
        return _line(row, "restored", row.restored_tokens, row.offload_load_bytes, BY_ENGINE)
    cold = seen[(seen["launch"] == row.launch) & (seen["workload"] == COLD)]
    of_prompts = float((cold["stored_bytes"] * row.requests / cold["requests"]).mean())
    return _line(row, "restored", row.restored_tokens, of_prompts, OF_FILES)


def _line(
    row: Any, direction: str, tokens: float, observed_bytes: float, observed: str
) -> dict[str, Any]:
    arithmetic = tokens * row.bytes_per_token
    ratio = observed_bytes / arithmetic if arithmetic else np.nan
    verdict = "agrees" if abs(ratio - 1) <= AGREE else "differs"
    return {
        **{name: getattr(row, name) for name in CELL},
        "direction": direction,
        "tokens": tokens,
        "bytes_per_token": row.bytes_per_token,
        "arithmetic_bytes": arithmetic,
        "observed_bytes": observed_bytes,
        "observed": observed,
        "files": row.stored_files if observed == IN_FILES else np.nan,
        "ratio": ratio,
        "verdict": "cannot judge" if np.isnan(ratio) else verdict,
    }


def bandwidths(part: Part) -> pd.DataFrame:
    """Bytes a second at which a prompt was restored, over what memory would have cost anyhow.

    restored tokens of a request x bytes per token / (TTFT of `restored` - TTFT of `memory`),
    inside launches. Only where the counters say that one phase restored and the other found all
    in memory, and where the interval of the difference lies above 0: else it says nothing.
    Columns: arm, model, bytes (of a request), point, low, high (bytes/s), n.
    """
    known = sources(part)
    clear = known[(known["kind"] == "estimate") & (known["workload"] == known["came_from"])]
    both = clear.groupby("arm")["workload"].transform("nunique") == 2  # restored, and in memory
    told = clear[both & (clear["workload"] == RESTORED)]
    values = launch_values(part.found, TTFT)
    rows = []
    for row in rows_of(told):
        size = row.restored_tokens / row.requests * row.bytes_per_token
        slower = stats.contrast(
            values[values["arm"] == row.arm],
            "value",
            {RESTORED: 1.0, MEMORY: -1.0},
            factor="workload",
            log=False,
            comparisons=len(told),
        ).effect
        if slower.low > 0:
            limits = (size / slower.point, size / slower.high, size / slower.low)
            rows.append((row.arm, row.model, size, *limits, slower.n))
    return pd.DataFrame(rows, columns=["arm", "model", "bytes", "point", "low", "high", "n"])


def capacity(part: Part) -> pd.DataFrame:
    """Does the set of prompts exceed memory, and do those that come back fit into it?

    Columns: arm and factors, launches (with this answer), prompts, set_tokens (of all prompts),
    returning, returning_tokens (with their answers), kv_cache_tokens and block_size (in force),
    times (set / cache), exceeds, fits. A row per different answer of the engine.
    """
    columns = [*CELL[:-1], "prompts", "set_tokens", "returning", "returning_tokens"]
    arms = [_set(group) for _, group in cells(part).groupby("arm", sort=False)]
    sets = pd.DataFrame(arms, columns=columns)
    said = ["block_size", "kv_cache_tokens"]
    told = part.found.launches.reindex(columns=["arm", *said]).astype({"arm": object})
    numbers = told[said].apply(pd.to_numeric, errors="coerce").astype(float)
    held = told[["arm"]].join(numbers).dropna(subset=["kv_cache_tokens"])
    held = held.groupby(["arm", *said], dropna=False).size().reset_index(name="launches")
    frame = sets.merge(held, on="arm")
    return frame.assign(
        times=frame["set_tokens"] / frame["kv_cache_tokens"],
        exceeds=frame["set_tokens"] > frame["kv_cache_tokens"],
        fits=frame["returning_tokens"] <= frame["kv_cache_tokens"],
    )


def _set(arm: pd.DataFrame) -> dict[str, object]:
    of = arm.set_index("workload")
    cold, back = of.loc[COLD], of.loc[RESTORED]
    with_answer = back["input_tokens"] + back["output_tokens"]
    return {
        **{name: arm.iloc[0][name] for name in CELL[:-1]},
        "prompts": cold["requests"],
        "set_tokens": cold["requests"] * cold["input_tokens"],
        "returning": back["requests"],
        "returning_tokens": back["requests"] * with_answer,
    }
