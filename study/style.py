"""How every figure of the study looks, and how it is kept.

One colour per attention family, one line and marker per feed-forward family (Okabe and Ito's
colours, which colour-blind readers can tell apart; the marker says it again). Levels lie on a
log2 axis with the measured levels as its ticks. Void windows are hollow.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)

from study import paths
from study.store import write_atomically

INK, MUTED, GRID, PAPER = "#1f2328", "#6b7280", "#e5e7eb", "#ffffff"
ATTENTION_COLOUR = {"gqa": "#0072B2", "mla": "#D55E00"}
FEED_FORWARD_LINE = {"dense": "-", "moe": (0, (4, 2))}
FEED_FORWARD_MARKER = {"dense": "o", "moe": "s"}
OUTCOME_COLOUR = {
    "measured": "#009E73",
    "overridden": "#E69F00",
    "rejected": "#CC79A7",
    "failed": "#D55E00",
    "not applicable": "#9ca3af",
    "not measured": "#e5e7eb",
}
SPELLING = {"gqa": "GQA", "mla": "MLA", "moe": "MoE"}
HOLLOW_FACE = PAPER
FINE = (1, 1.5, 2, 3, 5, 7)  # labels within a decade of a log axis
NARROW = 1.5**2  # times; an axis that spans less may hold fewer than two of FINE
WIDTH_IN = 9.6
PNG_DPI = 200

RC: dict[Any, Any] = {
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "svg.fonttype": "path",
    "svg.hashsalt": "study",  # the same data give the same bytes
}


@contextmanager
def look() -> Iterator[None]:
    """Everything drawn inside has the look of the study; what others draw is left alone."""
    with sns.axes_style("ticks"), mpl.rc_context(RC):
        yield


@dataclass(frozen=True)
class Drawn:
    """A figure, the frame it drew, and a caption made from the data.

    `figure` is None when there was nothing to draw; the caption then says why.
    """

    figure: Figure | None
    frame: pd.DataFrame
    caption: str

    def keep(self, name: str) -> Drawn:
        """Save the figure with its twin under `name`, and hand it on to be shown.

        Without a figure, files of that name from an earlier run are removed: they would be stale.
        """
        files = {suffix: paths.FIGURES / f"{name}.{suffix}" for suffix in ("svg", "png", "csv")}
        if self.figure is None:
            for path in files.values():
                path.unlink(missing_ok=True)
            return self
        paths.FIGURES.mkdir(parents=True, exist_ok=True)
        svg = self.svg  # always first, as it settles the layout
        # The same data give the same bytes, so what a notebook has drawn the report need not.
        if not (files["png"].exists() and _holds(files["svg"], svg)):
            write_atomically(files["png"], _bytes(self.figure, "png"), durably=False)
            write_atomically(files["svg"], svg, durably=False)
        write_atomically(files["csv"], self.frame.to_csv(index=False).encode(), durably=False)
        return self

    @cached_property
    def svg(self) -> bytes:
        """The figure as it is saved and shown; drawing it takes most of a report's time."""
        assert self.figure is not None
        return _bytes(self.figure, "svg")

    def _repr_html_(self) -> str:
        if self.figure is None:
            return f'<p class="missing">{as_html(self.caption)}</p>'
        source = base64.b64encode(self.svg).decode()
        return (
            f'<figure><img alt="{html.escape(self.caption)}" '
            f'src="data:image/svg+xml;base64,{source}">'
            f"<figcaption>{as_html(self.caption)}</figcaption></figure>"
        )


CODE = re.compile(r"`([^`]+)`")
STRESSED = re.compile(r"(?<![\w*])\*([^\s*](?:[^*]*[^\s*])?)\*(?![\w*])")


def as_html(caption: str) -> str:
    """A caption with its code and stressed words as HTML; stars inside code stay as they are."""
    parts = CODE.split(html.escape(caption))  # text, code, text, ...
    parts[::2] = [STRESSED.sub(r"<em>\1</em>", text) for text in parts[::2]]
    parts[1::2] = [f"<code>{code}</code>" for code in parts[1::2]]
    return "".join(parts)


