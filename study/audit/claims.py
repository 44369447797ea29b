"""Statements over several levels: are they distinct, does one request length explain them, and
is a claim of saturation supported?

A *curve* is the levels of one arm and workload: a table, or the files of a folder that differ in
nothing but the level (and, by a little, in the mean lengths of requests). Pure functions of windows
and their verdicts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from study.audit.arithmetic import MOST, number, ratio
from study.audit.formats import Window
from study.audit.gates import FileVerdict
from study.audit.level import Fit, bound_of
from study.audit.loads import NOISE, SAME_LEVEL, both_latencies, common_rate, loads, rate_of
from study.curves import LEAST_LEVELS
from study.gates.judgement import Judgement, Verdict
from study.gates.level import LEVEL_TOLERANCE
from study.knee import knee

# Mean lengths of one workload differ by chance where requests are drawn anew at each level.
SAME_LENGTH = 0.05
THROUGHPUTS = {
    "output_tok_s": "output tokens/s",
    "total_tok_s": "total tokens/s",
    "request_s": "requests/s",
}

_STAMP = re.compile(r"\d{8}[-_T]?\d{6}")
_NAMED = r"(conc(?:urrency)?|level|users|streams|bs|c)([-_=]?)0*{level}(?!\d)"


@dataclass(frozen=True)
class Judged:
    """A window with its verdict, by the name that says where it comes from. `placed`: its file
    says when each request began and ended."""

    name: str
    window: Window
    verdict: FileVerdict
    fit: Fit | None = None
    placed: bool = False


def curves_of(stems: Iterable[tuple[str, Judged]]) -> dict[str, list[Judged]]:
    """Windows, each with its file's name, by curve: one `curve_name`, and mean tokens per request
    within 5 %. Names of curves end with the span of those."""
    found: dict[str, list[Judged]] = {}
    for stem, judged in stems:
        found.setdefault(curve_name(stem, judged.window), []).append(judged)
    return {
        ", ".join([name, *_spans(curve)]): curve
        for name, windows in found.items()
        for curve in _by_length(windows)
    }


def _by_length(windows: Sequence[Judged]) -> list[list[Judged]]:
    """From the shortest on, each to the first curve whose shortest has its length."""
    found: list[list[Judged]] = []
    for judged in sorted(windows, key=lambda one: [*np.nan_to_num(_lengths(one.window), nan=-1)]):
        alike = (curve for curve in found if _same_length(curve[0].window, judged.window))
        curve = next(alike, None)
        if curve is None:
            found.append([judged])
        else:
            curve.append(judged)
    return found


def _same_length(a: Window, b: Window) -> bool:
    return bool(np.allclose(_lengths(a), _lengths(b), rtol=SAME_LENGTH, atol=0, equal_nan=True))


def _lengths(window: Window) -> tuple[float, float]:
    """Mean tokens per request in and out; NaN where they are not stated."""
    completed = window.completed
    return ratio(window.input_tokens, completed), ratio(window.output_tokens, completed)


def _spans(curve: Sequence[Judged]) -> list[str]:
    """The mean lengths of a curve's requests, in and out, where they are stated."""
    into, out = zip(*(_lengths(one.window) for one in curve), strict=True)
    return [
        f"{_span(values)} {name}"
        for values, name in ((into, "in"), (out, "out"))
        if not math.isnan(values[0])
    ]


def curve_name(stem: str, window: Window) -> str:
    """What two windows of one curve have in common but the lengths of their requests: the file's
    name without its level and time stamp, and the model."""
    level = f"{window.level:g}"
    stem = _STAMP.sub("*", stem)
    named = re.compile(r"(?<![a-z])" + _NAMED.format(level=re.escape(level)), re.IGNORECASE)
    alone = re.compile(rf"(?<!\d)0*{re.escape(level)}(?!\d)(?!.*(?<!\d)0*{re.escape(level)}(?!\d))")
    stem = named.sub(r"\1\2*", stem) if named.search(stem) else alone.sub("*", stem)
    return ", ".join([stem, *([window.model] if window.model else [])])


