"""What the attention family, the feed-forward family and one more layer change.

Estimates of the families' experiment alone, made of `study.estimates`: ratios and main effects of
the two by two, and slopes between two depths.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from study import stats
from study.estimates import (
    CELL,
    INTERVAL,
    RATIO,
    TEST,
    Cell,
    arms,
    as_columns,
    as_test,
    at,
    cells,
    launch_values,
    paired,
    rows_of,
    windows,
)
from study.frames import Frames

PAIR = ("feed_forward", "model", "layers", "treatment", "baseline")
EFFECTS = ("attention (MLA / GQA)", "feed-forward (MoE / dense)", "interaction")


def attention_ratios(found: Frames, metric: str) -> pd.DataFrame:
    """MLA / GQA inside blocks, per feed-forward family, depth, workload and level.

    Columns: PAIR (treatment and baseline are arms), workload, level, metric, and RATIO.
    """
    family = [
        (pair, cell) for pair in _attention_pairs(found) for cell in _cells(found, pair["layers"])
    ]
    values = launch_values(found, metric)
    rows = [
        {**pair, "workload": cell[0], "level": cell[1], "metric": metric}
        | paired(at(values, cell), str(pair["treatment"]), str(pair["baseline"]), len(family))
        for pair, cell in family
    ]
    return pd.DataFrame(rows, columns=[*PAIR, "workload", "level", "metric", *RATIO])


def _attention_pairs(found: Frames) -> Iterator[dict[str, object]]:
    """GQA and MLA arms that differ in nothing else: same name otherwise, same depth."""
    known = arms(found)
    rest = [without(row.model, row.attention) for row in rows_of(known)]
    for (_, layers), group in known.assign(rest=rest).groupby(["rest", "layers"], sort=False):
        of = group.drop_duplicates("attention").set_index("attention")
        if {"gqa", "mla"} <= set(of.index):
            yield {
                "feed_forward": of.loc["mla", "feed_forward"],
                "model": of.loc["mla", "model"],
                "layers": layers,
                "treatment": of.loc["mla", "arm"],
                "baseline": of.loc["gqa", "arm"],
            }


def without(model: str, *parts: str) -> str:
    """A model's name without the family that it names: 'mla-moe-1b' without mla is 'moe-1b'."""
    return "-".join(part for part in model.split("-") if part not in parts)


def _cells(found: Frames, layers: object) -> list[Cell]:
    seen = windows(found)
    return cells(seen[seen["layers"] == layers])


def factorial_effects(found: Frames, metric: str) -> pd.DataFrame:
    """Main effects and interaction of the 2 x 2, inside blocks, per depth, workload and level.

    A main effect is the geometric mean of its two ratios; the interaction is MLA / GQA with a
    mixture over MLA / GQA with dense layers, 1 when the two families act independently. Columns:
    effect, layers, workload, level, metric, interval, TEST. Sets that lack one of the
    four arms are left out.
    """
    quartets = [
        (group, weights) for group in _quartets(found) for weights in _weights(group).items()
    ]
    asked = [(g, w, cell) for g, w in quartets for cell in _cells(found, g["layers"].iloc[0])]
    values = launch_values(found, metric)
    family = max(1, len(asked) // len(EFFECTS))  # one family per effect
    rows = []
    for group, (effect, weights), cell in asked:
        said = stats.contrast(at(values, cell), "value", weights, comparisons=family)
        rows.append(
            {
                "effect": effect,
                "layers": group["layers"].iloc[0],
                "workload": cell[0],
                "level": cell[1],
                "metric": metric,
                **as_columns(said.effect),
                **as_test(said),
            }
        )
    return pd.DataFrame(rows, columns=["effect", *CELL, "metric", *INTERVAL, *TEST])


def _quartets(found: Frames) -> Iterator[pd.DataFrame]:
    known = arms(found)
    rest = [without(row.model, row.attention, row.feed_forward) for row in rows_of(known)]
    for _, group in known.assign(rest=rest).groupby(["layers", "rest"], sort=False):
        if len(group) == 4 and not group.duplicated(["attention", "feed_forward"]).any():
            yield group


def _weights(quartet: pd.DataFrame) -> dict[str, dict[str, float]]:
    arm = {(row.attention, row.feed_forward): str(row.arm) for row in quartet.itertuples()}
    gqa_dense, gqa_moe = arm["gqa", "dense"], arm["gqa", "moe"]
    mla_dense, mla_moe = arm["mla", "dense"], arm["mla", "moe"]
    attention = {mla_dense: 0.5, mla_moe: 0.5, gqa_dense: -0.5, gqa_moe: -0.5}
    feed_forward = {gqa_moe: 0.5, mla_moe: 0.5, gqa_dense: -0.5, mla_dense: -0.5}
    interaction = {mla_moe: 1.0, gqa_moe: -1.0, mla_dense: -1.0, gqa_dense: 1.0}
    return dict(zip(EFFECTS, (attention, feed_forward, interaction), strict=True))


def layer_costs(found: Frames, metric: str) -> pd.DataFrame:
    """Seconds that one more layer adds to `metric`: the slope between two depths, inside blocks.

    Embeddings, scheduling, HTTP and the client are the same at both depths and cancel; what is
    left is one layer, attention and feed-forward together. One row per model, workload and level
    measured at both depths: the two most distant ones. Empty when only one depth was asked for.
    """
    values, asked = launch_values(found, metric), list(_slopes(found))
    rows = []
    for shallow, deep, cell in asked:
        between = int(deep["layers"] - shallow["layers"])
        weights = {str(deep["arm"]): 1 / between, str(shallow["arm"]): -1 / between}
        here = at(values, cell)
        said = stats.contrast(here, "value", weights, log=False, comparisons=len(asked))
        rows.append(
            {
                **{name: shallow[name] for name in ("attention", "feed_forward", "model")},
                "shallow_layers": int(shallow["layers"]),
                "deep_layers": int(deep["layers"]),
                "workload": cell[0],
                "level": cell[1],
                "metric": metric,
                **as_columns(said.effect),
                "dropped": said.dropped,
            }
        )
    names = ["attention", "feed_forward", "model", "shallow_layers", "deep_layers", "workload"]
    return pd.DataFrame(rows, columns=[*names, "level", "metric", *INTERVAL, "dropped"])


def _slopes(found: Frames) -> Iterator[tuple[pd.Series, pd.Series, Cell]]:
    """The shallowest and the deepest arm of each model, with every cell that both have seen."""
    for _, group in arms(found).groupby("model", sort=False):
        shallow, deep = group.iloc[group["layers"].argmin()], group.iloc[group["layers"].argmax()]
        common = _cells(found, deep["layers"]) if deep["layers"] > shallow["layers"] else []
        for cell in _cells(found, shallow["layers"]):
            if cell in common:
                yield shallow, deep, cell
