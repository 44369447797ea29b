"""What every estimator gives: an interval that says how it was made, from Student's t.

`Estimate` is a value with its standard error and the degrees of freedom behind that. Intervals,
p-values and equivalence tests are all taken from it, so they can never contradict each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from study.errors import StudyError
from study.finite import Floats

CONFIDENCE = 0.95
T = "t interval"
ON_LOG = "interval on the log scale"


@dataclass(frozen=True)
class Interval:
    """A statistic with its interval, and how it was made: a caption needs nothing else."""

    statistic: str
    point: float
    low: float
    high: float
    confidence: float
    method: str
    n: int
    unit: str = "launches"

    def label(self) -> str:
        """For instance '95 % t interval on the log scale, n = 3 launches'."""
        return f"{self.confidence * 100:g} % {self.method}, n = {self.n} {self.unit}"

    @property
    def half_width_relative(self) -> float:
        """Half the width as a share of the point; NaN where there is no interval or point."""
        if self.point == 0:
            return np.nan
        return (self.high - self.low) / 2 / abs(self.point)

    def exponentiated(self, statistic: str) -> Interval:
        """The same interval of a log value, as one of the value."""
        low, point, high = (float(np.exp(value)) for value in (self.low, self.point, self.high))
        method = self.method.replace("interval", ON_LOG, 1)
        return replace(self, statistic=statistic, low=low, point=point, high=high, method=method)


@dataclass(frozen=True)
class Estimate:
    """A value of any sign, its standard error, and the degrees of freedom of that error.

    `n` observations stand behind the value. Below two there is no error (NaN), and so no limit
    and no p-value.
    """

    value: float
    error: float
    degrees: float
    n: int

    def interval(self, confidence: float = CONFIDENCE, comparisons: int = 1) -> Interval:
        """Student's t; with several `comparisons` each interval is Bonferroni's, see `t_quantile`.

        All of them together then hold with `confidence`.
        """
        reach = t_quantile(confidence, self.degrees, comparisons) * self.error
        method = T + bonferroni(comparisons)
        low, high = self.value - reach, self.value + reach
        return Interval("mean", self.value, low, high, confidence, method, self.n)

    def p_value(self, comparisons: int = 1) -> float:
        """Two-sided, for a true value of 0; below 1 - confidence when the interval excludes 0."""
        p = 2 * min(self.p_above(0), self.p_below(0))
        return float(np.minimum(1, comparisons * p))  # NaN stays

    def p_above(self, limit: float) -> float:
        """One-sided: small when the true value must be larger than `limit`."""
        return self._tail(self.value - limit)

    def p_below(self, limit: float) -> float:
        """One-sided: small when the true value must be smaller than `limit`."""
        return self._tail(limit - self.value)

    def _tail(self, distance: float) -> float:
        """Student's t; without any spread the answer is certain, and on the limit there is none."""
        if self.error == 0:
            return 0.5 - 0.5 * float(np.sign(distance))
        return float(special.stdtr(self.degrees, -distance / self.error))


def estimate_mean(values: ArrayLike) -> Estimate:
    """The arithmetic mean with its standard error. NaN values are left out, `n` counts the others.

    StudyError for infinite values: they have no mean.
    """
    given = finite(values)
    n = given.size
    mean = float(given.mean()) if n else np.nan
    error = float(given.std(ddof=1) / np.sqrt(n)) if n >= 2 else np.nan
    return Estimate(mean, error, n - 1, n)


def t_quantile(confidence: float, degrees: float, comparisons: int = 1) -> float:
    """The factor of a two-sided t interval; the share of error is split over `comparisons`."""
    require_confidence(confidence)
    if comparisons < 1:
        raise StudyError(f"comparisons must be at least 1; it was {comparisons}.")
    if not degrees >= 1:  # Satterthwaite's may lie below, by rounding only
        return np.nan
    return float(special.stdtrit(degrees, 1 - (1 - confidence) / 2 / comparisons))


def bonferroni(count: int, of: str = "comparisons") -> str:
    """How a method's name goes on when it is adjusted for so many."""
    return f", Bonferroni over {count} {of}" if count > 1 else ""


def finite(values: ArrayLike) -> Floats:
    """The values without NaN; infinite ones have no mean and are an error."""
    given = np.asarray(values, dtype=np.float64).ravel()
    if np.isinf(given).any():
        raise StudyError("Values for an interval must be finite; at least one was infinite.")
    kept: Floats = given[~np.isnan(given)]
    return kept


def logs(values: ArrayLike, advice: str) -> Floats:
    """Logarithms of the values without NaN; StudyError with `advice` when one is not positive."""
    given = finite(values)
    if (given <= 0).any():
        raise StudyError(
            "Values for an interval on the log scale must be positive; the smallest was "
            f"{given.min():g}. {advice}"
        )
    found: Floats = np.log(given)
    return found


def require_confidence(confidence: float) -> None:
    """StudyError unless it is a probability between 0 and 1."""
    if not 0 < confidence < 1:
        raise StudyError(f"confidence must lie between 0 and 1; it was {confidence}.")
