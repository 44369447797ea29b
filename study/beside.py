"""Measured windows beside what physics allows: their bound, their share of it, and a gate."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pandas as pd

from study import bounds, capacity, machine, models
from study.errors import StudyError
from study.gates.judgement import Judgement
from study.hardware import Hardware
from study.models import Model
from study.style import spelled

FORMAT = "bf16"  # of the weights that the study makes
# A bound that lies further away says nothing of the server: something else limits it.
APPROACHABLE = 0.1
HIDDEN = 0.05  # bounds that differ by less look like one line
# Bandwidth is itself measured, best of several; two readings of it differ by some per cent.
SLACK = 0.05
BOUND = "bound"  # the kind of a row that holds one
COLUMNS = (
    *("experiment", "launch", "block", "arm", "model", "attention", "feed_forward", "layers"),
    *("workload", "input_tokens", "output_tokens", "level", "again", "verdict"),
    "output_tok_s",
    "max_num_seqs",
)


def windows(found: pd.DataFrame, hardware: Hardware | None) -> pd.DataFrame:
    """Every window with its bound on this hardware: COLUMNS, bound_tok_s, share (of the bound), and
    bandwidth_gb_s, at which its model could be read.

    Empty without hardware that was measured; a model that is no longer known has no bound.
    """
    known = found.reindex(columns=list(COLUMNS))
    if hardware is None or known.empty:
        return known.iloc[:0].assign(bound_tok_s=[], bandwidth_gb_s=[], share=[])
    bound = [_bound(row, hardware) for row in known.to_dict("records")]
    known[["bound_tok_s", "bandwidth_gb_s"]] = bound
    return known.assign(share=known["output_tok_s"] / known["bound_tok_s"])


def _bound(row: dict[Any, Any], hardware: Hardware) -> tuple[float, float]:
    try:
        model = _at_depth(str(row["model"]), int(row["layers"]))
    except StudyError:
        return math.nan, math.nan
    size = capacity.weights(model, FORMAT)
    here = _reading(size.bytes, hardware)
    lengths = float(row["input_tokens"]), float(row["output_tokens"])
    bound_tok_s = bounds.serving_tok_s(model, size, here, _running(row), *lengths)
    return bound_tok_s, here.bandwidth_gb_s


def _running(row: dict[Any, Any]) -> int:
    """Requests that a step can hold: the level, as far as the engine may run so many."""
    limit = row["max_num_seqs"]
    return int(row["level"] if pd.isna(limit) else min(row["level"], limit))


def _reading(weight_bytes: float, hardware: Hardware) -> Hardware:
    """The hardware as such a model sees it: one that a cache may hold is no load on memory."""
    if weight_bytes >= machine.READ_BYTES or hardware.cache_gb_s is None:
        return hardware
    fastest = max(hardware.bandwidth_gb_s, hardware.cache_gb_s)
    return hardware.model_copy(update={"bandwidth_gb_s": fastest})


@cache
def _at_depth(name: str, layers: int) -> Model:
    return models.load(name).at_depth(layers)


def bound_respected(seen: pd.DataFrame, hardware: Hardware | None) -> Judgement:
    """No valid window beats its bound, beyond what measuring the bound itself leaves open."""
    limit = f"at most {1 + SLACK:g} of the bound"

    def judge(verdict: Any, observed: float, text: str) -> Judgement:
        return Judgement("bound_respected", "claim", verdict, observed, limit, text)

    if hardware is None:
        return judge("cannot judge", math.nan, "This machine's bandwidth was not measured.")
    if seen.empty:
        return judge("cannot judge", math.nan, "No window was measured.")
    valid = seen[(seen["verdict"] == "valid") & seen["share"].notna()]
    if valid.empty:
        return judge("cannot judge", math.nan, "No valid window has a bound.")
    nearest = valid.sort_values("share").iloc[-1]
    where = f"{nearest['arm']} on {nearest['workload']} at level {nearest['level']:g}"
    text = f"Of {len(valid)} valid windows {where} comes nearest: {nearest['share']:.1%}."
    verdict = "pass" if nearest["share"] <= 1 + SLACK else "fail"
    return judge(verdict, float(nearest["share"]), text)


def approached(seen: pd.DataFrame) -> pd.DataFrame:
    """The windows of arms that come near enough to their bound for it to be worth drawing."""
    valid = seen[seen["verdict"] == "valid"]
    nearest = valid.groupby("arm")["share"].max()
    return seen[seen["arm"].isin(nearest[nearest >= APPROACHABLE].index)]


def with_bound(frame: pd.DataFrame, found: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """What a figure of throughput draws, with a row of kind BOUND per bound that was approached
    (arm, workload, level, metric, point), and what its caption says of the bound."""
    hardware = machine.measured()
    seen = windows(found, hardware)
    seen = seen[seen["arm"].isin(frame["arm"])]
    near = approached(seen).drop_duplicates(["arm", "workload", "level"])
    rows = near.assign(kind=BOUND, metric="output_tok_s", point=near["bound_tok_s"])
    both = pd.concat([frame, rows.reindex(columns=frame.columns)]) if len(rows) else frame
    return both, in_words(seen, hardware)


def in_words(seen: pd.DataFrame, hardware: Hardware | None) -> str:
    """What a figure of throughput says of the bound: where it is, or why it is not drawn."""
    valid = seen[(seen["verdict"] == "valid") & seen["share"].notna()]
    if hardware is None:
        return (
            " No bound is drawn: this machine's memory bandwidth was not measured yet. The "
            "notebook `70_theory` measures it, and the report then draws the bound."
        )
    if valid.empty:
        return ""
    measured = pace(valid, hardware)
    near = approached(seen)
    if not near.empty:
        return (
            f" Dash-dotted: the bound of memory and arithmetic for {_names(near)}"
            f"{' (in places on each other)' if _coincide(near) else ''}, from "
            f"what a step must read and compute ({measured}, as measured here).{_far(valid, near)}"
        )
    return (
        f" The bound of memory and arithmetic ({measured}, as measured here) is not drawn: it "
        f"lies at least {1 / valid['share'].max():.3g} times above. What limits such small models "
        "is the engine."
    )


def undrawn(found: pd.DataFrame) -> str:
    """What a figure of throughput without bounds says of them: how near to one its windows come."""
    seen = windows(found, machine.measured())
    known = seen[(seen["verdict"] == "valid") & seen["share"].notna()]
    if known.empty:
        return ""
    nearest = known.sort_values("share").iloc[-1]
    return (
        f" No bound is drawn: `{nearest['arm']}` comes nearest to its own, with "
        f"{nearest['share']:.1%} of it; the report sets every arm beside its bound."
    )


def _names(seen: pd.DataFrame) -> str:
    return " and ".join(spelled(str(name)) for name in dict.fromkeys(seen["model"]))


def _coincide(near: pd.DataFrame) -> bool:
    """Whether bounds of several models lie so near to each other that one line hides another."""
    known = near.drop_duplicates(["model", "workload", "level"]).sort_values("bound_tok_s")
    steps = known.groupby(["workload", "level"])["bound_tok_s"].pct_change()
    return bool((steps < HIDDEN).any())


def _far(valid: pd.DataFrame, near: pd.DataFrame) -> str:
    """Whose bound is not drawn, beside those that are."""
    others = valid[~valid["model"].isin(near["model"])]
    if others.empty:
        return ""
    return f" Not drawn for {_names(others)}: no valid window reaches {APPROACHABLE:.0%} of theirs."


def pace(seen: pd.DataFrame, hardware: Hardware) -> str:
    """How fast the models of these windows could be read."""
    rates = sorted(set(seen["bandwidth_gb_s"].dropna()))
    said = f"{' or '.join(f'{one:.3g}' for one in rates)} GB/s"
    cached = rates and rates[-1] > hardware.bandwidth_gb_s
    return f"{said} for models that a cache may hold" if cached else said
