"""Gates of scope claim on the study's own results: what is said of several windows, or of arms.

Levels are judged as those of anybody's results are (study.audit.claims); outputs by
study.same_output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.audit.claims import Judged, distinct_levels
from study.audit.formats import Window
from study.estimates import rows_of
from study.finite import Floats
from study.gates.judgement import Judgement
from study.interval import Estimate, Interval
from study.same_output import Agreement
from study.stats import mean_interval

CURVE = ["arm", "workload"]
CELL = ["experiment", *CURVE, "level"]
RATE, LATENCY, TOKENS = "requests_s", "e2e_p50_s", "output_tok_s"
COLUMNS = ("of", "gate", "scope", "verdict", "observed", "limit", "text")


def judged(windows: pd.DataFrame, agreements: Sequence[Agreement] = ()) -> pd.DataFrame:
    """A row per statement: `distinct_levels` of every curve with two levels or more, then
    `same_output` of every pair of arms that was compared.

    Args: the windows frame of `study.frames.Frames`; what `study.same_output.compare` gave.
    Columns: of (the arm and workload, or the pair), and those of a judgement.
    """
    of_levels = [(f"{arm}, {workload}", said) for (arm, workload), said in levels(windows).items()]
    of_outputs = [(f"{one.treatment} against {one.baseline}", one.judgement) for one in agreements]
    rows = [{"of": of, **asdict(said)} for of, said in (*of_levels, *of_outputs)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.assign(observed=frame["observed"].map(str), limit=frame["limit"].map(str))


def common_drift(windows: pd.DataFrame) -> Interval:
    """The drift that windows share: their mean by launch, then over launches, with its interval.

    A single short window can rarely exclude a drift; all of them together can, if it is one that
    they share, as from a warm-up that was too short. Every first try counts, valid or void: to
    leave out what drifts would be to choose by the result.
    """
    first = windows[~windows["again"].astype(bool)]
    by_launch = first.dropna(subset=["drift"]).groupby("launch")["drift"].mean()
    return mean_interval(by_launch)


@dataclass(frozen=True)
class Pace:
    """How far the cores' own pace wandered between windows, and throughput with it.

    median, slowest: time of the piece of work (`study.pace`) over that of the quickest window;
    slope: of log throughput over log time, inside cells (arm, workload, level), with an interval
    over launches, for windows of one launch share what else disturbed it; share: of the variance
    inside cells, what goes with it. NaN where no cell has windows enough, or of a single launch.
    """

    median: float
    slowest: float
    slope: Interval
    share: float


def pace(windows: pd.DataFrame) -> Pace | None:
    """By every first try, valid or void; None where no two windows have their pace on record."""
    if windows.empty:
        return None
    named = [*CELL, "launch", "pace_s", TOKENS]
    first = windows[~windows["again"].astype(bool)].reindex(columns=named)
    seen = first.dropna(subset=["pace_s", TOKENS])
    if len(seen) < 2:
        return None
    times = seen["pace_s"] / seen["pace_s"].min()
    slope, share = _with_pace(seen)
    told = replace(slope.interval(), statistic="slope", method="jackknife t interval")
    return Pace(float(times.median()), float(times.max()), told, share)


def _with_pace(seen: pd.DataFrame) -> tuple[Estimate, float]:
    """Slope and share of `Pace`. The slope's error is the jackknife's over launches, so windows
    that only repeat their launch add no certainty (Efron & Tibshirani, An Introduction to the
    Bootstrap, 1993, section 11.5)."""
    several = seen[seen.groupby(CELL, dropna=False)["pace_s"].transform("size") > 1]
    logs = np.log(several[["pace_s", TOKENS]].to_numpy())
    cell = several.groupby(CELL, dropna=False).ngroup().to_numpy()
    launch = several["launch"].to_numpy()
    others = [launch != one for one in np.unique(launch)]
    slope, share = _inside(logs, cell)
    without = np.array([_inside(logs[kept], cell[kept])[0] for kept in others])
    n = len(others)
    error = math.sqrt(((without - slope) ** 2).sum() * (n - 1) / n) if n > 1 else np.nan
    return Estimate(slope, error, n - 1, n), share


def _inside(logs: Floats, cell: NDArray[np.integer[Any]]) -> tuple[float, float]:
    """Slope of the second column over the first inside cells, and the share of its variance that
    goes with the first; NaN where the first does not vary there."""
    means = np.column_stack([np.bincount(cell, column) for column in logs.T])
    slower, rate = (logs - (means / np.bincount(cell).clip(1)[:, np.newaxis])[cell]).T
    spread, both, total = slower @ slower, slower @ rate, rate @ rate
    if spread == 0:
        return np.nan, np.nan
    return float(both / spread), float(both**2 / spread / total) if total > 0 else np.nan


def levels(windows: pd.DataFrame) -> dict[tuple[str, str], Judgement]:
    """Are the levels of each curve different loads? By means over launches, of valid windows."""
    if windows.empty:
        return {}
    valid = windows[windows["verdict"] == "valid"]
    means = valid.groupby([*CURVE, "level"], as_index=False)[[RATE, LATENCY]].mean()
    return {
        (str(arm), str(workload)): distinct_levels([_judged(row) for row in rows_of(curve)])
        for (arm, workload), curve in means.groupby(CURVE)
        if len(curve) > 1
    }


def _judged(row: object) -> Judged:
    level, rate, latency_s = (float(getattr(row, name)) for name in ("level", RATE, LATENCY))
    rates, times_s = {"request_s": rate}, {"e2e": {"p50": latency_s}}
    return Judged(f"{level:g}", Window("", level=level, rates=rates, times_s=times_s), "valid")
