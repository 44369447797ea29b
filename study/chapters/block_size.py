"""The chapter on block_size: what the engine accepts, changes or refuses, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from study import estimates, same_output, sentences, tables
from study.chapter import Part, Shown, Text
from study.chapters import block_size_estimates as sizes
from study.chapters import block_size_figures as figures
from study.chapters import block_size_source, block_size_tables
from study.chapters.block_size_estimates import Family
from study.compat import command as compat
from study.equivalence import EQUIVALENT
from study.estimates import METRICS, rows_of
from study.frames import Frames
from study.sentences import Values
from study.style import spelled


def summary(part: Part, values: Values) -> list[Shown]:
    """The answers per family, the largest difference, the capacity, and the output."""
    name, found = part.name, part.found
    derived = block_size_source.sentence(name, found, part.launches, values, compat.read())
    said = {
        "What the engine runs": f"{answers(name, found, values)}\n\n{derived}",
        "What the size changes": differences(name, found, values),
        "What the memory holds": capacity(part, values),
        "Same output": outputs(part, values),
    }
    return [
        Text(f"> {lead(name, found, values)}"),
        *[Text(f"**{topic}.**\n\n{text}") for topic, text in said.items()],
    ]


def results(part: Part, _: Values) -> list[Shown]:
    """The answers first, then what the accepted sizes make of speed, capacity and output."""
    book, found, launches = part.notebook, part.found, part.launches
    agreed = sizes.agreements(found, part.outputs)
    return [
        Text(
            "#### What the engine answered\nRead from its cache configuration, not from the flag."
        ),
        figures.answers(found).keep(f"{book}-answers"),
        block_size_tables.answers(found).keep(f"{book}-answers"),
        Text(
            "#### The flag, and what ran\nThe same windows, once by the flag, once by the engine."
        ),
        figures.flag_and_engine(found).keep(f"{book}-flag"),
        Text("#### Throughput and latency by the size in force\nVoid windows are hollow."),
        figures.throughput(found).keep(f"{book}-throughput"),
        figures.latency(found).keep(f"{book}-latency"),
        tables.results(found, sizes.in_order(launches)).keep(f"{book}-results"),
        Text("#### Sizes compared\nInside blocks and one back end; simultaneous intervals."),
        figures.ratios(found).keep(f"{book}-ratios"),
        block_size_tables.comparisons(found).keep(f"{book}-comparisons"),
        Text("#### What the same memory holds"),
        block_size_tables.capacity(found, launches).keep(f"{book}-capacity"),
        Text("#### Is it the same computation?"),
        same_output.table(agreed).keep(f"{book}-same-output"),
    ]


# --- what the engine runs -------------------------------------------------------------------------

WORDS = {
    "rejected": "refused",
    "failed": "failed at",
    "measured": "did not report what it ran for",  # or it would be among the accepted
    "not measured": "not measured:",
}


def lead(name: str, found: Frames, values: Values) -> str:
    """How many of the sizes asked for the engine really runs."""
    told = sizes.answers(found)
    if told.empty:
        return "Nothing was asked for."
    asked = values.count(f"{name}.asked", len(told))
    ran = values.count(f"{name}.accepted", len(sizes.accepted(found)))
    refused, other = (
        values.count(f"{name}.{what}", int((told["outcome"] == what).sum()))
        for what in ("rejected", "overridden")
    )
    return (
        f"Of {asked} pairs of model and block size that were asked for, the engine runs **{ran}** "
        f"as asked, refuses **{refused}**, and in **{other}** runs another size than the flag says."
    )


def answers(name: str, found: Frames, values: Values) -> str:
    """A line per model: sizes accepted, changed, refused, with the reason."""
    told, ran = sizes.answers(found), sizes.accepted(found)
    lines = []
    for model, group in told.groupby("model"):
        key = f"{name}.answers.{model}"
        taken = ran[ran["model"] == model]
        rest = group[~group["arm"].isin(taken["arm"])]
        said = [f"accepted {_sizes(f'{key}.accepted', taken['in_force'], values)}"]
        said = said if len(taken) else []
        said += [
            _changed(f"{key}.overridden.{at}", rows, values)
            for at, (_, rows) in enumerate(
                rest[rest["outcome"] == "overridden"].groupby("in_force", dropna=False)
            )
        ]
        said += [
            f"{words} {_sizes(f'{key}.{outcome}', rows['asked'], values)}"
            + _reason(f"{key}.{outcome}", rows, values)
            for outcome, words in WORDS.items()
            if len(rows := rest[rest["outcome"] == outcome])
        ]
        label = values.label(f"{key}.model", spelled(str(model)))
        lines.append(f"- {label}: {'; '.join(said)}.")
    return "\n".join(lines) or "- Nothing was asked for."


def _changed(key: str, rows: pd.DataFrame, values: Values) -> str:
    size = rows["in_force"].iloc[0]
    ran = "something else" if pd.isna(size) else f"**{values.count(f'{key}.runs', size)}**"
    asked = _sizes(f"{key}.asked", rows["asked"], values)
    return f"ran {ran} in place of {asked}, without refusing{_reason(key, rows, values)}"


def _reason(key: str, rows: pd.DataFrame, values: Values) -> str:
    """The words for the first of them; the table has all."""
    words = " ".join(str(rows["reason"].iloc[0]).replace("`", "'").split())
    return f" (`{values.label(f'{key}.reason', words)}`)" if words else ""


def _sizes(key: str, known: Iterable[float], values: Values) -> str:
    """Block sizes as '32, 64 and 128'; empty without any."""
    said = [values.count(f"{key}.{at}", int(size)) for at, size in enumerate(known)]
    return " and ".join(filter(None, [", ".join(said[:-1]), *said[-1:]]))


# --- what the size changes ------------------------------------------------------------------------


def differences(name: str, found: Frames, values: Values) -> str:
    """A line per family: the largest difference that its intervals show, or that none is shown."""
    every = sizes.all_ratios(found)
    lines = []
    for one in sizes.families(found):
        of = (every["model"] == one.model) & (every["attention_backend"] == one.attention_backend)
        if len(one.sizes) > 1:
            lines.append(_difference(name, one, every[of & (every["n"] > 0)], values))
    compared = len(lines)
    lines += [_alone(name, one, values) for one in sizes.alone(found)]
    if not lines:
        return f"- {estimates.why_not(found, sizes.NO_PAIR)}"
    text = "\n".join(f"- {line}" for line in lines)
    return f"{text}\n\n{sentences.margin(name, values)}" if compared else text


def _family(key: str, one: Family, values: Values) -> str:
    model = values.label(f"{key}.model", spelled(one.model))
    return f"{model} ({values.label(f'{key}.backend', f'back end {one.attention_backend}')})"


def _alone(name: str, one: Family, values: Values) -> str:
    key = f"{name}.alone.{one.model}.{one.attention_backend}"
    if not one.sizes:
        model = values.label(f"{key}.model", spelled(one.model))
        return f"{model}: no pair to compare, no size was accepted."
    only = _sizes(key, one.sizes, values)
    return f"{_family(key, one, values)}: no pair to compare, {only} is the only size accepted."


def _difference(name: str, one: Family, known: pd.DataFrame, values: Values) -> str:
    key = f"{name}.difference.{one.model}.{one.attention_backend}"
    said = f"{_family(key, one, values)}, {_sizes(f'{key}.sizes', one.sizes, values)}"
    if known.empty:
        return f"{said}: no block could be compared."
    shown = known[(known["low"] > 1) | (known["high"] < 1)]
    if known["equivalence"].eq(EQUIVALENT).all():
        return f"{said}: no difference larger than the margin, in any of what is compared."
    if shown.empty:
        points = f"{_points(key, known, values)}; " if known["low"].isna().all() else ""
        return f"{said}: {points}no difference is shown{_reach(key, known, values)}."
    row = _furthest(shown)
    level = values.count(f"{key}.level", row.level)
    return (
        f"{said}: the largest difference shown is on `{row.workload}` with {level} in flight. "
        f"{_ratio(key, row, values)}: {sentences.verdict(row)}."
    )


def _furthest(known: pd.DataFrame) -> Any:
    """The row whose ratio is furthest from one."""
    return next(rows_of(known.loc[[np.log(known["point"]).abs().idxmax()]]))


def _ratio(key: str, row: Any, values: Values) -> str:
    """The ratio of a row with both absolute values."""
    metric = METRICS[row.metric]
    ratio = values.interval(f"{key}.ratio", row)
    size, base = (
        values.count(f"{key}.{what}", getattr(row, what)) for what in ("size", "base_size")
    )
    absolute = " against ".join(
        values.number(f"{key}.{side}", getattr(row, f"{side}_point") * metric.scale)
        for side in ("treatment", "baseline")
    )
    return f"{metric.name} at {size} is **{ratio}** times that at {base} ({absolute} {metric.unit})"


def _points(key: str, known: pd.DataFrame, values: Values) -> str:
    """The ratio of throughputs that is furthest from one, where none has an interval."""
    of = known[known["metric"] == figures.HEADLINE]
    row = _furthest(of if len(of) else known)
    level = values.count(f"{key}.level", row.level)
    where = f"on `{row.workload}` with {level} in flight"
    ratio = sentences.lower(_ratio(key, row, values))
    if len(of) > 1:
        return f"the ratio furthest from one is {where}: {ratio}"
    return f"{where}, {ratio}"


def _reach(key: str, known: pd.DataFrame, values: Values) -> str:
    """How large a difference in throughput could hide in the intervals; nothing without any."""
    with_limits = known[(known["metric"] == figures.HEADLINE) & known["low"].notna()]
    if with_limits.empty:
        return ", since one block carries no interval"
    low = values.number(f"{key}.reach.low", with_limits["low"].min())
    high = values.number(f"{key}.reach.high", with_limits["high"].max())
    blocks = values.count(f"{key}.reach.blocks", with_limits["n"].min())
    metric = METRICS[figures.HEADLINE].name.lower()
    return (
        f"; over {blocks} blocks the intervals of {metric} reach from {low} to {high} times the "
        "baseline's, so what lies between is not excluded"
    )


# --- what the memory holds, and the output --------------------------------------------------------


def capacity(part: Part, values: Values) -> str:
    """A line per model: the tokens that the engine holds, and what a request fills of them."""
    every = sizes.capacity(part.found, part.launches)
    lines = []
    for model, group in every.groupby("model"):
        key = f"{part.name}.capacity.{model}"
        held = group.drop_duplicates(["in_force", "tokens"])
        tokens = [values.count(f"{key}.tokens.{at}", n) for at, n in enumerate(held["tokens"])]
        if len(set(tokens)) == 1:
            said = [f"{tokens[0]} tokens at {_sizes(f'{key}.sizes', held['in_force'], values)}"]
        else:
            at = [_sizes(f"{key}.size.{at}", [n], values) for at, n in enumerate(held["in_force"])]
            said = [f"{n} tokens at {size}" for n, size in zip(tokens, at, strict=True)]
        said += [
            _filled(f"{key}.{workload}", str(workload), rows, values)
            for workload, rows in group.groupby("workload", sort=False)
            if rows["taken_tokens"].nunique() > 1
        ]
        lines.append(f"- {values.label(f'{key}.model', spelled(str(model)))}: {'; '.join(said)}.")
    return "\n".join(lines) or "- Not measured: no engine has reported its cache."


def _filled(key: str, workload: str, rows: pd.DataFrame, values: Values) -> str:
    most = rows.sort_values("taken_tokens").iloc[-1]
    needed, taken, size = (
        values.count(f"{key}.{what}", most[what])
        for what in ("request_tokens", "taken_tokens", "in_force")
    )
    return f"by arithmetic, a request of `{workload}` ({needed} tokens) fills {taken} at {size}"


def outputs(part: Part, values: Values) -> str:
    """How many pairs compute the same, and a line for each that does not, or cannot be judged."""
    agreed = sizes.agreements(part.found, part.outputs)
    if not agreed:
        return "- Not compared: no two arms should give the same."
    key = f"{part.name}.same_output"
    passed = [one for one in agreed if one.judgement.verdict == "pass"]
    said = f"- {values.count(f'{key}.passed', len(passed))} of "
    said += f"{values.count(f'{key}.pairs', len(agreed))} pairs of arms give the same output"
    if passed:
        change = values.number(f"{key}.change", max(one.logprob_change for one in passed))
        control = values.number(f"{key}.control", min(one.control for one in passed))
        ties = sum(one.ties for one in passed)
        prompts = values.count(f"{key}.prompts", sum(one.prompts for one in passed))
        said += (
            f": {sentences.ties(key, ties, prompts, values)}; a log-probability changes by at most "
            f"{change}, against {control} for a prompt that begins otherwise"
        )
    lines = [
        f"- *{one.judgement.verdict}*: "
        + values.label(f"{key}.{one.treatment}.{one.baseline}", one.judgement.text)
        for one in agreed
        if one not in passed
    ]
    return "\n".join([f"{said}.", *lines])
