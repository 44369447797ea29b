"""The figures of the chapter on saturation: curves, knees, what a level costs, and why it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.axes import Axes

from study import estimates, figures
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
    bar_words,
    curves,
    fit_words,
    fits,
    gauge_y,
    knee_lines,
    knee_words,
    legend_of,
    levels_x,
    log_x,
    log_y,
    path,
    said_above,
    title_of,
    void_words,
)
from study.estimates import METRICS, Metric, rows_of
from study.style import Drawn, log_axis, log_limits, look, panels

SAID_METRICS = {**METRICS, **GAUGES}


# --- figures --------------------------------------------------------------------------------------


def throughput(part: Part) -> Drawn:
    """Output throughput against level, the pooled fit, and the knee; a panel per workload."""
    frame = _with_knees(part, (HEADLINE,), fitted(part).assign(kind="fit"))
    if not (frame["kind"] == "estimate").any():
        return Drawn(None, frame, estimates.NO_WINDOWS)
    workloads = list(dict.fromkeys(frame["workload"]))
    known = knees(part)
    with look():
        figure, axes = panels(1, len(workloads), 4.3)
        for axis, workload in zip(axes[0], workloads, strict=True):
            here = known[known["workload"] == workload]
            log_y(axis, frame, METRICS[HEADLINE])
            curves(axis, frame, workload, METRICS[HEADLINE], joined=False)
            fits(axis, frame, workload)
            levels_x(axis, frame)
            knee_lines(axis, here, marked=True)
            said_above(axis, here, title_of(frame, workload))
        axes[0][0].set_ylabel("Output throughput (tok/s)")
        legend_of(figure, frame, known, marked=True)
    text = (
        "Output tokens per second in the steady part. Points: geometric means over launches; bars: "
        f"{bar_words(frame, HEADLINE)}.{fit_words(known)}"
    )
    return Drawn(figure, frame, f"{text} {knee_words(known)}{void_words(frame)}")


def latency(part: Part) -> Drawn:
    """Median TTFT and median TPOT against level, with the knees of throughput."""
    metrics = ("ttft_p50_s", "tpot_p50_s")
    said = "Median time to first token and per output token of each window"
    return _small_multiples(part, metrics, log_y, 2.6, said)


def engine(part: Part) -> Drawn:
    """Requests running and waiting, KV cache in use and preemptions against level."""
    said = (
        "What the engine says of itself: requests running and waiting (means over the steady "
        "part), the KV cache at its fullest in the steady part, preemptions of the whole window. "
        "Gauges do not know a request before its first step is over, so running and waiting may "
        f"sum up to less than the level. Thin grey: max_num_seqs, and {CACHE_FULL:.0%} of the cache"
    )
    return _small_multiples(part, tuple(GAUGES), gauge_y, 1.75, said)


def trade_off(part: Part) -> Drawn:
    """Throughput of all requests against the pace of each: output tok/s over TPOT."""
    wanted = (HEADLINE, "tpot_p50_s")
    frame = _pairs(part, wanted)
    if frame.empty:
        return Drawn(None, frame, estimates.why_not(part.found, "No window is valid."))
    workloads = list(dict.fromkeys(frame["workload"]))
    known = knees(part)
    with look():
        figure, axes = panels(1, len(workloads), 4.0)
        for axis, workload in zip(axes[0], workloads, strict=True):
            for row in rows_of(known[known["workload"] == workload]):
                here = frame[(frame["arm"] == row.arm) & (frame["workload"] == workload)]
                path(axis, here.sort_values("level"), row)
            low, high = log_limits(*(frame[f"y_{side}"] for side in ("point", "low", "high")))
            log_axis(axis, low, high)
            log_x(axis, frame)
            axis.set_xlabel("TPOT, median (ms)")
            axis.set_title(workload)
        axes[0][0].set_ylabel("Output throughput (tok/s)")
        legend_of(figure, frame, known, lines=False, marked=True)
    text = (
        "Throughput of all requests together against the pace of each, joined in the order of "
        "levels; numbers are levels. Up is more work done by the server, left is a faster pace "
        "for each request. Points: means over launches; their intervals stand in the figures of "
        "throughput and latency."
    )
    if (known["state"] == REACHED).any():
        text += (
            " The diamond is the lowest tested level at or above the knee: beyond it the line "
            "turns right, or its points fall together where what is added only waits."
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
            columns={name: f"{side}_{name}" for name in ("point", "low", "high")}
        )
        for side, metric in zip("yx", metrics, strict=True)
    )
    order = list(dict.fromkeys(estimates.planned(part.launches)["workload"]))
    return y.merge(x, on=keys).sort_values("workload", key=lambda names: names.map(order.index))


# --- panels ---------------------------------------------------------------------------------------

Prepare = Callable[[Axes, pd.DataFrame, Metric], None]


def _small_multiples(
    part: Part, metrics: Sequence[str], prepare: Prepare, panel_in: float, said: str
) -> Drawn:
    """A row of panels per metric, a column per workload, everything against level."""
    frame = _with_knees(part, metrics)
    if frame.empty:
        return Drawn(None, frame, estimates.NO_WINDOWS)
    workloads = list(dict.fromkeys(frame["workload"]))
    known = knees(part)
    with look():
        figure, axes = panels(len(metrics), len(workloads), 0.9 + panel_in * len(metrics))
        for row, name in zip(axes, metrics, strict=True):
            of_metric = frame[frame["metric"] == name]
            for axis, workload in zip(row, workloads, strict=True):
                prepare(axis, of_metric, SAID_METRICS[name])
                curves(axis, of_metric, workload, SAID_METRICS[name])
                levels_x(axis, frame, label="requests in flight" if row is axes[-1] else "")
                knee_lines(axis, known[known["workload"] == workload])
            row[0].set_ylabel(f"{SAID_METRICS[name].name}\n({SAID_METRICS[name].unit})")
        for axis, workload in zip(axes[0], workloads, strict=True):
            axis.set_title(title_of(frame, workload))
        legend_of(figure, frame, known)
    bars = "; ".join(dict.fromkeys(bar_words(frame, name) for name in metrics))
    text = f"{said}. Points: means over launches; bars: {bars}. {knee_words(known)}"
    return Drawn(figure, frame, text + void_words(frame))
