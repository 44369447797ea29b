"""Sentences of the chapter on engine-side switches; every number by way of `Values`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from study import estimates, stats
from study.chapter import Part
from study.chapters import aiter_estimates as switches
from study.chapters.aiter_estimates import (
    ENOUGH,
    HEADLINE,
    NOT_SHOWN,
    PARTS,
    TWICE,
    question,
    told_apart,
    why,
)
from study.estimates import METRICS, of_metrics, rows_of
from study.figures import interval_words
from study.same_output import Agreement
from study.sentences import Values, lower, margin, one_block, ties, verdict
from study.standing import NOT_APPLICABLE
from study.style import spelled

COMMAND = "make reproduce PROFILE=gpu ONLY=aiter"
SAME_KERNELS = "the engine names no kernel that differs, so this is chance or what it does not name"
NOTHING = "This platform has no setting beside its baseline, so nothing is compared."


def headline(part: Part, values: Values) -> str:
    """Each switch as a whole at the highest level: the ratio of throughputs, per workload."""
    frame = _whole(_at_top(switches.ratios(part.found, part.launches, HEADLINE)))
    known = frame[frame["n"] > 0]
    if known.empty:
        return estimates.why_not(part.found, "No block allows a comparison of two settings.")
    said = []
    for _, group in known.groupby(["treatment", "baseline"], sort=False):
        first = group.iloc[0]
        each = [
            f"**{values.interval(f'{_key(part, row)}.lead', row)}** on "
            f"`{_workload(part, row, values)}`"
            for row in rows_of(group)
        ]
        said.append(f"{_pair(part, first, values)} {' and '.join(each)}")
    level = values.count(f"{part.name}.top_level", int(known["level"].iloc[0]))
    return (
        f"At {level} in flight, output throughput as a ratio: {'; '.join(said)}{one_block(known)}."
    )


def speed(part: Part, metrics: Sequence[str], values: Values) -> str:
    """A line per switch as a whole and workload at the highest level, with absolute values."""
    frame = of_metrics(lambda name: switches.ratios(part.found, part.launches, name), metrics)
    lines = _lines(part, _whole(_at_top(frame)), values)
    return lines or f"- {NOTHING}"


def ablation(part: Part, values: Values) -> str:
    """A line per part of AITER that is off, against all of it on."""
    frame = _of_parts(_at_top(switches.ratios(part.found, part.launches, HEADLINE)))
    lines = _lines(part, frame, values)
    return lines or "- No part of AITER is compared here."


def _lines(part: Part, frame: pd.DataFrame, values: Values) -> str:
    lines = []
    for _, group in frame.groupby(["treatment", "baseline", "workload"], sort=False):
        said = "; ".join(_ratio(part, row, values) for row in rows_of(group))
        lines.append(f"- {_place(part, group.iloc[0], values)}: {said}.")
    return "\n".join(lines)


def _ratio(part: Part, row: Any, values: Values) -> str:
    metric, key = METRICS[row.metric], _key(part, row)
    name = lower(metric.name)
    if not row.n:
        return f"{name} not compared ({why(row)})"
    base = values.number(f"{key}.baseline_{metric.unit}", row.baseline_point * metric.scale)
    treated = values.number(f"{key}.treatment_{metric.unit}", row.treatment_point * metric.scale)
    said = (
        f"{name} **{values.interval(key, row)}** times ({treated} against {base} {metric.unit}), "
        f"{verdict(row)}"
    )
    alike = question(row._asdict()) == PARTS and not told_apart(
        part.found, row.treatment, row.baseline
    )
    return f"{said}; {SAME_KERNELS}" if alike else said


def variability(part: Part, values: Values) -> str:
    """A line per switch as a whole and workload, and how much a ratio of spreads can say."""
    frame = _whole(_at_top(switches.spreads(part.found, part.launches)))
    known = frame[frame["point"].notna()]
    lines = [
        f"- {_place(part, row, values)}: {_spread(part, row, values)}." for row in rows_of(known)
    ]
    return "\n".join([*lines, f"\n{_carries(part, known, values)}"]).strip()


def _spread(part: Part, row: Any, values: Values) -> str:
    key = f"{_key(part, row)}.spread"
    treated = values.percent(f"{key}.treatment", row.treatment_point)
    base = values.percent(f"{key}.baseline", row.baseline_point)
    return (
        f"the launches' spread is **{values.interval(key, row)}** times as large (coefficient of "
        f"variation {treated} against {base}), {_spread_verdict(row)}"
    )


def _spread_verdict(row: Any) -> str:
    if math.isnan(row.low):
        return "without an interval"
    if row.low > 1:
        return "more variable, by this interval"
    return "less variable, by this interval" if row.high < 1 else "no difference is shown"


def _carries(part: Part, known: pd.DataFrame, values: Values) -> str:
    """What a ratio of spreads can carry with so many launches."""
    key = f"{part.name}.spread"
    enough = values.count(f"{key}.enough", ENOUGH)
    if known.empty:
        return (
            "No ratio of spreads can be given: it needs several valid launches of both arms, and "
            f"with fewer than {enough} of each it carries next to nothing."
        )
    n = int(known["n"].min())
    most = switches.by_chance(n)
    low, high = values.number(f"{key}.low", 1 / most), values.number(f"{key}.high", most)
    share = values.percent(f"{key}.share", stats.CONFIDENCE)
    said = (
        f"With {values.count(f'{key}.launches', n)} launches an arm, two arms of one and the same "
        f"spread give a ratio between {low} and {high} in {share} of experiments"
    )
    if n < ENOUGH:
        return f"{said}: below {enough} launches a ratio of spreads carries next to nothing."
    return f"{said}, so only what lies far outside is a finding."


def start(part: Part, values: Values) -> str:
    """Per switch as a whole: how many seconds more a start takes, inside blocks; Bonferroni."""
    ready, whole = switches.starts(part), _whole(switches.pairs(part.found))
    lines = []
    for pair in rows_of(whole):
        if NOT_SHOWN in (pair.treatment_outcome, pair.baseline_outcome):
            continue
        weights = {str(pair.treatment): 1.0, str(pair.baseline): -1.0}
        said = stats.contrast(ready, "ready_s", weights, log=False, comparisons=len(whole)).effect
        if not said.n:
            continue
        key = f"{part.name}.ready.{pair.treatment}"
        mean_s = float(ready.loc[ready["arm"] == pair.baseline, "ready_s"].mean())
        lines.append(
            f"- {_pair(part, pair, values)}: ready **{values.interval(key, said)} s** later than "
            f"the baseline, which takes {values.number(f'{key}.baseline_s', mean_s)} s"
            f"{'; one start of each carries no interval' if said.n == 1 else ''}."
        )
    if lines:
        lines.append(
            "\nThe first start of a setting may compile what later ones find in the engine's cache."
        )
    return "\n".join(lines)


def twice(part: Part, values: Values) -> str:
    """What the same server under two names differs by; empty where there is none."""
    frame = _at_top(switches.ratios(part.found, part.launches, HEADLINE))
    rows = frame[(frame["switch"] == TWICE) & (frame["n"] > 0)]
    if rows.empty:
        return ""
    said = " and ".join(
        f"{_pair(part, row, values)} **{values.interval(_key(part, row), row)}** on "
        f"`{_workload(part, row, values)}`"
        for row in rows_of(rows)
    )
    return (
        f"The noise floor: by the engine's own account some arms are one server under two names "
        f"(A/A). Their output throughput as a ratio: {said}. A switch whose ratio carries no "
        "interval and lies no further from one has not been told from chance."
    )


def outputs(part: Part, values: Values) -> str:
    """How many pairs give the same output, and in full those that do not."""
    judged = [(one, one.judgement) for one in switches.agreements(part)]
    if not judged:
        return NOTHING
    counts = pd.Series([judgement.verdict for _, judgement in judged]).value_counts()
    passed = [one for one, judgement in judged if judgement.verdict == "pass"]
    said = ", ".join(
        f"{values.count(f'{part.name}.same_output.{name}', n)} {name}" for name, n in counts.items()
    )
    failed = [
        values.label(f"{part.name}.same_output.{one.treatment}", f"`{judgement.text}`")
        for one, judgement in judged
        if judgement.verdict == "fail"
    ]
    first = f"Same output for the fixed prompts, by pair: {said}."
    return " ".join(filter(None, [first, _at_ties(part, passed, values), *failed]))


def _at_ties(part: Part, passed: Sequence[Agreement], values: Values) -> str:
    """What is forgiven to those that pass."""
    if not passed:
        return ""
    key = f"{part.name}.same_output"
    prompts = values.count(f"{key}.prompts", sum(one.prompts for one in passed))
    said = ties(key, sum(one.ties for one in passed), prompts, values)
    return f"Of those that pass, {said}."


def aiter(part: Part, values: Values) -> str:
    """What can be said about AITER: on ROCm how it stands, elsewhere that nothing can."""
    known = switches.arms(part.found)
    of = known[known["switch"] == "aiter"]
    if of.empty:
        return "AITER was not asked for."
    asked = values.count(f"{part.name}.aiter.asked", len(of))
    if (of["outcome"] == NOT_APPLICABLE).all():
        return _not_applicable(part, asked, values)
    measured = values.count(f"{part.name}.aiter.measured", int((of["outcome"] == "measured").sum()))
    return (
        f"Of {asked} AITER arms asked for, {measured} were measured with AITER in force as asked "
        "by the engine's own log, not by its switches alone. All of AITER on is compared with "
        "all of it off, and each of its parts off with all of AITER on: there a throughput "
        "ratio below one says that the part makes the server faster. A part that a model does "
        "not have, like MLA in a GQA model, or that the engine leaves out on this GPU although it "
        "is on, should change nothing; what it seems to change is "
        f"chance.{_without(part, of, values)}"
    )


def _not_applicable(part: Part, asked: str, values: Values) -> str:
    told = part.found.launches
    reasons = told.loc[told["switch"] == "aiter", "reason"].unique()
    reason = values.label(f"{part.name}.aiter.reason", "; ".join(reasons))
    command = values.label(f"{part.name}.aiter.command", COMMAND)
    return (
        f"AITER is **not applicable** on this platform: {reason}. None of the {asked} AITER arms "
        "was started, nothing measured here is a number of AITER, and nothing is concluded from it "
        f"about AITER, neither of speed nor of variability. It takes a ROCm node: there, "
        f"`{command}` measures AITER on and off and each of its parts."
    )


def _without(part: Part, of: pd.DataFrame, values: Values) -> str:
    """AITER arms that this platform can have and that were not measured, each with its outcome."""
    rest = of[of["outcome"] != "measured"]
    if rest.empty:
        return ""
    said = ", ".join(
        f"`{values.label(f'{part.name}.arm.{row.arm}', row.arm)}` ({row.outcome})"
        for row in rows_of(rest)
    )
    unproven = (
        f" Of an arm with *{NOT_SHOWN}* the engine names no kernel of AITER, whatever its switches "
        "say: its windows are kept, and it is compared with nothing."
    )
    return f" Without a ratio: {said}.{unproven if NOT_SHOWN in set(rest['outcome']) else ''}"


def method(part: Part, values: Values) -> str:
    """How the ratios were made."""
    frame = switches.ratios(part.found, part.launches, HEADLINE)
    known = frame[frame["n"] > 1]
    if known.empty:
        return "No ratio has an interval: each needs at least two blocks."
    said = values.label(f"{part.name}.ratio.method", interval_words(known, "blocks"))
    text = f"Settings are compared inside blocks; in brackets: {said}."
    return f"{text} {margin(part.name, values)}"


# --- parts of a sentence --------------------------------------------------------------------------


def _at_top(frame: pd.DataFrame) -> pd.DataFrame:
    top: pd.DataFrame = frame.loc[frame["level"] == frame["level"].max()]
    return top


def _questions(frame: pd.DataFrame) -> pd.Series:
    asked = [question(row._asdict()) for row in rows_of(frame)]
    return pd.Series(asked, index=frame.index, dtype=object)


def _of_parts(frame: pd.DataFrame) -> pd.DataFrame:
    parts: pd.DataFrame = frame.loc[_questions(frame) == PARTS]
    return parts


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    """Without A/A, and of AITER only all of it on against all of it off."""
    whole: pd.DataFrame = frame.loc[~_questions(frame).isin([PARTS, TWICE])]
    return whole


def _key(part: Part, row: Any) -> str:
    where = f"{row.workload}.{row.level}.{row.treatment}.over.{row.baseline}"
    return f"{part.name}.{row.metric}.{where}"


def _pair(part: Part, row: Any, values: Values) -> str:
    said = f"`{row.setting}` against `{row.baseline_setting}`"
    if len({launch.arm.model.name for launch in part.launches}) < 2:
        return said
    model = values.label(f"{part.name}.model.{row.model}", spelled(str(row.model)))
    return f"{said} ({model})"


def _workload(part: Part, row: Any, values: Values) -> str:
    return values.label(f"{part.name}.workload.{row.workload}", str(row.workload))


def _place(part: Part, row: Any, values: Values) -> str:
    level = values.count(f"{part.name}.top_level", int(row.level))
    name = f"A/A, {_pair(part, row, values)}" if row.switch == TWICE else _pair(part, row, values)
    return f"{name}, `{_workload(part, row, values)}`, {level} in flight"
