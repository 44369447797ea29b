"""Figures of the chapter on the instrument: what the client adds, who agrees, and the noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from study.agreement import COMPARISONS
from study.chapter import Part
from study.chapters import instrument_estimates as instrument
from study.chapters.instrument_estimates import ADDED, MEASURED
from study.estimates import COMPARED, METRICS, of_metrics, rows_of
from study.figures import interval_words
from study.gates.headroom import FLOOR_S, RATE_FACTOR, SHARE_LIMIT
from study.nullloads import GRID, RAMP
from study.style import (
    INK,
    MUTED,
    OUTCOME_COLOUR,
    Drawn,
    hollow_style,
    interval_bars,
    legend,
    log_axis,
    log_limits,
    look,
    panels,
    void_entry,
)
from study.tables import count

LINE_IN = 0.32
LIMIT_COLOUR = OUTCOME_COLOUR["failed"]
NO_CALIBRATION = "Not calibrated: no calibration for this client, machine and cores is on disk."
APART = 0.18  # between the levels of one comparison


def added(part: Part) -> Drawn:
    """What the client adds to TTFT and ITL by chunk rate, beside what the windows allow."""
    points, allowed = instrument.calibrated(part), instrument.limits(part.found)
    frame = pd.concat(
        [points.assign(what="calibration"), allowed.assign(what="window")], ignore_index=True
    )
    if points.empty:
        return Drawn(None, frame, NO_CALIBRATION)
    colours = _level_colours(points[points["kind"] == GRID])
    rates = pd.concat([points["chunks_per_s"], allowed["chunks_per_s"]]).dropna()
    with look():
        figure, axes = panels(1, len(ADDED), 4.0)
        for axis, name in zip(axes[0], ADDED, strict=True):
            _added_panel(axis, points, allowed, name, colours)
            log_axis(axis, rates.min() / 1.6, rates.max() * 1.6, along="x")
            _rate_limit(axis, instrument.allowed_per_s(part))
            axis.set_title(f"Added to {ADDED[name]}")
            axis.set_xlabel("chunks per second")
        _added_limits(list(axes[0]), points, allowed)
        axes[0][0].set_ylabel("ms, median (bar: to the 99th percentile)")
        legend(figure, _added_entries(colours, allowed))
    return Drawn(figure, frame, _added_caption(part, points, allowed))


def _level_colours(grid: pd.DataFrame) -> dict[int, Any]:
    levels = sorted(grid["level"].unique())
    return dict(zip(levels, sns.color_palette("crest", len(levels)), strict=True))


def _added_panel(
    axis: Axes,
    points: pd.DataFrame,
    allowed: pd.DataFrame,
    name: str,
    colours: Mapping[int, Any],
) -> None:
    for row in rows_of(points):
        colour = colours.get(row.level, MUTED) if row.kind == GRID else MUTED
        low, high = (getattr(row, f"{MEASURED[name]}_{at}_ms") for at in ("median", "p99"))
        marker: dict[str, Any] = {
            "markerfacecolor": colour if row.true else "white",
            "markeredgecolor": colour,
        }
        if np.isfinite(high):
            axis.plot([row.chunks_per_s] * 2, [low, high], color=colour, linewidth=1.2, alpha=0.7)
        shape = "o" if row.kind == GRID else "s"
        axis.plot(row.chunks_per_s, low, shape, markersize=5.5, **marker)
    axis.plot(
        allowed["chunks_per_s"], allowed[f"{name}_limit"], "_", color=LIMIT_COLOUR, ms=13, mew=2
    )
    axis.axhline(FLOOR_S * 1e3, color=LIMIT_COLOUR, linewidth=0.8, linestyle=(0, (1, 2)))
    axis.grid(visible=False, axis="x")


def _added_limits(axes: Sequence[Axes], points: pd.DataFrame, allowed: pd.DataFrame) -> None:
    """One scale for both panels, so that they can be compared."""
    columns = [f"{MEASURED[name]}_{at}_ms" for name in ADDED for at in ("median", "p99")]
    limits = [allowed[f"{name}_limit"].to_numpy(dtype=float) for name in ADDED]
    values = [points[columns].to_numpy(dtype=float).ravel(), np.array([FLOOR_S * 1e3]), *limits]
    known = np.concatenate(values)
    known = known[np.isfinite(known) & (known > 0)]
    for axis in axes:
        log_axis(axis, known.min() / 1.6, known.max() * 1.6)


def _rate_limit(axis: Axes, rate: float) -> None:
    if np.isfinite(rate):
        axis.axvline(rate, color=LIMIT_COLOUR, linewidth=1, linestyle=(0, (4, 2)))


def _added_entries(colours: Mapping[int, Any], allowed: pd.DataFrame) -> list[Line2D | Patch]:
    dot: dict[str, Any] = {"linestyle": ""}
    entries: list[Line2D | Patch] = [
        Line2D([], [], marker="o", color=colour, label=f"level {level}", **dot)
        for level, colour in colours.items()
    ]
    entries.append(Line2D([], [], marker="s", color=MUTED, label="ramp", **dot))
    if len(allowed):
        dash = Line2D([], [], marker="_", color=LIMIT_COLOUR, ms=13, mew=2, label="", **dot)
        dash.set_label("what a window allows")
        entries.append(dash)
    return entries


def _added_caption(part: Part, points: pd.DataFrame, allowed: pd.DataFrame) -> str:
    assert part.calibration is not None
    ramp = points[points["kind"] == RAMP]
    where = "one core, as with a CPU engine" if part.calibration.shared else "cores of their own"
    text = (
        f"What the client adds, by the null server's own clock: {len(points)} loads, client and "
        f"null server on {where}; all slots start at once. Each point is the median over the "
        "requests (TTFT: sent late and read late) or gaps (ITL, absolute) of one load, without an "
        "interval; bars reach to the 99th percentile where the sample carries one. Hollow: pace "
        f"not kept, or not true. Dotted: {FLOOR_S * 1e3:g} ms, which every window allows. "
    )
    if len(allowed):
        levels = dict.fromkeys([allowed["level"].min(), allowed["level"].max()])
        text += (
            f"Dashes: what {len(allowed)} windows of this chapter, of level "
            f"{' to '.join(map(str, levels))}, allow at their own chunk rate, "
            f"max({SHARE_LIMIT:.0%}, {FLOOR_S * 1e3:g} ms) of their median. "
        )
    if len(ramp):
        rate = instrument.allowed_per_s(part)
        line = f"{count(rate)} chunks/s, the rate that was kept divided by {RATE_FACTOR:g}"
        text += f"Broken line: {line if np.isfinite(rate) else 'none, as no rate was kept'}."
    return text


# --- agreement ------------------------------------------------------------------------------------


def agreement(part: Part) -> Drawn:
    """Ratios of instruments inside one launch: a line per comparison, a dot per launch."""
    ratios, means = instrument.instruments(part), instrument.agreement(part)
    frame = pd.concat(
        [means.assign(what="over launches"), ratios.assign(what="launch")], ignore_index=True
    )
    if ratios.empty:
        return Drawn(None, frame, "Nothing to compare: no window was given to a second instrument.")
    lines = [name for name in COMPARISONS if name in set(ratios["comparison"])]
    cells = ratios[["workload", "level"]].drop_duplicates().to_records(index=False).tolist()
    colours = sns.color_palette("crest", len(cells))
    with look():
        figure, axes = panels(1, 1, 1.1 + LINE_IN * len(lines) * max(1.0, 0.6 * len(cells)))
        axis = axes[0][0]
        low, high = log_limits(ratios["point"], means["low"], means["high"])
        log_axis(axis, min(low, 0.9), max(high, 1.1), along="x")
        axis.axvline(1, color=INK, linewidth=1, zorder=1)
        for place, cell in enumerate(cells):
            shift = APART * (place - (len(cells) - 1) / 2)
            for where, rows in ((ratios, "launch"), (means, "mean")):
                of = where[(where["workload"] == cell[0]) & (where["level"] == cell[1])]
                _dots(axis, of, lines, shift, colours[place], rows == "mean")
        _named_lines(axis, [COMPARISONS[name] for name in lines])
        axis.set_xlabel("ratio")
        legend(figure, _cell_entries(cells, colours, bool((ratios["verdict"] != "valid").any())))
    return Drawn(figure, frame, _agreement_caption(means))


def _dots(
    axis: Axes,
    rows: pd.DataFrame,
    lines: Sequence[str],
    shift: float,
    colour: Any,
    mean: bool,
) -> None:
    """Means with their intervals on the line, launches a little below it."""
    places = [lines.index(name) + shift for name in rows["comparison"]]
    if mean:
        axis.plot(rows["point"], places, "o", color=colour, zorder=3)
        interval_bars(axis, places, rows, colour, lying=True)
    else:
        below = np.array([place + 0.12 for place in places])
        for void in (False, True):
            of = (rows["verdict"] != "valid").to_numpy() == void
            look_of = hollow_style(colour, "o") if void else {"marker": "o", "color": colour}
            axis.plot(rows["point"][of], below[of], ls="", alpha=0.6, ms=3.5, zorder=2, **look_of)


def _named_lines(axis: Axes, names: Sequence[str]) -> None:
    """Lines from top to bottom, each with its name."""
    axis.set_yticks(range(len(names)))
    axis.set_yticklabels(list(names))
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def _cell_entries(
    cells: Sequence[tuple[str, int]], colours: Sequence[Any], hollow: bool
) -> list[Line2D | Patch]:
    dot: dict[str, Any] = {"linestyle": "", "marker": "o"}
    entries: list[Line2D | Patch] = [
        Line2D([], [], color=colour, label=f"{workload}, level {level}", **dot)
        for (workload, level), colour in zip(cells, colours, strict=True)
    ]
    small = Line2D([], [], color=MUTED, alpha=0.6, ms=3.5, label="one launch", **dot)
    void = void_entry()
    void.set_label("void")  # a window, or a file of the second instrument
    return [*entries, small, *([void] if hollow else [])]


def _agreement_caption(means: pd.DataFrame) -> str:
    known = means[means["n"] > 0]
    text = (
        "What one instrument says over what another says, inside one launch. Engine: its own "
        "counters over the same requests. Bench: `vllm bench serve`, the same load once more with "
        "other prompts; level full: from when its level was first in flight until its last request "
        "was sent, as the study's referee reads its file. Dots: geometric mean over launches. Void "
        "ones are hollow, and in no mean: those of a void window, and all of bench whose file the "
        "referee found void"
    )
    bars = f"; bars: {interval_words(known)}" if len(known) else ""
    return f"{text}{bars}. An arrow marks a bar that leaves the axis."


# --- the same arm twice ---------------------------------------------------------------------------


def twins(part: Part) -> Drawn:
    """One twin over the other inside blocks: a panel per metric, a line per workload and level."""
    found, launches = part.found, part.launches
    frame = of_metrics(lambda metric: instrument.ratios(found, launches, metric))
    if frame["point"].isna().all():
        return Drawn(None, frame, "Nothing to compare: no block has a valid window of both twins.")
    blocks = of_metrics(lambda metric: instrument.block_ratios(found, launches, metric))
    lines = {(row.model, row.workload, row.level): None for row in rows_of(frame)}
    names = list(lines)
    with look():
        figure, axes = panels(1, len(COMPARED), 1.5 + LINE_IN * len(names))
        for axis, metric in zip(axes[0], COMPARED, strict=True):
            _twin_panel(
                axis, frame[frame["metric"] == metric], blocks[blocks["metric"] == metric], names
            )
            axis.set_title(METRICS[metric].name)
            axis.set_xlabel("b / a")
        dot: dict[str, Any] = {"linestyle": "", "marker": "o"}
        entries: list[Line2D | Patch] = [
            Line2D([], [], color=INK, label="ratio over blocks, interval", **dot),
            Line2D([], [], color=MUTED, alpha=0.6, ms=3.5, label="one block", **dot),
        ]
        legend(figure, entries)
    kept = pd.concat([frame.assign(what="ratio"), blocks.assign(what="block")], ignore_index=True)
    known = frame[frame["n"] > 0]
    text = (
        "The same server under two names, one over the other inside blocks; the line at 1 is what "
        f"is true. Bars: {interval_words(known, 'blocks')}. An arrow marks a bar that leaves the "
        "axis."
    )
    return Drawn(figure, kept, text)


def _twin_panel(
    axis: Axes,
    frame: pd.DataFrame,
    blocks: pd.DataFrame,
    lines: Sequence[tuple[str, str, int]],
) -> None:
    low, high = log_limits(frame["point"], frame["low"], frame["high"])
    log_axis(axis, min(low, 0.88), max(high, 1.13), along="x")
    axis.axvline(1, color=INK, linewidth=1, zorder=1)

    def places(rows: pd.DataFrame) -> list[int]:
        return [lines.index((row.model, row.workload, row.level)) for row in rows_of(rows)]

    axis.plot(frame["point"], places(frame), "o", color=INK, zorder=3)
    interval_bars(axis, places(frame), frame, INK, lying=True)
    below = [place + 0.22 for place in places(blocks)]
    axis.plot(blocks["point"], below, "o", color=MUTED, alpha=0.6, markersize=3.5, zorder=2)
    several = len({model for model, _, _ in lines}) > 1
    _named_lines(
        axis, [f"{f'{model} · ' if several else ''}{w}, {level}" for model, w, level in lines]
    )
