"""What a panel of the chapter on saturation holds: curves, fits, knees, axes, and their words.

Knees are dotted lines in their family's colour, with the interval over launches as a band; the
thin grey line is max_num_seqs, the batch that the engine may run at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from study import figures, knee
from study.beside import BOUND
from study.chapters.saturation_estimates import CACHE_FULL, CANNOT_JUDGE, NOT_REACHED, REACHED
from study.estimates import Metric, rows_of
from study.finite import Floats
from study.style import (
    INK,
    MUTED,
    PAPER,
    legend,
    level_axis,
    spelled,
    style_of,
    void_entry,
)
from study.tables import interval

TOGETHER = 0.04  # points nearer than this share are one to the eye, so they share a label
APART = 1.9  # ticks nearer than this factor would run into each other
LINE_PT = 12.0
LETTER_PT, LABEL_PT = 5.0, 8.0  # a digit of a label is about so wide, and a label so high
CLEAR_PT = 5.0  # from the middle of a line or a point to the nearest label
LIMIT_LINE: dict[str, Any] = {"color": MUTED, "linewidth": 0.9, "zorder": 1}
KNEE_LINE: dict[str, Any] = {"linewidth": 1.4, "linestyle": (0, (1, 1.4)), "zorder": 1.5}
KNEE_MARK: dict[str, Any] = {"marker": "D", "markersize": 9, "markeredgecolor": PAPER}


def gauge_y(axis: Axes, frame: pd.DataFrame, metric: Metric) -> None:
    """Counts and shares from zero, on a linear axis; the cache up to where it is full."""
    top = 100.0 if metric.column == "kv_use_max" else float((frame["point"] * metric.scale).max())
    axis.set_ylim(0, max(1.0, top if np.isfinite(top) else 0.0) * 1.15)
    if metric.column == "kv_use_max":
        axis.axhline(CACHE_FULL * metric.scale, **LIMIT_LINE)


def fits(axis: Axes, frame: pd.DataFrame, workload: str) -> None:
    fits = frame[(frame["kind"] == "fit") & (frame["workload"] == workload)]
    for _, line in fits.groupby("arm", sort=False):
        axis.plot(
            line["level"], line["point"], zorder=2, **{**style_of(line.iloc[0]), "marker": ""}
        )


def knee_lines(axis: Axes, known: pd.DataFrame, *, marked: bool = False) -> None:
    """Each knee with its band, and max_num_seqs; within the limits that the axis has."""
    for limit in known["max_num_seqs"].unique():
        axis.axvline(limit, **LIMIT_LINE)
    for row in rows_of(known[known["state"] == REACHED]):
        colour = style_of(row)["color"]
        axis.axvline(row.point, color=colour, **KNEE_LINE)
        if np.isfinite(row.low):
            left, right = axis.get_xlim()
            axis.axvspan(max(row.low, left), min(row.high, right), color=colour, alpha=0.13, lw=0)
        if marked:
            axis.plot(row.point, row.knee_tok_s, color=colour, zorder=4, **KNEE_MARK)


def said_above(axis: Axes, known: pd.DataFrame, title: str) -> None:
    """Under the title a line per curve: its knee, or why it has none."""
    for place, row in enumerate(reversed(list(rows_of(known)))):
        # Why a curve cannot be judged is too long for here; the caption says it.
        said = row.state if row.state == CANNOT_JUDGE else knee_text(row)
        text = f"{spelled(row.model)}: {said}"
        axis.annotate(
            text,
            xy=(0, 1),
            xycoords="axes fraction",
            xytext=(0, 5 + LINE_PT * place),
            textcoords="offset points",
            color=style_of(row)["color"],
            size=9,
        )
    axis.set_title(title, pad=8 + LINE_PT * len(known))


def path(axis: Axes, frame: pd.DataFrame, row: Any) -> None:
    """Throughput over TPOT in the order of levels, with the knee's level marked."""
    style = style_of(row)
    x, y = frame["x_point"] * 1e3, frame["y_point"]
    axis.plot(x, y, zorder=3, **style)
    at_knee = frame["level"] == row.at_level
    axis.plot(x[at_knee], y[at_knee], ls="", color=style["color"], zorder=4, **KNEE_MARK)


def name_levels(axis: Axes, paths: Sequence[tuple[pd.DataFrame, Any]], dpi: float) -> None:
    """The first, the last and the knee's level of each path, where there is room for them.

    The axis must have its place and its limits. Nothing drawn later is made room for.
    """

    def placed(x_s: ArrayLike, y: ArrayLike) -> Floats:
        """Points on the page, in pt."""
        data = np.column_stack([np.multiply(x_s, 1e3), y])
        return np.asarray(axis.transData.transform(data) * 72 / dpi)

    taken = np.concatenate([_along(placed(one["x_point"], one["y_point"])) for one, _ in paths])
    (left, bottom), (right, top) = axis.bbox.get_points() * 72 / dpi
    for frame, row in paths:
        at_knee = frame["level"] == row.at_level
        ends = frame["level"].isin([frame["level"].min(), frame["level"].max()])
        for (x_s, y), levels in _places(frame[at_knee | ends]).items():
            text, (here,) = ", ".join(levels), placed([x_s], [y])
            half = np.array([LETTER_PT * len(text), LABEL_PT]) / 2
            spots = [spot for spot in _spots(half) if (here + spot - half > (left, bottom)).all()]
            spots = [spot for spot in spots if (here + spot + half < (right, top)).all()]
            spot = _clearest(here, spots or [half], half, taken)
            axis.annotate(
                text,
                (x_s * 1e3, y),
                xytext=(spot[0], spot[1]),
                textcoords="offset points",
                ha="center",
                va="center",
                color=style_of(row)["color"],
                size=8.5,
            )
            taken = np.vstack([taken, _along(here + spot + half * [[-1, 0], [1, 0]])])


