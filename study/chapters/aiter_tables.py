"""Tables of the chapter on engine-side switches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from study import estimates
from study.chapter import Part
from study.chapters import aiter_estimates as switches
from study.chapters.aiter_estimates import ENOUGH, HEADLINE, left_out, pair_name, why
from study.estimates import LIMITS, METRICS, of_metrics, rows_of
from study.experiments.aiter import MASTER
from study.figures import interval_words
from study.frames import Frames
from study.plan import Launch
from study.style import spelled
from study.tables import (
    NOT_REPORTED,
    Table,
    compared,
    count,
    interval,
    number,
    reported,
    sides_words,
    verdict_words,
)

NO_PAIR = "Nothing to compare: this platform has no setting beside its baseline."
RAN = ("measured", "overridden", "failed")  # outcomes of a server that may have said what it runs


def settings(part: Part) -> Table:
    """A row per arm and outcome: what the engine says is in force, or why there is nothing."""
    found = part.found
    data = switches.arms(found).drop(columns="outcome")
    data = data.merge(estimates.outcomes(found), on="arm")
    if data.empty:
        return Table(data, data, "No launch was asked for.")
    said = [*switches.IN_FORCE, *switches.switch_columns(found)]
    data = data.join(_in_force(found, said), on=["arm", "outcome"])
    asked = _switches_asked(part.launches)
    named = {"eager": "eager", "attention_backend": "attention back end"}
    named |= {"moe_backend": "mixture back end", "rms_norm": "RMS norm preferred"}
    named |= {"aiter": "AITER kernels"} if MASTER in asked else {}
    named |= {name: _short(name) for name in said if name in asked}
    first = data[["arm", "outcome", "launches"]]
    shown = first.rename(columns={"launches": "launches asked for"}).assign(
        **{
            label: [
                value if ran in RAN else ran
                for value, ran in zip(data[name], data["outcome"], strict=True)
            ]
            for name, label in named.items()
        },
        reason=data["reason"],
    )
    return Table(
        shown,
        data,
        "Every arm with its outcome and what is in force, as the engine's own page and log report "
        "it and not as our flags ask. Switches from the environment are those that some arm sets "
        "here; the twin in data/derived has all that the engine reports. "
        "RMS norm is what the engine prefers by its switches, no proof that it runs. "
        f"{NOT_REPORTED.capitalize()}: the engine does not say it.",
    )


def _in_force(found: Frames, columns: Sequence[str]) -> pd.DataFrame:
    rows = found.launches.reindex(columns=["arm", "outcome", *columns])
    return rows.groupby(["arm", "outcome"])[list(columns)].agg(_said)


def _said(values: pd.Series) -> str:
    return ", ".join(sorted({str(value) for value in values.dropna()})) or NOT_REPORTED


def _switches_asked(launches: Sequence[Launch]) -> set[str]:
    """Names in the environment of arms that this platform can have."""
    return {name for one in launches if not one.not_applicable for name in one.arm.environment}


def _short(name: str) -> str:
    return name.removeprefix("VLLM_ROCM_USE_").removeprefix("VLLM_CPU_")


def starts(part: Part) -> Table:
    """Per arm: how long each launch took to become ready, and the compile cache before it."""
    data = switches.starts(part)
    if data.empty:
        return Table(data, data, "No server became ready.")
    groups = data.groupby("arm", sort=False)
    shown = pd.DataFrame(
        {
            "arm": list(groups.groups),
            "launches": list(groups.size()),
            "ready after (s)": list(groups["ready_s"].agg(_row_of_numbers)),
            "compile cache before it (files)": list(groups["cache_files"].agg(_row_of_counts)),
            "(kB)": list((groups["cache_bytes"]).agg(_row_of_kilobytes)),
        }
    )
    return Table(
        shown,
        data,
        "Start of every server that became ready, in the order of blocks. The compile cache is "
        "shared by all arms: what one launch has compiled, a later one finds, and starts faster.",
    )


def _row_of_numbers(values: pd.Series) -> str:
    return " · ".join(number(value) for value in values)


def _row_of_counts(values: pd.Series) -> str:
    return " · ".join(reported(value, count) for value in values)


def _row_of_kilobytes(values: pd.Series) -> str:
    return _row_of_counts(values / 1e3)


def comparisons(found: Frames, launches: Sequence[Launch]) -> Table:
    """Treatment / baseline inside blocks: ratio, p-value, and the values that the ratio hides."""
    data = of_metrics(lambda metric: switches.ratios(found, launches, metric))
    if data.empty:
        return Table(data, data, NO_PAIR + left_out(found))
    rows = [
        {
            "metric": METRICS[row.metric].label,
            "treatment / baseline": pair_name(row),
            "model": spelled(row.model),
            "workload": row.workload,
            "level": row.level,
            **compared(row, missing=why(row)),
        }
        for row in rows_of(data)
    ]
    known = data[data["n"] > 0]
    made = f"Intervals: {interval_words(known, 'blocks')}. " if len(known) else ""
    text = (
        f"Each setting against its baseline, inside blocks. {made}Baseline and treatment are over "
        "the same blocks; a dropped block lacked a valid window of one of the two. The p-value "
        f"and the interval come from one test. {verdict_words()} {sides_words(data)}"
    ).rstrip()
    return Table(pd.DataFrame(rows), data, text + left_out(found))


def spreads(found: Frames, launches: Sequence[Launch]) -> Table:
    """Ratio of the spreads of launches, with both coefficients of variation."""
    data = switches.spreads(found, launches)
    if data.empty:
        return Table(data, data, NO_PAIR + left_out(found))
    rows = [
        {
            "treatment / baseline": pair_name(row),
            "model": spelled(row.model),
            "workload": row.workload,
            "level": row.level,
            "baseline: coefficient of variation": _variation(row._asdict(), "baseline"),
            "treatment": _variation(row._asdict(), "treatment"),
            "ratio of spreads": interval(row.point, row.low, row.high)
            if pd.notna(row.point)
            else why(row),
            "launches": f"{row.treatment_n} against {row.baseline_n}",
        }
        for row in rows_of(data)
    ]
    text = (
        f"Launch-to-launch spread of {METRICS[HEADLINE].name.lower()}: both coefficients of "
        "variation (chi-square interval) and the ratio of the standard deviations of the "
        "logarithms (F interval, Bonferroni over all comparisons). All of them assume "
        "normal log values and are sensitive to that; the F interval also takes arms as "
        f"independent, where drift that blocks share draws the ratio towards one. Below {ENOUGH} "
        "launches an arm a ratio of spreads carries next to nothing."
    )
    return Table(pd.DataFrame(rows), data, text + left_out(found))


def _variation(row: Mapping[str, Any], side: str) -> str:
    """'3.1 % [1.9, 7.8]', or that there is none."""
    if pd.isna(row[f"{side}_point"]):
        return "n/a"
    point, limits = interval(*(row[f"{side}_{name}"] * 100 for name in LIMITS)).partition(" ")[::2]
    return f"{point} % {limits}".rstrip()
