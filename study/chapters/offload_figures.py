"""The figures on KV offload: where each prompt's cache came from, and the TTFT that came of it.

Colours tell modes in one figure and sources in the other; what the engine did is a shape or a
word, taken from its counters and not from the name of the phase.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from study import estimates
from study.chapter import Part
from study.chapters.offload_estimates import (
    COMPUTED,
    MEMORY,
    MODES,
    PHASES,
    RESTORED,
    SOURCES,
    by_phase,
    sources,
)
from study.estimates import METRICS, rows_of
from study.figures import estimate_caption
from study.style import (
    HOLLOW_FACE,
    INK,
    MUTED,
    Drawn,
    hollow_style,
    interval_bars,
    legend,
    log_axis,
    log_limits,
    look,
    panels,
    spelled,
    void_entry,
)

# Okabe and Ito's, but for the two that stand for attention families elsewhere.
SOURCE_COLOUR = {COMPUTED: "#9ca3af", MEMORY: "#56B4E9", RESTORED: "#E69F00"}
SOURCE_MARKER = {COMPUTED: "o", MEMORY: "s", RESTORED: "D"}
SOURCE_WORDS = {COMPUTED: "computed", MEMORY: "found in memory", RESTORED: "restored by offload"}
MODE_COLOUR = dict(zip(MODES, (INK, "#009E73", "#CC79A7"), strict=True))
OTHER_MARKER = "X"  # mixed, or not reported
APART = 0.2  # between modes of one phase
ACROSS = 2  # panels side by side
BAR, GAP = 0.68, 0.5  # a bar, and the room between modes


def where_from(part: Part) -> Drawn:
    """Prompt tokens by where their cache came from: a bar per mode and phase, a panel per model."""
    frame = sources(part)
    if frame["prompt_tokens"].isna().all():
        return Drawn(None, frame, estimates.NO_WINDOWS)
    models = list(dict.fromkeys(frame["model"]))
    places = _places(frame)
    bottom = max(places.values()) + 0.6
    with look():
        figure, axes = _grid(models, 1.1 + 0.28 * bottom)
        for axis, model in zip(axes, models, strict=True):
            for row in rows_of(frame[frame["model"] == model]):
                _stacked_bar(axis, places[row.offload, row.workload], row)
            axis.set_title(spelled(model))
            axis.set_xlim(0, 1.45)
            axis.set_xticks([0, 0.5, 1], ["0", "50", "100"])
            axis.set_xlabel("share of the prompt tokens (%)")
            axis.grid(visible=False, axis="y")
        names = [f"{mode} · {phase}" for mode, phase in places]
        for axis in axes[::ACROSS]:
            axis.set_yticks(list(places.values()), names)
            axis.set_ylim(bottom, -0.6)
        entries = [Patch(color=SOURCE_COLOUR[it], label=SOURCE_WORDS[it]) for it in SOURCES]
        legend(figure, entries)
    return Drawn(figure, frame, _source_caption(frame))


def _grid(models: Sequence[str], height_in: float) -> tuple[Figure, list[Axes]]:
    """A panel per model, at most two side by side."""
    rows = -(-len(models) // ACROSS)
    figure, axes = panels(rows, min(ACROSS, len(models)), rows * height_in)
    every = [axis for row in axes for axis in row]
    for axis in every[len(models) :]:
        axis.set_visible(False)
    return figure, every[: len(models)]


def _places(frame: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Where the bar of each mode and phase lies; modes stand apart."""
    pairs = frame[["offload", "workload"]].drop_duplicates().itertuples(index=False, name=None)
    modes = list(dict.fromkeys(frame["offload"]))
    return {pair: at + GAP * modes.index(pair[0]) for at, pair in enumerate(pairs)}


def _stacked_bar(axis: Axes, place: float, row: Any) -> None:
    """The shares of one cell, hollow where it is void; and in a word what they amount to."""
    measured, left = row.launches > 0, 0.0
    for source in SOURCES if measured else ():
        share = getattr(row, f"{source}_tokens") / row.prompt_tokens
        if not share > 0:
            continue
        colour = SOURCE_COLOUR[source]
        face = HOLLOW_FACE if row.kind == "void window" else colour
        axis.barh(place, share, BAR, left=left, color=face, edgecolor=colour, linewidth=1.2)
        left += share
    word = row.came_from if measured else row.kind
    word += " (void)" if row.kind == "void window" else ""
    at, colour = (1.03, INK) if measured else (0.02, MUTED)
    axis.text(at, place, word, va="center", color=colour, size=8.5)


