"""The chapter on saturation: where throughput stops rising, what it costs beyond, and why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from study import estimates, knee
from study.chapter import Part, Shown, Text
from study.chapters import saturation_figures as figures
from study.chapters.saturation_estimates import (
    ADMISSION,
    BATCH_LIMIT,
    CACHE_FULL,
    CANNOT_JUDGE,
    COMPUTE,
    HEADLINE,
    KV_CACHE,
    MANY_EMPTY,
    NOT_REACHED,
    REACHED,
    RESOLUTION,
    ROSE_TO,
    RUNNING_FULL,
    UNSURE,
    beyond,
    knees,
    limits,
)
from study.chapters.saturation_tables import cost_table, hedge, knee_table, limit_table
from study.estimates import METRICS, rows_of
from study.sentences import Values, least_label, margin, verdict
from study.style import spelled

CAUTION = (
    "What exceeds a knee belongs in a queue in front of the server, or on another one. Where the "
    "batch limit ends the rise, the study set it (`max_num_seqs`): a larger batch may move the "
    "knee, as far as compute and cache let it. A knee is that of these lengths, this engine and "
    "this machine, and of the tested levels. These are measured in the order of the search, never "
    "in random order: a drift of the machine during a launch would look like a part of the curve."
)


def summary(part: Part, values: Values) -> list[Shown]:
    """How many curves end, where each of them does and what that costs, and a caution."""
    return [
        Text(f"> {lead(part, values)}"),
        Text(f"**Throughput.**\n\n{stops(part, values)}"),
        Text(f"**Why.**\n\n{reasons(part, values)}"),
        Text(f"{past_knee(part, values)} {CAUTION} {method(part, values)}"),
    ]


def results(part: Part, values: Values) -> list[Shown]:
    """Curves and knees, what lies beyond, and what the engine says of its limits."""
    book = part.notebook
    return [
        Text(
            "#### Throughput against requests in flight\nPoints are measured, lines are fitted; "
            "the knee is read from the line."
        ),
        figures.throughput(part).keep(f"{book}-throughput"),
        knee_table(part).keep(f"{book}-knees"),
        Text("#### What more requests in flight cost\nAbove the knee, and at the highest level."),
        figures.latency(part).keep(f"{book}-latency"),
        cost_table(part).keep(f"{book}-costs"),
        figures.trade_off(part).keep(f"{book}-trade-off"),
        Text("#### What ends the rise\nBy the level and the engine's own gauges."),
        figures.engine(part).keep(f"{book}-engine"),
        limit_table(part).keep(f"{book}-limits"),
        Text(rule(values)),
    ]


# --- sentences ------------------------------------------------------------------------------------


def lead(part: Part, values: Values) -> str:
    """On how many curves throughput stops rising inside the tested levels, and what ends it."""
    known, ended = knees(part), limits(part)
    if known.empty:
        return "Nothing was asked for."
    total = values.count("saturation.curves", len(known))
    states = known["state"].value_counts()
    reached = values.count("saturation.curves.reached", states.get(REACHED, 0))
    text = (
        f"Throughput stops rising within the tested levels on **{reached} of {total}** curves "
        "(a curve is one family on one workload)"
    )
    others = states.drop(REACHED, errors="ignore")
    text += _counted("; otherwise", others, values, "saturation.curves")
    text += "; one launch of each carries no interval." if (known["launches"] == 1).all() else "."
    hedged = np.array([bool(hedge(row)) for row in rows_of(ended)], dtype=bool)
    sure, point_only = (ended.loc[which, "limit"].value_counts() for which in (~hedged, hedged))
    text += _counted(" What ends the rise, by rule", sure, values, "saturation.limits", ".")
    what = " Without an interval, what ends the rise is only consistent with"
    return text + _counted(what, point_only, values, "saturation.consistent", ".")


def _counted(what: str, counts: pd.Series, values: Values, key: str, end: str = "") -> str:
    said = [f"{name} on {values.count(f'{key}.{name}', n)}" for name, n in counts.items()]
    return f"{what}: {', '.join(said)}{end}" if said else ""


def stops(part: Part, values: Values) -> str:
    """A line per curve: its knee and what more requests in flight cost, or why it has none."""
    past = beyond(part)
    lines = []
    for row in rows_of(knees(part)):
        key = f"saturation.{row.arm}.{row.workload}"
        said = _no_knee(key, row, values)
        if row.state == REACHED:
            of_curve = past[(past["arm"] == row.arm) & (past["workload"] == row.workload)]
            said = f"{_knee(key, row, values)} {_beyond(key, row, of_curve, values)}"
        lines.append(f"- {_curve(key, row, values)}: {said}")
    return "\n".join(lines) or f"- {estimates.NO_WINDOWS}"


def _curve(key: str, row: Any, values: Values) -> str:
    model = values.label(f"{key}.model", spelled(row.model))
    given = values.count(f"{key}.input_tokens", row.input_tokens)
    made = values.count(f"{key}.output_tokens", row.output_tokens)
    return f"{model} on `{values.label(f'{key}.workload', row.workload)}` ({given} in, {made} out)"


def _knee(key: str, row: Any, values: Values) -> str:
    there = values.interval(f"{key}.knee", row)
    share = values.percent("saturation.share", knee.SHARE)
    most = values.number(f"{key}.maximum_tok_s", row.maximum_tok_s)
    text = f"throughput stops rising at **{there}** in flight ({share} of the fitted maximum, "
    text += f"{most} output tok/s"
    text += " for all launches pooled)" if row.launches > 1 else ")"
    if row.void_near:
        near = values.label(f"{key}.void_near", row.void_near)
        text += f"; near it every window of level {near} is void, so it might lie elsewhere"
    text += _rough(key, row, values)
    total = values.count(f"{key}.launches", row.launches)
    if row.n < row.launches:
        reached = values.count(f"{key}.launches.reached", row.n)
        text += f"; of {total} launches {reached} reached their knee"
        return f"{text}, so it has no interval." if pd.isna(row.low) else f"{text}."
    return f"{text}." if row.launches > 1 else f"{text}; one launch carries no interval."


def _rough(key: str, row: Any, values: Values) -> str:
    """A caution where windows lie further off the curve than their noise is taken to be, or where
    there are too few to say how far."""
    if pd.isna(row.misfit):
        text = "; that curve has exactly as many parameters as windows"
        return f"{text}, so nothing tells how well it fits"
    loud = row.misfit > knee.NOISE
    if row.spare and not loud:
        return ""
    off = values.percent(f"{key}.misfit", row.misfit)
    text = f"; the windows lie {off} off that curve"
    if not row.spare:
        text = "; with as many parameters as windows, that curve still misses them by at least "
        text += off
    noise = values.percent("saturation.noise", knee.NOISE)
    return f"{text}, {noise} would be quiet, so it is rough" if loud else text


def _beyond(key: str, row: Any, past: pd.DataFrame, values: Values) -> str:
    """What the highest level that the launches share gives and costs against the knee's."""
    if past.empty:
        return "No higher level has a valid window, so what lies beyond was not measured."
    there = values.count(f"{key}.at_level", int(row.at_level))
    top = values.count(f"{key}.top_level", int(row.top_level))
    said = {one.metric: one for one in rows_of(past)}
    ttft, rate = said["ttft_p50_s"], said[HEADLINE]
    if not ttft.n or not rate.n:
        return f"No launch has valid windows at both {there} and {top}."
    scale, unit = METRICS["ttft_p50_s"].scale, METRICS["ttft_p50_s"].unit
    low, high = (
        values.number(f"{key}.ttft_{unit}.{side}", getattr(ttft, f"{side}_point") * scale)
        for side in ("baseline", "treatment")
    )
    return (
        f"From {there} to {top} in flight the median TTFT goes from {low} to {high} {unit}, "
        f"**{values.interval(f'{key}.ttft_ratio', ttft)}** times ({verdict(ttft)}), and "
        f"throughput to {values.interval(f'{key}.rate_ratio', rate)} times ({verdict(rate)})."
    )


