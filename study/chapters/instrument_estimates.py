"""What the chapter on the instrument says, as tidy frames: pure functions of what was found.

Twins are one and the same server under two names (A/A). Whatever they differ by is noise, so
they show how much of it there is, and whether the machinery takes it for an effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as distributions

from study import estimates, stats
from study.chapter import Part
from study.estimates import COMPARED, RATIO, at, launch_values, paired
from study.experiments.instrument import TWINS
from study.frames import Frames
from study.gates.headroom import FLOOR_S, RATE_FACTOR, SHARE_LIMIT
from study.plan import Launch

TWIN = ("model", "treatment", "baseline", "workload", "level", "metric")
# What the null server's clock says of the client, and what a window's numbers are held against.
ADDED = {"ttft": "TTFT", "itl": "ITL"}
MEASURED = {"ttft": "ttft_added", "itl": "itl_error"}
SECOND = ("bench_", "engine_bench_")  # comparisons that rest on the second instrument's file


def twins(launches: Sequence[Launch]) -> list[tuple[str, str, str]]:
    """Model, treatment and baseline of every pair of twins, in reading order."""
    models = dict.fromkeys(str(one.arm.factors["model"]) for one in launches)
    first, second = TWINS
    return [(name, f"{name}-{second}", f"{name}-{first}") for name in sorted(models)]


def ratios(found: Frames, launches: Sequence[Launch], metric: str) -> pd.DataFrame:
    """One twin over the other inside blocks, a row per model, workload and level asked for.

    Columns: TWIN and RATIO; intervals and tests are Bonferroni's over all rows.
    """
    values = launch_values(found, metric)
    family = [
        (*pair, cell)
        for pair in twins(launches)
        for cell in estimates.cells(estimates.planned(launches))
    ]
    rows = []
    for model, treatment, baseline, cell in family:
        here = at(values, cell)
        names = (model, treatment, baseline, *cell, metric)
        rows.append(
            {
                **dict(zip(TWIN, names, strict=True)),
                **paired(here, treatment, baseline, len(family)),
            }
        )
    return pd.DataFrame(rows, columns=[*TWIN, *RATIO])


def block_ratios(found: Frames, launches: Sequence[Launch], metric: str) -> pd.DataFrame:
    """The ratio in every single block that has a valid window of both: TWIN, block, point."""
    values, rows = launch_values(found, metric), []
    for model, treatment, baseline in twins(launches):
        for cell in estimates.cells(estimates.planned(launches)):
            wide = at(values, cell).pivot(index="block", columns="arm", values="value")
            sides = wide.reindex(columns=[treatment, baseline]).astype(float).dropna()
            names = dict(zip(TWIN, (model, treatment, baseline, *cell, metric), strict=True))
            rows += [
                {**names, "block": block, "point": ratio}
                for block, ratio in (sides[treatment] / sides[baseline]).items()
            ]
    return pd.DataFrame(rows, columns=[*TWIN, "block", "point"])


def noise_floor(found: Frames, launches: Sequence[Launch]) -> pd.DataFrame:
    """How much one server differs from itself, launched anew: a row per metric.

    Columns: metric; spread, the standard deviation of the log ratio of twins inside a block,
    pooled over cells (0.03 is 3 %); farthest, the largest ratio of all or its inverse; blocks
    (the fewest of a cell) and cells; shown, the least difference that a comparison in so many
    blocks could show at 95 %, alone. Spread and shown are NaN with one block: nothing is known.
    Cells of one launch share it, so shown counts the degrees of freedom of one cell.
    """
    rows = []
    for metric in COMPARED:
        ratio = block_ratios(found, launches, metric)
        logs = ratio.assign(log=np.log(ratio["point"].astype(float)))
        by_cell = logs.groupby(list(TWIN), sort=False)["log"]
        sizes = by_cell.size()
        freedom = int((sizes - 1).sum())
        squares = float((by_cell.var(ddof=1) * (sizes - 1)).sum())
        spread = float(np.sqrt(squares / freedom)) if freedom else np.nan
        blocks = int(sizes.min()) if len(sizes) else 0
        rows.append(
            {
                "metric": metric,
                "spread": spread,
                "farthest": float(np.exp(logs["log"].abs().max())),
                "blocks": blocks,
                "cells": len(sizes),
                "shown": _least_shown(spread, blocks),
            }
        )
    return pd.DataFrame(rows)


def _least_shown(spread: float, blocks: int) -> float:
    if blocks < 2:
        return np.nan
    t = float(distributions.t.ppf((1 + stats.CONFIDENCE) / 2, blocks - 1))
    return float(np.expm1(t * spread / np.sqrt(blocks)))


def limits(found: Frames) -> pd.DataFrame:
    """What each window that was measured allows its client to add.

    Columns: arm, block, workload, level, chunks_per_s (tokens, one a chunk), and in ms ttft,
    ttft_limit, itl, itl_limit.
    """
    seen = estimates.windows(found)
    columns = ["output_tok_s", "ttft_p50_s", "itl_p50_s"]
    known = seen.reindex(columns=["arm", "block", "workload", "level", *columns])
    rows = known.rename(columns={"output_tok_s": "chunks_per_s"})
    for name in ADDED:
        rows[name] = rows.pop(f"{name}_p50_s").astype(float) * 1e3
        rows[f"{name}_limit"] = (SHARE_LIMIT * rows[name]).clip(lower=FLOOR_S * 1e3)
    return rows


def calibrated(part: Part) -> pd.DataFrame:
    """The calibration's points; without one, an empty frame."""
    return pd.DataFrame() if part.calibration is None else part.calibration.points


def allowed_per_s(part: Part) -> float:
    """The chunk rate that a window must stay below; NaN where it is not known."""
    if part.calibration is None:
        return np.nan
    return part.calibration.safe_per_s / RATE_FACTOR


def instruments(part: Part) -> pd.DataFrame:
    """The ratios of `study.agreement.Seconds`, each with a `verdict`: that of its window, or void
    where it rests on a file of the second instrument that the referee found void."""
    ratios, keys = part.seconds.ratios, ["launch", "workload", "level", "again"]
    if ratios.empty or part.found.windows.empty:
        return ratios.assign(verdict="void")
    of_files = part.seconds.files[[*keys, "verdict"]].rename(columns={"verdict": "of_file"})
    seen = ratios.merge(part.found.windows[[*keys, "verdict"]], on=keys, how="left")
    seen = seen.merge(of_files, on=keys, how="left")
    void = seen["comparison"].str.startswith(SECOND) & (seen["of_file"] == "void")
    return seen.assign(verdict=seen["verdict"].mask(void, "void")).drop(columns="of_file")


def agreement(part: Part) -> pd.DataFrame:
    """Ratios of instruments over launches: a row per comparison, workload and level.

    Columns: comparison, workload, level, and an interval over launches with valid ratios (one
    launch: no interval; none: no point).
    """
    by = ["comparison", "workload", "level"]
    seen = instruments(part)
    known = seen.assign(point=seen["point"].where(seen["verdict"] == "valid"))
    rows: list[dict[str, Any]] = [
        {**dict(zip(by, cell, strict=True)), **asdict(stats.mean_interval_log(group["point"]))}
        for cell, group in known.groupby(by, sort=False)
    ]
    return pd.DataFrame(rows, columns=[*by, "statistic", *estimates.INTERVAL, "unit"])
