"""The figures of the chapter on block_size: pure functions from what was found to a `Drawn`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from study import estimates
from study.chapters import block_size_estimates as sizes
from study.estimates import COMPARED, METRICS, rows_of
from study.figures import interval_words
from study.frames import Frames
from study.pictures import LIGHT_TEXT_ON
from study.style import (
    INK,
    OUTCOME_COLOUR,
    PAPER,
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
from study.tables import NOT_REPORTED

HEADLINE = "output_tok_s"
FLAG, ENGINE = "as the flag says", "as the engine says"
IN_FORCE = "KV block size in force (tokens)"


# --- what the engine answered ---------------------------------------------------------------------


def answers(found: Frames) -> Drawn:
    """Models x sizes asked for, coloured by outcome, with the size in force in each cell."""
    frame = sizes.answers(found)
    if frame.empty:
        return Drawn(None, frame, "Nothing was asked for: the experiment has no launch.")
    models, asked = list(frame["model"].unique()), sorted(frame["asked"].unique())
    with look():
        figure, axes = panels(1, 1, 1.4 + 0.5 * len(models))
        axis = axes[0][0]
        for row in rows_of(frame):
            _answer(axis, asked.index(row.asked), models.index(row.model), row)
        axis.set_xlim(0, max(len(asked), 4))  # few sizes do not become banners
        axis.set_ylim(len(models), 0)
        axis.set_xticks([place + 0.5 for place in range(len(asked))], [f"{size}" for size in asked])
        axis.set_yticks([place + 0.5 for place in range(len(models))], map(spelled, models))
        axis.set_xlabel("block size asked for (tokens)", loc="left")
        axis.tick_params(length=0)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        seen = [name for name in OUTCOME_COLOUR if name in set(frame["outcome"])]
        legend(figure, [Patch(color=OUTCOME_COLOUR[name], label=name) for name in seen])
    counted = ", ".join(f"{n} {name}" for name, n in frame["outcome"].value_counts().items())
    said = (
        f"What became of each block size that was asked for: {len(frame)} arms ({counted}). Each "
        "cell holds the size that the engine ran, by its own cache configuration and not by the "
        "flag."
    )
    return Drawn(figure, frame, said)


def _answer(axis: Axes, column: int, line: int, row: object) -> None:
    outcome, in_force = (getattr(row, name) for name in ("outcome", "in_force"))
    colour = OUTCOME_COLOUR[outcome]
    axis.add_patch(Rectangle((column + 0.02, line + 0.06), 0.96, 0.88, color=colour, linewidth=0))
    text = outcome
    if outcome in sizes.RAN:
        text = f"runs {in_force:.0f}" if pd.notna(in_force) else NOT_REPORTED
    ink = PAPER if outcome in LIGHT_TEXT_ON else INK
    axis.text(column + 0.5, line + 0.5, text, ha="center", va="center", color=ink, size=9)


def flag_and_engine(found: Frames) -> Drawn:
    """The same windows twice: against the size of the flag, and against the size in force.

    Only of models that had an arm overridden; a row of panels per workload, at its highest level.
    """
    frame = _flag_frame(found)
    if frame.empty:
        said = "Not drawn: no window is on disk of a model whose block size the engine overrode."
        return Drawn(None, frame, said)
    workloads = list(dict.fromkeys(frame["workload"]))
    every = sorted({*frame["asked"], *frame["in_force"].astype(int)})
    with look():
        figure, axes = panels(len(workloads), 2, 0.9 + 2.5 * len(workloads))
        for row, workload in zip(axes, workloads, strict=True):
            here = frame[frame["workload"] == workload]
            for axis, column in zip(row, ("asked", "in_force"), strict=True):
                _flag_panel(axis, here, column, every)
            metric, level = METRICS[HEADLINE], here["level"].iloc[0]
            row[0].set_ylabel(f"{metric.name} ({metric.unit})\n{workload}, {level} in flight")
        axes[0][0].set_title(f"{FLAG}: what a harness would publish")
        axes[0][1].set_title(f"{ENGINE}: what was measured")
        for axis, label in zip(axes[-1], ("asked for", "in force"), strict=True):
            axis.set_xlabel(f"block size {label} (tokens)")
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


def _flag_panel(axis: Axes, frame: pd.DataFrame, column: str, every: Sequence[int]) -> None:
    values = frame[HEADLINE]
    low, high = log_limits(values, values, values)
    log_axis(axis, low / 1.3, high * 1.3)
    level_axis(axis, every, "")
    asked = sorted(frame["asked"].unique())
    for row in rows_of(frame):
        style = arm_style(row.attention, row.feed_forward)
        look_of = hollow_style(style["color"], style["marker"]) if row.verdict == "void" else style
        place = getattr(row, column)
        if column == "in_force":
            (place,) = dodge([place], asked.index(row.asked), len(asked))
        axis.plot(place, getattr(row, HEADLINE), **{**look_of, "linestyle": ""}, zorder=3)


# --- against the size in force --------------------------------------------------------------------


def throughput(found: Frames) -> Drawn:
    """Output throughput against the size in force; a row of panels per level."""
    return _against_size(found, ("output_tok_s",), "Output tokens per second")


def latency(found: Frames) -> Drawn:
    """Median TTFT and TPOT against the size in force; a row per metric and level."""
    said = "Time to first token and time per output token (the median of each window)"
    return _against_size(found, ("ttft_p50_s", "tpot_p50_s"), said)


def _against_size(found: Frames, metrics: Sequence[str], said: str) -> Drawn:
    frame = sizes.by_size(found, metrics)
    if frame.empty:
        return Drawn(None, frame, estimates.why_not(found, "Not measured: no size is in force."))
    known = frame[(frame["kind"] == "estimate") & (frame["n"] > 0)]
    hollow = frame[frame["kind"] == "void window"].drop_duplicates(["launch", "workload", "level"])
    with look():
        figure = _grid(found, frame, metrics, 2.5, "", _size_panel)
        arm_legend(figure, frame, hollow=len(hollow) > 0)
    text = f"{said} against the block size in force. No valid window, so no estimate."
    if len(known):
        text = (
            f"{said} against the block size in force, for sizes that were accepted. Points: "
            f"geometric means over launches; bars: {interval_words(known)}."
        )
    if len(hollow):
        text += f" Hollow: {len(hollow)} void windows, one point each, in no estimate"
        overridden = int((hollow["outcome"] == "overridden").sum())
        text += (
            f"; {overridden} of them because the engine ran another size." if overridden else "."
        )
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
        figure = _grid(found, frame, COMPARED, 2.0, "\nagainst baseline", _ratio_panel)
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


def _grid(
    found: Frames,
    frame: pd.DataFrame,
    metrics: Sequence[str],
    row_in: float,
    unit: str,
    draw: Callable[[Axes, pd.DataFrame, str, str], None],
) -> Figure:
    """A row of panels per metric and level, a column per workload; `unit` '': the metric's own."""
    workloads = list(dict.fromkeys(frame["workload"]))
    lengths = estimates.windows(found).drop_duplicates("workload").set_index("workload")
    column = "in_force" if "in_force" in frame else "size"
    rows = [(metric, level) for metric in metrics for level in sorted(frame["level"].unique())]
    figure, axes = panels(len(rows), len(workloads), 0.9 + row_in * len(rows))
    for row, (metric, level) in zip(axes, rows, strict=True):
        here = frame[(frame["metric"] == metric) & (frame["level"] == level)]
        for axis, workload in zip(row, workloads, strict=True):
            draw(axis, here, workload, metric)
            level_axis(axis, sorted(map(int, frame[column].unique())), "")
        known = METRICS[metric]
        row[0].set_ylabel(f"{known.name}{unit or f' ({known.unit})'}\n{level} in flight")
    for axis, workload in zip(axes[0], workloads, strict=True):
        given, made = lengths.loc[workload, ["input_tokens", "output_tokens"]]
        axis.set_title(f"{workload}: {given:,.0f} tokens in, {made:,.0f} out")
    for axis in axes[-1]:
        axis.set_xlabel(IN_FORCE)
    return figure


