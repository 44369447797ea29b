"""The figures of an experiment: pure functions from what was found to a `Drawn`.

Estimates are filled points with their interval over launches, joined between ordered levels.
Void windows are hollow, joined by nothing, one point per window: visible, but in no estimate.
Each figure comes with the frame it drew, and a caption made from that frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from study import estimates, families, stats
from study.beside import BOUND, with_bound
from study.estimates import COMPARED, LIMITS, METRICS, Metric, of_metrics, rows_of
from study.frames import Frames
from study.plan import Launch
from study.style import (
    ATTENTION_COLOUR,
    INK,
    MUTED,
    Drawn,
    arm_legend,
    arm_style,
    dodge,
    hollow_style,
    interval_bars,
    legend,
    level_axis,
    log_axis,
    log_limits,
    look,
    panels,
    spelled,
    style_of,
)

SINGULAR = {"launches": "launch", "blocks": "block"}


def throughput(found: Frames) -> Drawn:
    """Output tokens per second against level, a panel per workload."""
    said = "Output tokens per second in the steady part."
    return _against_level(found, ("output_tok_s",), said, bounded=True)


def latency(found: Frames) -> Drawn:
    """Median TTFT and median TPOT against level, a row of panels each, a column per workload."""
    said = "Time to first token and time per output token: the median of each window."
    return _against_level(found, ("ttft_p50_s", "tpot_p50_s"), said)


def _against_level(
    found: Frames, metrics: Sequence[str], said: str, *, bounded: bool = False
) -> Drawn:
    frame = level_frame(found, metrics)
    if frame.empty:
        return Drawn(None, frame, estimates.NO_WINDOWS)
    frame, roof = with_bound(frame, found.windows) if bounded else (frame, "")
    levels = sorted(frame["level"].unique())

    def draw(axis: Axes, metric: str, workload: str) -> None:
        of_metric, scale = frame[frame["metric"] == metric], METRICS[metric].scale
        log_y(axis, of_metric, scale)
        curves(axis, of_metric, workload, scale)
        level_axis(axis, levels)

    with look():
        labels = {metric: METRICS[metric].label for metric in metrics}
        figure, _ = small_multiples(labels, titles(found, frame), 2.8, draw)
        arm_legend(figure, frame, hollow=bool((frame["kind"] == "void window").any()))
    layers = int(frame["layers"].iloc[0])
    said = f"{said} Models of {layers} layers. {estimate_caption(frame)}{roof}"
    return Drawn(figure, frame, said)


def level_frame(found: Frames, metrics: Sequence[str]) -> pd.DataFrame:
    """What `throughput` and `latency` draw: a row per estimate, and a row per void window.

    Columns: kind ('estimate', 'void window'), workload, input_tokens, output_tokens, level, arm,
    factors, metric, point, low, high, confidence, method, n, launch (of a void window).
    """
    seen = estimates.windows(found)
    depth = estimates.depths(found)[:1]
    seen = seen[seen["layers"].isin(depth)]
    if seen.empty:
        return pd.DataFrame(columns=["kind", "workload", "level", "arm", "metric", "point"])
    every = estimates.by_level(found, metrics).assign(kind="estimate")
    void = seen[seen["verdict"] == "void"]
    keys = ["arm", *estimates.FACTORS, "workload", "level", "launch"]
    hollow = void.melt(keys, list(metrics), var_name="metric", value_name="point")
    lengths = seen[["workload", "input_tokens", "output_tokens"]].drop_duplicates("workload")
    both = every if hollow.empty else pd.concat([every, hollow.assign(kind="void window")])
    joined = lengths.merge(both[both["layers"].isin(depth)], on="workload")
    columns = ["kind", "workload", "input_tokens", "output_tokens", "level", "arm"]
    columns += [*estimates.FACTORS, "metric", *estimates.INTERVAL, "launch"]
    return joined.reindex(columns=columns)


# --- what panels are made of ----------------------------------------------------------------------

Key = TypeVar("Key")


def small_multiples(
    rows: Mapping[Key, str],
    columns: Mapping[str, str],
    row_in: float,
    draw: Callable[[Axes, Key, str], None],
) -> tuple[Figure, list[list[Axes]]]:
    """A panel per row and column, each filled by `draw(axis, row, column)`.

    The values of `rows` stand beside the first column, those of `columns` above the first row;
    the label of an x axis stays below the last row only.
    """
    figure, axes = panels(len(rows), len(columns), 0.8 + row_in * len(rows))
    for line, (row, beside) in zip(axes, rows.items(), strict=True):
        for axis, column in zip(line, columns, strict=True):
            draw(axis, row, column)
            if line is not axes[-1]:
                axis.set_xlabel("")
        line[0].set_ylabel(beside)
    for axis, above in zip(axes[0], columns.values(), strict=True):
        axis.set_title(above)
    return figure, axes


def titles(found: Frames, frame: pd.DataFrame) -> dict[str, str]:
    """Each workload of the frame with its lengths: 'short: 128 tokens in, 64 out'."""
    seen = estimates.windows(found).drop_duplicates("workload").set_index("workload")
    lengths = seen.loc[list(dict.fromkeys(frame["workload"])), ["input_tokens", "output_tokens"]]
    return {
        str(name): f"{name}: {given:,.0f} tokens in, {made:,.0f} out"
        for name, given, made in lengths.itertuples(name=None)
    }


def log_y(
    axis: Axes, frame: pd.DataFrame, scale: float = 1.0, least: tuple[float, float] = (np.inf, 0)
) -> None:
    """A log axis for the points and intervals of the frame that reaches at least over `least`."""
    low, high = log_limits(*(frame[name] * scale for name in LIMITS))
    log_axis(axis, min(low, least[0]), max(high, least[1]))


def curves(
    axis: Axes,
    frame: pd.DataFrame,
    workload: str,
    scale: float = 1.0,
    *,
    by: str = "arm",
    along: str = "level",
    style: Callable[[Any], dict[str, Any]] = style_of,
    joined: bool = True,
) -> None:
    """A curve per arm, or what `by` names: estimates with their bars, void windows hollow, and
    the bound where there is one.

    Without a column `kind` all rows are estimates. NaN breaks a line, so none passes a level whose
    windows are all void. Curves are moved apart a little, or their intervals would hide each other.
    """
    names = list(dict.fromkeys(frame[by]))
    here = frame[frame["workload"] == workload].sort_values(along)
    kind = here["kind"] if "kind" in here else pd.Series("estimate", here.index)
    for place, name in enumerate(names):
        known, void = (
            here[(here[by] == name) & (kind == wanted)] for wanted in ("estimate", "void window")
        )
        bound = here[(here[by] == name) & (kind == BOUND)]
        if known.empty and void.empty:
            continue
        look_of = style(next(rows_of(known if len(known) else void)))
        line = look_of if joined else {**look_of, "linestyle": ""}
        x = dodge(known[along], place, len(names))
        axis.plot(x, known["point"] * scale, zorder=3, **line)
        interval_bars(axis, x, known, look_of["color"], scale)
        hollow = hollow_style(look_of["color"], look_of["marker"])
        x = dodge(void[along], place, len(names))
        axis.plot(x, void["point"] * scale, linestyle="", **hollow)
        axis.plot(bound[along], bound["point"] * scale, "-.", color=look_of["color"], linewidth=1.1)


def estimate_caption(frame: pd.DataFrame, by: Sequence[str] = ("arm",)) -> str:
    """How points and bars were made and how many windows are hollow, from the frame itself; and
    that curves, one for each of `by`, are moved apart."""
    known = frame[(frame["kind"] == "estimate") & (frame["n"] > 0)]
    text = "No valid window, so no estimate."
    if len(known):
        log = known["method"].str.contains(stats.ON_LOG, regex=False).all()
        mean = "geometric means" if log else "means"
        bars = (interval_words(rows) for _, rows in known.groupby("metric", sort=False))
        text = f"Points: {mean} over launches; bars: {'; '.join(dict.fromkeys(bars))}."
    void = frame[frame["kind"] == "void window"]
    if len(void):
        windows = void[void["metric"] == void["metric"].iloc[0]]
        undrawable = windows["point"].isna().sum()
        text += f" Hollow: void windows ({len(windows)}), one point each, in no estimate"
        text += f" ({undrawable} of them gave no value to draw)." if undrawable else "."
    return text + moved(frame[frame["kind"].isin(["estimate", "void window"])], by)


def moved(frame: pd.DataFrame, by: Sequence[str]) -> str:
    """That points do not lie exactly where the axis says, where there are several curves."""
    several = len(frame[list(by)].drop_duplicates()) > 1
    return " Points at one place of the axis are moved apart a little." if several else ""


def interval_words(rows: pd.DataFrame, unit: str = "launches") -> str:
    """'95 % t interval ..., n = 2 to 3 launches', as `Interval.label` says it, and who has none."""
    n, without = rows["n"].astype(int), rows["low"].isna()
    least, most = n.min(), n.max()
    methods = " or ".join(
        dict.fromkeys(rows["method"] if without.all() else rows["method"][~without])
    )
    interval = stats.Interval("", 0, 0, 0, rows["confidence"].iloc[0], methods, int(most), unit)
    label = interval.label()
    if least != most:
        label = label.replace(f"n = {most}", f"n = {least} to {most}")
    if most == 1 and without.all():
        return f"none, since a single {SINGULAR[unit]} carries no interval (n = 1)"
    return label + ("; where n = 1 there is none" if (without & (n == 1)).any() else "")


# --- comparisons ----------------------------------------------------------------------------------


def attention_ratio(found: Frames) -> Drawn:
    """MLA / GQA inside blocks against level; a row of panels per metric, a column per workload."""
    frame = of_metrics(lambda metric: families.attention_ratios(found, metric))
    frame = frame[frame["layers"].isin(estimates.depths(found)[:1])]
    if frame.empty:
        return Drawn(None, frame, estimates.why_not(found, estimates.NO_PAIR))
    if frame["point"].isna().all():
        return Drawn(None, frame, "Not measured: no block has valid windows of GQA and of MLA.")
    levels = sorted(frame["level"].unique())

    def draw(axis: Axes, metric: str, workload: str) -> None:
        rows = frame[frame["metric"] == metric]
        ratio_curves(axis, rows, workload, (0.8, 1.25), by="model", style=_ratio_style)
        level_axis(axis, levels)

    with look():
        labels = {metric: f"{METRICS[metric].name}\nMLA / GQA" for metric in COMPARED}
        figure, axes = small_multiples(labels, titles(found, frame), 2.1, draw)
        for row, metric in zip(axes, COMPARED, strict=True):
            _which_way(row[-1], METRICS[metric])
        legend(figure, _feed_forward_entries(frame))
    return Drawn(figure, frame, _ratio_caption(frame))


def ratio_curves(
    axis: Axes, frame: pd.DataFrame, workload: str, least: tuple[float, float], **how: Any
) -> None:
    """`curves` of ratios, around the line that says no difference."""
    log_y(axis, frame, least=least)
    axis.axhline(1, color=INK, linewidth=1, zorder=1)
    curves(axis, frame, workload, **how)


def _ratio_style(row: Any) -> dict[str, Any]:
    """No attention family's colour: a ratio belongs to both."""
    colour = INK if row.feed_forward == "dense" else MUTED
    return {**arm_style("", row.feed_forward), "color": colour}


