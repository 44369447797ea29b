"""Three instruments on one launch: our client, the engine's own counters, `vllm bench serve`.

The second instrument's file is read and judged as a stranger's would be (study.audit). What is
compared are ratios inside one launch, where everything but the instrument is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd

from study.audit import gates
from study.audit.arithmetic import ratio
from study.audit.detail import Detail, Full, full_part
from study.audit.formats import Window
from study.audit.formats import read as read_file
from study.client import Recording
from study.finite import Floats, median, only
from study.plan import Launch
from study.second import RESULT
from study.standing import standings
from study.steady import floats, measure, steady_part
from study.store import Store

# What is compared with what: the second instrument's, or the engine's, over the client's.
COMPARISONS = {
    "engine_tokens": "Output tokens: engine / client",
    "engine_ttft": "TTFT, mean: engine / client",
    "bench_rate": "Output throughput: bench, as printed / client",
    "bench_rate_full": "Output throughput: bench, level full / client",
    "bench_ttft": "TTFT, median: bench, as printed / client",
    "bench_ttft_full": "TTFT, median: bench, level full / client",
    "bench_tpot": "TPOT, median: bench, as printed / client",
    "bench_tpot_full": "TPOT, median: bench, level full / client",
    "engine_bench_tokens": "Output tokens: engine / bench",
    "engine_bench_ttft": "TTFT, mean: engine / bench",
}
KEYS = ("launch", "block", "arm", "workload", "level", "again")
FILES = (
    *KEYS, "outcome", "reason", "verdict", "reasons", "requests", "completed", "duration_s",
    "full_s", "input_least", "input_most", "output_least", "output_most", "cpu_s",
    "client_cpu_s", "client_requests", "wall_s",
)  # fmt: skip
RATIOS = (*KEYS, "comparison", "value", "base", "point")


@dataclass(frozen=True)
class Seconds:
    """What the second instrument said of the windows that it measured too.

    files: a row per window: KEYS; outcome and reason; verdict and reasons of the referee; what it
        sent and completed; duration_s, and full_s (its level full); the shortest and longest
        input and output; cpu_s of it and of our client, whose requests beside; wall_s, all told.
    ratios: a row per comparison and window: KEYS, comparison (of COMPARISONS), value, base,
        point (value / base).
    """

    files: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(FILES)))
    ratios: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(RATIOS)))


def read(launches: Sequence[Launch], store: Store) -> Seconds:
    """Every window of these launches that was given to the second instrument."""
    files: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    for one in standings(launches, store):
        for folder in one.attempt.windows if one.attempt else []:
            content = orjson.loads((folder / "window.json").read_bytes())
            if "second" not in content:
                continue
            plan = content["plan"]
            place = (one.launch.id, one.launch.block, one.launch.arm.name)
            which = (plan["workload"]["name"], plan["level"], plan["again"])
            keys = dict(zip(KEYS, (*place, *which), strict=True))
            row, compared = of_window(folder, content)
            files.append({**keys, **row})
            ratios += [{**keys, **one_ratio} for one_ratio in compared]
    return Seconds(
        pd.DataFrame(files, columns=list(FILES)), pd.DataFrame(ratios, columns=list(RATIOS))
    )


def of_window(folder: Path, content: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What is known of the second instrument's file, and the ratios of this window."""
    said, recording = content["second"], Recording.load(folder / "load")
    values = {**_ours(recording, content["plan"]["level"]), **_engines(content, "engine")}
    row: dict[str, Any] = {name: said[name] for name in ("outcome", "reason", "wall_s")}
    row |= {"client_cpu_s": recording.info["cpu_s"], "client_requests": len(recording.requests)}
    cpu_s = math.nan if said["cpu_s"] is None else said["cpu_s"]
    row |= {"verdict": "", "reasons": "", "cpu_s": cpu_s}
    if said["outcome"] == "measured":
        window = read_file(folder / RESULT).windows[0]
        row |= _file(window)
        values |= {**_theirs(window), **_engines(said, "engine_bench")}
    return row, list(_ratios(values))


def _ratios(values: dict[str, float]) -> Iterator[dict[str, Any]]:
    for name in COMPARISONS:
        quantity = name.removesuffix("_full").rpartition("_")[2]
        base = f"bench_{quantity}" if name.startswith("engine_bench") else quantity
        if name.endswith(("_tokens", "_ttft")) and name.startswith("engine"):
            base = f"{base}_all"
        if name in values and base in values:
            point = ratio(values[name], values[base])
            yield {"comparison": name, "value": values[name], "base": values[base], "point": point}


def _ours(recording: Recording, level: int) -> dict[str, float]:
    """Our client's: of the steady part; and of the whole load, to be set beside counters."""
    requests = recording.requests
    found = measure(requests, recording.chunks, steady_part(requests, level))
    ttft_s = only(floats(requests, "first_s") - floats(requests, "due_s"))
    return {
        "rate": found.output_tok_s,
        "ttft": found.ttft_p50_s,
        "tpot": found.tpot_p50_s,
        "tokens_all": float(floats(requests, "output_tokens").sum()),
        "ttft_all": float(ttft_s.mean()) if ttft_s.size else math.nan,
    }


def _engines(said: dict[str, Any], name: str) -> dict[str, float]:
    """The engine's account between two looks at its counters."""

    def grown(counter: str) -> float:
        return float(said["after"].get(counter, math.nan) - said["before"].get(counter, math.nan))

    return {
        f"{name}_tokens": grown("output_tokens"),
        f"{name}_ttft": ratio(grown("ttft_sum_s"), grown("ttft_count")),
    }


def _theirs(window: Window) -> dict[str, float]:
    """The second instrument's: as it prints it, and while its level was full."""
    found = {
        "bench_rate": window.rate("output_tok_s"),
        "bench_ttft": window.time_s("ttft", "p50"),
        "bench_tpot": window.time_s("tpot", "p50"),
        "bench_tokens_all": window.output_tokens,
        "bench_ttft_all": window.time_s("ttft", "mean"),
    }
    detail, part = window.detail, _full(window)
    if detail is None or part is None or detail.seen is None:
        return found
    seen = np.interp([part.start_s, part.end_s], detail.seen.edge_s, detail.seen.tokens)
    sent = detail.fine & (detail.start_s > part.start_s) & (detail.start_s <= part.end_s)
    return found | {
        "bench_rate_full": float(np.diff(seen)[0] / part.duration_s),
        "bench_ttft_full": median(detail.ttft_s[sent]),
        "bench_tpot_full": median(_tpot_s(detail)[sent]),
    }


def _full(window: Window) -> Full | None:
    return None if window.detail is None else full_part(window.detail, window.level)[0]


def _tpot_s(detail: Detail) -> Floats:
    later = detail.output_tokens - 1
    found: Floats = np.full(later.size, np.nan)
    np.divide(detail.e2e_s - detail.ttft_s, later, out=found, where=later > 0)
    return found


def _file(window: Window) -> dict[str, Any]:
    """What the referee says of the file, and what it holds."""
    judged, part = gates.judge(window), _full(window)
    failed = [said.text for said in judged if (said.scope, said.verdict) == ("window", "fail")]
    row = {
        "verdict": gates.verdict(judged),
        "reasons": " ".join(failed),
        "requests": window.requests,
        "completed": window.completed,
        "duration_s": window.duration_s,
        "full_s": part.duration_s if part else 0.0,
    }
    for name in ("input", "output"):
        tokens = only(getattr(window.detail, f"{name}_tokens")) if window.detail else np.empty(0)
        row |= {f"{name}_least": tokens.min(initial=np.inf), f"{name}_most": tokens.max(initial=0)}
    return row
