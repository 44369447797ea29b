"""Where the variance comes from: requests, windows, launches; hence why requests do not replicate.

log value ~ cell + launch + window + request, a cell being an arm at a workload and level. Whatever
a launch gets wrong (placement, clocks, a neighbour), all of its requests share, and more of them
only measure that launch more exactly. The components are found from expected mean squares (nested
analysis of variance; Henderson's method 3, Biometrics 9, 1953, where counts are unequal), with the
intervals of Ting, Burdick, Graybill, Jeyaratnam & Lu (J. Stat. Comput. Simul. 35, 1990).

Requests of a window are autocorrelated. What that adds to a window's mean counts as the window's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from study.errors import StudyError
from study.finite import Floats
from study.interval import CONFIDENCE, Interval, logs, require_confidence
from study.stats import require_columns

CELL = ("arm", "workload", "level")
SOURCES = ("launch", "window", "request")
SHOWN = ("point", "low", "high", "confidence", "method", "n")
Limits = tuple[float, float, float]

METHOD = "modified large-sample interval of a nested analysis of variance"


@dataclass(frozen=True)
class Square:
    """A mean square and its degrees of freedom; it expects the variances below it + `weight` x."""

    mean: float
    degrees: float
    weight: float


@dataclass(frozen=True)
class Components:
    """Variances of log values by source, each as a standard deviation with its interval.

    `launch`, `window` and `request` are `Interval`s of standard deviations, nearly shares of the
    value (0.03 is 3 %); `n` is how many of the source there were. NaN where it cannot be told:
    one window a launch holds launch and window together.
    """

    launch: Interval
    window: Interval
    request: Interval

    def share(self, source: str) -> float:
        """The source's share of the variance of one request."""
        variance = {name: getattr(self, name).point ** 2 for name in SOURCES}
        return float(variance[source] / sum(variance.values()))

    def error(self, launches: float, windows: float, requests: float) -> float:
        """Standard error of a mean of logs: launches, windows of each, requests of each window."""
        counts = np.cumprod([launches, windows, requests])
        variances = [getattr(self, name).point ** 2 for name in SOURCES]
        return float(np.sqrt((np.array(variances) / counts).sum()))

    def frame(self) -> pd.DataFrame:
        """A row per source, for a table.

        Columns: source, point, low, high (standard deviations), confidence, method, n, share (of
        one request's variance), error (of the mean of logs, as measured) and error_tenfold (with
        ten times as many of this source in each above it).
        """
        n = [getattr(self, name).n for name in SOURCES]
        each = n[0], n[1] / n[0], n[2] / n[1]
        rows = [
            {
                "source": name,
                **{key: getattr(getattr(self, name), key) for key in SHOWN},
                "share": self.share(name),
                "error": self.error(*each),
                "error_tenfold": self.error(
                    *(k * 10 ** (s == name) for k, s in zip(each, SOURCES, strict=True))
                ),
            }
            for name in SOURCES
        ]
        return pd.DataFrame(rows)


def components(requests: pd.DataFrame, value: str, confidence: float = CONFIDENCE) -> Components:
    """The variance components of `value` (positive; NaN is left out).

    `requests` has a row per request: arm, workload, level (those that it has tell cells apart),
    launch, window (an id of its own) and `value`. A launch may have several windows in one cell,
    or windows in several cells: then windows are what its cells do not do alike. StudyError for a
    missing column, a window in two launches or cells, or a value that is not positive.
    """
    cell = [name for name in CELL if name in requests.columns]
    require_columns(requests, ["launch", "window", value])
    known = requests.dropna(subset=[value])
    known = known.assign(log=logs(known[value], "Components are of positive values."))
    of_window = known.groupby(["window", "launch", *cell], sort=False)["log"]
    table = of_window.agg(mean="mean", sd="std", size="size").reset_index()
    return _components(table, cell, confidence)


def components_of_windows(
    windows: pd.DataFrame, metric: str, confidence: float = CONFIDENCE
) -> Components:
    """The same from the windows frame alone, which keeps `<metric>_log_mean` and `_log_sd`.

    `windows` has a row per window: launch, arm, workload, level, requests_finished and those two.
    """
    names = [f"{metric}_log_mean", f"{metric}_log_sd", "requests_finished"]
    require_columns(windows, ["launch", *CELL, *names])
    known = windows.dropna(subset=names).reset_index(drop=True)
    mean, sd, size = (known[name] for name in names)
    table = known[["launch", *CELL]].assign(window=known.index, mean=mean, sd=sd, size=size)
    return _components(table.astype({"size": int}), list(CELL), confidence)


