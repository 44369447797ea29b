"""The tables of the chapter on block_size."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from study import estimates
from study.chapters import block_size_estimates as sizes
from study.chapters.block_size_figures import backend_words
from study.estimates import METRICS, rows_of
from study.figures import interval_words
from study.frames import Frames
from study.plan import Launch
from study.style import spelled
from study.tables import Table, compared, count, ratios, reported, verdict_words


def answers(found: Frames) -> Table:
    """A row per model and size asked for: what became of it, and the engine's words."""
    data = sizes.answers(found)
    if data.empty:
        return Table(data, data, "Nothing was asked for: the experiment has no launch.")
    shown = pd.DataFrame(
        {
            "model": data["model"].map(spelled),
            "asked for": data["asked"].map(count),
            "outcome": data["outcome"],
            "in force": [_size(row) for row in rows_of(data)],
            "attention back end": data["attention_backend"],
            "launches": [f"{row.launches} of {row.of}" for row in rows_of(data)],
            "reason": data["reason"],
        }
    )
    return Table(
        shown,
        data,
        "The engine's answer to each block size (in tokens). In force is what its own cache "
        "configuration says. What an engine refuses or overrides is settled by one block; the "
        "reason of a refusal is in its own words.",
    )


def _size(row: object) -> str:
    outcome, size = (getattr(row, name) for name in ("outcome", "in_force"))
    if outcome not in sizes.RAN:
        return str(outcome)
    return reported(size, count)


def comparisons(found: Frames) -> Table:
    """Each accepted size against the smallest of its family, with the absolute values."""
    data = sizes.all_ratios(found)
    if data.empty:
        said = " ".join([estimates.why_not(found, sizes.NO_PAIR), *_alone(found)])
        return Table(data, data, said)
    rows = [
        {
            "model": spelled(row.model),
            "metric": METRICS[row.metric].label,
            "workload": row.workload,
            "level": row.level,
            "sizes": f"{row.size} / {row.base_size}",
            **compared(row, treatment="size"),
        }
        for row in rows_of(data)
    ]
    known = data[data["n"] > 0]
    made = f"Intervals: {interval_words(known, 'blocks')}. " if len(known) else ""
    made += "Those of a metric hold together. " if (known["n"] > 1).any() else ""
    said = (
        "Block sizes in force, each against the smallest of the same model and attention back "
        f"end, inside blocks. {made}Both absolute values are adjusted to the same blocks; a "
        f"dropped block lacked a valid window of one of the two. {verdict_words()} "
    )
    return ratios(rows, data, " ".join([said + backend_words(data), *_alone(found)]))


def _alone(found: Frames) -> list[str]:
    """A sentence per family without a pair."""
    said = {0: "no size was accepted", 1: "only {} was accepted"}
    return [
        f"No pair for {spelled(one.model)}: {said[len(one.sizes)].format(*one.sizes)}."
        for one in sizes.alone(found)
    ]


def capacity(found: Frames, launches: Sequence[Launch]) -> Table:
    """What the same memory holds by block size."""
    data = sizes.capacity(found, launches)
    if data.empty:
        return Table(data, data, "Not measured: no engine has reported its cache.")
    shown = pd.DataFrame(
        {
            "model": data["model"].map(spelled),
            "block size in force": data["in_force"].map(count),
            "KV tokens held (engine)": data["tokens"].map(count),
            "workload": data["workload"],
            "tokens of a request": data["request_tokens"].map(count),
            "cache it fills (tokens)": data["taken_tokens"].map(count),
            "such requests held": data["requests"].map(count),
        }
    )
    each = [f"{size / 2**30:.3g} GiB" for size in data["cache_bytes"].dropna()]
    memory = " or ".join(dict.fromkeys(each))
    return Table(
        shown,
        data,
        f"KV cache of {memory or 'a size that the engine does not report'}. KV tokens held are "
        "the engine's; the rest is arithmetic: a request fills whole blocks, so the last one may "
        "stay partly empty. Deterministic.",
    )
