"""Tail percentiles are said only where the sample can carry them; the window stands without."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pandas as pd
from scipy import stats

from study.gates.judgement import Judgement
from study.steady import TAILS, Steady, completed, floats, least_sample

# MLPerf Inference, early stopping (General Rules, appendix "Early stopping criterion"): with 99 %
# confidence, at most one of the values may lie beyond. 64 for p90, 662 for p99.
CLAIM_ERROR = 0.01


@cache
def claim_sample(q: float) -> int:
    """The fewest values with which MLPerf lets a quantile be claimed: so many that two or more
    lie beyond the true one in 99 % of samples."""
    n = least_sample(q)
    while stats.binom.cdf(1, n, 1 - q) > CLAIM_ERROR:
        n += 1
    return n


def percentile_supported(name: str, n: float, q: float) -> Judgement:
    """Whether `n` requests can carry the quantile (see `study.steady.least_sample`)."""
    least = least_sample(q)
    if math.isnan(n):
        text = f"{name} of an unknown number of requests; it needs {least}."
        return Judgement("percentile_supported", "metric", "cannot judge", n, least, text)
    text = f"{name} of {n:,.0f} requests"
    if n < least:
        text = f"{text}; withheld: it needs {least}."
        return Judgement("percentile_supported", "metric", "fail", n, least, text)
    claim = claim_sample(q)
    more = "too few" if n < claim else "enough"
    text = f"{text}; it needs {least}; {more} for a claim by MLPerf's rule, {claim}."
    return Judgement("percentile_supported", "metric", "pass", n, least, text)


def percentiles_supported(requests: pd.DataFrame, steady: Steady | None) -> list[Judgement]:
    """One judgement for each tail percentile that a window's summary may hold.

    By the requests whose first token (for TTFT) and whose last (for TPOT, E2E) lies inside the
    steady part: the fewer of the two.
    """
    n = 0
    if steady is not None:
        done = requests[completed(requests)]
        n = min(int(np.sum(steady.holds(floats(done, at)))) for at in ("first_s", "last_s"))
    return [percentile_supported(name, n, q) for name, q in TAILS.items()]