def _along(points: Floats, step_pt: float = 2.0) -> Floats:
    """Places along the lines between points, none further from the next than a step."""
    places = [points[:1]]
    for start, end in pairwise(points):
        steps = int(np.hypot(*(end - start)) / step_pt) + 1
        places.append(start + (end - start) * np.linspace(0, 1, steps + 1)[1:, None])
    return np.concatenate(places)


def _spots(half: Floats) -> list[Floats]:
    """Where the middle of a label may lie beside its point, the nearest first."""
    angles = np.arange(16) * np.pi / 8 + np.pi / 4  # up and to the right, if nothing is there
    ways = np.column_stack([np.cos(angles), np.sin(angles)])
    return [way * (half + reach) for reach in (6, 10, 15, 21) for way in ways]


def _clearest(here: Floats, spots: Sequence[Floats], half: Floats, taken: Floats) -> Floats:
    """The first spot whose label is clear of all that is taken, or the one that most nearly is."""
    clear = []
    for spot in spots:
        beyond = np.maximum(np.abs(taken - here - spot) - half, 0)
        clear.append(min(float(np.hypot(*beyond.T).min()), CLEAR_PT))
    return spots[int(np.argmax(clear))]


def _places(named: pd.DataFrame) -> dict[tuple[float, float], list[str]]:
    """Levels by their point; those that nearly fall together share one label."""
    places: dict[tuple[float, float], list[str]] = {}
    for row in rows_of(named):
        here = row.x_point, row.y_point
        near = [place for place in places if np.allclose(place, here, rtol=TOGETHER)]
        places.setdefault(near[0] if near else here, []).append(f"{row.level:g}")
    return places


def levels_x(axis: Axes, frame: pd.DataFrame, label: str = "requests in flight") -> None:
    """The axis of levels, with as many ticks as do not run into each other."""
    measured = frame["kind"].isin(["estimate", "void window"])
    tested = sorted(frame.loc[measured, "level"].unique(), reverse=True)
    ticks = tested[:1]
    for level in tested:
        if ticks[-1] / level >= APART:
            ticks.append(level)
    level_axis(axis, ticks, label)
    axis.set_xlim(tested[-1] / 1.5, tested[0] * 1.5)


def legend_of(
    figure: Figure,
    frame: pd.DataFrame,
    known: pd.DataFrame,
    *,
    lines: bool = True,
    marked: bool = False,
) -> None:
    """An entry per model, the knee, max_num_seqs where the axis reaches it, and void windows.

    `lines`: knees are lines, and max_num_seqs is one; `marked`: knees have a diamond.
    """
    entries = [
        Line2D([], [], label=spelled(str(row.model)), **style_of(row))
        for row in rows_of(known.drop_duplicates("model"))
    ]
    if (known["state"] == REACHED).any():
        look = (KNEE_LINE if lines else {"linestyle": ""}) | (KNEE_MARK if marked else {})
        entries.append(Line2D([], [], label="knee", color=INK, **look))
    if lines and known["max_num_seqs"].min() <= frame["level"].max():
        entries.append(Line2D([], [], label="max_num_seqs", **LIMIT_LINE))
    if "kind" in frame and (frame["kind"] == "void window").any():
        entries.append(void_entry())
    legend(figure, entries)


# --- words ----------------------------------------------------------------------------------------


def knee_text(row: Any) -> str:
    """'knee at 23 [20, 27]', or why there is none."""
    if row.state == REACHED:
        return f"knee at {interval(row.point, row.low, row.high)}"
    why = {NOT_REACHED: f"still rising at {row.highest_level}", CANNOT_JUDGE: row.text}
    said = why.get(row.state, "")
    return f"{row.state}: {said}" if said else row.state


def knee_words(known: pd.DataFrame) -> str:
    """What the dotted lines and bands are, and which curves have none."""
    reached = known[known["state"] == REACHED]
    text = ""
    if len(reached):
        text = (
            "Dotted: the knee, the smallest level whose fitted throughput is at least "
            f"{knee.SHARE:.0%} of the fitted maximum over the tested levels; band: "
        )
        sure = reached[reached["low"].notna()]
        text += figures.interval_words(sure) if len(sure) else "none, no knee has an interval"
        text += "."
    none = known[known["state"] != REACHED]
    if len(none):
        said = [f"{spelled(r.model)} on {r.workload} ({knee_text(r)})" for r in rows_of(none)]
        text += f" Without a knee: {'; '.join(said)}."
    return text.strip()


def fit_words(known: pd.DataFrame) -> str:
    models = [name for name in known["model_of_fit"].unique() if name]
    if not models:
        return ""
    which = " or ".join(models) + (", whichever fits better" if len(models) > 1 else "")
    return f" Lines: {which}, fitted to the pooled valid windows."


def chosen_words(frame: pd.DataFrame) -> str:
    known = frame[(frame["kind"] == "estimate") & (frame["n"] > 0)]
    differ = known.groupby(["arm", "workload"])["n"].nunique() > 1
    return " Launches choose their levels, so n differs between points." if differ.any() else ""


def true_words(frame: pd.DataFrame) -> str:
    """What stands at its true level, where points of several curves are moved apart."""
    points = frame[frame["kind"].isin(["estimate", "void window"])]
    kinds = {"fit": "fitted lines", "knee": "knees", BOUND: "bounds"}
    true = [said for kind, said in kinds.items() if (frame["kind"] == kind).any()]
    if points["arm"].nunique() < 2 or not true:
        return ""
    what = " and ".join([", ".join(true[:-1]), true[-1]] if true[1:] else true)
    return f" {what.capitalize()} stand at the true level, beside points that are moved apart."