def _feed_forward_entries(frame: pd.DataFrame) -> list[Line2D]:
    unique = frame.drop_duplicates("model")
    return [
        Line2D(
            [],
            [],
            label=spelled(families.without(row.model, *ATTENTION_COLOUR)),
            **_ratio_style(row),
        )
        for row in rows_of(unique)
    ]


def _which_way(axis: Axes, metric: Metric) -> None:
    """Which side of 1 is good for whom: beside the panel, where no bar can reach."""
    above, below = ("higher", "lower") if metric.more_is_better else ("slower", "faster")
    for place, align, text in ((1, "top", f"↑ MLA\n{above}"), (0, "bottom", f"MLA\n{below} ↓")):
        axis.text(1.02, place, text, transform=axis.transAxes, va=align, color=MUTED, size=8.5)


def _ratio_caption(frame: pd.DataFrame) -> str:
    known = frame[frame["n"] > 0]
    gaps = int((frame["n"] == 0).sum())
    text = (
        "MLA divided by GQA, compared inside blocks, for the same feed-forward family; the line "
        f"at 1 is no difference. Bars: {interval_words(known, 'blocks')}. An arrow marks a bar "
        "that leaves the axis."
    )
    text += f" Not drawn: {gaps} cells without a block to compare." if gaps else ""
    return text + moved(frame, ["model"])


