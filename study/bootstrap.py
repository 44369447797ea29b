"""The bootstrap over launches, from ten of them on.

It resamples launches, never requests: a thousand requests of one launch are one observation. BCa
(Efron, J. Am. Stat. Assoc. 82, 1987) corrects for bias and skew, but a bootstrap of few values is
too narrow in a way that it does not correct: the resampled spread divides by n instead of n - 1,
and its tails are normal instead of Student's. So percentiles are taken further out, by
Hesterberg's expansion (The American Statistician 69, 2015, 5.3). Below ten launches that does not
help either, and Student's t on the log scale is what is left (`study.stats.over_launches`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from study.errors import StudyError
from study.interval import CONFIDENCE, Interval, finite, t_quantile

LEAST = 10  # launches
RESAMPLES = 4999
SEED = 0  # the same launches give the same interval every time


def bca_mean(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """Arithmetic mean with its BCa bootstrap interval over launches; NaN values are left out.

    `values`: one per launch, of either sign. StudyError below ten of them.
    """
    given = finite(values)
    if given.size < LEAST:
        raise StudyError(
            f"A bootstrap over launches needs at least {LEAST}; there were {given.size}. "
            "Take Student's t (mean_interval, mean_interval_log)."
        )
    mean = float(given.mean())
    low = high = mean
    if given.min() < given.max():
        found = stats.bootstrap(
            (given,),
            np.mean,
            n_resamples=RESAMPLES,
            confidence_level=_expanded(confidence, given.size),
            method="BCa",
            rng=np.random.default_rng(SEED),
        ).confidence_interval
        low, high = float(found.low), float(found.high)
    return Interval("mean", mean, low, high, confidence, "BCa bootstrap interval", given.size)


def _expanded(confidence: float, n: int) -> float:
    """The confidence whose normal quantile is Student's, for a spread that divides by n."""
    reach = t_quantile(confidence, n - 1) * np.sqrt(n / (n - 1))
    return float(1 - 2 * special.ndtr(-reach))
