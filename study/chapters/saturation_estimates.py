"""Where the throughput of a curve stops rising, what ends the rise, and what lies beyond.

A curve is one arm on one workload, over all levels with a valid window. Each function is a pure
function of a `Part`; a curve that was asked for keeps its row, whatever became of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from study import curves, estimates, knee, stats
from study.chapter import Part
from study.estimates import (
    COMPARED,
    LIMITS,
    RATIO,
    Metric,
    as_columns,
    by_column,
    launch_values,
    paired,
)
from study.frames import NOT_MEASURED
from study.once import once
from study.search import STEP

REACHED, NOT_REACHED, CANNOT_JUDGE = "reached", "not reached", "cannot judge"
NO_VALID = "no valid window"

BATCH_LIMIT, KV_CACHE, COMPUTE = "batch limit", "KV cache", "compute"
ADMISSION, UNSURE = "admission", f"{BATCH_LIMIT} or {COMPUTE}"
RUNNING_FULL = 0.95  # of max_num_seqs, on average over the steady part: the batch is full
MANY_EMPTY = 0.2  # of the slots, while requests wait: more than are empty until the next step
CACHE_FULL = 0.95  # of the KV cache, at its fullest: a long request finds no room any more
NEAR = 2.0  # two steps of sqrt(2): a level so near a knee could move it
ROSE_TO = 1 / STEP  # of the batch: a knee below that is none of a full batch
RESOLUTION = 0.01  # a knee lies on a grid of about such steps, so it is not known any finer

FULL_TEXT = (
    "as many as the batch holds: what rises from there on is no fuller batch, but the speed of the "
    "machine, or requests of one length that fall into step"
)

HEADLINE = "output_tok_s"
GAUGES = by_column(
    Metric("running_mean", "Running", "requests", 1.0, True),
    Metric("waiting_mean", "Waiting", "requests", 1.0, False),
    Metric("kv_use_max", "KV cache in use", "%", 1e2, False),
    Metric("preemptions", "Preemptions", "per window", 1.0, False),
)
CURVE = ("arm", *estimates.FACTORS, "workload", "input_tokens", "output_tokens")


@once
def knees(part: Part) -> pd.DataFrame:
    """A row per curve asked for: its knee, and the law that it follows.

    Columns: those of CURVE, max_num_seqs, levels and highest_level (with a valid window),
    launches (with a valid window; each chose its levels). state: 'reached', 'not reached', 'cannot
    judge' (also where throughput rises, or may rise, although the batch was full before), 'no valid
    window', or the arm's outcome; text: why there is no knee. point, low, high (requests in flight;
    NaN unless reached), confidence, method, n: the knee over the n launches that reached it; with
    no such interval, point is the pooled curve's. not_reached, not_judged: launches.
    maximum_tok_s and knee_tok_s: fitted, of the pooled curve. at_level: the lowest level at or
    above the knee, of those that most launches measured; top_level: the highest that most have
    beside it. void_near: levels near the knee of which every window is void, so that it might lie
    elsewhere with them. model_of_fit: the one that fits better, with its misfit and spare
    windows (see `Knee`). sigma_point, ..., kappa_high: Gunther's law over launches.
    """
    return pd.DataFrame([_knee_row(*one) for one in _curves(part)])


def fitted(part: Part, points: int = 200) -> pd.DataFrame:
    """The pooled fit of each curve over its tested range: arm, workload, level, point (tok/s)."""
    lines = []
    for curve, valid, found in _curves(part):
        fit = found.pooled.fit
        if fit is not None:
            level = np.geomspace(valid["level"].min(), valid["level"].max(), points)
            known = {name: curve[name] for name in CURVE}
            lines.append(pd.DataFrame({**known, "level": level, "point": fit.predict(level)}))
    if not lines:
        return pd.DataFrame(columns=[*CURVE, "level", "point"])
    return pd.concat(lines, ignore_index=True)


def limits(part: Part) -> pd.DataFrame:
    """What ends the rise of each curve that has a knee, by the engine's gauges at `at_level`.

    Columns: those of `knees`, and per gauge its mean over launches; running and waiting: the
    level, shared out by the gauge of those that wait (`_running`); limit: 'batch limit'
    (`RUNNING_FULL` of max_num_seqs run, and throughput rose until then), 'KV cache' (`CACHE_FULL`
    of it is in use, or a request was preempted), both, 'admission' (neither is full, and
    `MANY_EMPTY` of the slots are empty while requests wait), 'compute' when none of these, 'batch
    limit or compute' where the knee's interval, or a knee known no finer than `RESOLUTION`, allows
    both, or 'cannot judge' without samples of the gauges.
    """
    known = knees(part)
    reached = [row for row in _records(known) if row["state"] == REACHED]
    if not reached:
        return pd.DataFrame(columns=[*known.columns, *GAUGES, "running", "waiting", "limit"])
    every = estimates.by_level(part.found, list(GAUGES))
    rows = [{**row, **_gauges_at(every, row)} for row in reached]
    return pd.DataFrame([{**row, "limit": _limit(row)} for row in rows])


def beyond(part: Part) -> pd.DataFrame:
    """What more requests in flight give and cost: `top_level` over `at_level`.

    The same launch sees both levels, so the ratio is inside blocks, Bonferroni's over all curves
    asked for. Columns: those of CURVE, at_level, top_level, metric, and `estimates.RATIO`.
    Only curves with a knee, and levels beyond it.
    """
    known = knees(part)
    rows = [
        _beyond_row(part, row, metric, len(known))
        for row in _records(known)
        if row["state"] == REACHED and row["top_level"] > row["at_level"]
        for metric in COMPARED
    ]
    return pd.DataFrame(rows, columns=[*CURVE, "at_level", "top_level", "metric", *RATIO])


# --- one curve ------------------------------------------------------------------------------------

Row = dict[str, Any]


def _records(frame: pd.DataFrame) -> list[Row]:
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]


def _curves(part: Part) -> Iterator[tuple[Row, pd.DataFrame, knee.LaunchKnees]]:
    """Each curve asked for, its valid windows, and its knees; why there is no window, if so."""
    batch = {launch.arm.name: launch.arm.flags["max_num_seqs"] for launch in part.launches}
    seen = estimates.windows(part.found)
    asked = estimates.planned(part.launches).drop_duplicates(["arm", "workload"])
    told = estimates.outcomes(part.found).drop_duplicates("arm").set_index("arm")
    told = told.reindex([*batch]).fillna({"outcome": NOT_MEASURED, "reason": ""})
    for one in _records(asked.sort_values(["layers", "model"], kind="stable")):
        here = seen[(seen["arm"] == one["arm"]) & (seen["workload"] == one["workload"])]
        valid = here[here["verdict"] == "valid"]
        curve = {name: one[name] for name in CURVE} | {"max_num_seqs": batch[one["arm"]]}
        curve["void_near"] = sorted({*here["level"]} - {*valid["level"]})  # so far all of them
        if valid.empty:
            outcome, reason = told.loc[one["arm"], ["outcome", "reason"]]
            curve |= {"state": NO_VALID if len(here) else outcome, "text": reason}
        yield curve, valid, knee.knee_over_launches(valid, HEADLINE)


def _knee_row(curve: Row, valid: pd.DataFrame, found: knee.LaunchKnees) -> Row:
    state, text = _judged(found)
    interval, pooled = found.interval, found.pooled
    point = interval.point if np.isfinite(interval.low) else pooled.level
    low = float(np.fmin(interval.low, point))
    if why := _rose_when_full(state, low, valid, curve["max_num_seqs"]):
        state, text = CANNOT_JUDGE, why
    if state != REACHED:
        point, interval = np.nan, replace(interval, low=np.nan, high=np.nan)
    tested = np.unique(valid["level"].to_numpy())
    at_level, top_level = _compared(valid, point)
    void = [level for level in curve["void_near"] if point / NEAR <= level <= point * NEAR]
    return {
        "state": state,
        "text": text,
        **curve,  # where nothing is valid, it knows better
        **as_columns(interval),
        "point": point,
        "launches": valid["launch"].nunique(),
        "not_reached": found.not_reached,
        "not_judged": found.not_judged,
        "levels": tested.size,
        "highest_level": tested.max(initial=0),
        "at_level": at_level,
        "top_level": top_level,
        "void_near": ", ".join(map(str, void)),
        "maximum_tok_s": pooled.maximum,
        "knee_tok_s": float(pooled.fit.predict(point)) if pooled.fit else np.nan,
        "model_of_fit": pooled.model,
        "misfit": pooled.misfit,
        "spare": pooled.spare,
        **_gunther(valid),
    }


def _rose_when_full(state: str, low: float, valid: pd.DataFrame, batch: int) -> str:
    """Why a rise counts for nothing: it went on, or may have, beyond a full batch; '' if it counts.

    `low` is the lowest level where a knee may lie. A step above the batch is granted: with no more
    than the batch in flight, slots are empty from one request to the next. A knee must lie below
    that by more than it is known; the highest level without one may be that step, as whole levels
    round it.
    """
    full = [
        int(row["level"])
        for row in _records(valid)
        if row["level"] >= batch and _running(row, row["level"], batch) >= RUNNING_FULL * batch
    ]
    first, granted = min(full, default=0), batch * STEP
    ends = {
        REACHED: (low, granted * (1 - RESOLUTION)),
        NOT_REACHED: (valid["level"].max(), granted * (1 + RESOLUTION)),
    }
    end, most = ends.get(state, (0.0, granted))
    if not first or not end > max(first, most):
        return ""
    if end > granted * (1 + RESOLUTION):
        return f"as many ran at {first} in flight already, {FULL_TEXT}"
    return (
        f"as many ran at {first} in flight already, all that the batch holds; a rise is granted up "
        f"to {granted:.3g}, a step above it, and a knee at {low:.3g} is too near to that to tell"
    )


def _running(gauges: Row, level: float, batch: int) -> float:
    """How many run of so many in flight; NaN where the gauges were not sampled.

    The gauge of those that run is read when a step is over: it lacks whom that step finished and
    whom the next one takes in. So all that do not wait are taken to run, as far as the batch goes.
    """
    if not gauges["running_mean"] + gauges["waiting_mean"] > 0:
        return np.nan
    return float(np.clip(level - gauges["waiting_mean"], 0, batch))


def _compared(valid: pd.DataFrame, point: float) -> tuple[float, float]:
    """The lowest level at the knee and the highest beyond that most launches share; or NaN."""
    at_or_above = valid[valid["level"] >= point * (1 - RESOLUTION)]
    launches: dict[float, set[str]] = {}
    for launch, level in at_or_above[["launch", "level"]].itertuples(index=False):
        launches.setdefault(float(level), set()).add(launch)
    if not launches:
        return np.nan, np.nan
    most = valid["launch"].nunique() // 2 + 1
    at_level = max(launches, key=lambda level: (min(len(launches[level]), most), -level))
    both = {level: len(launches[level] & launches[at_level]) for level in launches}
    further = [level for level in launches if level > at_level] or [at_level]
    return at_level, max(further, key=lambda level: (min(both[level], most), level))


def _judged(found: knee.LaunchKnees) -> tuple[str, str]:
    """The state of the pooled curve and why; a knee that no launch has by itself is not proven."""
    pooled = found.pooled
    if pooled.reached and not found.reached:
        return CANNOT_JUDGE, "the pooled curve has a knee, but no launch has one by itself"
    state = {True: REACHED, False: NOT_REACHED, None: CANNOT_JUDGE}[pooled.reached]
    return state, "" if pooled.reached else pooled.text.removeprefix(f"{state}: ")


def _gunther(valid: pd.DataFrame) -> Row:
    """Sigma and kappa of Gunther's law with their intervals over launches; either may be zero."""
    fits = [
        asdict(curves.gunther(of_launch["level"], of_launch[HEADLINE]))
        for _, of_launch in valid.dropna(subset=HEADLINE).groupby("launch")
        if of_launch["level"].nunique() >= curves.Gunther.parameters
    ]
    sigma, kappa = (
        as_columns(stats.mean_interval([fit[name] for fit in fits]), LIMITS, f"{name}_")
        for name in ("sigma", "kappa")
    )
    return sigma | kappa


