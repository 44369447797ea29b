"""What the figures, tables and sentences of an experiment say: estimates as tidy frames.

Each is a pure function of what was found (`Frames`). Cells that were asked for but could not be
measured stay, with NaN: a gap is shown, not skipped. Intervals of several ratios of one metric
are Bonferroni's over all cells of which some launch has a window, void or not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from study import stats, theory
from study.equivalence import equivalent
from study.frames import NOT_MEASURED, Frames
from study.once import once
from study.plan import Launch

FACTORS = ("model", "attention", "feed_forward", "layers")
CELL = ("layers", "workload", "level")
LIMITS = ("point", "low", "high")
INTERVAL = (*LIMITS, "confidence", "method", "n")
TEST = ("p_value", "dropped", "equivalence_p", "equivalence")
SIDES = tuple(f"{side}_{name}" for side in ("baseline", "treatment") for name in LIMITS)
RATIO = (*INTERVAL, *TEST, *SIDES)

NO_WINDOWS = "Not measured: no window of this experiment is on disk."
NO_PAIR = "Not measured: no pair of arms differs in its attention alone."
NO_QUARTET = "Not measured: main effects need all four arms of the two by two."
NO_SLOPE = "Not measured in this profile: a slope needs two depths."


@dataclass(frozen=True)
class Metric:
    """A column of the windows frame, as a reader sees it: value x scale has `unit`."""

    column: str
    name: str
    unit: str
    scale: float
    more_is_better: bool

    @property
    def label(self) -> str:
        return f"{self.name} ({self.unit})"


def by_column(*metrics: Metric) -> dict[str, Metric]:
    return {metric.column: metric for metric in metrics}


METRICS = by_column(
    Metric("output_tok_s", "Output throughput", "tok/s", 1.0, True),
    Metric("total_tok_s", "Total throughput", "tok/s", 1.0, True),
    Metric("ttft_p50_s", "TTFT, median", "ms", 1e3, False),
    Metric("tpot_p50_s", "TPOT, median", "ms", 1e3, False),
    Metric("e2e_p50_s", "E2E, median", "ms", 1e3, False),
)
COMPARED = ("output_tok_s", "ttft_p50_s", "tpot_p50_s")


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as named tuples, whatever types their columns have."""
    return frame.itertuples()


def arms(found: Frames) -> pd.DataFrame:
    """Every arm once, in reading order: arm and its factors."""
    columns = ["arm", *FACTORS]
    if found.launches.empty:
        return pd.DataFrame(columns=columns)
    return in_reading_order(found.launches[columns].drop_duplicates("arm"))


def in_reading_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by depth, model and arm; arms whose names differ in a number, by that number."""
    names = frame["arm"].map(lambda name: tuple(re.split(r"(\d+)", str(name))[::2]))
    numbers = frame["arm"].map(lambda name: tuple(map(int, re.findall(r"\d+", str(name)))))
    keyed = frame.assign(_names=names, _numbers=numbers)
    by = ["layers", "model", "_names", "_numbers"]
    ordered = keyed.sort_values(by, kind="stable", ignore_index=True)
    return ordered.drop(columns=["_names", "_numbers"])


def windows(found: Frames) -> pd.DataFrame:
    """The windows frame; without any window, one that still has its columns."""
    if not found.windows.empty:
        return found.windows
    columns = ["launch", "block", "arm", *FACTORS, "workload", "input_tokens", "output_tokens"]
    return pd.DataFrame(
        columns=[*columns, "level", "searched", "again", "verdict", "reasons", *METRICS]
    )


def first_tries(found: Frames) -> pd.DataFrame:
    """The windows without those that were measured once more: each that was asked for, once."""
    seen = windows(found)
    return seen[~seen["again"].astype(bool)]


def why_not(found: Frames, otherwise: str) -> str:
    """Why there is no estimate at all: no window, or else what was not asked for."""
    return NO_WINDOWS if windows(found).empty else otherwise


def planned(launches: Sequence[Launch]) -> pd.DataFrame:
    """A row per window asked for before the launch, so none that a search chose.

    Columns: launch, block, arm, factors, workload, tokens, level.
    """
    rows = [
        {
            "launch": launch.id,
            "block": launch.block,
            "arm": launch.arm.name,
            **launch.arm.factors,
            "workload": window.workload.name,
            "input_tokens": window.workload.input_tokens,
            "output_tokens": window.workload.output_tokens,
            "level": window.level,
        }
        for launch in launches
        for window in launch.arm.windows
    ]
    columns = ["launch", "block", "arm", *FACTORS, "workload", "input_tokens", "output_tokens"]
    return pd.DataFrame(rows, columns=[*columns, "level"])


def by_level(found: Frames, metrics: Sequence[str]) -> pd.DataFrame:
    """Intervals over launches per arm, workload, level and metric; `void` counts void windows."""
    seen = windows(found)
    by = ["arm", "workload", "level"]
    if seen.empty:
        return pd.DataFrame(columns=[*by, *FACTORS, "metric", *INTERVAL, "void"])
    estimates = stats.intervals(seen, metrics, by)
    void = seen[seen["verdict"] == "void"].groupby(by).size().rename("void").reset_index()
    joined = estimates.merge(arms(found), on="arm").merge(void, on=by, how="left")
    return joined.assign(void=joined["void"].fillna(0).astype(int))


def depths(found: Frames) -> list[int]:
    """The depths asked for; the one that saw most levels first (it carries the figures)."""
    seen = windows(found)
    known = sorted(arms(found)["layers"])
    levels = seen.groupby("layers")["level"].nunique() if len(seen) else pd.Series(dtype=int)
    return sorted(dict.fromkeys(known), key=lambda depth: (-levels.get(depth, 0), depth))


# --- comparisons inside blocks --------------------------------------------------------------------

Cell = tuple[str, int]  # workload, level


@once
def launch_values(found: Frames, metric: str) -> pd.DataFrame:
    """One value per launch, workload and level, from valid windows; see `stats.launch_means`."""
    seen = windows(found)
    if seen.empty:
        return pd.DataFrame(columns=[*stats.LAUNCH_KEYS, "metric", "value"])
    return stats.launch_means(seen, [metric])


def cells(rows: pd.DataFrame) -> list[Cell]:
    """Every workload and level in these rows: workloads as they come, levels rising."""
    unique = rows[["workload", "level"]].drop_duplicates().itertuples(index=False, name=None)
    order = list(dict.fromkeys(rows["workload"]))
    return sorted(unique, key=lambda cell: (order.index(cell[0]), cell[1]))


def at(rows: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    return rows[(rows["workload"] == cell[0]) & (rows["level"] == cell[1])]


def paired(
    values: pd.DataFrame, treatment: str, baseline: str, comparisons: int, factor: str = "arm"
) -> dict[str, object]:
    """`stats.paired_ratio` of launch values as the columns RATIO.

    That is the interval of the ratio, TEST, and for each side its absolute value over the same
    blocks (`baseline_point`, `_low`, `_high`, `treatment_...`).
    """
    said = stats.paired_ratio(values, "value", factor, treatment, baseline, comparisons=comparisons)
    sides = as_columns(said.baseline, LIMITS, "baseline_")
    sides |= as_columns(said.treatment, LIMITS, "treatment_")
    return {**as_columns(said.ratio), **as_test(said.contrast), **sides}


def as_test(said: stats.Contrast) -> dict[str, object]:
    """The columns TEST of a ratio: p_value, dropped (blocks), and `study.equivalence`'s answer."""
    same = equivalent(said)
    return {
        "p_value": said.p_value,
        "dropped": said.dropped,
        "equivalence_p": same.p_value,
        "equivalence": same.verdict,
    }


