"""Is there a steady part, long enough and without drift?"""

from __future__ import annotations

import math
from collections.abc import Callable

import pandas as pd

from study.gates.judgement import Judgement, Verdict
from study.steady import Drift, Steady, token_rate_drift

# Five latencies are five waves of slots in lock-step: the fewest through which a line says much.
STEADY_LATENCIES = 5.0
# A rate that moves by 5 % over the window is not one rate.
DRIFT_LIMIT = 0.05
SHORTEST = f"at least {STEADY_LATENCIES:g} median latencies"
NO_DRIFT = f"drift within {DRIFT_LIMIT:.0%}"


def steady_part_found(chunks: pd.DataFrame, steady: Steady | None) -> Judgement:
    """There is a steady part, it is long enough, and the token rate does not drift over it."""
    if steady is None:
        return no_steady_part("No steady part: the level was never full, or a slot ran dry before.")
    return long_and_level(steady.latencies, lambda: token_rate_drift(chunks, steady))


def long_and_level(
    latencies: float, drift_over_it: Callable[[], Drift], how: str = ""
) -> Judgement:
    """A steady part of so many median latencies, and the drift of the token rate over it.

    "Drift below 5 %" is a claim of no difference, so it passes only when the whole 90 % interval
    lies within 5 % (the two one-sided tests of equivalence), and fails only when the whole
    interval lies beyond it: drift is shown. In between the window is too short or too noisy to
    tell, and the gate says so. `how` says how tokens were placed in time, if not by their chunks.
    """
    length = f"The steady part lasts {latencies:.1f} median latencies"
    if latencies < STEADY_LATENCIES:
        return judge("fail", latencies, SHORTEST, f"{length}; it needs {SHORTEST}.")
    drift = drift_over_it()
    if math.isnan(drift.point):
        text = f"{length}, but no token was seen in it at a known time."
        return judge("cannot judge", math.nan, NO_DRIFT, text)
    observed = f"{drift.point:+.1%} ({drift.low:+.1%} to {drift.high:+.1%})"
    text = (
        f"{length}; over it the token rate changes by {drift.point:+.1%} "
        f"(90 % interval {drift.low:+.1%} to {drift.high:+.1%}{how})"
    )
    if drift.low > -DRIFT_LIMIT and drift.high < DRIFT_LIMIT:
        return judge("pass", observed, NO_DRIFT, f"{text}.")
    if drift.low > DRIFT_LIMIT or drift.high < -DRIFT_LIMIT:
        return judge("fail", observed, NO_DRIFT, f"{text}: it drifts.")
    text = f"{text}: a longer window is needed to rule out drift."
    return judge("cannot judge", observed, NO_DRIFT, text)


def no_steady_part(text: str) -> Judgement:
    return judge("fail", 0.0, SHORTEST, text)


def judge(verdict: Verdict, observed: float | str, limit: str, text: str) -> Judgement:
    return Judgement("steady_part", "window", verdict, observed, limit, text)
