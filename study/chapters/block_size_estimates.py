"""KV block sizes, as asked and as in force: tidy frames, pure functions of what was found.

Asked is what the flag said. In force is what the engine's own cache configuration says, and the
only size that anything is compared by. Sizes are in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from study import dunnett, estimates, figures, same_output
from study.additive import Additive, additive
from study.estimates import (
    LIMITS,
    RATIO,
    SIDES,
    as_columns,
    as_test,
    at,
    launch_values,
    of_metrics,
    rows_of,
)
from study.frames import NOT_MEASURED, Frames
from study.plan import Launch
from study.same_output import Agreement
from study.standing import NOT_APPLICABLE
from study.tables import NOT_REPORTED

# Of an arm whose launches ended differently, the first of these: what the engine said of it.
TELLING = ("rejected", "overridden", "measured", "failed", NOT_APPLICABLE, NOT_MEASURED)
FAMILY = ("model", "attention", "feed_forward")
RAN = ("measured", "overridden")
# Sizes that a back end reads by a kernel of its own; all others go through Triton's (vLLM's
# platforms/rocm.py, use_rocm_custom_paged_attention).
HIP_KERNEL = {"ROCM_ATTN": (16, 32)}
NO_PAIR = "No pair: no family has two block sizes in force inside one attention back end."


def answers(found: Frames) -> pd.DataFrame:
    """What the engine answered to each size: a row per arm, sorted by model and size.

    Columns: model, attention, feed_forward, arm, asked and in_force (tokens; NaN where nothing is
    known), outcome, launches (with that outcome), of (launches), attention_backend, reason.
    """
    columns = [*FAMILY, "arm", "asked", "in_force", "outcome", "launches", "of"]
    columns += ["attention_backend", "reason"]
    if found.launches.empty:
        return pd.DataFrame(columns=columns)
    rows = [_answer(group) for _, group in found.launches.groupby("arm", sort=False)]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.sort_values(["model", "asked"], ignore_index=True)


def _answer(launches: pd.DataFrame) -> dict[str, object]:
    outcome = next(name for name in TELLING if name in set(launches["outcome"]))
    told = launches[launches["outcome"] == outcome]
    first = told.iloc[0]
    sizes = pd.to_numeric(_said(told, "block_size"), errors="coerce").dropna()
    backends = _said(told, "attention_backend").dropna().unique()
    return {
        **{name: first[name] for name in (*FAMILY, "arm")},
        "asked": first["block_size_asked"],
        "in_force": float(sizes.iloc[0]) if len(sizes) else float("nan"),
        "outcome": outcome,
        "launches": len(told),
        "of": len(launches),
        "attention_backend": ", ".join(_kernel(str(one), sizes) for one in backends)
        or NOT_REPORTED,
        "reason": min(told["reason"], key=len),  # the longer ones say that it was not asked again
    }


def _kernel(backend: str, sizes: pd.Series) -> str:
    """A back end that reads some sizes by another kernel is two, though its log names one."""
    own = HIP_KERNEL.get(backend)
    if own is None or sizes.empty:
        return backend
    return f"{backend} ({'HIP' if int(sizes.iloc[0]) in own else 'Triton'} kernel)"


def _said(launches: pd.DataFrame, name: str) -> pd.Series:
    """A column of what the engine said; empty where it never said anything."""
    return launches.reindex(columns=[name])[name]


def in_order(launches: Sequence[Launch]) -> tuple[Launch, ...]:
    """The launches by the size asked for, whatever the order in which they were measured."""
    return tuple(sorted(launches, key=lambda launch: int(launch.arm.factors["block_size_asked"])))


@dataclass(frozen=True)
class Family:
    """The arms of one model and one attention back end that ran the size that was asked for.

    `sizes`: in force, in rising order; `arms` belong to them.
    """

    model: str
    attention: str
    feed_forward: str
    attention_backend: str
    sizes: tuple[int, ...]
    arms: tuple[str, ...]


def families(found: Frames) -> tuple[Family, ...]:
    """What can be compared: inside one model and one back end. A model may have none or several."""
    keys = [*FAMILY, "attention_backend"]
    return tuple(
        Family(
            **{name: str(group[name].iloc[0]) for name in keys},
            sizes=tuple(group["in_force"].astype(int)),
            arms=tuple(group["arm"]),
        )
        for _, group in accepted(found).groupby(keys)
    )


def accepted(found: Frames) -> pd.DataFrame:
    """The answers of the arms that ran the size asked for, by the engine's own account."""
    known = answers(found)
    return known[(known["outcome"] == "measured") & known["in_force"].notna()]


def alone(found: Frames) -> tuple[Family, ...]:
    """Those without a pair to compare: fewer than two sizes in force; without any, no arms."""
    known = families(found)
    none = answers(found).drop_duplicates("model")
    none = none[~none["model"].isin([one.model for one in known])]
    without = [
        Family(str(row.model), str(row.attention), str(row.feed_forward), NOT_REPORTED, (), ())
        for row in rows_of(none)
    ]
    return (*(one for one in known if len(one.sizes) < 2), *without)


# --- against the size in force --------------------------------------------------------------------


def by_size(found: Frames, metrics: Sequence[str]) -> pd.DataFrame:
    """Estimates of the accepted arms and every void window, at the size that was in force.

    Columns: those of `figures.level_frame` (kind is 'estimate' or 'void window'), asked, in_force
    (tokens), outcome, attention_backend.
    """
    told = answers(found)[["arm", "asked", "in_force", "outcome", "attention_backend"]]
    frame = figures.level_frame(found, metrics).merge(told, on="arm")
    counts = (frame["kind"] == "void window") | frame["arm"].isin(accepted(found)["arm"])
    return frame[counts & frame["in_force"].notna()].reset_index(drop=True)


