"""The figures of the chapter on saturation: curves, knees, what a level costs, and why it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from study import estimates, figures
from study.beside import with_bound
from study.chapter import Part
from study.chapters.saturation_estimates import (
    CACHE_FULL,
    GAUGES,
    HEADLINE,
    REACHED,
    fitted,
    knees,
)
from study.chapters.saturation_panels import (
    chosen_words,
    fit_words,
    fits,
    gauge_y,
    knee_lines,
    knee_words,
    legend_of,
    levels_x,
    name_levels,
    path,
    said_above,
    true_words,
)
from study.estimates import LIMITS, METRICS, Metric, rows_of
from study.figures import curves, estimate_caption, log_y, small_multiples, titles
from study.style import Drawn, log_axis, log_limits, look, panels

SAID_METRICS = {**METRICS, **GAUGES}


# --- figures --------------------------------------------------------------------------------------


def throughput(part: Part) -> Drawn:
    """Output throughput against level, the pooled fit, and the knee; a panel per workload."""
    frame = _with_knees(part, (HEADLINE,), fitted(part).assign(kind="fit"))
    frame, roof = with_bound(frame, part.found.windows)
    if not (frame["kind"] == "estimate").any():
        return Drawn(None, frame, estimates.NO_WINDOWS)
    known, headings = knees(part), titles(part.found, frame)

    def draw(axis: Axes, metric: str, workload: str) -> None:
        log_y(axis, frame[frame["metric"] == metric])
        curves(axis, frame, workload, joined=False)
        fits(axis, frame, workload)
        levels_x(axis, frame)
        knee_lines(axis, known[known["workload"] == workload], marked=True)

    with look():
        figure, axes = small_multiples({HEADLINE: METRICS[HEADLINE].label}, headings, 3.5, draw)
        for axis, (workload, heading) in zip(axes[0], headings.items(), strict=True):
            said_above(axis, known[known["workload"] == workload], heading)
        legend_of(figure, frame, known, marked=True)
    text = f"Output tokens per second in the steady part. {estimate_caption(frame)}"
    text += f"{true_words(frame)}{fit_words(known)} {knee_words(known)}{chosen_words(frame)}{roof}"
    return Drawn(figure, frame, text)


def latency(part: Part) -> Drawn:
    """Median TTFT and median TPOT against level, with the knees of throughput."""
    metrics = ("ttft_p50_s", "tpot_p50_s")
    said = "Median time to first token and per output token of each window"
    return _against_level(part, metrics, _log_y, 2.6, said)


def engine(part: Part) -> Drawn:
    """Requests running and waiting, KV cache in use and preemptions against level."""
    said = (
        "What the engine says of itself: requests running and waiting (means over the steady "
        "part), the KV cache at its fullest in the steady part, preemptions of the whole window. "
        "Gauges do not know a request before its first step is over, so running and waiting may "
        f"sum up to less than the level. Thin grey: max_num_seqs, and {CACHE_FULL:.0%} of the cache"
    )
    return _against_level(part, tuple(GAUGES), gauge_y, 1.75, said)


def trade_off(part: Part) -> Drawn:
    """Throughput of all requests against the pace of each: output tok/s over TPOT."""
    wanted = (HEADLINE, "tpot_p50_s")
    frame = _pairs(part, wanted)
    if frame.empty:
        return Drawn(None, frame, estimates.why_not(part.found, "No window is valid."))
    workloads = list(dict.fromkeys(frame["workload"]))
    known, x_ms, title = knees(part), frame["x_point"] * 1e3, titles(part.found, frame)
    with look():
        figure, axes = panels(1, len(workloads), 4.0)
        for axis, workload in zip(axes[0], workloads, strict=True):
            for here, row in _paths(frame, known, workload):
                path(axis, here, row)
            log_axis(axis, *log_limits(*(frame[f"y_{side}"] for side in LIMITS)))
            log_axis(axis, x_ms.min() / 1.25, x_ms.max() * 1.35, along="x")
            axis.set_xlabel("TPOT, median (ms)")
            axis.set_title(title[workload])
        axes[0][0].set_ylabel("Output throughput (tok/s)")
        legend_of(figure, frame, known, lines=False, marked=True)
        figure.draw_without_rendering()  # panels have their places: room can be looked for
        for axis, workload in zip(axes[0], workloads, strict=True):
            name_levels(axis, _paths(frame, known, workload), figure.dpi)
    text = (
        "Throughput of all requests together against the pace of each, joined in the order of "
        "levels; numbers are levels. Up is more work done by the server, left is a faster pace "
        "for each request. Points: means over launches; their intervals stand in the figures of "
        "throughput and latency."
    )
    if (known["state"] == REACHED).any():
        text += (
            " The diamond is the lowest tested level at or above the knee: beyond it the line "
            "should turn right, or its points fall together where what is added only waits. Noise "
            "may hide that: a step that goes left is no faster pace by more load."
        )
    return Drawn(figure, frame, text)


# --- frames ---------------------------------------------------------------------------------------


def _with_knees(part: Part, metrics: Sequence[str], *more: pd.DataFrame) -> pd.DataFrame:
    """What a figure against level draws: estimates, void windows, what is added, and knees.

    A knee's row has it in `level`, with its interval in `level_low` and `level_high`.
    """
    frame = figures.level_frame(part.found, metrics)
    if frame.empty:
        return frame
    known = knees(part)
    marks = known[known["state"] == REACHED].drop(columns="n")  # launches of a knee, not of a point
    marks["kind"], marks["metric"] = "knee", HEADLINE
    knee_columns = {"point": "level", "low": "level_low", "high": "level_high"}
    marks = marks.rename(columns=knee_columns).rename(columns={"knee_tok_s": "point"})
    columns = [*frame.columns, "level_low", "level_high"]
    added = [one for one in (*more, marks) if len(one)]
    return pd.concat([frame, *added], ignore_index=True).reindex(columns=columns)


def _pairs(part: Part, metrics: tuple[str, str]) -> pd.DataFrame:
    """A row per curve and level: y_point, y_low, y_high of the first metric, x_... of the other."""
    every = estimates.by_level(part.found, metrics)
    every = every[every["n"] > 0]
    keys = ["arm", *estimates.FACTORS, "workload", "level"]
    y, x = (
        every[every["metric"] == metric][[*keys, "point", "low", "high"]].rename(
            columns={name: f"{side}_{name}" for name in LIMITS}
        )
        for side, metric in zip("yx", metrics, strict=True)
    )
    order = list(dict.fromkeys(estimates.planned(part.launches)["workload"]))
    return y.merge(x, on=keys).sort_values("workload", key=lambda names: names.map(order.index))


def _paths(
    frame: pd.DataFrame, known: pd.DataFrame, workload: str
) -> list[tuple[pd.DataFrame, Any]]:
    """The points of each curve on a workload in the order of levels, and its row of `known`."""
    here = frame[frame["workload"] == workload].sort_values("level")
    rows = rows_of(known[known["workload"] == workload])
    return [(here[here["arm"] == row.arm], row) for row in rows if (here["arm"] == row.arm).any()]


# --- panels ---------------------------------------------------------------------------------------

Prepare = Callable[[Axes, pd.DataFrame, Metric], None]


def _log_y(axis: Axes, frame: pd.DataFrame, metric: Metric) -> None:
    log_y(axis, frame, metric.scale)


def _against_level(
    part: Part, metrics: Sequence[str], prepare: Prepare, panel_in: float, said: str
) -> Drawn:
    """A row of panels per metric, a column per workload, everything against level."""
    frame = _with_knees(part, metrics)
    if frame.empty:
        return Drawn(None, frame, estimates.NO_WINDOWS)
    known = knees(part)

    def draw(axis: Axes, name: str, workload: str) -> None:
        rows, metric = frame[frame["metric"] == name], SAID_METRICS[name]
        prepare(axis, rows, metric)
        curves(axis, rows, workload, metric.scale)
        levels_x(axis, frame)
        knee_lines(axis, known[known["workload"] == workload])

    with look():
        labels = {
            name: f"{SAID_METRICS[name].name}\n({SAID_METRICS[name].unit})" for name in metrics
        }
        figure, _ = small_multiples(labels, titles(part.found, frame), panel_in, draw)
        legend_of(figure, frame, known)
    text = f"{said}. {estimate_caption(frame)}{true_words(frame)} {knee_words(known)}"
    text += chosen_words(frame)
    return Drawn(figure, frame, text)
