"""Three models of a load curve, throughput against level, and their fits.

Errors of a throughput are a share of it, so every model is fitted to its logarithm. Levels are
requests in flight (1 or more), throughputs are in any unit; the names say tokens/s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares

from study.errors import StudyError
from study.finite import Floats

LEAST_LEVELS = 4  # two on each side of a corner
GRID = 1000  # points over the tested range: steps below 1 % up to a range of 1 to 4,096


@dataclass(frozen=True)
class Gunther:
    """X(N) = lam N / (1 + sigma (N - 1) + kappa N (N - 1)), the universal scalability law.

    `lam`: tokens/s at level 1. `sigma`: the share of work that queues (contention). `kappa`: the
    price of keeping N in step (coherence); when it is positive, throughput falls beyond
    sqrt((1 - sigma) / kappa). `residual_sd`: standard deviation on the log scale, NaN at 3 points.
    Source: N. J. Gunther, Guerrilla Capacity Planning, Springer 2007, chapters 4 to 6.
    """

    lam: float
    sigma: float
    kappa: float
    residual_sd: float

    name: ClassVar[str] = "Gunther's law"
    parameters: ClassVar[int] = 3

    def predict(self, levels: ArrayLike) -> Floats:
        """Fitted tokens/s, one for each level."""
        level = np.asarray(levels, dtype=np.float64)
        queue, crosstalk = self.sigma * (level - 1), self.kappa * level * (level - 1)
        fitted: Floats = self.lam * level / (1 + queue + crosstalk)
        return fitted


@dataclass(frozen=True)
class TwoLines:
    """Two lines of log throughput over log level that meet at the breakpoint.

    `breakpoint`: a level. `at_breakpoint`: tokens/s there. Slopes: 1 is throughput in proportion
    to the level, 0 is flat. `residual_sd`: standard deviation on the log scale, NaN at 4 points.
    """

    breakpoint: float
    at_breakpoint: float
    slope_before: float
    slope_after: float
    residual_sd: float

    name: ClassVar[str] = "two lines"
    parameters: ClassVar[int] = 4

    def predict(self, levels: ArrayLike) -> Floats:
        """Fitted tokens/s, one for each level."""
        beyond = np.log(np.asarray(levels, dtype=np.float64) / self.breakpoint)
        slope = np.where(beyond < 0, self.slope_before, self.slope_after)
        fitted: Floats = self.at_breakpoint * np.exp(slope * beyond)
        return fitted


@dataclass(frozen=True)
class Capped:
    """X(N) = lam n / (1 + sigma (n - 1)) with n = min(N, limit): what a batch limit makes.

    A step of an engine takes a time of its own and one per request that runs, which is Gunther's
    law without kappa; beyond `limit` requests wait and add nothing. `residual_sd`: as there.
    """

    lam: float
    sigma: float
    limit: float
    residual_sd: float

    name: ClassVar[str] = "capped law"
    parameters: ClassVar[int] = 3

    def predict(self, levels: ArrayLike) -> Floats:
        """Fitted tokens/s, one for each level."""
        running = np.minimum(np.asarray(levels, dtype=np.float64), self.limit)
        return Gunther(self.lam, self.sigma, 0.0, np.nan).predict(running)


Model = Gunther | Capped | TwoLines


def gunther(levels: ArrayLike, tok_s: ArrayLike) -> Gunther:
    """Gunther's law with lam > 0, sigma >= 0, kappa >= 0 by least squares of log throughput.

    One throughput per level; levels may repeat. StudyError below 3 distinct levels, or as in
    `knee`.
    """
    level, rate = points(levels, tok_s)
    require(level, Gunther.parameters, Gunther.name)
    lam, sigma, kappa = _law(_terms(level, rate))
    fit = Gunther(lam, sigma, kappa, np.nan)
    return replace(fit, residual_sd=_residual_sd(fit, level, rate))


def _terms(level: Floats, rate: Floats) -> Floats:
    """N / X = (1 + sigma (N - 1) + kappa N (N - 1)) / lam is linear in three coefficients.

    None of them is negative; these are their factors over N / X, one column each.
    """
    terms = np.column_stack([np.ones_like(level), level - 1, level * (level - 1)])
    return np.asarray(terms * (rate / level)[:, None])


def _law(terms: Floats) -> tuple[float, float, float]:
    """Lam, sigma and kappa by least squares of log throughput; kappa is 0 without its column."""
    scale = np.maximum(terms.max(axis=0), np.finfo(float).tiny)
    terms = terms / scale

    def residuals(c: Floats) -> Floats:
        return np.log(terms @ c)

    def jacobian(c: Floats) -> Floats:
        return terms / (terms @ c)[:, None]

    count = terms.shape[1]
    start = np.exp(-np.log(terms.sum(axis=1)).mean()) * np.ones(count)
    least = [1e-9, 0, 0][:count]  # of 1 / lam: lam stays finite
    # Unlike "trf", "dogbox" can end on a bound, as at sigma = kappa = 0.
    found = least_squares(residuals, start, jacobian, bounds=(least, np.inf), method="dogbox")
    inverse, queue, crosstalk = (float(c) for c in np.append(found.x / scale, [0.0])[:3])
    return 1 / inverse, queue / inverse, crosstalk / inverse


def capped(levels: ArrayLike, tok_s: ArrayLike) -> Capped:
    """The law without kappa up to the limit that fits best, flat beyond, by the same least squares.

    The limit is searched from the second to the second last distinct level, in steps below 1 %, so
    that two levels at least lie on the plateau; or it is the last level, and there is no plateau.
    Levels may repeat. StudyError below 4 distinct levels, or as in `knee`.
    """
    level, rate = points(levels, tok_s)
    tested = require(level, LEAST_LEVELS, Capped.name)
    limits = np.append(grid_of(tested[1:-1]), tested[-1])
    # Of all limits at once, with errors of X in the place of those of log X: near enough.
    limit = float(limits[np.argmin(_left_by_law(np.minimum(level[:, None], limits), rate))])
    lam, sigma, _ = _law(_terms(np.minimum(level, limit), rate)[:, :2])
    fit = Capped(lam, sigma, limit, np.nan)
    return replace(fit, residual_sd=_residual_sd(fit, level, rate))


def _left_by_law(running: Floats, rate: Floats) -> Floats:
    """Squares of relative errors that the law without kappa leaves, per column of `running`."""
    one, other = rate[:, None] / running, rate[:, None] / running * (running - 1)
    ones, others, both = (one**2).sum(axis=0), (other**2).sum(axis=0), (one * other).sum(axis=0)
    to_one, to_other = one.sum(axis=0), other.sum(axis=0)
    alone = to_one / ones, np.zeros_like(ones)  # sigma = 0
    both_free = (to_one * others - to_other * both, to_other * ones - to_one * both)
    c = np.where(both_free[1] > 0, both_free / np.maximum(ones * others - both**2, 1e-300), alone)
    left: Floats = rate.size - c[0] * to_one - c[1] * to_other
    return np.where(c[0] > 0, left, np.inf)


def two_lines(levels: ArrayLike, tok_s: ArrayLike) -> TwoLines:
    """Two lines of log throughput over log level, joined at the breakpoint that fits best.

    The breakpoint is searched from the second to the second last distinct level, in steps below
    1 %: each line then rests on two levels. Levels may repeat. StudyError below 4 distinct
    levels, or as in `knee`.
    """
    level, rate = points(levels, tok_s)
    tested = require(level, LEAST_LEVELS, TwoLines.name)
    x, y = np.log(level), np.log(rate)
    breaks = np.log(grid_of(tested[1:-1]))
    # Of all breakpoints at once: what a hinge there takes off the squares that one line leaves
    # (Frisch & Waugh, Econometrica 1, 1933).
    line, _ = np.linalg.qr(np.column_stack([np.ones_like(x), x]))
    hinges = np.maximum(x[:, None] - breaks, 0)
    hinges -= line @ (line.T @ hinges)
    gain = (y @ hinges) ** 2 / (hinges**2).sum(axis=0)
    best = breaks[np.argmax(gain)]
    beyond = x - best
    sides = np.column_stack([np.ones_like(x), np.minimum(beyond, 0), np.maximum(beyond, 0)])
    height, before, after = (float(c) for c in np.linalg.lstsq(sides, y)[0])
    fit = TwoLines(float(np.exp(best)), float(np.exp(height)), before, after, np.nan)
    return replace(fit, residual_sd=_residual_sd(fit, level, rate))


def squares_left(fit: Model, level: Floats, rate: Floats) -> float:
    residual = np.log(rate / fit.predict(level))
    return float(residual @ residual)


def _residual_sd(fit: Model, level: Floats, rate: Floats) -> float:
    degrees = level.size - fit.parameters
    return float(np.sqrt(squares_left(fit, level, rate) / degrees)) if degrees > 0 else np.nan


def grid_of(tested: Floats) -> Floats:
    """Levels over the tested range, the tested ones among them."""
    grid: Floats = np.union1d(np.geomspace(tested[0], tested[-1], GRID), tested)
    return grid


def points(levels: ArrayLike, tok_s: ArrayLike) -> tuple[Floats, Floats]:
    """Levels and throughputs without missing ones, checked."""
    level = np.asarray(levels, dtype=np.float64).ravel()
    rate = np.asarray(tok_s, dtype=np.float64).ravel()
    if level.size != rate.size:
        raise StudyError(
            f"Each level must have one throughput; there were {level.size} levels and "
            f"{rate.size} throughputs."
        )
    level, rate = level[~np.isnan(rate)], rate[~np.isnan(rate)]
    for name, least, values in (("levels", 1, level), ("throughputs", np.nextafter(0, 1), rate)):
        bad = values[~((values >= least) & (values < np.inf))]
        if bad.size:
            what = "at least 1 request in flight" if name == "levels" else "positive"
            raise StudyError(f"All {name} must be {what} and finite; one was {bad[0]:g}.")
    return level, rate


def require(level: Floats, least: int, name: str) -> Floats:
    """The distinct levels, at least so many."""
    tested: Floats = np.unique(level)
    if tested.size < least:
        raise StudyError(
            f"A fit of {name} needs at least {least} distinct levels; there were {tested.size}. "
            "Measure more levels."
        )
    return tested


FITS: dict[str, Callable[[Floats, Floats], Model]] = {
    Gunther.name: gunther,
    Capped.name: capped,
    TwoLines.name: two_lines,
}
