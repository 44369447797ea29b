"""Absolute values by setting: every launch is a dot, for its variability is what is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from study import estimates
from study.beside import undrawn
from study.chapters import aiter_estimates as switches
from study.chapters.aiter_estimates import CELL, SWITCH_NAMES, left_out
from study.estimates import METRICS, rows_of
from study.figures import interval_words
from study.frames import Frames
from study.style import (
    MUTED,
    Drawn,
    hollow_style,
    interval_bars,
    legend,
    look,
    panels,
    spelled,
    style_of,
    void_entry,
)

ROW_IN = 2.35
MODEL_STEP = 0.34  # between models at one setting
DOTS_LEFT, DOTS_WIDE = 0.2, 0.14  # launches stand left of their estimate, in the order of blocks


def by_setting(found: Frames, metric: str) -> Drawn:
    """Every launch and the interval over launches, by setting; panels: switch x workload, level."""
    frame, words = points(found, metric), METRICS[metric]
    if frame.empty:
        return Drawn(None, frame, estimates.NO_WINDOWS)
    known = switches.applicable(found)
    known = known[known["switch"].isin(frame["switch"])]
    shown, cells = list(dict.fromkeys(known["switch"])), estimates.cells(estimates.windows(found))
    with look():
        figure, axes = panels(len(cells), len(shown), 0.9 + ROW_IN * len(cells))
        settings = [list(dict.fromkeys(known.loc[known["switch"] == s, "setting"])) for s in shown]
        grid = axes[0][0].get_gridspec()
        assert grid is not None
        grid.set_width_ratios([len(names) for names in settings])
        for line, (cell, row) in enumerate(zip(cells, axes, strict=True)):
            here = estimates.at(frame, cell)
            _value_limits(row[0], here, words.scale)
            row[0].set_ylabel(f"{words.label}\n{cell[0]}, level {cell[1]}")
            for axis, switch, names in zip(row, shown, settings, strict=True):
                of = known[known["switch"] == switch]
                _setting_panel(axis, here, of, names, words.scale)
                axis.set_title(SWITCH_NAMES[switch] if line == 0 else "")
                axis.tick_params(labelbottom=line == len(cells) - 1)
        legend(figure, _point_entries(frame))
    return Drawn(figure, frame, _points_caption(found, frame, metric))


def points(found: Frames, metric: str) -> pd.DataFrame:
    """What `by_setting` draws: a row per launch, per void window and per estimate.

    Columns: kind ('launch', 'void window', 'estimate'), switch, setting, arm, model and its
    families, workload, level, metric, block, launch, point, low, high, confidence, method, n.
    """
    seen, known = estimates.windows(found), switches.arms(found)
    columns = ["kind", "switch", "setting", "arm", "model", "attention", "feed_forward", *CELL]
    columns += ["metric", "block", "launch", *estimates.INTERVAL]
    if seen.empty:
        return pd.DataFrame(columns=columns)
    valid = estimates.launch_values(found, metric).rename(columns={"value": "point"})
    void = seen[seen["verdict"] == "void"].rename(columns={metric: "point"}).assign(metric=metric)
    over = estimates.by_level(found, [metric])
    parts = {"launch": valid, "void window": void, "estimate": over}
    of_arm = known.set_index("arm")[["switch", "setting", "model", "attention", "feed_forward"]]
    keys = ["arm", *CELL, "metric", "block", "launch", *estimates.INTERVAL]
    rows = [
        part.reindex(columns=keys).assign(kind=kind).astype({"block": "Int64"})
        for kind, part in parts.items()
        if len(part)
    ]
    return pd.concat(rows, ignore_index=True).join(of_arm, on="arm").reindex(columns=columns)


def _value_limits(axis: Axes, frame: pd.DataFrame, scale: float) -> None:
    """Dots decide: an interval may take as much room above and below as they do, then an arrow."""
    dots = frame["point"].dropna() * scale
    if dots.empty:
        return
    least, most = float(dots.min()), float(dots.max())
    room = max(most - least, 0.05 * most)
    low = max(float(np.nanmin([*(frame["low"] * scale), least])), least - room)
    high = min(float(np.nanmax([*(frame["high"] * scale), most])), most + room)
    axis.set_ylim(max(low - 0.12 * room, 0), high + 0.12 * room)
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _setting_panel(
    axis: Axes, frame: pd.DataFrame, arms: pd.DataFrame, names: Sequence[str], scale: float
) -> None:
    models = list(dict.fromkeys(arms["model"]))
    for arm in rows_of(arms):
        side = MODEL_STEP * (models.index(arm.model) - (len(models) - 1) / 2)
        place = names.index(arm.setting) + side
        of = frame[frame["arm"] == arm.arm]
        if of.empty:
            _say(axis, place, arm.outcome if arm.outcome != "measured" else "not measured")
            continue
        _arm_dots(axis, of, place, style_of(arm), scale)
    axis.set_xlim(-0.6, len(names) - 0.4)
    axis.set_xticks(range(len(names)))
    axis.set_xticklabels([_in_lines(name) for name in names])
    axis.grid(visible=False, axis="x")


def _arm_dots(
    axis: Axes, frame: pd.DataFrame, place: float, style: dict[str, Any], scale: float
) -> None:
    """Void windows lie below, and larger, so that neither hides the other at one value."""
    blocks = sorted(frame["block"].dropna().unique())
    step = DOTS_WIDE / max(len(blocks) - 1, 1)
    dot = {"marker": "o", "color": style["color"], "alpha": 0.75, "markeredgewidth": 0}
    for kind, size, look_of in (
        ("void window", 8, hollow_style(style["color"], "o")),
        ("launch", 5, dot),
    ):
        dots = frame[frame["kind"] == kind]
        x = [place - DOTS_LEFT + step * blocks.index(block) for block in dots["block"]]
        axis.plot(x, dots["point"] * scale, linestyle="", markersize=size, zorder=3, **look_of)
    over = frame[frame["kind"] == "estimate"]
    x = [place + 0.1] * len(over)
    marks = {**style, "linestyle": "", "marker": "_", "markersize": 13, "markeredgewidth": 2}
    axis.plot(x, over["point"] * scale, zorder=3, **marks)
    interval_bars(axis, x, over, style["color"], scale)


def _say(axis: Axes, place: float, word: str) -> None:
    axis.text(
        place,
        0.5,
        word,
        transform=axis.get_xaxis_transform(),
        rotation=90,
        ha="center",
        va="center",
        color=MUTED,
        size=8.5,
    )


def _in_lines(setting: str) -> str:
    """'aiter-without-mla' under the title AITER is 'without / mla'."""
    return setting.removeprefix("aiter-").replace("without-", "without\n")


def _point_entries(frame: pd.DataFrame) -> list[Line2D | Patch]:
    entries: list[Line2D | Patch] = [
        Patch(color=style_of(row)["color"], label=spelled(str(row.model)))
        for row in rows_of(frame.drop_duplicates("model"))
    ]
    dot: dict[str, Any] = {"linestyle": "", "color": MUTED, "markersize": 5}
    entries += [
        Line2D([], [], marker="o", label="one launch", **dot),
        Line2D([], [], marker="_", label="geometric mean, interval", **{**dot, "markersize": 13}),
    ]
    if (frame["kind"] == "void window").any():
        entries.append(void_entry())
    return entries


def _points_caption(found: Frames, frame: pd.DataFrame, metric: str) -> str:
    words = METRICS[metric]
    text = f"{words.label} by setting. Each dot is one launch, in the order of blocks"
    known = frame[(frame["kind"] == "estimate") & (frame["n"] > 0)]
    text += f"; bars: {interval_words(known)}. " if len(known) else "; no window is valid. "
    void = int((frame["kind"] == "void window").sum())
    text += f"Hollow: void windows ({void}), in no estimate. " if void else ""
    text += "The axis does not begin at zero; an arrow marks a bar that leaves it."
    text += undrawn(found.windows) if metric == "output_tok_s" else ""
    return text + left_out(found)