def _no_knee(key: str, row: Any, values: Values) -> str:
    if row.state == NOT_REACHED:
        top = values.count(f"{key}.highest_level", row.highest_level)
        most = values.number(f"{key}.maximum_tok_s", row.maximum_tok_s)
        return (
            f"**not reached**: throughput still rises at {top} in flight, the highest valid level "
            f"(up to {most} output tok/s, as fitted). More levels would be needed."
        )
    why = f" ({values.label(f'{key}.why', row.text)})" if row.text else ""
    return f"{row.state}{why}."


def reasons(part: Part, values: Values) -> str:
    """A line per knee: which resource ends the rise, by the engine's gauges at that level."""
    lines = []
    for row in rows_of(limits(part)):
        key = f"saturation.{row.arm}.{row.workload}"
        curve, gauges = _curve(key, row, values), _gauges(key, row, values)
        lines.append(f"- {curve}: {hedge(row)}**{row.limit}**. {gauges}")
    return "\n".join(lines) or "- No curve has a knee, so nothing ends a rise here."


def _gauges(key: str, row: Any, values: Values) -> str:
    if row.limit == CANNOT_JUDGE:
        return "The engine's gauges were not sampled in the steady part."
    there = values.count(f"{key}.at_level", int(row.at_level))
    running = values.number(f"{key}.running", row.running)
    waiting = values.number(f"{key}.waiting_mean", row.waiting_mean)
    gauge = values.number(f"{key}.running_mean", row.running_mean)
    most = values.count(f"{key}.max_num_seqs", row.max_num_seqs)
    use = values.percent(f"{key}.kv_use", row.kv_use_max)
    preempted = values.number(f"{key}.preemptions", row.preemptions)
    return (
        f"Of {there} in flight {waiting} wait, by the engine's gauge; the level minus these, at "
        f"most the batch of {most}, is {running} (the gauge of those that run, which reads low, "
        f"says {gauge}). {use} of the cache is in use, preemptions a window: {preempted}. "
        f"{_meaning(key, row, values)}"
    )


