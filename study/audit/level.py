"""Was the level reached, and is there a steady part: what a file of others can say about both.

Closed loop: requests in flight. Open loop: requests sent per second. By the client's own times,
for that is all a file has: what the engine held is nowhere in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from study.audit.arithmetic import number, ratio
from study.audit.detail import (
    Detail,
    Full,
    arriving_part,
    full_part,
    in_flight_drift,
    token_drift,
)
from study.audit.formats import Window
from study.gates.judgement import Judgement, Verdict
from study.gates.level import LEVEL_STANDARD_ERRORS, LEVEL_TOLERANCE
from study.gates.steady import (
    DRIFT_LIMIT,
    SHORTEST,
    STEADY_LATENCIES,
    judge,
    long_and_level,
    no_steady_part,
)

UNKNOWN: Verdict = "cannot judge"
# How many times its p99 the longest request of an honest file may last, where it is not kept.
STRAGGLER = 3.0
# Up to how many times its mean the p99 may be at the level on which a table's lengths were fitted.
# The fit takes their ratio to be alike everywhere, but queueing changes it: of one simulated server
# it was 1.76 at the lowest level, and 1.24 beyond saturation.
FIT_SPREAD = 2.0
ARRIVALS = "Requests came at a rate; without their times it cannot be checked."
RAMPED = "The rate was ramped, so there is no one load to look for."


@dataclass(frozen=True)
class Fit:
    """Tokens per request where a table does not state them.

    `rate` names the throughput that they divide; `level` is the lowest, on which they were
    fitted. `others`: what the lowest levels would need if they were full. `refuted`: the second
    load of the table needs other ones. `spread`: p99 / mean that is allowed for at that level.
    """

    tokens: float
    rate: str
    level: float
    refuted: bool = False
    others: Mapping[float, float] = field(default_factory=dict)
    spread: float = FIT_SPREAD

    @property
    def kind(self) -> str:
        return self.rate.split("_")[0]


@dataclass(frozen=True)
class Bound:
    """A bound from above on the requests in flight on average, and the least `share` of the level
    that a run would show in which the level was full until its drain. `least`: one from below."""

    mean: float
    share: float
    text: str
    drain: str = ""  # what that least share allows for
    least: float = 0.0


@dataclass(frozen=True)
class Latency:
    """What bounds the mean E2E from above, or is it if `exact`; what stands for the longest."""

    mean_s: float
    longest_s: float
    name: str
    exact: bool = False


# -------------------------------------------------------------------------------------- level


def level_reached(window: Window, fit: Fit | None = None) -> Judgement:
    """Were as many requests in flight as the level says (closed loop), or sent (open loop)?

    With detail, what was in flight over time is known. Without, rate x p99 bounds the mean from
    above, if the mean is not above the p99, so it can refute a level but not confirm it.
    """
    placed = window.detail is not None and window.detail.placed
    if not window.steady_rate:
        return _level(UNKNOWN, math.nan, math.nan, RAMPED)
    if not math.isnan(window.rate_s):
        return _arrivals(window) if placed else _level(UNKNOWN, math.nan, math.nan, ARRIVALS)
    if math.isnan(window.level):
        text = "No level is stated: without a limit, all requests are sent at once."
        return _level(UNKNOWN, math.nan, math.nan, text)
    sent = np.nanmax([window.requests, window.completed, 0])
    if 0 < sent < window.level:
        text = f"Only {number(sent)} requests were made: level {window.level:g} was never full."
        return _level("fail", float(sent), window.level, text)
    return _held(window) if placed else _bounded(window, fit)


def _level(verdict: Verdict, observed: float, limit: float | str, text: str) -> Judgement:
    return Judgement("level_reached", "window", verdict, observed, limit, text)


def _held(window: Window) -> Judgement:
    """By the times of each request: in flight on average while the level was full. How long the
    failed ones were is not kept: each was in flight at most all the time."""
    assert window.detail is not None
    level, (part, peak) = window.level, full_part(window.detail, window.level)
    failed = int((~window.detail.fine).sum())
    least, most = (1 - LEVEL_TOLERANCE) * level, (1 + LEVEL_TOLERANCE) * level
    limit = f"within {LEVEL_TOLERANCE:.0%} of {level:g}"
    unknown = f" {failed} that failed are not counted." if failed else ""
    if part is None:
        judged: Verdict = "fail" if peak + failed < math.ceil(least) or not failed else UNKNOWN
        what = "and none followed: all is drain" if peak >= least else "at most"
        text = f"{peak} of {level:g} requests were in flight at once, {what}.{unknown}"
        return _level(judged, float(peak), limit, text)
    text = (
        f"{number(part.mean)} requests were in flight on average over {part.duration_s:.4g} s, "
        f"{peak} at most, by the client's own times; what the engine held is not in the file."
    )
    if least <= part.mean <= most:
        return _level("pass", part.mean, limit, text)
    missed = part.mean > most or part.mean + failed < least
    return _level("fail" if missed else UNKNOWN, part.mean, limit, f"{text}{unknown}")


def _arrivals(window: Window) -> Judgement:
    """Open loop: requests per second sent against those asked for."""
    assert window.detail is not None
    sent_s = window.detail.start_s[window.detail.fine]
    gaps, span_s = sent_s.size - 1, float(np.ptp(sent_s))
    if gaps < 1 or span_s <= 0:
        return _level(UNKNOWN, math.nan, window.rate_s, "Too few requests for a rate.")
    observed = gaps / span_s
    # The gaps of Poisson arrivals vary by as much as their mean.
    error = LEVEL_STANDARD_ERRORS / math.sqrt(gaps)
    off = abs(ratio(observed, window.rate_s) - 1)
    text = f"{number(observed)} requests were sent per second, {number(window.rate_s)} were asked."
    if off <= LEVEL_TOLERANCE:
        return _level("pass", observed, window.rate_s, text)
    if observed < window.rate_s and not math.isnan(window.level):
        text += f" The limit of {window.level:g} in flight may have held the others back."
        return _level(UNKNOWN, observed, window.rate_s, text)
    judged: Verdict = "fail" if off > LEVEL_TOLERANCE + error else UNKNOWN
    return _level(judged, observed, window.rate_s, text)


def _bounded(window: Window, fit: Fit | None) -> Judgement:
    if fit is not None and fit.refuted:
        text = "Lengths as delivered are not stated, and no fixed length explains the table."
        return _level(UNKNOWN, math.nan, window.level, text)
    bound = bound_of(window, fit)
    if bound is None:
        text = "No rate, or no tail of E2E, to bound the requests in flight from above."
        return _level(UNKNOWN, math.nan, window.level, text)
    most = window.level * (1 + LEVEL_TOLERANCE)
    if bound.least > most:
        text = f"At least {number(bound.least)} were in flight on average, by the rate and "
        text += f"{bound.text}: the limit of {window.level:g} allows no more than itself."
        return _level("fail", bound.least, most, text)
    least = window.level * (1 - LEVEL_TOLERANCE) * bound.share
    text = f"On average at most {number(bound.mean)} of {window.level:g} were in flight: "
    text += f"{bound.text}. A full level would show at least {number(least)}{bound.drain}"
    fitted_here = fit is not None and fit.level == window.level
    if bound.mean < least and not fitted_here:
        return _level("fail", bound.mean, least, f"{text}.")
    why = "it is the one that was fitted" if fitted_here else "a bound confirms none"
    return _level(UNKNOWN, bound.mean, least, f"{text}: not refuted, but {why}.")


def bound_of(window: Window, fit: Fit | None = None) -> Bound | None:
    """Rate x latency, by a stated mean or by all latencies if kept; else the p99 stands for it.

    With a fit, the rate of requests follows from the tokens that the lowest level implies if its
    p99 was its mean; it was higher if the mean was lower, so the bound is `Fit.spread` as high.
    """
    request_s = window.rate(fit.rate) / fit.tokens if fit else window.request_s
    latency = _latency(window)
    if not request_s * latency.mean_s > 0:
        return None
    text = f"{number(request_s)} requests/s x {number(latency.mean_s)} s ({latency.name})"
    mean = request_s * latency.mean_s * (fit.spread if fit else 1.0)
    if fit and fit.spread > 1:
        text += f" x {fit.spread:g}, as the p99 may be up to so many times the mean where it was "
        text += "fitted"
    share, drain = _least_share(window, latency)
    failed = 0.0 if math.isnan(window.failed) else max(0.0, window.failed)
    if failed:
        text += f", and {number(failed)} that failed, all the time if it took them long"
    if fit:
        text += f", assuming {number(fit.tokens)} {fit.kind} tokens per request, "
        text += f"fitted on level {fit.level:g}"
    least = 0.0 if fit else _least_in_flight(window, latency)
    return Bound(mean + failed, share, text, drain, least)


def _least_share(window: Window, latency: Latency) -> tuple[float, str]:
    """The least share of a full level that a run shows with its drain, and what that allows for.

    N requests over C slots, each busy while requests are left, take at most
    N mean / C + (1 - 1/C) longest (Graham, SIAM J. Appl. Math. 17, 1969: list scheduling), so a
    run whose level was full shows at least r mean / (r mean + (1 - 1/C) longest) of it with
    r = N / C. Where only the p99 is known it stands for the mean, and the longest may have taken
    `STRAGGLER` times as long; where it is added up from lengths that vary, the longest may have
    lasted the whole run. Unknown N: to fill the level, as many as it were made at least.
    """
    sent = float(np.nanmax([window.requests, window.completed, -math.inf]))
    counted = sent > 0
    sent = sent if counted else window.level
    slots = min(window.level, sent)
    work_s, others = sent / slots * latency.mean_s, max(0.0, 1 - 1 / slots)
    if not others:
        return 1.0, ""
    drain = "" if counted else f", even if no more than {number(sent)} requests were made"
    if math.isfinite(latency.longest_s):
        drain += f"{', even if its' if counted else ' and the'} longest "
        drain += f"{'request ' if counted else ''}took {number(latency.longest_s)} s"
    return work_s / (work_s + others * latency.longest_s), drain


def _least_in_flight(window: Window, latency: Latency) -> float:
    """Rate x mean E2E; where the mean is not known, half of the requests last at least the p50."""
    median_s = window.time_s("e2e", "p50")
    least_s = latency.mean_s if latency.exact else 0.0 if math.isnan(median_s) else median_s / 2
    return window.request_s * least_s


def _latency(window: Window) -> Latency:
    """By all latencies if they are kept, else by a stated mean, else by the p99."""
    if window.detail is not None and window.detail.has_e2e and window.detail.fine.any():
        e2e_s = window.detail.e2e_s[window.detail.fine]
        if np.isfinite(e2e_s).all():
            name = "mean E2E of all requests"
            return Latency(float(e2e_s.mean()), float(e2e_s.max()), name, exact=True)
    tail_s, name = window.time_s("e2e", "p99"), "p99 of E2E"
    longest_s, mean_s = STRAGGLER * tail_s, window.time_s("e2e", "mean")
    if math.isnan(tail_s) and math.isnan(mean_s):
        tail_s, longest_s, name = _added_up(window)
    if math.isnan(mean_s):
        return Latency(tail_s, max(longest_s, tail_s), name)
    return Latency(mean_s, _longest(window, longest_s, mean_s), "mean E2E", exact=True)


def _longest(window: Window, longest_s: float, mean_s: float) -> float:
    """The longest beside a stated mean: none of n is above mean + std sqrt(n - 1) (Samuelson,
    J. Am. Stat. Assoc. 63, 1968). Without a p99 either, it ended within the run."""
    run_s = window.duration_s if window.duration_s > 0 else math.inf
    std_s, n = window.time_s("e2e", "std"), window.completed
    most_s = mean_s + std_s * math.sqrt(n - 1) if std_s >= 0 and n >= 1 else math.nan
    known = [longest_s, most_s]
    least = min((one for one in known if not math.isnan(one)), default=run_s)
    return max(least, mean_s)


def _added_up(window: Window) -> tuple[float, float, str]:
    """The same from TTFT and TPOT. With a mean length that is no whole number, lengths vary, and
    a sum with the mean one says nothing of the longest but that it ended within the run."""
    tokens = ratio(window.output_tokens, window.completed)
    tail_s = window.time_s("ttft", "p99") + (tokens - 1) * window.time_s("tpot", "p99")
    what = "p99 of TTFT and of TPOT, as that of E2E is not stated"
    if tokens.is_integer():
        return tail_s, STRAGGLER * tail_s, what
    run_s = window.duration_s if window.duration_s > 0 else math.inf
    return tail_s, run_s, f"{what}, of lengths that vary"


# -------------------------------------------------------------------------------- steady part


def steady_part(window: Window) -> Judgement:
    """Is there a part between ramp and drain, is it long enough, and does its rate not drift?"""
    detail = window.detail
    if not window.steady_rate:
        return judge(UNKNOWN, math.nan, SHORTEST, RAMPED)
    if detail is None or not detail.placed:
        latencies = ratio(window.duration_s, window.time_s("e2e", "p50"))
        if latencies < STEADY_LATENCIES:
            text = f"The whole run lasted {latencies:.1f} median latencies; it needs {SHORTEST}."
            return judge("fail", latencies, SHORTEST, text)
        text = "Ramp and drain are in these numbers; without times they cannot be taken out."
        return judge(UNKNOWN, latencies, SHORTEST, text)
    if math.isnan(window.rate_s) and math.isnan(window.level):
        return judge(UNKNOWN, math.nan, SHORTEST, "No level is stated.")
    closed = math.isnan(window.rate_s)
    part = full_part(detail, window.level)[0] if closed else arriving_part(detail)
    if part is None:
        return no_steady_part("There is no part between ramp and drain.")
    spread = detail.seen is not None and detail.seen.spread
    how = ", tokens spread evenly over each request" if spread else ""
    said = long_and_level(part.latencies, lambda: token_drift(detail, part), how)
    return said if closed or said.verdict == "fail" else _keeps_up(said, detail, part)


def _keeps_up(said: Judgement, detail: Detail, part: Full) -> Judgement:
    """What was `said` of an open loop, unless requests pile up: a server that gets more than it
    can serve has an even token rate, while its latencies grow for as long as the load lasts."""
    grown = in_flight_drift(detail, part)
    if not grown.low > DRIFT_LIMIT:
        return said
    interval = f"{grown.low:+.0%} to {grown.high:+.0%}"
    text = f"Requests in flight grew by {grown.point:.0%} over {part.duration_s:.4g} s "
    text += f"(90 % interval {interval}): more may arrive than are served."
    return replace(said, verdict=UNKNOWN, observed=f"{grown.point:+.0%} ({interval})", text=text)