def fit_tokens(windows: Sequence[Window]) -> Fit | None:
    """Tokens per request for a table that states neither them nor requests per second.

    On the lowest level, as if it was full for as long as its p99. What is then said of another
    level is that it held so many times what the lowest one held: it needs one length of requests
    for the table, and a mean that is much the same share of the p99: `FIT_SPREAD`. A second load
    must agree with that within 5 %, or nothing is concluded from it. None where nothing needs
    fitting, or can be.
    """
    curve = sorted(windows, key=lambda window: window.level)
    if not curve or any(not math.isnan(window.request_s) for window in curve):
        return None
    for rate in ("total_tok_s", "output_tok_s"):
        if all(window.rate(rate) * window.time_s("e2e", "p99") > 0 for window in curve):
            return _fitted(curve, rate)
    return None


def _fitted(curve: Sequence[Window], rate: str) -> Fit:
    def tokens(window: Window) -> float:
        return window.rate(rate) * window.time_s("e2e", "p99") / window.level

    lowest = tokens(curve[0])
    firsts = [load[0] for load in loads(curve)[:2]]
    refuted = len(firsts) == 2 and abs(tokens(firsts[1]) / lowest - 1) > LEVEL_TOLERANCE
    others = {window.level: tokens(window) for window in curve[:3]}
    return Fit(lowest, rate, curve[0].level, refuted, others)


# --------------------------------------------------------------------------------------- gates


def claims(curve: Sequence[Judged]) -> tuple[Judgement, ...]:
    """What can be said of one curve as a whole."""
    levelled = [one for one in curve if not math.isnan(one.window.level)]
    if len({one.window.level for one in levelled}) < 2:
        return ()
    fit = levelled[0].fit
    fitted = () if fit is None else (one_length(levelled, fit),)
    return (distinct_levels(levelled), *fitted, saturation(levelled))


def distinct_levels(curve: Sequence[Judged]) -> Judgement:
    """Different levels are different loads: not the same rate and latency at each."""
    windows = [one.window for one in curve]

    def say(verdict: Verdict, observed: float | str, text: str) -> Judgement:
        limit = f"rate or latency apart by more than {NOISE:.0%}"
        return Judgement("distinct_levels", "claim", verdict, observed, limit, text)

    known = [one for one in windows if not math.isnan(sum(both_latencies(one, one)))]
    if len({one.level for one in known}) < 2:
        return say("cannot judge", math.nan, "Fewer than two levels state rate and E2E.")
    found = loads(known)
    merged = [load for load in found if load[-1].level > load[0].level * SAME_LEVEL]
    count = len({one.level for one in known})
    if not merged:
        return say("pass", len(found), f"Its {count} levels are {len(found)} different loads.")
    text = "; ".join(_one_load(load) for load in merged)
    return say("fail", len(found), f"{text[:1].upper()}{text[1:]}.")


def _one_load(load: Sequence[Window]) -> str:
    """Its levels, with the rate (of one kind, with its unit) and the latency that they share."""
    kind = common_rate(load)
    rates = _span([rate_of(one, kind) for one in load])
    told = f"{rates} {THROUGHPUTS[kind]}" if kind else "rates alike in pairs"
    latencies_s = [both_latencies(one, one)[0] for one in load]
    return (
        f"levels {_listed(f'{one.level:g}' for one in load)} are one and the same load: "
        f"{told}, E2E {_span(latencies_s)} s"
    )


