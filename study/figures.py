"""The figures of an experiment: pure functions from what was found to a `Drawn`.

Estimates are filled points with their interval over launches, joined between ordered levels.
Void windows are hollow, joined by nothing, one point per window: visible, but in no estimate.
Each figure comes with the frame it drew, and a caption made from that frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from study import estimates, stats
from study.estimates import COMPARED, METRICS, Metric
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
)

SINGULAR = {"launches": "launch", "blocks": "block"}


def throughput(found: Frames) -> Drawn:
    """Output tokens per second against level, a panel per workload."""
    return _against_level(found, ("output_tok_s",), "Output tokens per second in the steady part.")


def latency(found: Frames) -> Drawn:
    """Median TTFT and median TPOT against level, a row of panels each, a column per workload."""
    said = "Time to first token and time per output token: the median of each window."
    return _against_level(found, ("ttft_p50_s", "tpot_p50_s"), said)


def _against_level(found: Frames, metrics: Sequence[str], said: str) -> Drawn:
    frame = level_frame(found, metrics)
    if frame.empty:
        return Drawn(None, frame, estimates.NO_WINDOWS)
    workloads = list(dict.fromkeys(frame["workload"]))
    with look():
        figure, axes = panels(len(metrics), len(workloads), 0.7 + 2.8 * len(metrics))
        for row, metric in zip(axes, metrics, strict=True):
            of_metric = frame[frame["metric"] == metric]
            for axis, workload in zip(row, workloads, strict=True):
                _level_panel(axis, of_metric, workload, METRICS[metric])
            row[0].set_ylabel(f"{METRICS[metric].name} ({METRICS[metric].unit})")
        _tidy(axes, workloads, frame)
        arm_legend(figure, frame, hollow=bool((frame["kind"] == "void window").any()))
    layers = int(frame["layers"].iloc[0])
    said = f"{said} Models of {layers} layers. {_estimate_caption(frame)}"
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


def _level_panel(axis: Axes, frame: pd.DataFrame, workload: str, metric: Metric) -> None:
    known = frame[frame["kind"] == "estimate"]
    scale = metric.scale
    log_axis(axis, *log_limits(frame["point"] * scale, known["low"] * scale, known["high"] * scale))
    here = frame[frame["workload"] == workload]
    arms = list(dict.fromkeys(frame["arm"]))
    for place, arm in enumerate(arms):
        of_arm = here[here["arm"] == arm].sort_values("level")
        if of_arm.empty:
            continue
        style = arm_style(of_arm["attention"].iloc[0], of_arm["feed_forward"].iloc[0])
        of_estimates = of_arm[of_arm["kind"] == "estimate"]  # NaN breaks the line at a void level
        x = dodge(of_estimates["level"], place, len(arms))
        axis.plot(x, of_estimates["point"] * scale, zorder=3, **style)
        interval_bars(axis, x, of_estimates, style["color"], scale)
        void = of_arm[of_arm["kind"] == "void window"]
        hollow = hollow_style(style["color"], style["marker"])
        axis.plot(
            dodge(void["level"], place, len(arms)), void["point"] * scale, linestyle="", **hollow
        )


def _tidy(axes: list[list[Axes]], workloads: Sequence[str], frame: pd.DataFrame) -> None:
    """Titles above the first row, level axes with a label below the last."""
    levels = sorted(frame["level"].unique())
    lengths = frame.drop_duplicates("workload").set_index("workload")
    for number, row in enumerate(axes):
        for axis, workload in zip(row, workloads, strict=True):
            level_axis(axis, levels)
            if number == 0:
                given, made = lengths.loc[workload, ["input_tokens", "output_tokens"]]
                axis.set_title(f"{workload}: {given:,.0f} tokens in, {made:,.0f} out")
            if number < len(axes) - 1:
                axis.set_xlabel("")


def _estimate_caption(frame: pd.DataFrame) -> str:
    """How points and bars were made, from the frame itself."""
    known = frame[(frame["kind"] == "estimate") & (frame["n"] > 0)]
    text = "No valid window, so no estimate."
    if len(known):
        log = known["method"].str.contains(stats.T_LOG, regex=False).all()
        mean = "geometric means" if log else "means"
        text = f"Points: {mean} over launches; bars: {interval_words(known)}."
    void = frame[frame["kind"] == "void window"]
    if len(void):
        windows = void.drop_duplicates(["launch", "workload", "level"])
        undrawable = windows["point"].isna().sum()
        text += f" Hollow: {len(windows)} void windows, one point each, in no estimate"
        text += f" ({undrawable} of them gave no value to draw)." if undrawable else "."
    return text


def interval_words(rows: pd.DataFrame, unit: str = "launches") -> str:
    """'95 % t interval ..., n = 2 to 3 launches', as `Interval.label` says it; n = 1 has none."""
    first, n = rows.iloc[0], rows["n"].astype(int)
    least, most = n.min(), n.max()
    interval = stats.Interval("", 0, 0, 0, first["confidence"], first["method"], int(most), unit)
    label = interval.label()
    if least != most:
        label = label.replace(f"n = {most}", f"n = {least} to {most}")
    if most == 1:
        return f"none, since a single {SINGULAR[unit]} carries no interval (n = 1)"
    return label + ("; where n = 1 there is none" if least == 1 else "")


# --- comparisons ----------------------------------------------------------------------------------


def attention_ratio(found: Frames) -> Drawn:
    """MLA / GQA inside blocks against level; a row of panels per metric, a column per workload."""
    frame = pd.concat(
        [estimates.attention_ratios(found, metric) for metric in COMPARED], ignore_index=True
    )
    frame = frame[frame["layers"].isin(estimates.depths(found)[:1])]
    if frame.empty:
        return Drawn(None, frame, estimates.why_not(found, estimates.NO_PAIR))
    if frame["point"].isna().all():
        return Drawn(None, frame, "Not measured: no block has valid windows of GQA and of MLA.")
    workloads = list(dict.fromkeys(frame["workload"]))
    with look():
        figure, axes = panels(len(COMPARED), len(workloads), 0.7 + 2.1 * len(COMPARED))
        for row, metric in zip(axes, COMPARED, strict=True):
            of_metric = frame[frame["metric"] == metric]
            for axis, workload in zip(row, workloads, strict=True):
                _ratio_panel(axis, of_metric, workload)
            row[0].set_ylabel(f"{METRICS[metric].name}\nMLA / GQA")
            _which_way(row[-1], METRICS[metric])
        seen = estimates.windows(found)
        lengths = seen[["workload", "input_tokens", "output_tokens"]].drop_duplicates("workload")
        _tidy(axes, workloads, frame.merge(lengths, on="workload"))
        legend(figure, _feed_forward_entries(frame))
    return Drawn(figure, frame, _ratio_caption(frame))


def _ratio_panel(axis: Axes, frame: pd.DataFrame, workload: str) -> None:
    low, high = log_limits(frame["point"], frame["low"], frame["high"])
    log_axis(axis, min(low, 0.8), max(high, 1.25))
    axis.axhline(1, color=INK, linewidth=1, zorder=1)
    here = frame[frame["workload"] == workload]
    models = list(dict.fromkeys(frame["model"]))
    for place, model in enumerate(models):
        rows = here[here["model"] == model].sort_values("level")
        if rows.empty:
            continue
        x = dodge(rows["level"], place, len(models))
        style = _ratio_style(str(rows["feed_forward"].iloc[0]))
        axis.plot(x, rows["point"], zorder=3, **style)
        interval_bars(axis, x, rows, style["color"])


def _ratio_style(feed_forward: str) -> dict[str, Any]:
    """No attention family's colour: a ratio belongs to both."""
    return {**arm_style("", feed_forward), "color": INK if feed_forward == "dense" else MUTED}