def _source_caption(frame: pd.DataFrame) -> str:
    known = frame[frame["launches"] > 0]
    least, most = known["launches"].min(), known["launches"].max()
    n = f"{least}" if least == most else f"{least} to {most}"
    text = (
        "Where the cache of the prompts came from, by the engine's own counters: hits in memory, "
        "hits of the offload, and the rest, which was computed. Only whole blocks can be reused, "
        "and never a prompt's last token. The word beside a bar says what became of what can be "
        f"reused. Counted, hence without interval; means over launches (n = {n})."
    )
    void = int((frame["kind"] == "void window").sum())
    text += f" Hollow: where all windows are void ({void} bars)." if void else ""
    return text


def ttft(part: Part) -> Drawn:
    """Median TTFT per phase and mode, a panel per model; shapes say where the cache came from."""
    frame = by_phase(part)
    if frame.empty or frame["point"].isna().all():
        return Drawn(None, frame, estimates.NO_WINDOWS)
    models = list(dict.fromkeys(frame["model"]))
    modes = list(dict.fromkeys(frame["offload"]))
    metric = METRICS[str(frame["metric"].iloc[0])]
    known = frame[frame["kind"] == "estimate"]
    limits = log_limits(
        *(rows * metric.scale for rows in (frame["point"], known["low"], known["high"]))
    )
    with look():
        figure, axes = _grid(models, 3.9)
        for axis, model in zip(axes, models, strict=True):
            log_axis(axis, *limits)
            for row in rows_of(frame[frame["model"] == model]):
                beside = APART * (modes.index(row.offload) - (len(modes) - 1) / 2)
                _phase_point(axis, PHASES.index(row.workload) + beside, row, metric.scale)
            axis.set_title(spelled(model))
            axis.set_xticks(range(len(PHASES)), PHASES)
            axis.set_xlim(-0.5, len(PHASES) - 0.5)
            axis.grid(visible=False, axis="x")
        for axis in axes[::ACROSS]:
            axis.set_ylabel(f"{metric.name} ({metric.unit})")
        legend(figure, _ttft_entries(frame))
    return Drawn(figure, frame, _ttft_caption(frame))


def _phase_point(axis: Axes, x: float, row: Any, scale: float) -> None:
    colour, marker = MODE_COLOUR[row.offload], SOURCE_MARKER.get(row.came_from, OTHER_MARKER)
    if row.kind == "void window":
        axis.plot(x, row.point * scale, linestyle="", **hollow_style(colour, marker))
        return
    axis.plot(x, row.point * scale, marker=marker, color=colour, linestyle="", zorder=3)
    interval_bars(axis, [x], pd.DataFrame([row._asdict()]), colour, scale)


def _ttft_entries(frame: pd.DataFrame) -> list[Line2D | Patch]:
    modes = [mode for mode in MODES if (frame["offload"] == mode).any()]
    drawn = [source for source in SOURCES if (frame["came_from"] == source).any()]
    entries: list[Line2D | Patch] = [Patch(color=MODE_COLOUR[mode], label=mode) for mode in modes]
    entries += [_marker(SOURCE_MARKER[source], SOURCE_WORDS[source]) for source in drawn]
    if not frame["came_from"].isin(SOURCES).all():
        entries.append(_marker(OTHER_MARKER, "mixed, or not reported"))
    if (frame["kind"] == "void window").any():
        entries.append(void_entry())
    return entries


def _marker(marker: str, label: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=MUTED, label=label)


def _ttft_caption(frame: pd.DataFrame) -> str:
    return (
        f"Median TTFT of each window. {estimate_caption(frame)} An arrow marks a bar that leaves "
        "the axis. Colour: mode. Shape: where the cache came from, by the engine's counters."
    )
