"""How many launches: Stein's two-stage rule.

A pilot gives the variance, the half width stated beforehand gives the number of launches, and the
interval after them keeps the pilot's variance and its degrees of freedom. That is what makes it
hold exactly whatever the true variance (Stein, Ann. Math. Stat. 16, 1945); to add launches until
the interval looks narrow enough does not. Widths are relative and on the log scale: half width
0.05 is an interval from point / 1.05 to point x 1.05.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from study.errors import StudyError
from study.interval import (
    CONFIDENCE,
    Estimate,
    Interval,
    bonferroni,
    estimate_mean,
    logs,
    t_quantile,
)

PILOT = 5  # launches
HALF_WIDTH = 0.05  # stated before measuring; the same share that counts as no difference
ADVICE = "The rule is for positive values and ratios."
METHOD = "two-stage t interval"


@dataclass(frozen=True)
class Replication:
    """How many launches (or blocks, for a ratio) a stated width needs, from a pilot.

    `spread`: standard deviation of the pilot's log values, nearly the coefficient of variation.
    `total` includes the pilot, which is enough when `more` is 0.
    """

    half_width: float
    confidence: float
    comparisons: int
    pilot: int
    spread: float
    total: int

    @property
    def more(self) -> int:
        """Launches to add to the pilot."""
        return self.total - self.pilot


def needed(
    pilot: ArrayLike,
    half_width: float = HALF_WIDTH,
    confidence: float = CONFIDENCE,
    comparisons: int = 1,
) -> Replication:
    """The launches in all that make the interval at most so wide, from the values of a pilot.

    `pilot`: one positive value per launch, or one ratio per block; NaN is left out. With several
    `comparisons` the intervals are Bonferroni's. StudyError below two values, or for a half width
    that is not positive.
    """
    if not 0 < half_width < np.inf:
        raise StudyError(f"half_width must be a positive share, like 0.05; it was {half_width}.")
    given = logs(pilot, ADVICE)
    if given.size < 2:
        raise StudyError(f"A pilot needs at least 2 launches; there were {given.size}.")
    spread = float(given.std(ddof=1))
    reach = t_quantile(confidence, given.size - 1, comparisons) * spread / np.log1p(half_width)
    total = max(given.size, int(np.ceil(reach**2)))
    return Replication(half_width, confidence, comparisons, given.size, spread, total)


def needed_by_cell(values: pd.DataFrame, half_width: float = HALF_WIDTH) -> pd.DataFrame:
    """`needed` for each arm, workload and level with at least two launches, the first `PILOT` of
    which are its pilot; and where there are more, the interval that the rule is about.

    `values` as from `study.stats.launch_means`, of one metric. Columns: arm, workload, level, the
    fields of `Replication`, more, and of the two-stage interval point, low, high and n; these are
    NaN and the pilot's size where there is only a pilot.
    """
    by = ["arm", "workload", "level"]
    known = values.dropna(subset=["value"]).sort_values("block", kind="stable")
    rows = []
    for cell, group in known.groupby(by, sort=False):
        if len(group) > 1:
            said = needed(group["value"].iloc[:PILOT], half_width)
            rows.append(
                {**dict(zip(by, cell, strict=True)), **asdict(said), "more": said.more}
                | _two_stage(group["value"])
            )
    names = [field.name for field in fields(Replication)]
    return pd.DataFrame(rows, columns=[*by, *names, "more", "point", "low", "high", "n"])


def _two_stage(values: pd.Series) -> dict[str, float]:
    if len(values) <= PILOT:
        return {"point": np.nan, "low": np.nan, "high": np.nan, "n": len(values)}
    said = two_stage_interval(values)
    return {"point": said.point, "low": said.low, "high": said.high, "n": said.n}


def two_stage_interval(
    values: ArrayLike,
    pilot: int = PILOT,
    confidence: float = CONFIDENCE,
    comparisons: int = 1,
) -> Interval:
    """Geometric mean of all launches, its interval from the variance of the first `pilot` ones.

    `values`: one positive number per launch, in the order measured. StudyError when there are
    fewer than the pilot, or the pilot is below two.
    """
    given = logs(values, ADVICE)
    if not 2 <= pilot <= given.size:
        raise StudyError(
            f"A pilot must be 2 to {given.size} launches, the number of values; it was {pilot}."
        )
    error = estimate_mean(given[:pilot]).error * np.sqrt(pilot / given.size)
    said = Estimate(float(given.mean()), float(error), pilot - 1, given.size)
    interval = said.interval(confidence, comparisons)
    method = f"{METHOD} (pilot of {pilot}){bonferroni(comparisons)}"
    return replace(interval, method=method).exponentiated("geometric mean")
