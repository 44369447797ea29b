"""Ratios as forests: treatment / baseline inside blocks, and the ratio of their spreads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from study import estimates, stats
from study.chapters import aiter_estimates as switches
from study.chapters.aiter_estimates import CELL, ENOUGH, HEADLINE, TWICE, left_out, pair_name, why
from study.estimates import COMPARED, METRICS, of_metrics, rows_of
from study.figures import interval_words
from study.frames import Frames
from study.plan import Launch
from study.style import (
    GRID,
    INK,
    MUTED,
    Drawn,
    interval_bars,
    legend,
    log_limits,
    look,
    panels,
    spelled,
)

LINE_IN = 0.3
TICKS = (1, 2, 0.5, 5, 0.2, 10, 0.1, 20, 0.05, 1.5, 0.7, 3, 0.3, 1.2, 0.8, 1.1, 0.9)  # wanted most
APART = 0.16  # of the axis, that two ticks must be
COUNTS = re.compile(r", \d+ against \d+ launches")  # of a method: they differ from row to row


def ratios(found: Frames, launches: Sequence[Launch]) -> Drawn:
    """Treatment / baseline inside blocks: a line per pair, workload and level; panel per metric."""
    frame = of_metrics(lambda metric: switches.ratios(found, launches, metric))
    frame = frame.assign(kind="estimate")
    if frame["point"].isna().all():
        return Drawn(None, frame, _nothing_compared(found))
    each = of_metrics(lambda metric: switches.block_ratios(found, launches, metric))
    frame = pd.concat([frame, each.assign(kind="block")], ignore_index=True)
    lines = _lines(frame)
    with look():
        figure, axes = panels(1, len(COMPARED), 1.5 + LINE_IN * len(lines))
        for axis, metric in zip(axes[0], COMPARED, strict=True):
            _forest(axis, frame[frame["metric"] == metric], lines)
            axis.set_title(METRICS[metric].name)
            good = "faster" if METRICS[metric].more_is_better else "slower"
            axis.set_xlabel(f"{good} →")
        dot: dict[str, Any] = {"linestyle": "", "marker": "o"}
        entries = [
            Line2D([], [], color=INK, label="ratio over blocks, interval", **dot),
            Line2D([], [], color=MUTED, alpha=0.6, ms=3.5, label="one block", **dot),
        ]
        legend(figure, entries)
    return Drawn(figure, frame, _ratios_caption(found, frame))


def spreads(found: Frames, launches: Sequence[Launch]) -> Drawn:
    """Ratio of the spreads of launches, with the F interval, and what chance alone would give."""
    frame = switches.spreads(found, launches)
    known = frame[frame["point"].notna()]
    if known.empty:
        text = "Not drawn: a ratio of spreads needs two launches with a valid window of both."
        return Drawn(None, frame, _nothing_compared(found) if frame.empty else text)
    lines, least = _lines(frame), int(known["n"].min())
    chance = switches.by_chance(least)
    with look():
        figure, axes = panels(1, 1, 1.5 + LINE_IN * len(lines))
        axis = axes[0][0]
        axis.axvspan(1 / chance, chance, color=GRID, zorder=0, linewidth=0)
        _forest(axis, frame, lines, (1 / chance, chance))
        axis.set_xlabel("spread of the treatment / spread of the baseline  (more variable →)")
        band = Patch(color=GRID, label=f"equal spreads, n = {least} launches each")
        dot = Line2D([], [], color=INK, linestyle="", marker="o", label="ratio, F interval")
        legend(figure, [dot, band])
    text = (
        f"Launch-to-launch spread of {METRICS[HEADLINE].name.lower()} (standard deviation of its "
        f"logarithm), treatment over baseline. Bars: {_spread_words(known)}. It "
        "assumes normal log values and is sensitive to that. Grey: where "
        f"{stats.CONFIDENCE * 100:g} % of ratios lie when both spreads are equal (n = {least}). "
    )
    if least < ENOUGH:
        text += f"Below {ENOUGH} launches an arm, such a ratio carries next to nothing. "
    return Drawn(figure, frame, text + _twice_words(frame) + left_out(found).strip())


def _spread_words(known: pd.DataFrame) -> str:
    """'95 % F interval ..., n = 2 to 3 launches an arm': what the rows share, then their counts."""
    methods = dict.fromkeys(COUNTS.sub("", method) for method in known["method"])
    counts = known[["treatment_n", "baseline_n"]].astype(int).to_numpy()
    least, most = counts.min(), counts.max()
    n = f"{least} to {most}" if least < most else f"{least}"
    return f"{stats.CONFIDENCE * 100:g} % {' or '.join(methods)}, n = {n} launches an arm"


def _nothing_compared(found: Frames) -> str:
    text = estimates.why_not(found, "Not measured: no block has valid windows of a pair.")
    return text + left_out(found)


Line = tuple[str, str, str, int]  # treatment, baseline, workload, level
KEYS = ("treatment", "baseline", *CELL)


def _lines(frame: pd.DataFrame) -> dict[Line, str]:
    """Each line of a forest with its label, pairs kept together."""
    several = frame["model"].nunique() > 1
    found = {}
    for row in rows_of(frame.drop_duplicates(list(KEYS))):
        name = pair_name(row)
        model = f" · {spelled(row.model)}" if several else ""
        found[tuple(getattr(row, key) for key in KEYS)] = (
            f"{name}{model} · {row.workload}, {row.level}"
        )
    return found


def _forest(
    axis: Axes, frame: pd.DataFrame, lines: dict[Line, str], least: tuple[float, float] = (0.9, 1.1)
) -> None:
    """Ratios from top to bottom on a log axis, with bars that end in an arrow at its edge."""
    low, high = log_limits(frame["point"], frame["low"], frame["high"])
    low, high = min(low, least[0] / 1.1), max(high, least[1] * 1.1)
    places = {line: place for place, line in enumerate(lines)}
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.axvline(1, color=INK, linewidth=1, zorder=1)
    for row in rows_of(frame):
        place = places[tuple(getattr(row, key) for key in KEYS)]
        colour = MUTED if row.switch == TWICE else INK
        if getattr(row, "kind", "") == "block":
            axis.plot(row.point, place + 0.22, "o", color=MUTED, alpha=0.6, ms=3.5, zorder=2)
        elif np.isnan(row.point):
            where = axis.get_yaxis_transform()
            axis.text(0.02, place, why(row), transform=where, va="center", color=MUTED, size=8)
        else:
            axis.plot(row.point, place, "o", color=colour, zorder=3)
            interval_bars(axis, [place], pd.DataFrame([row._asdict()]), colour, lying=True)
    axis.xaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_yticks(range(len(lines)))
    axis.set_yticklabels(list(lines.values()))
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def _ticks(low: float, high: float) -> list[float]:
    """The ticks wanted most that have room for their labels."""
    chosen: list[float] = []
    for tick in TICKS:
        near = [abs(np.log(tick / other)) < APART * np.log(high / low) for other in chosen]
        if low <= tick <= high and not any(near):
            chosen.append(tick)
    return sorted(chosen)


def _ratios_caption(found: Frames, frame: pd.DataFrame) -> str:
    known = frame[(frame["kind"] == "estimate") & (frame["n"] > 0)]
    return (
        "Treatment divided by baseline inside blocks; the line at 1 is no difference. Bars: "
        f"{interval_words(known, 'blocks')}. An arrow marks a bar that leaves the axis. "
        + _twice_words(frame)
        + left_out(found).strip()
    )


def _twice_words(frame: pd.DataFrame) -> str:
    if not (frame["switch"] == TWICE).any():
        return ""
    return (
        f"{TWICE}: two arms that the engine runs alike; what differs between them is chance, and "
        "shows how far that alone may take a ratio. "
    )