def ratios(found: Frames, metric: str) -> pd.DataFrame:
    """Each accepted size against the smallest one of its family, inside blocks.

    Columns: model, attention, feed_forward, attention_backend, size and base_size (tokens, in
    force), treatment and baseline (arms), workload, level, metric, and `estimates.RATIO`.
    One server with another block size should vary as it does with any, so the sizes of a family
    share one residual variance, and are compared with the smallest by Dunnett's method
    (`study.dunnett`), Bonferroni's over families and cells, those without a block too.
    """
    cells = estimates.cells(estimates.windows(found))
    asked = list(product((one for one in families(found) if len(one.sizes) > 1), cells))
    values = launch_values(found, metric)
    rows = [
        {**pair, "workload": cell[0], "level": cell[1], "metric": metric, **said}
        for one, cell in asked
        for pair, said in zip(
            _pairs([one]), _against_smallest(at(values, cell), one, len(asked)), strict=True
        )
    ]
    columns = [*FAMILY, "attention_backend", "size", "base_size", "treatment", "baseline"]
    return pd.DataFrame(rows, columns=[*columns, "workload", "level", "metric", *RATIO])


def _against_smallest(
    values: pd.DataFrame, one: Family, families: int
) -> Iterator[dict[str, object]]:
    """The columns RATIO for each of the larger sizes; both sides adjusted to the same blocks, so
    that they divide to the ratio."""
    baseline, *treatments = one.arms
    fitted = _connected(values[values["arm"].isin(one.arms)], baseline)
    found = dunnett.against(values, "value", baseline, treatments, families=families)
    for arm, said in found.items():
        sides: dict[str, object] = dict.fromkeys(SIDES, np.nan)
        if said.blocks:
            sides |= as_columns(fitted.arm_interval(baseline), LIMITS, "baseline_")
            sides |= as_columns(fitted.arm_interval(arm), LIMITS, "treatment_")
        yield as_columns(said.effect) | as_test(said) | sides


def _connected(values: pd.DataFrame, baseline: str) -> Additive:
    """The fit of those arms that blocks connect with the baseline: means of others are not known
    beside it. Of all arms where the baseline has no value."""
    fitted = additive(values, "value")
    if fitted.connected or baseline not in fitted.arms:
        return fitted
    return additive(values[values["arm"].isin(fitted.connected_with(baseline))], "value")


def all_ratios(found: Frames) -> pd.DataFrame:
    """`ratios` of every metric that is compared; each metric is a family of its own."""
    return of_metrics(lambda metric: ratios(found, metric))


def _pairs(known: Sequence[Family]) -> Iterator[dict[str, object]]:
    for one in known:
        for size, arm in zip(one.sizes[1:], one.arms[1:], strict=True):
            yield {
                **{name: getattr(one, name) for name in (*FAMILY, "attention_backend")},
                "size": size,
                "base_size": one.sizes[0],
                "treatment": arm,
                "baseline": one.arms[0],
            }


# --- the cache, and the output --------------------------------------------------------------------


def capacity(found: Frames, launches: Sequence[Launch]) -> pd.DataFrame:
    """What the same memory holds: a row per model, size in force, and request length asked for.

    Columns: model, attention, feed_forward, in_force (tokens), cache_bytes and tokens (both by
    the engine), workload, request_tokens, and by arithmetic taken_tokens (whole blocks that such
    a request fills) and requests (of that length that fit at once).
    """
    columns = [*FAMILY, "in_force", "cache_bytes", "tokens", "workload", "request_tokens"]
    columns += ["taken_tokens", "requests"]
    if found.launches.empty:
        return pd.DataFrame(columns=columns)
    ran = found.launches[found.launches["outcome"].isin(RAN)]
    said = {"in_force": "block_size", "cache_bytes": "kv_cache_bytes", "tokens": "kv_cache_tokens"}
    numbers = {new: pd.to_numeric(_said(ran, old), errors="coerce") for new, old in said.items()}
    held = ran[list(FAMILY)].assign(**numbers).dropna(subset=["in_force", "tokens"])
    lengths = estimates.planned(launches).drop_duplicates("workload")
    lengths = lengths.assign(request_tokens=lengths["input_tokens"] + lengths["output_tokens"])
    frame = held.drop_duplicates().merge(lengths[["workload", "request_tokens"]], how="cross")
    blocks = -(-frame["request_tokens"] // frame["in_force"])
    taken = blocks * frame["in_force"]
    frame = frame.assign(taken_tokens=taken, requests=frame["tokens"] // taken)
    return frame.sort_values(["model", "in_force", "request_tokens"], ignore_index=True)[columns]


def agreements(found: Frames, outputs: pd.DataFrame) -> tuple[Agreement, ...]:
    """`same_output` between arms of one family that should give the same.

    Each accepted size against the smallest, and each arm that was overridden against the one that
    ran the same size because it was asked for.
    """
    pairs = [(str(pair["treatment"]), str(pair["baseline"])) for pair in _pairs(families(found))]
    known, asked = answers(found), accepted(found)
    same = known[known["outcome"] == "overridden"].merge(
        asked, on=["model", "in_force", "attention_backend"], suffixes=("", "_accepted")
    )
    pairs += [(row.arm, row.arm_accepted) for row in rows_of(same)]
    return tuple(same_output.compare(outputs, *pair) for pair in pairs)
