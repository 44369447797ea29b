"""The figures of the chapter on block_size: pure functions from what was found to a `Drawn`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from study import estimates
from study.beside import undrawn
from study.chapters import block_size_estimates as sizes
from study.estimates import COMPARED, METRICS, rows_of
from study.figures import (
    curves,
    estimate_caption,
    interval_words,
    log_y,
    moved,
    ratio_curves,
    small_multiples,
    titles,
)
from study.frames import Frames
from study.pictures import outcome_tiles
from study.style import (
    Drawn,
    arm_legend,
    dodge,
    hollow_style,
    level_axis,
    log_axis,
    log_limits,
    look,
    spelled,
    style_of,
)
from study.tables import NOT_REPORTED

HEADLINE = "output_tok_s"
FLAG, ENGINE = "as the flag says", "as the engine says"
IN_FORCE = "KV block size in force (tokens)"
LINE = ("model", "attention_backend")  # what a line joins


# --- what the engine answered ---------------------------------------------------------------------


def answers(found: Frames) -> Drawn:
    """Models x sizes asked for, coloured by outcome, with the size in force in each cell."""
    frame = sizes.answers(found)
    if frame.empty:
        return Drawn(None, frame, "Nothing was asked for: the experiment has no launch.")
    asked = {size: f"{size}" for size in sorted(frame["asked"].unique())}
    models = {model: spelled(model) for model in frame["model"].unique()}
    label = "block size asked for (tokens)"
    figure = outcome_tiles(frame, ("asked", asked), ("model", models), _answer, label)
    counted = ", ".join(f"{n} {name}" for name, n in frame["outcome"].value_counts().items())
    said = (
        f"What became of each block size that was asked for: {len(frame)} arms ({counted}). Each "
        "cell holds the size that the engine ran, by its own cache configuration and not by the "
        "flag."
    )
    return Drawn(figure, frame, said)


def _answer(row: Any) -> str:
    if row.outcome not in sizes.RAN:
        return str(row.outcome)
    return f"runs {row.in_force:.0f}" if pd.notna(row.in_force) else NOT_REPORTED


def flag_and_engine(found: Frames) -> Drawn:
    """The same windows twice: against the size of the flag, and against the size in force.

    Only of models that had an arm overridden; a row of panels per workload, at its highest level.
    """
    frame = _flag_frame(found)
    if frame.empty:
        said = "Not drawn: no window is on disk of a model whose block size the engine overrode."
        return Drawn(None, frame, said)
    labels = {
        str(row.workload): f"{METRICS[HEADLINE].label}\n{row.workload}, {row.level} in flight"
        for row in rows_of(frame.drop_duplicates("workload"))
    }
    sides = {
        "asked": f"{FLAG}: what a harness would publish",
        "in_force": f"{ENGINE}: what was measured",
    }
    every = sorted({*frame["asked"], *frame["in_force"].astype(int)})

    def draw(axis: Axes, workload: str, column: str) -> None:
        _flag_panel(axis, frame[frame["workload"] == workload], column)
        level_axis(axis, every, f"block size {column.replace('_', ' ')} (tokens)")

    with look():
        figure, _ = small_multiples(labels, sides, 2.5, draw)
        arm_legend(figure, frame, hollow=bool((frame["verdict"] == "void").any()))
    void = int((frame["verdict"] == "void").sum())
    said = (
        f"The same {len(frame)} windows on both sides, one point each, {void} of them void "
        "(hollow, in no estimate). Left at the size that the flag asked for, right at the size "
        "that the engine ran, moved apart a little. Only models of which an arm was overridden."
    )
    return Drawn(figure, frame, said)


def _flag_frame(found: Frames) -> pd.DataFrame:
    """A row per window: model, families, workload, level, launch, verdict, asked, in_force."""
    told = sizes.answers(found)
    fooled = told.loc[told["outcome"] == "overridden", "model"]
    told = told.loc[told["model"].isin(fooled) & told["in_force"].notna()]
    seen = estimates.windows(found).merge(told[["arm", "asked", "in_force"]], on="arm")
    top = seen["level"] == seen.groupby("workload")["level"].transform("max")
    columns = [*sizes.FAMILY, "arm", "workload", "level", "launch", "verdict", HEADLINE]
    frame = seen.loc[top & seen[HEADLINE].notna(), [*columns, "asked", "in_force"]]
    return frame.sort_values(["model", "asked"], kind="stable", ignore_index=True)


def _flag_panel(axis: Axes, frame: pd.DataFrame, column: str) -> None:
    values = frame[HEADLINE]
    low, high = log_limits(values, values, values)
    log_axis(axis, low / 1.3, high * 1.3)
    asked = sorted(frame["asked"].unique())
    for row in rows_of(frame):
        style = style_of(row)
        look_of = hollow_style(style["color"], style["marker"]) if row.verdict == "void" else style
        place = getattr(row, column)
        if column == "in_force":
            (place,) = dodge([place], asked.index(row.asked), len(asked))
        axis.plot(place, getattr(row, HEADLINE), **{**look_of, "linestyle": ""}, zorder=3)


# --- against the size in force --------------------------------------------------------------------


def throughput(found: Frames) -> Drawn:
    """Output throughput against the size in force; a row of panels per level."""
    drawn = _against_size(found, (HEADLINE,), "Output tokens per second")
    bound = undrawn(found.windows) if drawn.figure else ""
    return replace(drawn, caption=drawn.caption + bound)


def latency(found: Frames) -> Drawn:
    """Median TTFT and TPOT against the size in force; a row per metric and level."""
    said = "Time to first token and time per output token (the median of each window)"
    return _against_size(found, ("ttft_p50_s", "tpot_p50_s"), said)


def _against_size(found: Frames, metrics: Sequence[str], said: str) -> Drawn:
    frame = sizes.by_size(found, metrics)
    if frame.empty:
        return Drawn(None, frame, estimates.why_not(found, "Not measured: no size is in force."))
    hollow = frame[(frame["kind"] == "void window") & (frame["metric"] == metrics[0])]
    with look():
        figure = _by_size(found, frame, metrics, 2.5)
        arm_legend(figure, frame, hollow=len(hollow) > 0)
    text = f"{said} against the block size in force; estimates are of accepted sizes. "
    text += estimate_caption(frame, LINE)
    if overridden := int((hollow["outcome"] == "overridden").sum()):
        text += f" {overridden} of the hollow ones are void because the engine ran another size."
    return Drawn(figure, frame, f"{text} {backend_words(frame)}")


def ratios(found: Frames) -> Drawn:
    """Each accepted size against the smallest of its family; a row per metric and level."""
    frame = sizes.all_ratios(found)
    if frame.empty:
        return Drawn(None, frame, estimates.why_not(found, sizes.NO_PAIR))
    known = frame[frame["n"] > 0]
    if known.empty:
        return Drawn(None, frame, "Not measured: no block has valid windows of two sizes.")
    with look():
        figure = _by_size(found, frame.assign(in_force=frame["size"]), COMPARED, 2.0)
        arm_legend(figure, frame, hollow=False)
    gaps = len(frame) - len(known)
    bases = frame.drop_duplicates(["model", "attention_backend"])
    named = ", ".join(f"{spelled(row.model)} {row.base_size}" for row in rows_of(bases))
    said = (
        "Each block size divided by the smallest in force of the same model and back end "
        f"({named}), inside blocks; the line at 1 is no difference. Bars: "
        f"{interval_words(known, 'blocks')}. An arrow marks a bar that leaves the axis."
    )
    said += f" Not drawn: {gaps} cells without a block to compare." if gaps else ""
    said += moved(frame, LINE)
    return Drawn(figure, frame, f"{said} {backend_words(frame)}")


def backend_words(frame: pd.DataFrame) -> str:
    """Which back ends the sizes share; that it is not reported, where it is not."""
    unique = frame.drop_duplicates(["model", "attention_backend"])
    silent = [spelled(r.model) for r in rows_of(unique) if r.attention_backend == NOT_REPORTED]
    named = [
        f"{spelled(r.model)} {r.attention_backend}"
        for r in rows_of(unique)
        if r.attention_backend != NOT_REPORTED
    ]
    said = [f"Back end in force: {', '.join(named)}."] if named else []
    if silent:
        names = ", ".join(silent)
        said.append(f"For {names} the engine names no back end: its sizes are taken to share one.")
    return " ".join(said)


def _by_size(found: Frames, frame: pd.DataFrame, metrics: Sequence[str], row_in: float) -> Figure:
    """A row of panels per metric and level, a column per workload; without `kind`, of ratios."""
    one_line = frame.assign(line=frame["model"] + frame["attention_backend"])
    every, ratios = sorted(map(int, frame["in_force"].unique())), "kind" not in frame
    labels = {
        (metric, level): f"{METRICS[metric].name}\nagainst baseline"
        if ratios
        else METRICS[metric].label
        for metric in metrics
        for level in sorted(frame["level"].unique())
    }

    def draw(axis: Axes, row: tuple[str, int], workload: str) -> None:
        here = one_line[(one_line["metric"] == row[0]) & (one_line["level"] == row[1])]
        if ratios:
            ratio_curves(axis, here, workload, (0.65, 1.55), by="line", along="in_force")
        else:
            scale = METRICS[row[0]].scale
            log_y(axis, here, scale)
            curves(axis, here, workload, scale, by="line", along="in_force")
        level_axis(axis, every, IN_FORCE)

    rows = {row: f"{label}\n{row[1]} in flight" for row, label in labels.items()}
    figure, _ = small_multiples(rows, titles(found, frame), row_in, draw)
    return figure
