"""Where throughput stops rising with the level: the knee of a load curve.

The knee is the smallest level whose *fitted* throughput is at least 95 % of the fitted maximum
over the tested range. It depends on that range: while throughput still rises at the last level
there is a maximum of the range but no knee, and `knee` then says "not reached". Levels are
requests in flight (1 or more), throughputs are in any unit; the names say tokens/s.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from study.additive import fit
from study.curves import FITS, LEAST_LEVELS, Model, grid_of, points, squares_left
from study.errors import StudyError, unknown_name
from study.finite import Floats
from study.interval import CONFIDENCE, Interval
from study.stats import mean_interval_log

SHARE = 0.95  # of the fitted maximum
FEW = 9  # windows: below, they cannot tell their own noise
NOISE = 0.03  # standard deviation of a window on the log scale, where it cannot be told
SURE = 6.0  # then a further parameter must be worth so much: by chance once in 70 (chi-squared)
EXACT = 1e-6  # residuals on the log scale that are rounding: no fit is better than that
CORNER = 0.005  # half a step, on the log scale, of the grid on which a corner is searched


@dataclass(frozen=True)
class Knee:
    """The knee of one curve.

    `level` is NaN unless `reached`. `reached` is None where nothing can be said; `text` is then
    the reason. `maximum` is the fitted maximum over the tested range in tokens/s, and less than
    the server could give when no knee was reached. `model` is the name of `fit`; without a fit
    it is '' and `maximum` is NaN. `misfit`: how far windows lie off the fit, as root mean square of
    the log ratio; NaN without one. `spare`: windows more than the fit has parameters. With none to
    spare, `misfit` is what even so many parameters cannot meet, so the least; it is NaN where they
    meet all windows, but for the grid of a corner: what they cannot meet is then not known.
    """

    level: float
    maximum: float
    model: str
    reached: bool | None
    text: str
    fit: Model | None = None
    misfit: float = np.nan
    spare: int = 0


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


def knee(
    levels: ArrayLike, tok_s: ArrayLike, share: float = SHARE, model: str | None = None
) -> Knee:
    """The smallest level whose fitted throughput is at least `share` of the fitted maximum.

    `levels` (requests in flight) and `tok_s` have one entry per window; NaN throughputs are left
    out and levels may repeat. The level is found on a fine grid over the tested range, so it need
    not be a tested one. The model is the one named by `model` ("Gunther's law", "capped law" or
    "two lines"), or that with the smallest AICc; below 9 windows, too few to tell their own noise,
    squares over a noise of 3 % a window, and 6 more for each parameter. Below 4 distinct levels
    nothing is judged.

    StudyError for lengths that differ, a level below 1, a throughput that is not positive and
    finite, a share outside of 0 to 1, or an unknown model.
    """
    if not 0 < share < 1:
        raise StudyError(f"share must lie between 0 and 1; it was {share}.")
    level, rate = points(levels, tok_s)
    tested = np.unique(level)
    if tested.size < LEAST_LEVELS:
        text = f"cannot judge: a knee needs {LEAST_LEVELS} distinct levels; there were "
        return Knee(np.nan, np.nan, "", None, f"{text}{tested.size}")
    found = _fit(level, rate, model)
    spare = level.size - found.parameters
    misfit = float(np.sqrt(squares_left(found, level, rate) / level.size))
    told = misfit if spare or misfit > CORNER else np.nan  # else it may meet any windows
    return replace(_judged(found, tested, share), misfit=told, spare=spare)


def _judged(fit: Model, tested: Floats, share: float) -> Knee:
    """The knee of a fitted curve, if the tested levels hold it.

    Why a rise of 1 - share is the limit: for a law that levels off (kappa = 0) the rise, as a
    share of one in proportion to the level, is exactly the share of the final throughput that is
    still missing. So "reached" says that the last level gives at least `share` of what any level
    could, as the knee does of the tested maximum. At 0.05, a doubled level brings 3.5 % more.
    The rise is taken over the last step, where it is a little larger than at its end: if the
    rule errs, then towards "not reached".
    """
    grid = grid_of(tested)
    fitted = fit.predict(grid)
    maximum = float(fitted.max())
    first = _crossing(grid, fitted, share * maximum)
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


def _crossing(grid: Floats, fitted: Floats, least: float) -> float:
    """The level at which a fit first gives `least`, between two points of the grid."""
    after = int(np.argmax(fitted >= least))
    if not after:
        return float(grid[0])
    part = (least - fitted[after - 1]) / (fitted[after] - fitted[after - 1])
    return float(grid[after - 1] + part * (grid[after] - grid[after - 1]))


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
    _, rate = points(windows["level"], windows[value])
    level, levels = pd.factorize(windows["level"])
    launch, launches = pd.factorize(windows["launch"])
    model = fit(np.log(rate), level, launch, tuple(map(str, levels)), len(launches))
    if not model.connected:
        return rate
    scaled: Floats = rate / np.exp(model.block_effects()[launch])
    return scaled


def _fit(level: Floats, rate: Floats, model: str | None) -> Model:
    """The named model, or the best one; where several are, the first."""
    if model is not None:
        if model not in FITS:
            raise unknown_name("model", model, FITS)
        return FITS[model](level, rate)
    found = [fit(level, rate) for fit in FITS.values()]
    return min(found, key=lambda fit: _badness(fit, level, rate))


def _badness(fit: Model, level: Floats, rate: Floats) -> float:
    """AICc (Hurvich & Tsai, Biometrika 76, 1989), or with a known noise where n is small.

    AICc of two lines needs 7 windows to exist, and 9 to be within reach. Below that a variance
    estimated beside the parameters says nothing, so the noise of a window is taken as `NOISE`, and
    a further parameter must be worth `SURE`: more than the 2 of AIC, for so few windows.
    """
    n, k = level.size, fit.parameters + 1  # and the variance
    squares = squares_left(fit, level, rate)
    if n < FEW:
        return squares / NOISE**2 + SURE * k
    mean_square = max(squares / n, EXACT**2)
    return float(n * np.log(mean_square) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def _last_rise(fit: Model, tested: Floats) -> float:
    """Fitted rise over the last two levels as a share of one in proportion to the level."""
    last = tested[-2:]
    return float(np.diff(np.log(fit.predict(last)))[0] / np.diff(np.log(last))[0])


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