def as_columns(
    interval: stats.Interval, names: Sequence[str] = INTERVAL, prefix: str = ""
) -> dict[str, object]:
    """An interval's fields as the columns of a row."""
    return {f"{prefix}{name}": getattr(interval, name) for name in names}


def of_metrics(
    estimate: Callable[[str], pd.DataFrame], metrics: Sequence[str] = COMPARED
) -> pd.DataFrame:
    """The estimates of several metrics in one frame; each metric is a family of its own."""
    parts = [estimate(metric) for metric in metrics]
    return pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)


# --- arms, and what the engine says of them -------------------------------------------------------


def cache(found: Frames, launches: Sequence[Launch]) -> pd.DataFrame:
    """KV cache per arm, by the engine and by arithmetic; a row per different answer of the engine.

    Columns: arm and factors, bytes_per_token_engine, bytes_per_token_theory, tokens_engine,
    tokens_theory, cache_bytes, block_size. NaN where the engine did not say.
    """
    model_of = {launch.arm.name: launch.arm.model for launch in launches}
    said = ["kv_bytes_per_token", "kv_cache_tokens", "kv_cache_bytes", "block_size"]
    if found.launches.empty:
        answers = pd.DataFrame(columns=["arm", *FACTORS, *said])
    else:
        answers = found.launches.reindex(columns=["arm", *FACTORS, *said]).drop_duplicates()
    numbers = answers[said].apply(pd.to_numeric, errors="coerce").astype(float)
    per_token = [theory.kv_bytes_per_token(model_of[arm]) for arm in answers["arm"]]
    frame = answers[["arm", *FACTORS]].assign(
        bytes_per_token_engine=numbers["kv_bytes_per_token"],
        bytes_per_token_theory=per_token,
        tokens_engine=numbers["kv_cache_tokens"],
        tokens_theory=numbers["kv_cache_bytes"] // np.array(per_token, dtype=float),
        cache_bytes=numbers["kv_cache_bytes"],
        block_size=numbers["block_size"],
    )
    heard = frame["bytes_per_token_engine"].notna()
    silent = ~frame["arm"].isin(frame.loc[heard, "arm"])  # an arm that never answered keeps a row
    return frame[heard | silent].sort_values(["layers", "model"], ignore_index=True)


def outcomes(found: Frames) -> pd.DataFrame:
    """Launches per arm and outcome, with reasons: arm, outcome, launches, reason."""
    columns = ["arm", "outcome", "launches", "reason"]
    if found.launches.empty:
        return pd.DataFrame(columns=columns)
    told = found.launches.assign(
        reason=found.launches["reason"].where(found.launches["outcome"] != "measured", "")
    )
    groups = told.groupby(["arm", "outcome"], sort=False)
    counted = groups.agg(launches=("launch", "size"), reason=("reason", _distinct)).reset_index()
    return counted[columns]


def _distinct(texts: pd.Series) -> str:
    """Each text once; one that another begins with (and then says more) is said by that one."""
    known = dict.fromkeys(text for text in texts if text)
    return "; ".join(
        text for text in known if not any(one != text and one.startswith(text) for one in known)
    )


def unaccounted(found: Frames, launches: Sequence[Launch]) -> list[str]:
    """Launches that were asked for and have no row, or have one that says nothing."""
    told = set() if found.launches.empty else set(found.launches["launch"])
    silent = set() if found.launches.empty else set(_silent(found.launches))
    return [launch.id for launch in launches if launch.id not in told or launch.id in silent]


def _silent(rows: pd.DataFrame) -> pd.Series:
    explained = (rows["outcome"] == "measured") | (rows["outcome"] == NOT_MEASURED)
    return rows.loc[~explained & (rows["reason"] == ""), "launch"]