def _feed_forward_entries(frame: pd.DataFrame) -> list[Line2D]:
    unique = frame.drop_duplicates("model")
    return [
        Line2D(
            [],
            [],
            label=spelled(estimates.without(row.model, *ATTENTION_COLOUR)),
            **_ratio_style(str(row.feed_forward)),
        )
        for row in estimates.rows_of(unique)
    ]


def _which_way(axis: Axes, metric: Metric) -> None:
    """Which side of 1 is good for whom."""
    above, below = ("higher", "lower") if metric.more_is_better else ("slower", "faster")
    for place, align, text in ((0.98, "top", f"MLA {above} ↑"), (0.02, "bottom", f"MLA {below} ↓")):
        axis.text(
            0.99, place, text, transform=axis.transAxes, ha="right", va=align, color=MUTED, size=8.5
        )


def _ratio_caption(frame: pd.DataFrame) -> str:
    known = frame[frame["n"] > 0]
    gaps = int((frame["n"] == 0).sum())
    text = (
        "MLA divided by GQA, compared inside blocks, for the same feed-forward family; the line "
        f"at 1 is no difference. Bars: {interval_words(known, 'blocks')}. An arrow marks a bar "
        "that leaves the axis."
    )
    return text + (f" Not drawn: {gaps} cells without a block to compare." if gaps else "")


