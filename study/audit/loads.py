"""Which levels show one and the same load, and which of them that refutes.

Several levels of one arm and workload can say what none of them says alone: who raises the limit
and sees neither another rate nor another latency has not raised what is in flight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from study.audit.arithmetic import number
from study.audit.formats import Window
from study.audit.level import Fit, bound_of
from study.gates.judgement import Judgement
from study.gates.level import LEVEL_TOLERANCE

# Two single windows of the same load differ by up to so much in rate and in latency.
NOISE = 0.05
# Levels this close may well show the same load: both tolerances together.
SAME_LEVEL = (1 + NOISE) ** 2
# A load that goes on to so many times its lowest level was not raised. Below that whole waves of
# requests can hide a rise: 1,000 requests take two of them at level 500 and at level 750.
NOT_RAISED = 2.0
RATES = ("request_s", "total_tok_s", "output_tok_s")
LATENCIES = ("p50", "mean", "p99")


def loads(windows: Sequence[Window]) -> list[list[Window]]:
    """Windows in order of level, those together that show one and the same load: rate and
    latency within 5 % of the lowest level of theirs."""
    found: list[list[Window]] = []
    for window in sorted(windows, key=lambda window: window.level):
        if found and _alike(found[-1][0], window):
            found[-1].append(window)
        else:
            found.append([window])
    return found


def _alike(a: Window, b: Window) -> bool:
    rates, latencies = both_rates(a, b), both_latencies(a, b)
    if math.isnan(sum(rates) + sum(latencies)) or min(*rates, *latencies) <= 0:
        return False
    return all(abs(math.log(x) - math.log(y)) <= math.log(1 + NOISE) for x, y in (rates, latencies))


def both_rates(a: Window, b: Window) -> tuple[float, float]:
    """The rates of two windows, of the same kind; NaN where they state none in common."""
    kind = common_rate([a, b])
    return rate_of(a, kind), rate_of(b, kind)


def common_rate(windows: Sequence[Window]) -> str:
    """The first kind of `RATES` that all these windows state; empty where there is none."""
    known = (kind for kind in RATES if not math.isnan(sum(rate_of(one, kind) for one in windows)))
    return next(known, "")


def rate_of(window: Window, kind: str) -> float:
    """Its rate of this kind, a second; NaN where it is neither stated nor follows from counts."""
    return window.request_s if kind == "request_s" else window.rate(kind)


def both_latencies(a: Window, b: Window) -> tuple[float, float]:
    """Their E2E latencies in seconds, of the most central statistic that both state; or NaN."""
    return _first_both([(a.time_s("e2e", name), b.time_s("e2e", name)) for name in LATENCIES])


def _first_both(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The first pair of which both are known, of the most central statistic."""
    known = (pair for pair in pairs if not math.isnan(sum(pair)))
    return next(known, (math.nan, math.nan))


# ------------------------------------------------------------------------------------ in flight


def most_held(window: Window, fit: Fit | None) -> float:
    """An upper bound of the mean requests in flight in a closed loop: the limit itself, the
    requests made, and rate x latency where lengths are known or can be fitted."""
    bound = None if fit is not None and fit.refuted else bound_of(window, fit)
    return float(np.nanmin([window.level, bound.mean if bound else math.nan, window.requests]))


def same_load(lowest: Window, fit: Fit | None) -> float:
    """The same for every level of its load: what the lowest one allows, with `NOISE` in the rate
    and in the latency, whose product is the mean (Little, Oper. Res. 9, 1961). Infinite where no
    one length of requests fits the table: there a p99 is not tied to the mean."""
    if fit is not None and fit.refuted:
        return math.inf
    return SAME_LEVEL * most_held(lowest, fit)


def refuted(windows: Sequence[Window], fit: Fit | None) -> list[tuple[Window, Judgement]]:
    """The levels above the lowest one of a load that goes on to twice that one or more, as
    failures of `level_reached`.

    Where a server lets all in, twice the requests in flight show another rate; where it makes
    them wait, that adds to the latency of each, p99 and mean alike. Where requests are counted,
    the drain is allowed for as everywhere; where not, they are taken to be as many at each level,
    or in proportion to it. Nothing is said of levels with failures: how long those were in flight
    is not known.
    """
    closed = [one for one in windows if math.isnan(one.rate_s) and one.steady_rate]
    found = []
    for lowest, *others in loads([one for one in closed if one.level >= 1]):
        if not others or others[-1].level < NOT_RAISED * lowest.level:
            continue
        most = same_load(lowest, fit)
        for window in others:
            least = (1 - LEVEL_TOLERANCE) * window.level * _least_share(window, fit)
            if most < least and not window.failed > 0:
                found.append((window, _held(most, least, window, lowest, others[-1])))
    return found


def _least_share(window: Window, fit: Fit | None) -> float:
    """Of a full level, what a run shows with its drain; all of it where nothing is counted."""
    if not (window.requests > 0 or window.completed > 0):
        return 1.0
    bound = bound_of(window, fit)
    return bound.share if bound else 0.0


def _held(most: float, least: float, window: Window, lowest: Window, top: Window) -> Judgement:
    text = (
        f"On average at most {number(most)} of {window.level:g} were in flight: rate and E2E are "
        f"those of level {lowest.level:g}, within {NOISE:.0%} each, and stay so up to level "
        f"{top.level:g}. A full level would show at least {number(least)}."
    )
    return Judgement("level_reached", "window", "fail", most, least, text)