# --- the cost of a layer --------------------------------------------------------------------------


def layer_cost(found: Frames) -> Drawn:
    """What one more layer adds to TPOT and TTFT, per model, workload and level."""
    names = {
        "tpot_p50_s": "TPOT: ms per token\nper layer",
        "ttft_p50_s": "TTFT: ms per prompt\nper layer",
    }
    frame = of_metrics(lambda metric: families.layer_costs(found, metric), tuple(names))
    if frame.empty:
        return Drawn(None, frame, estimates.why_not(found, estimates.NO_SLOPE))
    if frame["point"].isna().all():
        return Drawn(None, frame, "Not measured: no block has valid windows at both depths.")
    levels = sorted(frame["level"].unique())

    def draw(axis: Axes, metric: str, workload: str) -> None:
        _slope_panel(axis, frame[frame["metric"] == metric], workload)
        level_axis(axis, levels)

    with look():
        figure, _ = small_multiples(names, titles(found, frame), 2.4, draw)
        arm_legend(figure, frame, hollow=False)
    first = frame.iloc[0]
    return Drawn(
        figure,
        frame,
        f"What one more layer costs: the slope between {first['shallow_layers']} and "
        f"{first['deep_layers']} layers, inside blocks. What does not depend on depth (scheduling, "
        "HTTP, the client) cancels; attention and feed-forward of the layer remain. Bars: "
        f"{interval_words(frame[frame['n'] > 0], 'blocks')}.{moved(frame, ['model'])}",
    )


