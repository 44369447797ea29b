"""Several arms against one baseline, so that all comparisons hold together: Dunnett's method.

Differences from one baseline share its noise, so they are correlated, and Bonferroni's intervals
are wider than need be. Dunnett (J. Am. Stat. Assoc. 50, 1955) takes limits and p-values from the
distribution of the largest of their t values; here that is scipy's multivariate t, because blocks
that lack an arm make the correlations unequal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy import stats
from scipy.optimize import brentq

from study.additive import Additive, additive
from study.interval import (
    CONFIDENCE,
    Estimate,
    Interval,
    bonferroni,
    require_confidence,
    t_quantile,
)
from study.stats import Contrast

METHOD = "Dunnett interval, pooled residual variance"
POINTS = 1000  # of the integral, per dimension: it is then right to five digits
SEED = 0  # of the integral's random shift: the same interval every time

Correlation = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Largest:
    """The largest of several |t| with common `degrees`: its distribution when nothing differs."""

    degrees: int
    correlation: Correlation

    @property
    def count(self) -> int:
        """How many comparisons hold together."""
        return len(self.correlation)

    def beyond(self, t: float) -> float:
        """The probability that the largest lies beyond `t`: Dunnett's two-sided p-value."""
        one = float(2 * stats.t.sf(abs(t), self.degrees))
        if self.count < 2 or not one > 0:
            return one
        inside = _inside(abs(t), self.degrees, self.correlation)
        # Bonferroni's inequality holds to any digit; the integral does not.
        return float(np.clip(1 - inside, one, min(1, self.count * one)))

    def quantile(self, confidence: float) -> float:
        """The t that the largest stays below with `confidence`."""
        require_confidence(confidence)
        least = t_quantile(confidence, self.degrees)
        if self.count < 2 or np.isnan(least):
            return least
        most = t_quantile(confidence, self.degrees, self.count)
        return _root(self, confidence, least, most)


@lru_cache(maxsize=4096)
def _inside(t: float, degrees: int, correlation: Correlation) -> float:
    box = np.full(len(correlation), t)
    return float(
        stats.multivariate_t.cdf(
            box,
            shape=np.array(correlation),
            df=degrees,
            lower_limit=-box,
            maxpts=POINTS * box.size,
            random_state=SEED,
        )
    )


@lru_cache(maxsize=256)
def _root(largest: Largest, confidence: float, least: float, most: float) -> float:
    found = brentq(lambda t: largest.beyond(t) - (1 - confidence), least, most, xtol=1e-6)
    return float(found)


def against(
    frame: pd.DataFrame,
    value: str,
    baseline: str,
    treatments: Sequence[str],
    *,
    factor: str = "arm",
    block: str = "block",
    families: int = 1,
    confidence: float = CONFIDENCE,
) -> dict[str, Contrast]:
    """Each treatment / baseline as a `Contrast`, with limits and p-values that hold together.

    `frame` has one row per arm and block (columns `factor`, `block`, `value`; NaN is left out).
    The residual variance is that of `additive`, from these arms. With several `families` (other
    levels, other models) the share of error is split over them too. An arm without a value, or
    that shares no block with the baseline, has NaN. Errors as in `additive`.
    """
    wanted = frame[frame[factor].isin([baseline, *treatments])]
    model = additive(wanted, value, factor=factor, block=block)
    together = simultaneous(model, baseline, treatments, families, confidence)
    blocks = wanted[block].nunique()
    return {
        one: _contrast(said, together, families, confidence, blocks - said.n)
        for one, said in together.estimates.items()
    }


@dataclass(frozen=True)
class Simultaneous:
    """log(treatment / baseline) of each treatment; within `reach` standard errors all hold."""

    estimates: dict[str, Estimate]
    largest: Largest
    reach: float


def simultaneous(
    model: Additive,
    baseline: str,
    treatments: Sequence[str],
    families: int = 1,
    confidence: float = CONFIDENCE,
) -> Simultaneous:
    """Differences from the baseline in a fit, and how far the limits of all of them reach."""
    estimates = {one: _inside_blocks(model.difference(one, baseline)) for one in treatments}
    largest = Largest(model.degrees, _correlation(model, estimates, baseline))
    return Simultaneous(estimates, largest, largest.quantile(1 - (1 - confidence) / families))


def _inside_blocks(said: Estimate) -> Estimate:
    """Two arms that share no block are not compared, even where a third one connects them."""
    return said if said.n else replace(said, value=np.nan, error=np.nan)


def _correlation(model: Additive, estimates: Mapping[str, Estimate], baseline: str) -> Correlation:
    """Of the differences that can be estimated: 1/2 between any two when blocks are complete."""
    able = [one for one, said in estimates.items() if not np.isnan(said.value)]
    if not able:
        return ()
    rows = np.array([model.weights(one, baseline) for one in able])
    covariance = rows @ model.covariance @ rows.T
    deviation = np.sqrt(np.diag(covariance))
    found = np.round(covariance / np.outer(deviation, deviation), 12)
    return tuple(map(tuple, found.tolist()))


def _contrast(
    said: Estimate, together: Simultaneous, families: int, confidence: float, dropped: int
) -> Contrast:
    low, high = (said.value + sign * together.reach * said.error for sign in (-1, 1))
    method = METHOD + bonferroni(families, "families")
    interval = Interval("mean", said.value, low, high, confidence, method, said.n, "blocks")
    with np.errstate(divide="ignore"):
        t = float(np.divide(said.value, said.error)) if said.value else 0.0
    p_value = float(np.minimum(1, families * together.largest.beyond(t)))
    comparisons = families * max(1, together.largest.count)
    return Contrast(interval.exponentiated("ratio"), p_value, said.n, dropped, said, comparisons)
