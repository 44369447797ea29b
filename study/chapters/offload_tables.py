"""The tables on KV offload: what readers see, each with its twin in numbers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from study import estimates
from study.chapter import Part
from study.chapters import offload_bytes, offload_estimates
from study.estimates import METRICS, rows_of
from study.figures import interval_words
from study.style import spelled
from study.tables import Table, compared, count, number, reported

NO_OFF = "Not measured: `off` was not asked for, so no mode can be set against it."


def where_from(part: Part) -> Table:
    """Per arm and phase: how many prompt tokens came from where, and whether that was intended."""
    data = offload_estimates.sources(part)
    shown = pd.DataFrame(
        {
            "arm": data["arm"],
            "phase": data["workload"],
            "windows": [_windows(row) for row in rows_of(data)],
            "prompt tokens": data["prompt_tokens"].map(_tokens),
            "found in memory": data["memory_tokens"].map(_tokens),
            "restored by offload": data["restored_tokens"].map(_tokens),
            "computed": data["computed_tokens"].map(_tokens),
            "cache came from": data["came_from"],
            "intended": data["intended"],
        }
    )
    return Table(
        shown,
        data,
        "Tokens by the engine's own counters, means over launches. Intended: what the phase means "
        "in this mode, given the prefix caching that the engine says is in force. Where the two "
        "differ, the window did not measure what its name says.",
    )


def _windows(row: Any) -> str:
    if not row.launches:
        return str(row.kind)
    return f"{row.launches} {'void' if row.kind == 'void window' else 'valid'}"


def _tokens(value: float) -> str:
    return "" if pd.isna(value) else count(value)


def phases(part: Part) -> Table:
    """TTFT of `restored` and `memory` over that of `cold`, inside launches."""
    data = offload_estimates.phase_ratios(part)
    if data.empty:
        return Table(data, data, estimates.NO_WINDOWS)
    shown = pd.DataFrame([_phase_row(row) for row in rows_of(data)])
    return Table(
        shown,
        data,
        "Median TTFT of a phase over that of cold, in the same launch; in off mode restored is "
        "computed as well, so its ratio shows what the order of the phases does by itself. "
        f"{_how(data)} Both absolute values are over the same launches.",
    )


def _phase_row(row: Any) -> dict[str, object]:
    return {
        "model": spelled(row.model),
        "mode": row.offload,
        "compared": f"{row.workload} / cold",
        "cache came from": row.came_from,
        **compared(row, "cold (ms)", "the phase (ms)"),
    }


def modes(part: Part) -> Table:
    """Each mode over `off` inside blocks: TTFT in every phase, and the price that cold pays."""
    data = offload_estimates.mode_ratios(part)
    if data.empty:
        return Table(data, data, estimates.why_not(part.found, NO_OFF))
    shown = pd.DataFrame([_mode_row(row) for row in rows_of(data)])
    return Table(
        shown,
        data,
        "Each mode over off in the same phase, inside blocks. What offload saves shows where "
        "prompts come back; what it costs shows in cold, where every prompt has to be computed "
        f"and stored. {_how(data)} Both absolute values are over the same blocks.",
    )


def _mode_row(row: Any) -> dict[str, object]:
    return {
        "metric": METRICS[row.metric].label,
        "model": spelled(row.model),
        "phase": row.workload,
        "compared": f"{row.offload} / off",
        "cache came from": row.came_from,
        **compared(row, "off", "the mode"),
    }


def _how(data: pd.DataFrame) -> str:
    """How the intervals were made, said once for each family."""
    known = data[data["n"] > 0]
    if known.empty:
        return "Nothing to compare: no block has valid windows of both."
    families = [interval_words(group, "blocks") for _, group in known.groupby("method", sort=False)]
    return f"Intervals: {'; '.join(dict.fromkeys(families))}."


def bytes_moved(part: Part) -> Table:
    """Arithmetic beside what files and counters say."""
    data = offload_bytes.bytes_moved(part)
    if data.empty:
        return Table(data, data, "Not measured: no valid window stored or restored anything.")
    shown = pd.DataFrame(
        {
            "arm": data["arm"],
            "phase": data["workload"],
            "launches": data["launches"],
            "what": data["direction"],
            "tokens": data["tokens"].map(_tokens),
            "KV bytes per token": data["bytes_per_token"].map(count),
            "arithmetic (bytes)": data["arithmetic_bytes"].map(_tokens),
            "observed (bytes)": [reported(value, count) for value in data["observed_bytes"]],
            "files": data["files"].map(_tokens),
            "observed / arithmetic": [
                "" if pd.isna(value) else f"{value:.5f}" for value in data["ratio"]
            ],
            "verdict": data["verdict"],
            "observed as": data["observed"],
        }
    )
    return Table(
        shown,
        data,
        "Stored, by arithmetic: in file mode the whole blocks of each prompt of cold that can be "
        "reused (never the one of its last token), in native mode all of its whole blocks (some "
        "versions store those of its answer too: the last column says so), times KV bytes per "
        "token. "
        "Restored: the hits that the engine counted, "
        f"times the same. They agree within {offload_bytes.AGREE:.0%}: a file has a header of its "
        "own, and a native transfer counts when it is over, which can be after its window.",
    )


def capacity(part: Part) -> Table:
    """Whether memory had to drop prompts, and could hold those that came back."""
    data = offload_bytes.capacity(part)
    if data.empty:
        return Table(data, data, "Not measured: no engine said how much its cache holds.")
    shown = pd.DataFrame(
        {
            "arm": data["arm"],
            "launches": data["launches"],
            "prompts": data["prompts"],
            "tokens of all prompts": data["set_tokens"].map(count),
            "cache in force (tokens)": data["kv_cache_tokens"].map(count),
            "prompts / cache": data["times"].map(number),
            "exceeds memory": _yes(data["exceeds"]),
            "prompts that return": data["returning"],
            "tokens of these, with answers": data["returning_tokens"].map(count),
            "fit into memory": _yes(data["fits"]),
            "block size": [reported(size, count) for size in data["block_size"]],
        }
    )
    text = "The whole set must exceed memory, or nothing is dropped; the part that returns must fit"
    return Table(shown, data, f"{text}, or memory never holds it. The cache is the engine's word.")


def _yes(values: pd.Series) -> list[str]:
    return ["yes" if value else "no" for value in values]


def passes(part: Part) -> Table:
    """What the passes of the fixed prompts found in the cache."""
    data = offload_estimates.passes(part)
    if data.empty:
        return Table(data, data, "Not measured: no launch has sent the fixed prompts.")
    shown = pd.DataFrame(
        {
            "arm": data["arm"],
            "pass": data["number"],
            "launches": data["launches"],
            "tokens found in memory": data["memory_tokens"].map(_tokens),
            "tokens restored by offload": data["restored_tokens"].map(_tokens),
        }
    )
    return Table(
        shown,
        data,
        "The fixed prompts of same_output, sent twice with the cache reset in between: what the "
        "second pass restored is compared with what the first computed.",
    )