def _slope_panel(axis: Axes, frame: pd.DataFrame, workload: str) -> None:
    points = frame["point"] * 1e3
    lows, highs = frame["low"].fillna(frame["point"]), frame["high"].fillna(frame["point"])
    span = max(points.max() - min(points.min(), 0.0), 1e-9)
    bottom = max(min(0.0, lows.min() * 1e3), min(0.0, points.min()) - span)
    axis.set_ylim(bottom - 0.05 * span, min(highs.max() * 1e3, points.max() + span) + 0.08 * span)
    axis.axhline(0, color=INK, linewidth=1, zorder=1)
    curves(axis, frame, workload, 1e3, by="model")


# --- the cache ------------------------------------------------------------------------------------


def kv_cache(found: Frames, launches: Sequence[Launch]) -> Drawn:
    """KV bytes per token and capacity, the engine's figure beside arithmetic."""
    frame = estimates.cache(found, launches)
    if frame.empty:
        return Drawn(None, frame, "Not measured: no arm was asked for.")
    with look():
        figure, axes = panels(1, 2, 1.3 + 0.36 * frame["arm"].nunique())
        left, right = axes[0]
        _cache_panel(left, frame, "bytes_per_token", 2**10, "KiB of cache per token")
        _cache_panel(right, frame, "tokens", 1e3, "cache capacity (thousand tokens)")
        right.tick_params(labelleft=False)
        entries = [
            Line2D([], [], label="engine", linestyle="", marker="o", color=INK),
            Line2D([], [], label="arithmetic", linestyle="", marker="|", color=INK, ms=13, mew=1.8),
        ]
        legend(figure, entries)
    return Drawn(
        figure,
        frame,
        "KV cache of each arm: what the engine reports, and what arithmetic on the model's shape "
        "says (capacity: the engine's cache bytes over bytes per token, before it is cut into "
        "blocks). Deterministic: an arm has several points only if its launches differed.",
    )


def _cache_panel(axis: Axes, frame: pd.DataFrame, what: str, scale: float, label: str) -> None:
    arms = list(dict.fromkeys(frame["arm"]))
    names = frame.drop_duplicates("arm")
    for row in rows_of(frame):
        place, style = arms.index(row.arm), style_of(row)
        engine, theory = (getattr(row, f"{what}_{side}") / scale for side in ("engine", "theory"))
        axis.plot(theory, place, marker="|", ms=18, mew=2.2, color=INK, linestyle="", zorder=2)
        axis.plot(engine, place, **{**style, "linestyle": "", "ms": 7.5}, zorder=3)
        if np.isnan(engine):
            axis.text(
                0.02,
                place,
                "engine: not reported",
                transform=axis.get_yaxis_transform(),
                va="center",
                color=MUTED,
                size=8.5,
            )
    axis.set_yticks(range(len(arms)))
    axis.set_yticklabels([f"{spelled(r.model)}, {r.layers} layers" for r in rows_of(names)])
    axis.set_ylim(len(arms) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_xlabel(label)
    axis.grid(visible=False, axis="y")