def _holds(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content


def _bytes(figure: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else None
    with mpl.rc_context(RC):
        figure.savefig(buffer, format=kind, dpi=PNG_DPI, bbox_inches="tight", metadata=metadata)
    figure.set_layout_engine("none")  # its places are found; finding them again takes as long
    return buffer.getvalue()


def spelled(name: str) -> str:
    """A model's or family's name as a reader knows it: 'mla-moe' is 'MLA · MoE'."""
    return " · ".join(SPELLING.get(part, part) for part in name.split("-"))


def panels(rows: int, columns: int, height_in: float) -> tuple[Figure, list[list[Axes]]]:
    """An empty figure with a grid of panels; rows share their y axis.

    Made without pyplot: nothing stays open behind the reader's back, and nothing shows twice.
    """
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)
    figure = Figure(figsize=(WIDTH_IN, height_in), layout=layout)
    axes = figure.subplots(rows, columns, sharey="row", squeeze=False)
    return figure, [list(row) for row in axes]


def level_axis(axis: Axes, levels: Sequence[int], label: str = "requests in flight") -> None:
    """A log2 axis whose ticks are the levels that were asked for."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(mpl.ticker.FixedLocator(list(levels)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlim(min(levels) / 1.5, max(levels) * 1.5)
    axis.set_xlabel(label)
    axis.grid(visible=False, axis="x")


def log_axis(axis: Axes, low: float, high: float, along: Literal["x", "y"] = "y") -> None:
    """A log axis over [low, high], labelled 1, 2, 5 within a decade; finer where it is narrow.

    Where it is so narrow that fewer than two of these may be on it, labels are evenly spaced.
    """
    axis.set(**{f"{along}scale": "log", f"{along}lim": (low, high)})
    ticks = axis.yaxis if along == "y" else axis.xaxis
    span = high / low
    within_decade = (1,) if span > 300 else FINE if span < 12 else (1, 2, 5)
    even = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10])
    ticks.set_major_locator(even if span < NARROW else LogLocator(base=10, subs=within_decade))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ticks.set_minor_locator(NullLocator())
    ticks.set_minor_formatter(NullFormatter())


def log_limits(points: pd.Series, lows: pd.Series, highs: pd.Series) -> tuple[float, float]:
    """Limits that show every point, and intervals as far as they do not flatten the points.

    Two launches give intervals over orders of magnitude; these leave the axis, with an arrow.
    """
    known = points[points > 0]
    if known.empty:
        return 0.5, 2.0
    low, high = float(known.min()), float(known.max())
    reach = max(2.0, (high / low) ** 0.5)
    lowest = max(low / reach, float(np.nanmin([*lows[lows > 0], low])))
    highest = min(high * reach, float(np.nanmax([*highs, high])))
    return lowest / 1.25, highest * 1.25


def dodge(levels: Sequence[int], position: int, of: int) -> list[float]:
    """Levels moved apart a little on the log axis, so that intervals do not hide each other."""
    return [level * 2 ** (0.12 * (position - (of - 1) / 2)) for level in levels]


def interval_bars(
    axis: Axes,
    places: Sequence[float],
    frame: pd.DataFrame,
    colour: str,
    scale: float = 1.0,
    *,
    lying: bool = False,
) -> None:
    """A bar per row with finite `low` and `high`; an arrow where it leaves the axis.

    Bars stand at these places of the x axis, or lie at these of the y axis.
    """
    least, most = axis.get_xlim() if lying else axis.get_ylim()
    arrows = "<>" if lying else "v^"
    for place, low, high in zip(places, frame["low"] * scale, frame["high"] * scale, strict=True):
        if not (np.isfinite(low) and np.isfinite(high)):
            continue
        bar = [place, place], [max(low, least), min(high, most)]
        axis.plot(*(bar[::-1] if lying else bar), color=colour, linewidth=1.4, zorder=2)
        for beyond, edge, arrow in zip(
            (low < least, high > most), (least, most), arrows, strict=True
        ):
            if beyond:
                end = (edge, place) if lying else (place, edge)
                axis.plot(*end, arrow, color=colour, markersize=5, clip_on=False)


def legend(figure: Figure, entries: Sequence[Line2D | Patch]) -> None:
    """One legend in one row above all panels."""
    figure.legend(
        handles=list(entries), loc="outside upper left", ncols=len(entries), handlelength=2.6
    )


def arm_legend(figure: Figure, arms: pd.DataFrame, *, hollow: bool) -> None:
    """An entry per model, and what hollow means if any point is."""
    entries = [
        Line2D([], [], label=spelled(str(row.model)), **style_of(row))
        for row in arms.drop_duplicates("model").itertuples()
    ]
    legend(figure, [*entries, *([void_entry()] if hollow else [])])


def void_entry() -> Line2D:
    """What hollow means, for a legend."""
    return Line2D([], [], label="void window", linestyle="", **hollow_style(MUTED, "o"))


def arm_style(attention: object, feed_forward: object) -> dict[str, Any]:
    """Colour, line and marker of an arm."""
    return {
        "color": ATTENTION_COLOUR.get(str(attention), INK),
        "linestyle": FEED_FORWARD_LINE.get(str(feed_forward), "-"),
        "marker": FEED_FORWARD_MARKER.get(str(feed_forward), "D"),
    }


def style_of(row: Any) -> dict[str, Any]:
    """`arm_style` of a row that names both families."""
    return arm_style(row.attention, row.feed_forward)


def hollow_style(colour: object, marker: object) -> dict[str, Any]:
    """The look of a void window."""
    return {"marker": marker, "markerfacecolor": HOLLOW_FACE, "markeredgecolor": colour}
