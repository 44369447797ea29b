"""Where throughput stops rising with the level: Gunther's law, two lines, and the knee.

Errors of a throughput are a share of it, so both models are fitted to its logarithm. Levels are
requests in flight (1 or more), throughputs are in any unit; the names say tokens/s.

The knee is the smallest level whose *fitted* throughput is at least 95 % of the fitted maximum
over the tested range. It depends on that range: while throughput still rises at the last level
there is a maximum of the range but no knee, and `knee` then says "not reached".
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import least_squares

from study.additive import fit
from study.errors import StudyError, unknown_name
from study.interval import CONFIDENCE, Floats, Interval
from study.stats import mean_interval_log

SHARE = 0.95  # of the fitted maximum
LEAST_LEVELS = 4  # two for each of two lines
GRID = 1000  # points over the tested range: steps below 1 % up to a range of 1 to 4,096
EXACT = 1e-6  # residuals on the log scale that are rounding: no fit is better than that


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


Model = Gunther | TwoLines


@dataclass(frozen=True)
class Knee:
    """The knee of one curve.

    `level` is NaN unless `reached`. `reached` is None where nothing can be said; `text` is then
    the reason. `maximum` is the fitted maximum over the tested range in tokens/s, and less than
    the server could give when no knee was reached. `model` is the name of `fit`; without a fit
    it is '' and `maximum` is NaN.
    """

    level: float
    maximum: float
    model: str
    reached: bool | None
    text: str
    fit: Model | None = None


@dataclass(frozen=True)
class LaunchKnees:
    """The knees of several launches, each fitted by itself, and that of their pooled curve.

    `interval` is over the knees of the launches that reached one. Its limits are NaN below two of
    them, and when some launch was fitted and has no knee in its range: what is left would then be
    one end of the knees only. `not_judged` launches gave too few levels, or are flat from the
    lowest one on. `launches` has each launch's own knee.
    """

    interval: Interval
    reached: int
    not_reached: int
    not_judged: int
    pooled: Knee
    launches: dict[Hashable, Knee]
    text: str


def gunther(levels: ArrayLike, tok_s: ArrayLike) -> Gunther:
    """Gunther's law with lam > 0, sigma >= 0, kappa >= 0 by least squares of log throughput.

    One throughput per level; levels may repeat. StudyError below 3 distinct levels, or as in
    `knee`.
    """
    level, rate = _points(levels, tok_s)
    _require(level, Gunther.parameters, Gunther.name)
    # N / X = (1 + sigma (N - 1) + kappa N (N - 1)) / lam is linear in three coefficients of
    # which none is negative: no products of parameters, and one scale for all of them.
    terms = np.column_stack([np.ones_like(level), level - 1, level * (level - 1)])
    terms *= (rate / level)[:, None]
    scale = terms.max(axis=0)
    terms /= scale

    def residuals(c: Floats) -> Floats:
        return np.log(terms @ c)

    def jacobian(c: Floats) -> Floats:
        return terms / (terms @ c)[:, None]

    start = np.exp(-np.log(terms.sum(axis=1)).mean()) * np.ones(3)
    least = [1e-9, 0, 0]  # of 1 / lam: lam stays finite
    # Unlike "trf", "dogbox" can end on a bound, as at sigma = kappa = 0.
    found = least_squares(residuals, start, jacobian, bounds=(least, np.inf), method="dogbox")
    inverse, queue, crosstalk = (float(c) for c in found.x / scale)
    fit = Gunther(1 / inverse, queue / inverse, crosstalk / inverse, np.nan)
    return replace(fit, residual_sd=_residual_sd(fit, level, rate))


def two_lines(levels: ArrayLike, tok_s: ArrayLike) -> TwoLines:
    """Two lines of log throughput over log level, joined at the breakpoint that fits best.

    The breakpoint is searched from the second to the second last distinct level, in steps below
    1 %: each line then rests on two levels. Levels may repeat. StudyError below 4 distinct
    levels, or as in `knee`.
    """
    level, rate = _points(levels, tok_s)
    tested = _require(level, LEAST_LEVELS, TwoLines.name)
    x, y = np.log(level), np.log(rate)
    breaks = np.log(_grid(tested[1:-1]))
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


def knee(
    levels: ArrayLike, tok_s: ArrayLike, share: float = SHARE, model: str | None = None
) -> Knee:
    """The smallest level whose fitted throughput is at least `share` of the fitted maximum.

    `levels` (requests in flight) and `tok_s` have one entry per window; NaN throughputs are left
    out and levels may repeat. The level is found on a fine grid over the tested range, so it need
    not be a tested one. The model is the one named by `model` ("Gunther's law" or "two lines"), or
    that with the smaller AICc; at 5 or 6 windows, too few for it, that with the smaller
    residual variance; at 4, Gunther's law. Below 4 distinct levels nothing is judged.

    StudyError for lengths that differ, a level below 1, a throughput that is not positive and
    finite, a share outside of 0 to 1, or an unknown model.
    """
    if not 0 < share < 1:
        raise StudyError(f"share must lie between 0 and 1; it was {share}.")
    level, rate = _points(levels, tok_s)
    tested = np.unique(level)
    if tested.size < LEAST_LEVELS:
        text = f"cannot judge: a knee needs {LEAST_LEVELS} distinct levels; there were "
        return Knee(np.nan, np.nan, "", None, f"{text}{tested.size}")
    return _judged(_fit(level, rate, model), tested, share)


def _judged(fit: Model, tested: Floats, share: float) -> Knee:
    """The knee of a fitted curve, if the tested levels hold it.

    Why a rise of 1 - share is the limit: for a law that levels off (kappa = 0) the rise, as a
    share of one in proportion to the level, is exactly the share of the final throughput that is
    still missing. So "reached" says that the last level gives at least `share` of what any level
    could, as the knee does of the tested maximum. At 0.05, a doubled level brings 3.5 % more.
    The rise is taken over the last step, where it is a little larger than at its end: if the
    rule errs, then towards "not reached".
    """
    grid = _grid(tested)
    fitted = fit.predict(grid)
    maximum = float(fitted.max())
    first = float(grid[np.argmax(fitted >= share * maximum)])
    rise = _last_rise(fit, tested)
    found = Knee(np.nan, maximum, fit.name, None, "", fit)
    if rise > 1 - share:
        text = f"not reached: at the last level, {tested[-1]:g}, throughput still rises {rise:.2g} "
        text += f"times as fast as the level (limit {1 - share:.2g})"
        return replace(found, reached=False, text=text)
    if first == tested[0] > 1:
        text = f"cannot judge: throughput is already flat at the lowest level, {first:g}"
        return replace(found, text=f"{text}; the knee lies there or below")
    text = f"reached at level {first:.3g}: {share * 100:g} % of {maximum:.4g} tokens/s, {fit.name}"
    return replace(found, level=first, reached=True, text=text)


def knee_over_launches(
    frame: pd.DataFrame,
    value: str = "output_tok_s",
    share: float = SHARE,
    confidence: float = CONFIDENCE,
) -> LaunchKnees:
    """The knee of every launch by itself, their interval over launches, and the pooled knee.

    `frame` has a row per valid window of one arm and workload: launch, level and `value`
    (positive, one unit). The pooled curve is that of all windows, each launch scaled to the
    launches' geometric mean over the levels that they share, so that a level which only a fast
    launch reached does not look like a rise. Its model serves every launch: knees by different
    models would differ by that. The interval is `stats.mean_interval_log` of the knee levels.

    StudyError for a missing column, several arms or workloads, void windows, and as in `knee`.
    """
    _require_one_curve(frame, value)
    windows = frame.dropna(subset=[value])
    pooled = knee(windows["level"], _without_launches(windows, value), share)
    found: dict[Hashable, Knee] = {
        launch: knee(of_launch["level"], of_launch[value], share, pooled.model or None)
        for launch, of_launch in frame.groupby("launch", sort=False)
    }
    reached = [one.level for one in found.values() if one.reached]
    counts = len(reached), sum(one.reached is False for one in found.values())
    interval = mean_interval_log(reached, confidence)
    interval = replace(interval, statistic="geometric mean of the knees that were reached")
    partial = any(one.fit is not None and not one.reached for one in found.values())
    if partial:
        interval = replace(interval, low=np.nan, high=np.nan)
    unjudged = len(found) - sum(counts)
    text = _over_launches_text(len(found), *counts, unjudged, partial and bool(reached))
    return LaunchKnees(interval, *counts, unjudged, pooled, found, text)


def _over_launches_text(launches: int, reached: int, not_reached: int, none: int, cut: bool) -> str:
    text = f"{reached} of {launches} launches reached their knee"
    if not_reached:
        text += f", {not_reached} still rose at the last level"
    if none:
        text += f", {none} could not be judged"
    return f"{text}; no interval, for it would hold only the knees in range" if cut else text


def _without_launches(windows: pd.DataFrame, value: str) -> Floats:
    """Values divided by their launch's effect, from log value ~ level + launch.

    Launches of which some share no level with the others cannot be told apart from levels: their
    values stay as they are.
    """
    _, rate = _points(windows["level"], windows[value])
    level, levels = pd.factorize(windows["level"])
    launch, launches = pd.factorize(windows["launch"])
    model = fit(np.log(rate), level, launch, tuple(map(str, levels)), len(launches))
    if not model.connected:
        return rate
    scaled: Floats = rate / np.exp(model.block_effects()[launch])
    return scaled


def _fit(level: Floats, rate: Floats, model: str | None) -> Model:
    """The named model, or the better one; where neither is, the one with fewer parameters."""
    fits: dict[str, Callable[[Floats, Floats], Model]]
    fits = {Gunther.name: gunther, TwoLines.name: two_lines}
    if model is not None:
        if model not in fits:
            raise unknown_name("model", model, fits)
        return fits[model](level, rate)
    found = [fit(level, rate) for fit in fits.values()]
    return min(found, key=lambda fit: _badness(fit, level, rate))


def _badness(fit: Model, level: Floats, rate: Floats) -> float:
    """AICc (Hurvich & Tsai, Biometrika 76, 1989), or the residual deviation where n is too small.

    AICc of two lines needs 7 points. To take Gunther's law below that would be easy but wrong: on
    a hard cap, which it cannot bend to, its knee lies too high by a factor of 1.5 to 3.
    """
    n, k = level.size, fit.parameters + 1  # and the variance
    if n <= fit.parameters:
        return np.inf
    if n <= TwoLines.parameters + 2:
        return max(fit.residual_sd, EXACT)
    mean_square = max(_squares(fit, level, rate) / n, EXACT**2)
    return float(n * np.log(mean_square) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _squares(fit: Model, level: Floats, rate: Floats) -> float:
    residual = np.log(rate / fit.predict(level))
    return float(residual @ residual)


def _residual_sd(fit: Model, level: Floats, rate: Floats) -> float:
    degrees = level.size - fit.parameters
    return float(np.sqrt(_squares(fit, level, rate) / degrees)) if degrees > 0 else np.nan


def _last_rise(fit: Model, tested: Floats) -> float:
    """Fitted rise over the last two levels as a share of one in proportion to the level."""
    last = tested[-2:]
    return float(np.diff(np.log(fit.predict(last)))[0] / np.diff(np.log(last))[0])


def _grid(tested: Floats) -> Floats:
    """Levels over the tested range, the tested ones among them."""
    grid: Floats = np.union1d(np.geomspace(tested[0], tested[-1], GRID), tested)
    return grid


def _points(levels: ArrayLike, tok_s: ArrayLike) -> tuple[Floats, Floats]:
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


def _require(level: Floats, least: int, name: str) -> Floats:
    """The distinct levels, at least so many."""
    tested: Floats = np.unique(level)
    if tested.size < least:
        raise StudyError(
            f"A fit of {name} needs at least {least} distinct levels; there were {tested.size}. "
            "Measure more levels."
        )
    return tested


def _require_one_curve(frame: pd.DataFrame, value: str) -> None:
    names = ["launch", "level", value]
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise StudyError(
            f"The frame must have the columns {', '.join(names)}; it lacks {', '.join(missing)}."
        )
    for name in ("arm", "workload", "verdict"):
        kinds = list(frame[name].unique()) if name in frame.columns else []
        if len(kinds) > 1 or (name == "verdict" and "void" in kinds):
            raise StudyError(
                f"A knee is that of valid windows of one arm and workload; column {name} held "
                f"{', '.join(map(str, kinds))}. Pass the rows of one."
            )
