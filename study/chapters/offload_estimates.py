"""KV offload: where each prompt's cache came from, and what that cost.

Tidy frames, pure functions of a `Part`. A window's workload names its phase (`cold`, `restored`,
`memory`); what really happened in it is told by the engine's counters alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from study import estimates, figures, same_output, theory
from study.chapter import Part
from study.estimates import FACTORS, RATIO, launch_values, of_metrics, paired, rows_of
from study.frames import NOT_MEASURED
from study.gates import cache
from study.once import once
from study.same_output import Agreement
from study.standing import NOT_APPLICABLE
from study.tables import NOT_REPORTED

COLD, RESTORED, MEMORY = PHASES = ("cold", "restored", "memory")  # workloads, in this order
OFF, FILE, NATIVE = MODES = ("off", "file", "native")  # levels of the factor `offload`
COMPUTED, MIXED = "computed", "mixed"
SOURCES = (COMPUTED, MEMORY, RESTORED)
TTFT = "ttft_p50_s"
# Modes are compared by TTFT in every phase, and by what else storing costs in the first.
COMPARED = {TTFT: PHASES, "tpot_p50_s": (COLD,), "output_tok_s": (COLD,)}
CELL = ("arm", *FACTORS, "offload", "workload")


def cells(part: Part) -> pd.DataFrame:
    """Every arm and phase asked for, once, in reading order.

    Columns: arm and factors, workload, input_tokens and output_tokens (of a request), requests,
    bytes_per_token (by arithmetic), outcome (of the arm).
    """
    told = estimates.outcomes(part.found).drop_duplicates("arm").set_index("arm")["outcome"]
    arms = {launch.arm.name: launch.arm for launch in part.launches}
    rows = [
        {
            "arm": arm.name,
            **arm.factors,
            "workload": window.workload.name,
            "input_tokens": window.workload.input_tokens,
            "output_tokens": window.workload.output_tokens,
            "requests": window.requests,
            "bytes_per_token": theory.kv_bytes_per_token(arm.model),
            "outcome": told.get(arm.name, NOT_MEASURED),
        }
        for arm in arms.values()
        for window in arm.windows
    ]
    columns = ["input_tokens", "output_tokens", "requests", "bytes_per_token", "outcome"]
    frame = pd.DataFrame(rows, columns=[*CELL, *columns])
    order = {name: place for place, name in enumerate((*MODES, *PHASES))}
    by = frame[["model"]].assign(
        mode=frame["offload"].map(order), phase=frame["workload"].map(order)
    )
    return frame.loc[by.sort_values(["model", "mode", "phase"]).index].reset_index(drop=True)


# --- where the cache came from --------------------------------------------------------------------


@once
def windows(part: Part) -> pd.DataFrame:
    """Every window with what the engine counted: a row per window measured, valid or void.

    Columns: those of `cells`, those of the windows frame, what the launch says is in force
    (prefix_caching, block_size, kv_cache_tokens), prompt_tokens, and of these memory_tokens,
    restored_tokens and computed_tokens; reusable_tokens (whole blocks, without the last token of
    a prompt, which is always computed); came_from, and what was intended.
    """
    asked = cells(part)
    seen = part.found.windows
    if seen.empty:
        more = ["launch", "block", "verdict", *IN_FORCE, *COUNTED, "intended"]
        return asked.iloc[:0].reindex(columns=[*asked, *more])
    in_force = part.found.launches.reindex(columns=["launch", *IN_FORCE])
    known = seen[[name for name in seen if name not in asked or name in ("arm", "workload")]]
    frame = asked.merge(known, on=["arm", "workload"]).merge(in_force, on="launch")
    frame = frame.assign(
        **{name: pd.to_numeric(frame[name], errors="coerce") for name in IN_FORCE[1:]}
    )
    prompt = frame["input_tokens"] * frame["requests"]
    external = frame["external_hits_tokens"]
    frame = frame.assign(
        prompt_tokens=prompt,
        memory_tokens=frame["prefix_hits_tokens"],
        restored_tokens=external.mask(external.isna() & (frame["offload"] == OFF), 0.0),
        reusable_tokens=cache.reusable(frame["input_tokens"], frame["block_size"].fillna(1))
        * frame["requests"],
    )
    hits = frame["memory_tokens"] + frame["restored_tokens"]
    frame = frame.assign(computed_tokens=prompt - hits)
    return frame.assign(
        came_from=[_came_from(row) for row in rows_of(frame)],
        intended=[_intended(row) for row in rows_of(frame)],
    )


IN_FORCE = ("prefix_caching", "block_size", "kv_cache_tokens")
COUNTED = ("prompt_tokens", "memory_tokens", "restored_tokens", "computed_tokens", "came_from")


def _came_from(row: Any) -> str:
    """Where the reusable part of the prompts came from."""
    if np.isnan(row.memory_tokens) or np.isnan(row.restored_tokens):
        return NOT_REPORTED
    return cache.came_from(row.memory_tokens, row.restored_tokens, row.reusable_tokens)


def _intended(row: Any) -> str:
    """What the phase means with this mode, and with the prefix caching that is in force."""
    return cache.meant(row.workload, row.offload != OFF, row.prefix_caching == "True")


@once
def sources(part: Part) -> pd.DataFrame:
    """Where the prompts' cache came from: a row per arm and phase asked for.

    Columns: those of `cells`; kind (`estimate` over launches with a valid window, `void window`
    where there is none, else the arm's outcome), launches, block_size, prompt_tokens and the
    means of memory_tokens, restored_tokens, computed_tokens; came_from and intended (`mixed`
    where launches differ, empty without any).
    """
    seen = windows(part)
    valid = seen["verdict"] == "valid"
    any_valid = valid.groupby([seen["arm"], seen["workload"]]).transform("any").astype(bool)
    means = {name: (name, "mean") for name in COUNTED[:-1]}
    told = seen[valid | ~any_valid].groupby(["arm", "workload"], as_index=False)
    counted = told.agg(
        launches=("launch", "size"),
        verdict=("verdict", "first"),  # all are of one
        block_size=("block_size", "max"),
        **means,
        came_from=("came_from", _one),
        intended=("intended", _one),
    )
    frame = cells(part).merge(counted, on=["arm", "workload"], how="left")
    measured, void = frame["launches"].notna(), frame["verdict"] == "void"
    lost = frame["outcome"].mask(frame["outcome"] == "measured", NOT_MEASURED)
    said = {
        name: frame[name].astype(object).where(measured, "") for name in ("came_from", "intended")
    }
    return frame.drop(columns="verdict").assign(
        kind=lost.mask(measured, "estimate").mask(void, "void window"),
        launches=frame["launches"].fillna(0).astype(int),
        **said,
    )


def _one(said: pd.Series) -> str:
    """What all launches say."""
    return str(said.iloc[0]) if said.nunique() == 1 else MIXED


# --- what it cost ---------------------------------------------------------------------------------


def by_phase(part: Part) -> pd.DataFrame:
    """TTFT: estimates per arm and phase, and every void window: those of `figures.level_frame`.

    Columns: those, offload, came_from. Sorted as `cells`.
    """
    frame = figures.level_frame(part.found, [TTFT])
    known = sources(part)[["arm", "workload", "offload", "came_from"]]
    if frame.empty:
        return frame.assign(offload=None, came_from=None)
    return known.merge(frame, on=["arm", "workload"])


def comparable(part: Part) -> pd.DataFrame:
    """The `sources` of arms that could be measured: not of those that the engine refused.

    Which arms these are does not depend on what was measured in the others, so a family of
    comparisons may leave them out.
    """
    known = sources(part)
    never = known["outcome"].isin(["rejected", NOT_APPLICABLE])
    return known[~never].reset_index(drop=True)


def phase_ratios(part: Part) -> pd.DataFrame:
    """TTFT of `restored` and `memory` over that of `cold` of the same launch, per arm.

    Columns: arm and factors, workload (the phase), metric, came_from (in the phase), treatment
    and baseline (phases), and `estimates.RATIO`. Intervals are Bonferroni's over all rows. Arms
    that the engine refused are left out.
    """
    asked = comparable(part)
    back = list(rows_of(asked[asked["workload"] != COLD]))
    values = launch_values(part.found, TTFT)
    here = [values[values["arm"] == row.arm] for row in back]
    return _ratios(TTFT, [(row, "workload", row.workload, COLD) for row in back], here)


def mode_ratios(part: Part) -> pd.DataFrame:
    """Each mode over `off` in the same phase, inside blocks; treatment and baseline are arms.

    Columns as in `phase_ratios`; the metrics and phases are those of `COMPARED`, and each metric
    is a family of its own. Empty where `off` was not asked for.
    """
    asked = comparable(part)
    return of_metrics(lambda metric: _metric_over_off(part, asked, metric), tuple(COMPARED))


def _metric_over_off(part: Part, asked: pd.DataFrame, metric: str) -> pd.DataFrame:
    off = _baselines(asked)
    modes = asked[(asked["offload"] != OFF) & asked["workload"].isin(COMPARED[metric])]
    pairs = [(row, "arm", row.arm, off[row.model]) for row in rows_of(modes) if row.model in off]
    values = launch_values(part.found, metric)
    here = [values[values["workload"] == pair[0].workload] for pair in pairs]
    return _ratios(metric, pairs, here)


def _baselines(asked: pd.DataFrame) -> dict[str, str]:
    """The arm without offload, per model."""
    return {row.model: row.arm for row in rows_of(asked[asked["offload"] == OFF])}


Pair = tuple[Any, str, str, str]  # cell, factor, treatment, baseline


def _ratios(metric: str, pairs: Sequence[Pair], values: Sequence[pd.DataFrame]) -> pd.DataFrame:
    rows = [
        {
            **{name: getattr(cell, name) for name in CELL},
            "metric": metric,
            "came_from": cell.came_from,
            "treatment": treatment,
            "baseline": baseline,
            **paired(here, treatment, baseline, len(pairs), factor),
        }
        for (cell, factor, treatment, baseline), here in zip(pairs, values, strict=True)
    ]
    columns = [*CELL, "metric", "came_from", "treatment", "baseline"]
    return pd.DataFrame(rows, columns=[*columns, *RATIO])


# --- the same output ------------------------------------------------------------------------------


def passes(part: Part) -> pd.DataFrame:
    """What the passes of the fixed prompts found in the cache, by the engine's counters.

    Columns: arm, number (of the pass, from 1), launches, memory_tokens and restored_tokens (of
    the whole pass; means over launches).
    """
    hits = {"memory_tokens": "prefix_hits_tokens", "restored_tokens": "external_hits_tokens"}
    once = part.outputs.drop_duplicates(["launch", "number"])
    told = once.groupby(["arm", "number"], as_index=False).agg(
        launches=("launch", "size"), **{name: (column, "mean") for name, column in hits.items()}
    )
    return told.assign(number=told["number"] + 1)


def agreements(part: Part) -> tuple[Agreement, ...]:
    """`same_output`: the second pass of an arm against its first, and each mode against `off`."""
    return tuple(_agreements(part))


def _agreements(part: Part) -> Iterator[Agreement]:
    known = cells(part).drop_duplicates("arm")
    known = known[~known["outcome"].isin(["rejected", NOT_APPLICABLE, NOT_MEASURED])]
    off = _baselines(known)
    for row in rows_of(known):
        yield same_output.compare(part.outputs, row.arm, row.arm, passes=(1, 0))
    for row in rows_of(known[known["offload"] != OFF]):
        if row.model in off:
            yield same_output.compare(part.outputs, row.arm, off[row.model])