def _meaning(key: str, row: Any, values: Values) -> str:
    """What the gauges say of the limit, and where they say nothing."""
    if row.limit == UNSURE:
        return _near(key, row, values)
    if row.limit == BATCH_LIMIT and row.at_level <= row.max_num_seqs:
        return (
            "No more are in flight than the batch holds, so it counts as full as soon as nobody "
            "waits, whatever ends the rise: only the place of the knee speaks for the limit."
        )
    return {
        BATCH_LIMIT: "As many run as the batch holds; every further request waits.",
        KV_CACHE: "The cache is full, and every further request waits for room in it.",
        ADMISSION: "Neither limit is met, and yet many wait to be taken in: their prompts queue "
        "for room in a step (`max_num_batched_tokens`), or for the prefill itself.",
        COMPUTE: "No limit was met where the rise ended: by exclusion, the steps that all share "
        "grow longer.",
    }.get(row.limit, "Both are full, and every further request waits.")


def _near(key: str, row: Any, values: Values) -> str:
    """Why the rule cannot tell: the knee, and the limit between batch limit and compute."""
    least = values.number(f"{key}.rule_least", ROSE_TO * row.max_num_seqs)
    sides = f"above it the rule says {BATCH_LIMIT}, below it {COMPUTE}"
    if pd.isna(row.low):
        point = values.number(f"{key}.knee.point", row.point)
        near = f"is too near to {least}, a step below the batch, to tell"
        return f"The knee, {point}, {near}: {sides}."
    low, high = (
        values.number(f"{key}.knee.{side}", getattr(row, side)) for side in ("low", "high")
    )
    return (
        f"The knee's interval, {low} to {high}, is not clearly on one side of {least}, a step "
        f"below the batch: {sides}."
    )


def rule(values: Values) -> str:
    """How the resource that ends a rise is told from the gauges."""
    running = values.percent("saturation.running_full", RUNNING_FULL)
    cache = values.percent("saturation.cache_full", CACHE_FULL)
    empty = values.percent("saturation.many_empty", MANY_EMPTY)
    near = values.percent("saturation.resolution", RESOLUTION)
    return (
        "The rule, at the lowest tested level at or above the knee: the *batch limit* ends the "
        f"rise if on average {running} of `max_num_seqs` run and the knee, with all of its "
        "interval, lies no more than a step of the levels below it (*batch limit or compute* where "
        f"only a part of the interval does, or either end lies within {near} of that step: no "
        f"knee is known any finer); the *KV cache* if {cache} of it is in use at its "
        "fullest or a request was preempted; *admission* if neither is full and yet "
        f"{empty} of the slots stay empty while requests wait; "
        "*compute*, by exclusion, if none of these: the time of a step with all that runs on the "
        "same cores, engine, API server and client. "
        "The engine's gauge of those that run is read when a step is over, and lacks whom that "
        "step finished and whom the next one takes in: all that do not wait count as running, as "
        "far as the batch goes. With no more in flight than the batch holds this says no more than "
        "that nobody waits. A knee more than a step above a batch that was full before, or within "
        f"{near} of that step, is not judged. Where a knee has no interval, its point is held "
        "against the rule, which is then no more than consistent with it."
    )


def past_knee(part: Part, values: Values) -> str:
    """What a higher level can give by the definition of a knee, and what it gave here."""
    if not (knees(part)["state"] == REACHED).any():
        return "No curve has a knee, so none shows what lies beyond one."
    gain = values.percent("saturation.gain", 1 - knee.SHARE)
    text = (
        f"Beyond its knee a server gains at most {gain} of its fitted maximum, within the tested "
        "levels, while requests wait longer or run slower."
    )
    past = beyond(part)
    rates = past.loc[(past["metric"] == HEADLINE) & (past["n"] > 0), "point"]
    if rates.empty:
        return text
    ends = {"least": rates.min(), "most": rates.max()}
    said = dict.fromkeys(values.number(f"saturation.beyond.{end}", n) for end, n in ends.items())
    return (
        f"{text} Here throughput at the highest level was {' to '.join(said)} times that at the "
        "lowest one at or above the knee."
    )


def method(part: Part, values: Values) -> str:
    """How the brackets were made."""
    known = knees(part)
    sure = known[known["low"].notna()] if len(known) else known
    if sure.empty:
        return "No knee has an interval: it needs two launches that reach it."
    said = values.label("saturation.method", least_label(sure))
    return f"In brackets behind a knee: {said} or more. {margin(part.name, values)}"
