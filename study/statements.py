"""Gates of scope claim on the study's own results: what is said of several windows, or of arms.

Levels are judged as those of anybody's results are (study.audit.claims); outputs by
study.same_output.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from study.audit.claims import Judged, distinct_levels
from study.audit.formats import Window
from study.estimates import rows_of
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
    slope: of log throughput over log time, inside cells (arm, workload, level); share: of the
    variance inside cells, what goes with it. NaN where no cell has windows enough.
    """

    median: float
    slowest: float
    slope: Interval
    share: float


def pace(windows: pd.DataFrame) -> Pace | None:
    """By every first try, valid or void; None where no two windows have their pace on record."""
    first = windows[~windows["again"].astype(bool)].reindex(columns=[*CELL, "pace_s", TOKENS])
    seen = first.dropna(subset=["pace_s", TOKENS])
    if len(seen) < 2:
        return None
    times = seen["pace_s"] / seen["pace_s"].min()
    logs = seen[["pace_s", TOKENS]].map(math.log)
    cells = seen.groupby(CELL, dropna=False).ngroup()
    inside = logs - logs.groupby(cells).transform("mean")
    slower, rate = inside["pace_s"], inside[TOKENS]
    degrees, spread = len(seen) - cells.nunique() - 1, float((slower**2).sum())
    if degrees < 1 or spread == 0:
        slope, share = Estimate(np.nan, np.nan, np.nan, len(seen)), np.nan
    else:
        by = float((slower * rate).sum()) / spread
        left, total = float(((rate - by * slower) ** 2).sum()), float((rate**2).sum())
        slope = Estimate(by, math.sqrt(left / degrees / spread), degrees, len(seen))
        share = 1 - left / total if total > 0 else np.nan
    told = replace(slope.interval(), statistic="slope", unit="windows")
    return Pace(float(times.median()), float(times.max()), told, share)


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
