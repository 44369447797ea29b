"""log value ~ arm + block, with one residual variance for all arms: what few launches can carry.

With three blocks a pair of arms has two degrees of freedom for a variance of its own; five arms
that share one have eight. That is right where arms vary alike, as one server with another block
size does, and wrong where variability itself is in question: there each pair keeps its own
(`study.stats.paired_ratio`). A block that lacks an arm still tells about the others.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.errors import unknown_name
from study.finite import Floats
from study.interval import CONFIDENCE, Estimate, Interval, logs
from study.stats import require_columns, require_once

Places = NDArray[np.intp]

POOLED = "t interval, variance pooled over arms"


@dataclass(frozen=True)
class Additive:
    """The fit by least squares, of logs. `arms` and `blocks` are in the order of the frame.

    `coefficients`: a log mean per arm, adjusted to the same blocks, then the effects of all blocks
    but the last (they sum to 0). `covariance` is theirs for a residual variance of 1, `row_space`
    projects onto what the values can tell apart. `present`: blocks x arms, where there is a value.
    `residual`: standard deviation within blocks, with `degrees` degrees of freedom; `launch`:
    that of a launch in a block to come, blocks' own variance included, with Satterthwaite's.
    """

    arms: tuple[str, ...]
    coefficients: Floats
    covariance: Floats
    row_space: Floats
    present: np.ndarray
    residual: float
    degrees: int
    launch: float
    launch_degrees: float

    def block_effects(self) -> Floats:
        """Log of each block's effect; they sum to 0."""
        all_but_last = self.coefficients[len(self.arms) :]
        return np.append(all_but_last, -all_but_last.sum())

    @property
    def connected(self) -> bool:
        """Whether blocks connect all arms, so that effects of both can be told apart."""
        return bool(np.allclose(self.row_space, np.eye(len(self.row_space)), atol=1e-9))

    def difference(self, treatment: str, baseline: str) -> Estimate:
        """log(treatment / baseline); `n` counts the blocks that hold both.

        NaN where an arm has no value, or no chain of blocks connects the two.
        """
        if not {treatment, baseline} <= set(self.arms):
            return Estimate(np.nan, np.nan, self.degrees, 0)
        weights = self.weights(treatment, baseline)
        both = self.present[:, [self._place(treatment), self._place(baseline)]]
        n = int(both.all(axis=1).sum())
        if not self._told(weights):
            return Estimate(np.nan, np.nan, self.degrees, n)
        error = self.residual * np.sqrt(weights @ self.covariance @ weights)
        return Estimate(float(weights @ self.coefficients), float(error), self.degrees, n)

    def arm_interval(self, arm: str, confidence: float = CONFIDENCE) -> Interval:
        """The arm's geometric mean over blocks to come, with the spread of all arms' launches.

        NaN where blocks do not connect all arms: then their means and blocks' cannot be told apart.
        """
        place = self._place(arm)
        n = int(self.present[:, place].sum())
        told = self._told(np.eye(self.coefficients.size)[place])
        mean = float(self.coefficients[place]) if told else np.nan
        error = self.launch / np.sqrt(n) if told else np.nan
        said = Estimate(mean, float(error), self.launch_degrees, n)
        interval = said.interval(confidence)
        return replace(interval, method=POOLED).exponentiated("geometric mean")

    def connected_with(self, arm: str) -> tuple[str, ...]:
        """The arms that some chain of blocks connects with this one, itself among them."""
        return tuple(one for one in self.arms if self._told(self.weights(one, arm)))

    def weights(self, treatment: str, baseline: str) -> Floats:
        """Of the coefficients, for log(treatment / baseline)."""
        weights = np.zeros(self.coefficients.size)
        weights[self._place(treatment)] += 1
        weights[self._place(baseline)] -= 1
        return weights

    def _told(self, weights: Floats) -> bool:
        """Whether the values tell this combination of coefficients."""
        return bool(np.allclose(weights @ self.row_space, weights, atol=1e-9))

    def _place(self, arm: str) -> int:
        if arm not in self.arms:
            raise unknown_name("arm", arm, self.arms)
        return self.arms.index(arm)


def additive(
    frame: pd.DataFrame, value: str, *, factor: str = "arm", block: str = "block"
) -> Additive:
    """Fit log `value` ~ `factor` + `block`; one row per arm and block, NaN is left out.

    StudyError for a missing column, an arm twice in a block, or a value that is not positive and
    finite. Without any value the fit has no arms.
    """
    require_columns(frame, [value, factor, block])
    require_once(frame, factor, block)
    known = frame.dropna(subset=[value])
    y = logs(known[value].to_numpy(dtype=np.float64), "Compare values of either sign by contrast.")
    arm, arms = pd.factorize(known[factor])
    place, blocks = pd.factorize(known[block])
    return fit(y, arm, place, tuple(map(str, arms)), len(blocks))


def fit(y: Floats, arm: Places, block: Places, arms: tuple[str, ...], blocks: int) -> Additive:
    """The fit from arrays: log values, and for each the place of its arm and of its block."""
    of_arm = np.eye(len(arms))[arm]
    of_block = np.eye(blocks)[block]
    # Sum coding: the effects of the blocks sum to 0.
    design = np.hstack([of_arm, of_block[:, :-1] - of_block[:, -1:]])
    inverse = np.linalg.pinv(design)
    row_space = inverse @ design
    rank = round(float(np.trace(row_space)))
    coefficients = inverse @ y
    squares = float(((y - design @ coefficients) ** 2).sum())
    degrees = y.size - rank
    residual = np.sqrt(squares / degrees) if degrees else np.nan
    means = (of_arm.T @ y) / of_arm.sum(axis=0)
    between = max(float(((y - of_arm @ means) ** 2).sum()) - squares, 0.0)
    launch, launch_degrees = _launch(
        between, rank - len(arms), y.size - len(arms), residual, degrees
    )
    return Additive(
        arms=arms,
        coefficients=coefficients,
        covariance=inverse @ inverse.T,
        row_space=row_space,
        present=(of_block.T @ of_arm) > 0,
        residual=float(residual),
        degrees=degrees,
        launch=launch,
        launch_degrees=launch_degrees,
    )


def _launch(
    between: float, block_degrees: int, within: int, residual: float, degrees: int
) -> tuple[float, float]:
    """Standard deviation of a launch, and its degrees of freedom.

    The mean square of blocks, adjusted for arms, expects the residual variance + k x that of
    blocks, with k = (values - arms) / its degrees of freedom (Henderson, Biometrics 9, 1953).
    Degrees by Satterthwaite (Biometrics Bulletin 2, 1946).
    """
    if not block_degrees:
        return np.nan, np.nan
    k = within / block_degrees
    parts = [(between / block_degrees / k, block_degrees)]
    if degrees:
        parts.append(((1 - 1 / k) * residual**2, degrees))
    variance = sum(part for part, _ in parts)
    squares = sum(part**2 / df for part, df in parts)
    return float(np.sqrt(variance)), variance**2 / squares if squares else float(degrees)