def _gauges_at(every: pd.DataFrame, row: Row) -> dict[str, float]:
    here = every[(every["arm"] == row["arm"]) & (every["workload"] == row["workload"])]
    of_gauge = here[here["level"] == row["at_level"]].set_index("metric")["point"]
    gauges = {name: float(of_gauge[name]) for name in GAUGES}
    running = _running(gauges, row["at_level"], row["max_num_seqs"])
    return {**gauges, "running": running, "waiting": row["at_level"] - running}


def _limit(row: Row) -> str:
    if np.isnan(row["running"]) or np.isnan(row["kv_use_max"]):
        return CANNOT_JUDGE
    batch_full = row["running"] >= RUNNING_FULL * row["max_num_seqs"]
    slots = min(row["at_level"], row["max_num_seqs"])  # whoever is beyond the batch must wait
    limits = [KV_CACHE] if row["kv_use_max"] >= CACHE_FULL or row["preemptions"] > 0 else []
    if batch_full:
        limits += _batch_or_compute(row, bool(limits))
    elif not limits and slots - row["running"] >= MANY_EMPTY * slots:
        limits = [ADMISSION]
    return " and ".join(limits) or COMPUTE


def _batch_or_compute(row: Row, cache_full: bool) -> list[str]:
    """Whether the rise ended where the batch is full, or was over before.

    Tested levels lie up to two steps apart, so the lowest one at or above a knee may have a full
    batch although the knee is far from it. A knee nearer to the limit than it is known lies on
    neither side of it.
    """
    least = ROSE_TO * row["max_num_seqs"]
    low, high = (row[name] if np.isfinite(row[name]) else row["point"] for name in ("low", "high"))
    if low >= least * (1 + RESOLUTION):
        return [BATCH_LIMIT]
    return [] if cache_full or high < least * (1 - RESOLUTION) else [UNSURE]


def _beyond_row(part: Part, row: Row, metric: str, comparisons: int) -> Row:
    values = launch_values(part.found, metric)
    here = values[(values["arm"] == row["arm"]) & (values["workload"] == row["workload"])]
    by_level = here.assign(level=here["level"].astype(int).astype(str))
    levels = str(int(row["top_level"])), str(int(row["at_level"]))
    return {
        **{name: row[name] for name in (*CURVE, "at_level", "top_level")},
        "metric": metric,
        **paired(by_level, *levels, comparisons, "level"),
    }