# --- the cost of a layer --------------------------------------------------------------------------


def layer_cost(found: Frames) -> Drawn:
    """What one more layer adds to TPOT and TTFT, per model, workload and level."""
    metrics = ("tpot_p50_s", "ttft_p50_s")
    frame = pd.concat(
        [estimates.layer_costs(found, metric) for metric in metrics], ignore_index=True
    )
    if frame.empty:
        return Drawn(None, frame, estimates.why_not(found, estimates.NO_SLOPE))
    if frame["point"].isna().all():
        return Drawn(None, frame, "Not measured: no block has valid windows at both depths.")
    workloads = list(dict.fromkeys(frame["workload"]))
    names = {
        "tpot_p50_s": "TPOT: ms per token\nper layer",
        "ttft_p50_s": "TTFT: ms per prompt\nper layer",
    }
    with look():
        figure, axes = panels(2, len(workloads), 5.6)
        for row, metric in zip(axes, metrics, strict=True):
            for axis, workload in zip(row, workloads, strict=True):
                _slope_panel(axis, frame[frame["metric"] == metric], workload)
            row[0].set_ylabel(names[metric])
        seen = estimates.windows(found)
        lengths = seen[["workload", "input_tokens", "output_tokens"]].drop_duplicates("workload")
        _tidy(axes, workloads, frame.merge(lengths, on="workload"))
        arm_legend(figure, frame, hollow=False)
    first = frame.iloc[0]
    return Drawn(
        figure,
        frame,
        f"What one more layer costs: the slope between {first['shallow_layers']} and "
        f"{first['deep_layers']} layers, inside blocks. What does not depend on depth (scheduling, "
        "HTTP, the client) cancels; attention and feed-forward of the layer remain. Bars: "
        f"{interval_words(frame[frame['n'] > 0], 'blocks')}.",
    )


def _slope_panel(axis: Axes, frame: pd.DataFrame, workload: str) -> None:
    points = frame["point"] * 1e3
    lows, highs = frame["low"].fillna(frame["point"]), frame["high"].fillna(frame["point"])
    span = max(points.max() - min(points.min(), 0.0), 1e-9)
    bottom = max(min(0.0, lows.min() * 1e3), min(0.0, points.min()) - span)
    axis.set_ylim(bottom - 0.05 * span, min(highs.max() * 1e3, points.max() + span) + 0.08 * span)
    axis.axhline(0, color=INK, linewidth=1, zorder=1)
    here = frame[frame["workload"] == workload]
    models = list(dict.fromkeys(frame["model"]))
    for place, model in enumerate(models):
        rows = here[here["model"] == model].sort_values("level")
        if rows.empty:
            continue
        style = arm_style(rows["attention"].iloc[0], rows["feed_forward"].iloc[0])
        x = dodge(rows["level"], place, len(models))
        axis.plot(x, rows["point"] * 1e3, zorder=3, **style)
        interval_bars(axis, x, rows, style["color"], 1e3)


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
    for row in estimates.rows_of(frame):
        place, style = arms.index(row.arm), arm_style(row.attention, row.feed_forward)
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
    axis.set_yticklabels(
        [f"{spelled(r.model)}, {r.layers} layers" for r in estimates.rows_of(names)]
    )
    axis.set_ylim(len(arms) - 0.4, -0.6)
    axis.set_xlim(left=0)
    axis.set_xlabel(label)
    axis.grid(visible=False, axis="y")