def _components(windows: pd.DataFrame, cell: list[str], confidence: float) -> Components:
    """From a row per window: of its logs the `mean`, the `sd`, and the `size`, their number."""
    require_confidence(confidence)
    if windows["window"].duplicated().any():
        raise StudyError("Each window must belong to one launch and one cell; one had several.")
    requests = int(windows["size"].sum())
    within = float(((windows["size"] - 1) * windows["sd"] ** 2).sum())
    request = _square(within, requests - len(windows), 1.0)
    cells = windows.groupby(cell).ngroup() if cell else np.zeros(len(windows), dtype=int)
    launch, window = _squares(windows, np.asarray(cells), pd.factorize(windows["launch"])[0])
    many = windows["launch"].nunique(), len(windows)
    mean = _of_means(windows, request)
    return Components(
        launch=_interval(_difference(launch, window, confidence), confidence, many[0], "launches"),
        window=_interval(_difference(window, mean, confidence), confidence, many[1], "windows"),
        request=_interval(_alone(request, confidence), confidence, requests, "requests"),
    )


def _of_means(windows: pd.DataFrame, request: Square) -> Square:
    """What requests add to the variance of a window's mean, on average over windows.

    Each by its own requests: with the level their spread grows, and so does their number. Degrees
    by Satterthwaite (Biometrics Bulletin 2, 1946). A single request has the spread of all.
    """
    own = windows["size"] > 1
    variance = (windows["sd"] ** 2).where(own, request.mean) / windows["size"]
    parts = (variance**2 / (windows["size"] - 1))[own]
    total, squares = float(variance.sum(skipna=False)), float(parts.sum())
    degrees = total**2 / squares if squares else request.degrees
    return Square(total / len(windows), degrees, 1.0)


def _interval(variances: Limits, confidence: float, n: int, unit: str) -> Interval:
    """Standard deviations; a variance estimated below 0 says that nothing is left for it."""
    point, low, high = np.sqrt(np.maximum(variances, 0)).tolist()
    said = "standard deviation of logs"
    return Interval(said, point, low, high, confidence, METHOD, n, unit)


def _squares(windows: pd.DataFrame, cell: np.ndarray, launch: np.ndarray) -> tuple[Square, Square]:
    """Mean squares of launches (adjusted for cells) and of windows in them, on window means."""
    y = windows["mean"].to_numpy(dtype=np.float64)
    cells = (cell[:, None] == np.unique(cell)).astype(float)
    launches = (launch[:, None] == np.unique(launch)).astype(float)
    left, rank = _residuals(cells, np.column_stack([y, launches]))
    of_both, rank_both = _residuals(np.hstack([cells, launches]), y[:, None])
    rest = float((of_both**2).sum())
    between = float((left[:, 0] ** 2).sum()) - rest
    degrees = rank_both - rank
    weight = float((left[:, 1:] ** 2).sum()) / degrees if degrees else np.nan
    return _square(between, degrees, weight), _square(rest, y.size - rank_both, 1.0)


def _residuals(design: Floats, y: Floats) -> tuple[Floats, int]:
    inverse = np.linalg.pinv(design)
    left: Floats = y - design @ (inverse @ y)
    return left, round(float(np.trace(inverse @ design)))


def _square(squares: float, degrees: int, weight: float) -> Square:
    return Square(squares / degrees if degrees > 0 else np.nan, degrees, weight)


def _alone(square: Square, confidence: float) -> Limits:
    """A variance with its chi-square interval."""
    tails = np.array([1 + confidence, 1 - confidence]) / 2
    low, high = square.mean * square.degrees / stats.chi2.ppf(tails, square.degrees)
    return square.mean, float(low), float(high)


def _difference(above: Square, below: Square, confidence: float) -> Limits:
    """(above - below) / weight with its interval: what a source adds to what lies below it."""
    a, b, n, m = above.mean, below.mean, above.degrees, below.degrees
    point = (a - b) / above.weight
    if np.isnan(point):
        return np.nan, np.nan, np.nan
    upper, lower = (1 + confidence) / 2, (1 - confidence) / 2
    g1, g2 = (1 - df / stats.chi2.ppf(upper, df) for df in (n, m))
    h1, h2 = (df / stats.chi2.ppf(lower, df) - 1 for df in (n, m))
    f, e = stats.f.ppf(upper, n, m), stats.f.ppf(lower, n, m)
    g12 = ((f - 1) ** 2 - g1**2 * f**2 - h2**2) / f
    h12 = ((1 - e) ** 2 - h1**2 * e**2 - g2**2) / e
    down = (g1 * a) ** 2 + (h2 * b) ** 2 + g12 * a * b
    up = (h1 * a) ** 2 + (g2 * b) ** 2 + h12 * a * b
    low, high = (
        point - np.sqrt(max(down, 0)) / above.weight,
        point + np.sqrt(max(up, 0)) / above.weight,
    )
    return point, float(low), float(high)
