"""How much launches differ among themselves, and whether one arm's differ more than another's.

On the log scale the spread is a share of the value, so it has no unit and arms of different
speed can be compared. The intervals are the classical ones, chi-square for one spread and F for
the ratio of two. They assume *normal log values* and, unlike a t interval, they are sensitive to
that whatever the number of launches: with heavy tails they are too narrow (Box, Biometrika 40,
1953). Look at the values before you believe a ratio of spreads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from study.errors import StudyError
from study.finite import Floats
from study.interval import CONFIDENCE, Interval, require_confidence


def spread(values: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The launch-to-launch spread as a coefficient of variation: 0.03 is 3 % of the value.

    `values`: one positive number per launch, in any unit; NaN is left out. With s the standard
    deviation of the log values the coefficient is sqrt(exp(s^2) - 1), that of a log-normal
    (Aitchison & Brown, The Lognormal Distribution, 1957); below 10 % it is s. The chi-square
    interval of s is taken through the same formula. It assumes normal log values.

    Below 2 values point and limits are NaN. Values that are all equal have a spread of 0 and no
    interval: they were rounded or copied, which no normal values are. StudyError for a value
    that is not positive and finite, or a confidence outside of 0 to 1.
    """
    tails = _tails(confidence)
    s, n = _log_deviation(values)
    low = high = np.nan
    if s > 0:
        low, high = s * np.sqrt((n - 1) / stats.chi2.ppf(tails, n - 1))
    return Interval(
        statistic="coefficient of variation",
        point=_coefficient(s),
        low=_coefficient(low),
        high=_coefficient(high),
        confidence=confidence,
        method="chi-square interval on the log scale",
        n=n,
    )


def spread_ratio(
    treatment: ArrayLike, baseline: ArrayLike, confidence: float = CONFIDENCE
) -> Interval:
    """Spread of the treatment's launches / spread of the baseline's, with the F interval.

    Both arms: one positive number per launch, in any unit; NaN is left out. The ratio is that of
    the standard deviations of log values, which is nearly that of the coefficients of variation.
    The arms must be independent (no pairing inside blocks): s1^2 / s2^2 over its true value is
    then F(n1 - 1, n2 - 1). That assumes normal log values and is sensitive to it, see above.

    `n` is the smaller count; `method` names both. Limits are NaN when an arm has fewer than 2
    values, or only equal ones (see `spread`). StudyError as in `spread`.
    """
    tails = _tails(confidence)
    (above, n_above), (below, n_below) = _log_deviation(treatment), _log_deviation(baseline)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.float64(above) / np.float64(below))
    low = high = np.nan
    if above > 0 and below > 0:
        low, high = ratio / np.sqrt(stats.f.ppf(tails, n_above - 1, n_below - 1))
    method = f"F interval on the log scale, {n_above} against {n_below} launches"
    smaller = min(n_above, n_below)
    return Interval("ratio of spreads", ratio, float(low), float(high), confidence, method, smaller)


def _log_deviation(values: ArrayLike) -> tuple[float, int]:
    """Standard deviation of the log values, NaN below 2 of them; and how many there are."""
    given = np.asarray(values, dtype=np.float64).ravel()
    given = given[~np.isnan(given)]
    refused = given[~((given > 0) & (given < np.inf))]
    if refused.size:
        raise StudyError(
            f"Values for a spread on the log scale must be positive and finite; {refused[0]:g} "
            "was not. Leave failed launches out, or give NaN for them."
        )
    if given.size < 2:
        return np.nan, given.size
    # Not left to the formula: the mean of equal numbers may differ from them in the last digit.
    equal = given.min() == given.max()
    return 0.0 if equal else float(np.log(given).std(ddof=1)), given.size


def _tails(confidence: float) -> tuple[float, float]:
    """The quantiles that lead to the low and to the high limit: both divide, so upper first."""
    require_confidence(confidence)
    return (1 + confidence) / 2, (1 - confidence) / 2


def _coefficient(s: Floats | float) -> float:
    """Coefficient of variation of a log-normal; infinite where a float cannot hold it."""
    with np.errstate(over="ignore"):
        return float(np.sqrt(np.expm1(np.square(s))))
