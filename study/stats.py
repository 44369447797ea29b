"""Every estimator of the study, defined once.

The launch is the unit of replication: a thousand requests of one launch are one observation of
it. So windows are first reduced to one value per launch (`launch_means`), intervals go over
launches, and arms are compared inside blocks only.

Levels, ratios and their intervals live on the log scale. Server times and rates are positive and
their noise is a share of them, so log values are the ones that a t interval suits, limits stay
positive, and the ratio of two points is the point of their ratio. The point is then the
geometric mean over launches: the centre that this interval is for. (Within a launch means are
arithmetic. At a launch-to-launch spread of 3 % the two differ by 0.05 %.)

Student's t interval exists from two values on, and is wide there; at one value its limits are
NaN, and without any so is its point. Nothing is hidden: `n` says how many values stand behind it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from study import bootstrap
from study.errors import StudyError
from study.finite import Floats
from study.interval import (
    CONFIDENCE,
    ON_LOG,
    Estimate,
    Interval,
    estimate_mean,
    finite,
    logs,
)
from study.steady import WindowSummary

__all__ = [
    "CONFIDENCE",
    "ON_LOG",
    "Comparison",
    "Contrast",
    "Floats",
    "Interval",
    "contrast",
    "intervals",
    "launch_means",
    "mean_interval",
    "mean_interval_log",
    "of_blocks",
    "over_launches",
    "paired_ratio",
]

ADVICE = "Use mean_interval for differences and slopes."
LAUNCH_KEYS = ("arm", "block", "launch", "workload", "level")


@dataclass(frozen=True)
class Contrast:
    """An effect inside blocks. `blocks` could be paired, `dropped` lacked an arm.

    `estimate` is what effect and p-value are made of, on the scale of the analysis (for a ratio
    that of logs); both are adjusted for so many `comparisons`.
    """

    effect: Interval
    p_value: float
    blocks: int
    dropped: int
    estimate: Estimate
    comparisons: int


@dataclass(frozen=True)
class Comparison:
    """Treatment / baseline inside blocks, with the absolute values that the ratio hides.

    All three intervals are over the same paired blocks, so treatment / baseline = ratio.
    `contrast` is the ratio as an effect: what a test of equivalence needs.
    """

    contrast: Contrast
    baseline: Interval
    treatment: Interval

    @property
    def ratio(self) -> Interval:
        """Treatment / baseline."""
        return self.contrast.effect

    @property
    def p_value(self) -> float:
        """Two-sided, for a ratio of 1, by the same test as the interval."""
        return self.contrast.p_value

    @property
    def blocks(self) -> int:
        """How many blocks were paired."""
        return self.contrast.blocks

    @property
    def dropped(self) -> int:
        """How many blocks lacked an arm."""
        return self.contrast.dropped


def mean_interval(
    values: ArrayLike, confidence: float = CONFIDENCE, comparisons: int = 1
) -> Interval:
    """Arithmetic mean with Student's t interval: for differences and slopes, of either sign.

    NaN values are left out and `n` counts the others. With several `comparisons` each interval
    is Bonferroni's, so that all of them hold together with `confidence`.
    """
    return estimate_mean(values).interval(confidence, comparisons)


def mean_interval_log(
    values: ArrayLike, confidence: float = CONFIDENCE, comparisons: int = 1
) -> Interval:
    """Geometric mean of positive values with Student's t interval on the log scale.

    StudyError when a value is not positive: take `mean_interval` for such.
    """
    given = logs(values, ADVICE)
    return mean_interval(given, confidence, comparisons).exponentiated("geometric mean")


def over_launches(values: ArrayLike, log: bool = True, confidence: float = CONFIDENCE) -> Interval:
    """The interval for as many launches as there are: Student's t, from 10 on BCa's bootstrap.

    `values`: one per launch, NaN is left out. With `log` they must be positive, and the point is
    the geometric mean; else it is the arithmetic one.
    """
    few = finite(values).size < bootstrap.LEAST
    if few:
        return (mean_interval_log if log else mean_interval)(values, confidence)
    if not log:
        return bootstrap.bca_mean(values, confidence)
    return bootstrap.bca_mean(logs(values, ADVICE), confidence).exponentiated("geometric mean")


def contrast(
    frame: pd.DataFrame,
    value: str,
    weights: Mapping[str, float],
    *,
    factor: str = "arm",
    block: str = "block",
    log: bool = True,
    comparisons: int = 1,
    confidence: float = CONFIDENCE,
) -> Contrast:
    """A weighted sum of arms inside each block, with its interval over blocks and its p-value.

    `frame` has one row per arm and block (columns `factor`, `block`, `value`); `weights` give a
    number to each arm and sum to 0: {b: 1, a: -1} compares two arms, {ab: 1, a: -1, b: -1,
    none: 1} is an interaction, {deep: 1/d, shallow: -1/d} a slope over the depth difference d.
    With `log` the effect is the exponential of the sum of logs: a ratio, 1 when there is none.

    Pairing never crosses blocks: a block that lacks an arm, or has NaN in it, is dropped and
    counted. StudyError for a missing column, an arm twice in a block, or weights that do not
    sum to 0. An arm that appears nowhere gives an effect of NaN over 0 blocks.
    """
    paired, blocks = _paired(frame, value, weights, factor, block)
    per_block = _weighted(paired, value, weights, log)
    return of_blocks(per_block, log, blocks, comparisons, confidence)


def of_blocks(
    per_block: ArrayLike,
    log: bool = True,
    blocks: int | None = None,
    comparisons: int = 1,
    confidence: float = CONFIDENCE,
) -> Contrast:
    """A contrast from its value in each block (with `log`: of logs), Student's t over blocks.

    Of `blocks` in all, those without a value here were dropped.
    """
    estimate = estimate_mean(per_block)
    interval = estimate.interval(confidence, comparisons)
    method = f"paired {interval.method}"
    interval = replace(interval, statistic="contrast", unit="blocks", method=method)
    effect = interval.exponentiated("ratio") if log else interval
    dropped = 0 if blocks is None else blocks - estimate.n
    p_value = estimate.p_value(comparisons)
    return Contrast(effect, p_value, estimate.n, dropped, estimate, comparisons)


def paired_ratio(
    frame: pd.DataFrame,
    value: str,
    factor: str,
    treatment: str,
    baseline: str,
    block: str = "block",
    comparisons: int = 1,
    confidence: float = CONFIDENCE,
) -> Comparison:
    """Treatment / baseline inside blocks: log ratios, Student's t over blocks.

    With several `comparisons` the interval and the p-value are both Bonferroni's, by the same
    test: the p-value is below 1 - confidence exactly when the interval excludes 1. Input and
    errors as in `contrast`.
    """
    weights = {treatment: 1.0, baseline: -1.0}
    paired, blocks = _paired(frame, value, weights, factor, block)
    per_block = _weighted(paired, value, weights, log=True)
    found = of_blocks(per_block, True, blocks, comparisons, confidence)
    of_arm = {
        arm: replace(mean_interval_log(paired[arm], confidence), unit="blocks") for arm in weights
    }
    return Comparison(found, of_arm[baseline], of_arm[treatment])


def launch_means(windows: pd.DataFrame, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """One value per launch, workload, level and metric, from valid windows only.

    `windows` has a row per window: arm, block, launch, workload, level, verdict, and a column
    per metric (when `metrics` is not given, all that a `WindowSummary` holds). The answer is
    long: arm, block, launch, workload, level, metric, value. Windows of one launch at the same
    load are averaged; a metric that no window of the launch could give is NaN.
    """
    require_columns(windows, [*LAUNCH_KEYS, "verdict", *(metrics or ())])
    names = metrics if metrics is not None else _measured(windows)
    valid = windows[windows["verdict"] == "valid"]
    means = valid.groupby(list(LAUNCH_KEYS), dropna=False, as_index=False)[list(names)].mean()
    return means.melt(list(LAUNCH_KEYS), list(names), var_name="metric", value_name="value")


def intervals(
    windows: pd.DataFrame,
    metrics: Sequence[str],
    by: Sequence[str],
    confidence: float = CONFIDENCE,
) -> pd.DataFrame:
    """Intervals over launches, one row per cell of `by` and metric.

    Columns: those of `by`, metric, point, low, high, confidence, method, n. A cell whose windows
    are all void stays, with n = 0 and NaN; the others are `over_launches`. A metric that is
    positive everywhere gets the log scale in all its cells. StudyError when a launch
    would enter one cell twice: launches are what is counted, so `by` must tell them apart.
    """
    outside = [name for name in by if name not in LAUNCH_KEYS]
    if outside or not by:
        raise StudyError(f"by must name some of {', '.join(LAUNCH_KEYS)}; it was {list(by)}.")
    means = launch_means(windows, metrics)
    twice = means.duplicated(["launch", "metric", *by])
    if twice.any():
        raise StudyError(
            f"Each launch must give one value per cell of by={list(by)}; launch "
            f"{means.loc[twice, 'launch'].iloc[0]} gives several. Add workload or level to `by`."
        )
    cells = windows[list(by)].drop_duplicates().sort_values(list(by))
    rows = [
        {**dict(zip(by, cell, strict=True)), "metric": metric, **found}
        for metric in metrics
        for cell, found in _cells_of(means[means["metric"] == metric], by, cells, confidence)
    ]
    columns = [*by, "metric", "point", "low", "high", "confidence", "method", "n"]
    return pd.DataFrame(rows, columns=columns)


def _cells_of(
    means: pd.DataFrame, by: Sequence[str], cells: pd.DataFrame, confidence: float
) -> list[tuple[tuple[Hashable, ...], dict[str, object]]]:
    """Each cell with its interval as a row, for one metric."""
    log = not (means["value"] <= 0).any()
    values = {key: group["value"] for key, group in means.groupby(list(by))}
    return [
        (cell, asdict(over_launches(values.get(cell, pd.Series(dtype=float)), log, confidence)))
        for cell in cells.itertuples(index=False, name=None)
    ]


def _paired(
    frame: pd.DataFrame, value: str, weights: Mapping[str, float], factor: str, block: str
) -> tuple[pd.DataFrame, int]:
    """Blocks x arms without gaps, in the order of `weights`, and how many blocks there were."""
    require_columns(frame, [value, factor, block])
    if len(weights) < 2 or abs(sum(weights.values())) > 1e-9 * max(map(abs, weights.values())):
        raise StudyError(
            f"A contrast needs at least two arms with weights that sum to 0; it had {weights}."
        )
    wanted = frame[frame[factor].isin(list(weights))]
    require_once(wanted, factor, block)
    table = wanted.pivot(index=block, columns=factor, values=value).reindex(columns=list(weights))
    paired = table.astype("float64").dropna()
    return paired, len(table)


def _weighted(paired: pd.DataFrame, value: str, weights: Mapping[str, float], log: bool) -> Floats:
    """The weighted sum of arms in each block, of their logs where asked."""
    values = paired.to_numpy()
    if log and (values <= 0).any():
        raise StudyError(
            f"{value} must be positive for a ratio; the smallest was {values.min():g}. "
            "Use log=False for values of either sign."
        )
    scaled = np.log(values) if log else values
    weighted: Floats = scaled @ np.array(list(weights.values()), dtype=np.float64)
    return weighted


def require_once(frame: pd.DataFrame, factor: str, block: str) -> None:
    """StudyError when a block holds an arm several times."""
    twice = frame.duplicated([block, factor])
    if twice.any():
        row = frame[twice].iloc[0]
        raise StudyError(
            f"Each block must hold {factor} {row[factor]} once; block {row[block]} holds it "
            "several times. Pass one value per arm and block: one workload, level and metric."
        )


def _measured(windows: pd.DataFrame) -> list[str]:
    return [field.name for field in fields(WindowSummary) if field.name in windows.columns]


def require_columns(frame: pd.DataFrame, names: Sequence[str]) -> None:
    """StudyError that names the columns that the frame lacks."""
    missing = [name for name in names if name not in frame.columns]
    if missing:
        raise StudyError(
            f"The frame must have the columns {', '.join(names)}; it lacks {', '.join(missing)} "
            f"(it has {', '.join(map(str, frame.columns))})."
        )
