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
    only,
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
ARRIVALS = "Requests came at a rate; without their times it cannot be checked."


@dataclass(frozen=True)
class Fit:
    """Tokens per request where a table does not state them.

    `rate` names the throughput that they divide; `level` is the lowest, on which they were
    fitted. `others`: what the lowest levels would need if they were full. `refuted`: the second
    load of the table needs other ones.
    """

    tokens: float
    rate: str
    level: float
    refuted: bool = False
    others: Mapping[float, float] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.rate.split("_")[0]


@dataclass(frozen=True)
class Bound:
    """A bound from above on the requests in flight on average, and the least `share` of the level
    that a run would show in which the level was full until its drain."""

    mean: float
    share: float
    text: str
    drain: str = ""  # what that least share allows for


# -------------------------------------------------------------------------------------- level


def level_reached(window: Window, fit: Fit | None = None) -> Judgement:
    """Were as many requests in flight as the level says (closed loop), or sent (open loop)?

    With detail, what was in flight over time is known. Without, rate x p99 bounds the mean from
    above, if the mean is not above the p99, so it can refute a level but not confirm it.
    """
    placed = window.detail is not None and window.detail.placed
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
    if not window.steady_rate:
        return _level(UNKNOWN, math.nan, math.nan, "The rate was ramped: it is not one.")
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
    least = window.level * (1 - LEVEL_TOLERANCE) * bound.share
    text = f"On average at most {number(bound.mean)} of {window.level:g} were in flight: "
    text += f"{bound.text}. A full level would show at least {number(least)}{bound.drain}"
    if bound.mean < least:
        return _level("fail", bound.mean, least, f"{text}.")
    why = (
        "it is the one that was fitted"
        if fit and fit.level == window.level
        else "a bound confirms none"
    )
    return _level(UNKNOWN, bound.mean, least, f"{text}: not refuted, but {why}.")


def bound_of(window: Window, fit: Fit | None = None) -> Bound | None:
    """Rate x latency. With all latencies kept it is exact, else their p99 stands for the mean.

    The share: N requests over C slots, each busy while requests are left, take at most
    N mean / C + (1 - 1/C) longest (Graham, SIAM J. Appl. Math. 17, 1969: list scheduling), so a
    run whose level was full shows at least r mean / (r mean + (1 - 1/C) longest) of it with
    r = N / C. Where only the p99 is known it stands for the mean, and the longest may have taken
    `STRAGGLER` times as long; where it is added up from lengths that vary, the longest may have
    lasted the whole run. Unknown N: no drain is allowed for.
    """
    request_s = window.rate(fit.rate) / fit.tokens if fit else window.request_s
    mean_s, longest_s, what = _latency(window)
    if not request_s * mean_s > 0:
        return None
    sent = float(np.nanmax([window.requests, window.completed, -math.inf]))
    text = f"{number(request_s)} requests/s x {number(mean_s)} s ({what})"
    drain = ""
    if sent <= 0:
        share, text = 1.0, f"{text}, no drain allowed for as requests are not counted"
    else:
        slots = min(window.level, sent)
        work_s, others = sent / slots * mean_s, max(0.0, 1 - 1 / slots)
        share = work_s / (work_s + others * longest_s) if others else 1.0
        if math.isfinite(longest_s) and others:
            drain = f", even if its longest request took {number(longest_s)} s"
    failed = 0.0 if math.isnan(window.failed) else max(0.0, window.failed)
    if failed:
        text += f", and {number(failed)} that failed, all the time if it took them long"
    if fit:
        text += f", assuming {number(fit.tokens)} {fit.kind} tokens per request, "
        text += f"fitted on level {fit.level:g}"
    return Bound(request_s * mean_s + failed, share, text, drain)


def _latency(window: Window) -> tuple[float, float, str]:
    """What bounds the mean E2E from above, what stands for the longest, and its name."""
    if window.detail is not None and window.detail.has_e2e and window.detail.fine.any():
        e2e_s = only(window.detail.e2e_s[window.detail.fine])
        return float(e2e_s.mean()), float(e2e_s.max()), "mean E2E of all requests"
    tail_s, what = window.time_s("e2e", "p99"), "p99 of E2E"
    longest_s = STRAGGLER * tail_s
    if math.isnan(tail_s):
        tail_s, longest_s, what = _added_up(window)
    mean_s = window.time_s("e2e", "mean")
    if mean_s > tail_s:
        tail_s, what = mean_s, "mean E2E, which is above the p99"
    return tail_s, max(longest_s, tail_s), what


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
