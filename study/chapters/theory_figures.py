"""The figures of the chapter on what physics allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from study import beside, bounds, capacity, hardware, models
from study.beside import FORMAT
from study.estimates import rows_of
from study.hardware import Hardware
from study.style import (
    INK,
    MUTED,
    Drawn,
    arm_style,
    hollow_style,
    legend,
    level_axis,
    log_axis,
    log_limits,
    look,
    panels,
    spelled,
    void_entry,
)

BATCHES = tuple(2**power for power in range(11))
CONTEXT = 8192
DEVICE_COLOUR = {"mi355x": "#D55E00", "b200": "#0072B2", "h200": "#009E73", "mi300x": "#CC79A7"}
ACCEPTANCES = np.linspace(0.0, 1.0, 101)
DRAFTS, DRAFT_COSTS = 3, (0.05, 0.1, 0.2)


def trade_off(model_name: str, devices: Sequence[str] = tuple(DEVICE_COLOUR)) -> Drawn:
    """Throughput of a device against what one user sees, bound and estimate, on whole nodes."""
    frame = trade_off_frame(model_name, devices)
    with look():
        figure, axes = panels(1, 2, 4.0)
        for axis, kind in zip(axes[0], ("", "likely_"), strict=True):
            for name, rows in frame.groupby("hardware", sort=False):
                x, y = rows[f"{kind}tok_s_user"], rows[f"{kind}tok_s_device"]
                axis.plot(x, y, "o-", color=DEVICE_COLOUR.get(str(name), INK), markersize=4)
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            log_axis(axis, *_limits(frame, "tok_s_device"))
            axis.set_xlim(*_limits(frame, "tok_s_user"))
            axis.set_xlabel("tokens per second and user")
            axis.set_title(
                "estimate: experts of the batch" if kind else "bound: experts of a token"
            )
        axes[0][0].set_ylabel("output tok/s per device")
        legend(figure, _entries(frame))
    text = (
        f"{model_name} with tensor parallelism over a node, {CONTEXT:,} tokens of context, batches "
        f"of {BATCHES[0]} to {BATCHES[-1]:,} from right to left. Deterministic: bytes over "
        "bandwidth and arithmetic over its rate, from the data sheets. Left nothing can be faster; "
        "right each step reads the experts that a batch touches under uniform routing. Neither "
        "holds communication or launches, or asks whether the cache has room for the batch."
    )
    return Drawn(figure, frame, text)


def trade_off_frame(model_name: str, devices: Sequence[str]) -> pd.DataFrame:
    """A row per device and batch: hardware, format, devices, batch, and both axes, bound and
    estimate."""
    model = models.load(model_name)
    rows = []
    for name in devices:
        device = hardware.load(name)
        size = capacity.weights(model, capacity.usual_format(model, device))
        asked = (model, size, device, BATCHES, CONTEXT, device.node_devices)
        about = {"hardware": name, "format": size.format, "devices": device.node_devices}
        rows += [{**about, **asdict(point)} for point in bounds.interactivity(*asked)]
    return pd.DataFrame(rows)


def _limits(frame: pd.DataFrame, name: str) -> tuple[float, float]:
    both = pd.concat([frame[name], frame[f"likely_{name}"]])
    return float(both.min()) / 1.25, float(both.max()) * 1.25


def _entries(frame: pd.DataFrame) -> list[Line2D]:
    unique = frame.drop_duplicates("hardware")
    return [
        Line2D([], [], color=DEVICE_COLOUR.get(str(row.hardware), INK), marker="o", markersize=4,
               label=f"{row.hardware} ({row.devices} x {row.format})")
        for row in unique.itertuples()
    ]  # fmt: skip


def speculation() -> Drawn:
    """Speed-up of speculative decoding against acceptance, for some costs of a draft step."""
    frame = pd.concat([_speculated(cost) for cost in DRAFT_COSTS], ignore_index=True)
    with look():
        figure, axes = panels(1, 1, 3.4)
        axis = axes[0][0]
        axis.axhline(1, color=INK, linewidth=1, zorder=1)
        for (cost, rows), line in zip(frame.groupby("draft_cost"), ("-", "--", ":"), strict=True):
            axis.plot(rows["acceptance"], rows["speedup"], line, color=INK, label=f"{cost:g}")
            even = rows["break_even"].iloc[0]
            axis.plot(even, 1, "o", color=INK, markersize=5)
        axis.set_xlabel("acceptance of a draft token")
        axis.set_ylabel("tokens per second over without")
        axis.legend(title="draft step over a step of the model")
    text = (
        f"Speculative decoding with {DRAFTS} draft tokens, by the formula of Leviathan et al.; "
        "deterministic. Dots: below this acceptance it loses. Verifying costs one ordinary step, "
        "as long as memory limits it; in a large batch it costs more."
    )
    return Drawn(figure, frame, text)


def _speculated(cost: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "draft_tokens": DRAFTS,
            "draft_cost": cost,
            "acceptance": ACCEPTANCES,
            "speedup": [bounds.speculation_speedup(one, DRAFTS, cost) for one in ACCEPTANCES],
            "break_even": bounds.break_even_acceptance(DRAFTS, cost),
        }
    )


def measured(seen: pd.DataFrame, device: Hardware | None) -> Drawn:
    """Every window that comes near enough to its bound, beside it: a panel per workload."""
    near = beside.approached(seen)
    if seen.empty:
        return Drawn(None, near, missing(device))
    assert device is not None  # without it no window has a bound
    if near.empty:
        return Drawn(None, near, f"Nothing measured comes near its bound.{_why(seen, device)}")
    workloads = list(dict.fromkeys(near["workload"]))
    with look():
        figure, axes = panels(1, len(workloads), 3.8)
        for axis, workload in zip(axes[0], workloads, strict=True):
            _panel(axis, near, workload)
        axes[0][0].set_ylabel("output throughput (tok/s)")
        valid = int((near["verdict"] == "valid").sum())
        legend(figure, [*_arms(near), *([void_entry()] if valid < len(near) else [])])
    text = (
        f"Output tokens per second, a point per window ({valid} valid, "
        f"{len(near) - valid} void and hollow). Dash-dotted: the bound from what a step must read "
        f"({FORMAT}) and compute, at {beside.pace(near, device)}, as measured here "
        f"({device.description})."
    )
    return Drawn(figure, near, text)


def missing(device: Hardware | None) -> str:
    """Why no window stands beside its bound: of figure and table alike, so it is said once."""
    if device is None:
        return "This machine's memory bandwidth was not measured, so no window has a bound."
    return "No window of this chapter's own was measured."


def _why(seen: pd.DataFrame, device: Hardware) -> str:
    return beside.in_words(seen, device)


def _panel(axis: Axes, near: pd.DataFrame, workload: str) -> None:
    points = pd.concat([near["output_tok_s"], near["bound_tok_s"]])
    log_axis(axis, *log_limits(points, points, points))
    for _, rows in near[near["workload"] == workload].groupby("arm", sort=False):
        style = arm_style(rows["attention"].iloc[0], rows["feed_forward"].iloc[0])
        bound = rows.drop_duplicates("level").sort_values("level")
        axis.plot(bound["level"], bound["bound_tok_s"], "-.", color=style["color"], linewidth=1.1)
        good, void = (rows[(rows["verdict"] == "valid") == valid] for valid in (True, False))
        axis.plot(good["level"], good["output_tok_s"], **{**style, "linestyle": ""})
        hollow = hollow_style(style["color"], style["marker"])
        axis.plot(void["level"], void["output_tok_s"], linestyle="", **hollow)
    level_axis(axis, sorted(near["level"].unique()))
    axis.set_title(workload)


def _arms(near: pd.DataFrame) -> list[Line2D]:
    arms = [
        Line2D([], [], label=spelled(row.model), **arm_style(row.attention, row.feed_forward))
        for row in rows_of(near.drop_duplicates("model"))
    ]
    return [*arms, Line2D([], [], label="its bound", color=MUTED, linestyle="-.", linewidth=1.1)]