def _size_panel(axis: Axes, frame: pd.DataFrame, workload: str, metric: str) -> None:
    scale = METRICS[metric].scale
    log_axis(axis, *log_limits(*(frame[name] * scale for name in ("point", "low", "high"))))
    models = list(dict.fromkeys(frame["model"]))
    for place, model in enumerate(models):
        rows = frame[(frame["workload"] == workload) & (frame["model"] == model)]
        void = rows[rows["kind"] == "void window"]
        for _, family in rows[rows["kind"] == "estimate"].groupby("attention_backend"):
            ordered = family.sort_values("in_force")  # NaN breaks the line where all is void
            style = arm_style(ordered["attention"].iloc[0], ordered["feed_forward"].iloc[0])
            x = dodge(ordered["in_force"], place, len(models))
            axis.plot(x, ordered["point"] * scale, zorder=3, **style)
            interval_bars(axis, x, ordered, style["color"], scale)
        if len(void):
            style = arm_style(void["attention"].iloc[0], void["feed_forward"].iloc[0])
            x = dodge(void["in_force"], place, len(models))
            hollow = hollow_style(style["color"], style["marker"])
            axis.plot(x, void["point"] * scale, linestyle="", zorder=2, **hollow)


def _ratio_panel(axis: Axes, frame: pd.DataFrame, workload: str, metric: str) -> None:
    del metric  # ratios have no unit
    low, high = log_limits(frame["point"], frame["low"], frame["high"])
    log_axis(axis, min(low, 0.65), max(high, 1.55))
    axis.axhline(1, color=INK, linewidth=1, zorder=1)
    here = frame[frame["workload"] == workload]
    models = list(dict.fromkeys(frame["model"]))
    for _, family in here.groupby(["model", "attention_backend"]):
        ordered = family.sort_values("size")
        style = arm_style(ordered["attention"].iloc[0], ordered["feed_forward"].iloc[0])
        x = dodge(list(ordered["size"]), models.index(ordered["model"].iloc[0]), len(models))
        axis.plot(x, ordered["point"], zorder=3, **style)
        interval_bars(axis, x, ordered, style["color"])
