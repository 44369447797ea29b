"""Was the level reached, by the engine's own account?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from study.finite import Floats
from study.gates.evidence import delta
from study.gates.judgement import Judgement, Verdict
from study.steady import Steady, completed, floats, in_flight_when_sent

NO_COUNTERS: Mapping[str, float] = {}

# A level missed by 5 % moves throughput by up to 5 %, the size of the effects that are studied.
LEVEL_TOLERANCE = 0.05
# Fewer batches than 10 give no usable standard error (its own error is then above 25 %).
LEVEL_BATCHES = 10
# A slot idle 5 % of the time is seen idle at least once in 59 looks with 95 % certainty
# (0.95**59 < 0.05). One sample looks at `level` slots, so level 1 needs 59 samples.
LEVEL_LOOKS = 59
# What sampling error can explain: two standard errors, about 95 %.
LEVEL_STANDARD_ERRORS = 2.0


def level_reached(
    requests: pd.DataFrame,
    samples: pd.DataFrame,
    steady: Steady | None,
    level: int,
    before: Mapping[str, float] = NO_COUNTERS,
    after: Mapping[str, float] = NO_COUNTERS,
) -> Judgement:
    """The level was full, and the engine itself held it: within 5 % of it.

    The client's own count in the steady part is full by construction, so it proves nothing. The
    engine has two accounts of its own. Its gauges, running + waiting, are sampled; but they are
    refreshed once a step and do not know a request before its first step is over, so where a
    prefill takes long they read too low, and where samples are few they say nothing. Its clock of
    every request, from arrival to end, has neither fault: `held_by_durations`. The level counts as
    reached when either account holds it, as missed when none does.
    """
    limit = f"within {LEVEL_TOLERANCE:.0%} of {level}"

    def judge(verdict: Verdict, observed: float, text: str) -> Judgement:
        return Judgement("level_reached", "window", verdict, observed, limit, text)

    _, in_flight = in_flight_when_sent(requests)
    peak = int(in_flight.max(initial=0))
    if peak < level:
        return judge("fail", peak, f"At most {peak} of {level} requests were in flight at once.")
    if steady is None:
        return judge("cannot judge", np.nan, "There is no steady part to look at.")

    verdict, mean, text = _by_gauges(samples, steady, level)
    timed = held_by_durations(requests, level, before, after)
    if verdict == "pass" or math.isnan(timed):
        return judge(verdict, mean, text)
    text = f"By its own clock of every request the engine held {timed:.4g}; {text}"
    return judge("pass" if abs(timed - level) <= LEVEL_TOLERANCE * level else "fail", timed, text)


def held_by_durations(
    requests: pd.DataFrame, level: int, before: Mapping[str, float], after: Mapping[str, float]
) -> float:
    """Requests in the engine while all slots were at work, by its own clock; NaN if unknown.

    The sum of the engine's request durations is the time integral of what it held. Set against
    the time that the client's slots were at work (pauses between requests and queues in front
    of the engine included), it is the share of the level that reached the engine. Only where
    client and engine mean the same requests: none failed, and the counts agree.
    """
    if not completed(requests).all() or delta(before, after, "e2e_count") != len(requests):
        return math.nan
    slots = requests.groupby("slot").agg(first=("sent_s", "min"), last=("ended_s", "max"))
    at_work_s = float((slots["last"] - slots["first"]).sum())
    return level * delta(before, after, "e2e_sum_s") / at_work_s if at_work_s > 0 else math.nan


def _by_gauges(samples: pd.DataFrame, steady: Steady, level: int) -> tuple[Verdict, float, str]:
    """What the sampled gauges say. They are an autocorrelated series, hence the standard error
    over batch means: a mean outside the limits fails only when it lies outside by more than two
    standard errors, otherwise nothing can be said."""
    inside = samples[steady.holds(floats(samples, "time_s"))].sort_values("time_s")
    held = inside[["running", "waiting"]].dropna().sum(axis=1).to_numpy(dtype=np.float64)
    needed = max(LEVEL_BATCHES, math.ceil(LEVEL_LOOKS / level))
    if held.size < needed:
        text = f"{held.size} samples of the engine's gauges in the steady part; {needed} needed."
        return "cannot judge", math.nan, text

    mean, error = float(held.mean()), _batch_means_error(held)
    beyond = abs(mean - level) - LEVEL_TOLERANCE * level
    text = (
        f"by its gauges the engine held {mean:.4g} requests on average (standard error "
        f"{error:.2g}, {held.size} samples, {float(inside['running'].mean()):.4g} of them running) "
        f"at level {level}"
    )
    if beyond <= 0:
        return "pass", mean, f"{text}."
    if beyond <= LEVEL_STANDARD_ERRORS * error:
        return "cannot judge", mean, f"{text}: sampling error alone could explain it."
    return "fail", mean, f"{text}: {'below' if mean < level else 'above'} the limit."


def _batch_means_error(values: Floats) -> float:
    """Standard error of the mean of an autocorrelated series, from the means of 10 batches."""
    means = np.array([batch.mean() for batch in np.array_split(values, LEVEL_BATCHES)])
    return float(means.std(ddof=1) / np.sqrt(LEVEL_BATCHES))