def one_length(curve: Sequence[Judged], fit: Fit) -> Judgement:
    """Does one number of tokens per request, fitted on the lowest level, fit a second load?"""
    limit = f"a second load within {LEVEL_TOLERANCE:.0%}"

    def say(verdict: Verdict, text: str) -> Judgement:
        return Judgement("one_length", "claim", verdict, fit.tokens, limit, text)

    if fit.refuted:
        needs = _listed(
            f"{number(tokens)} at level {level:g}" for level, tokens in fit.others.items()
        )
        text = f"No fixed length explains the table: full, it needs {needs} {fit.kind} tokens"
        text += " per request, if the mean is one share of the p99 at all levels."
        return say("fail", text)
    text = f"Assumed: every request has {number(fit.tokens)} {fit.kind} tokens, as if level "
    text += f"{fit.level:g} was full and its p99 the mean; a level is refuted only if it is with a "
    text += f"p99 of {fit.spread:g} times the mean there"
    if len(loads([one.window for one in curve])) < 2:
        return say("cannot judge", f"{text}. There is no second load to check it on.")
    return say("pass", f"{text}. The second load agrees.")


def saturation(curve: Sequence[Judged]) -> Judgement:
    """Is it shown that throughput stops rising? Only by levels that are not void, four at least;
    and with levels that are only undecided, a knee holds if they were reached."""
    sound = [one for one in curve if one.verdict != "void"]
    rate = _throughput_name(sound)
    kept = [one for one in sound if 1 / MOST < rate_of(one.window, rate) <= MOST]
    void = sorted({one.window.level for one in curve if one.verdict == "void"})
    left = f" Void and left out: {_listed(f'{level:g}' for level in void)}." if void else ""
    limit = f"a knee within {LEAST_LEVELS} or more levels, each valid"

    def say(verdict: Verdict, observed: float, text: str) -> Judgement:
        said = f"Saturation is {'' if verdict == 'pass' else 'not '}supported: {text}.{left}"
        said = said.replace("tokens/s", THROUGHPUTS[rate])  # which is what a knee's text says
        return Judgement("saturation", "claim", verdict, observed, limit, said)

    levels = [one.window.level for one in kept]
    if any(level < 1 for level in levels):
        return say("cannot judge", math.nan, "a level below 1 is no number of requests in flight")
    if len(set(levels)) < LEAST_LEVELS:
        text = f"{len(set(levels))} levels are not void, a knee needs {LEAST_LEVELS}"
        return say("cannot judge", math.nan, text)
    found = knee(levels, [rate_of(one.window, rate) for one in kept])
    if found.reached is None:
        return say("cannot judge", math.nan, found.text.removeprefix("cannot judge: "))
    if not found.reached:
        return say("fail", math.nan, found.text)
    if any(one.verdict != "valid" for one in kept):
        text = f"{found.text}, if its levels were reached, which nothing confirms"
        return say("cannot judge", found.level, text)
    return say("pass", found.level, found.text)


def _throughput_name(curve: Sequence[Judged]) -> str:
    """The one rate of a curve: the first of `THROUGHPUTS` that all its windows state, or else
    most of them. The others have none then, for rates of different things make no curve."""

    def known(name: str) -> int:
        return sum(not math.isnan(rate_of(one.window, name)) for one in curve)

    return max(THROUGHPUTS, key=known)


def load_curve(curve: Sequence[Judged]) -> list[str]:
    """The curve as lines of text: level, verdict, throughput, E2E, in flight at most."""
    rate = _throughput_name(curve)
    unit = THROUGHPUTS[rate]
    lines = [f"{'level':>9}  {'verdict':<10}{unit:>16}{'E2E s':>10}{'in flight <=':>14}"]
    for one in sorted(curve, key=lambda one: one.window.level):
        bound = bound_of(one.window, one.fit) if not (one.fit and one.fit.refuted) else None
        mean = number(bound.mean) if bound else "-"
        latency_s = both_latencies(one.window, one.window)[0]
        lines.append(
            f"{one.window.level:>9g}  {one.verdict:<10}"
            f"{number(rate_of(one.window, rate)):>16}{number(latency_s):>10}{mean:>14}"
        )
    return lines


def _listed(words: Iterable[str]) -> str:
    found = list(words)
    return ", ".join(found[:-1]) + " and " + found[-1] if len(found) > 1 else "".join(found)


def _span(values: Sequence[float]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"
