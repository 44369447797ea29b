"""Pictures of the measuring itself: what was measured, and what a window is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from study import estimates
from study.client import Recording
from study.finite import Floats
from study.frames import Frames
from study.steady import Steady, floats, steady_part
from study.store import Store
from study.style import (
    INK,
    MUTED,
    OUTCOME_COLOUR,
    PAPER,
    WIDTH_IN,
    Drawn,
    legend,
    look,
    panels,
    spelled,
)

ENGINE_COLOUR = "#009E73"
LIGHT_TEXT_ON = ("measured", "failed")
RATE_BINS = 60  # enough to see waves, few enough that a bin holds tokens


# --- what was measured ----------------------------------------------------------------------------


def overview(found: Frames) -> Drawn:
    """Arms x blocks, coloured by outcome, with the number of valid and void windows in each."""
    frame = overview_frame(found)
    if frame.empty:
        return Drawn(None, frame, "Nothing was asked for: the experiment has no launch.")
    arms = dict(zip(dict.fromkeys(frame["arm"]), _arm_names(frame), strict=True))
    blocks = {block: f"block {block + 1}" for block in sorted(frame["block"].unique())}
    figure = outcome_tiles(frame, ("block", blocks), ("arm", arms), _counted)
    return Drawn(figure, frame, _overview_caption(frame))


def _counted(row: Any) -> str:
    if not row.valid + row.void:
        return str(row.outcome)
    return f"{row.valid} valid" + (f" · {row.void} void" if row.void else "")


Side = tuple[str, Mapping[Any, str]]  # a column of the frame, and how each of its values is written


def outcome_tiles(
    frame: pd.DataFrame, across: Side, down: Side, text: Callable[[Any], str], label: str = ""
) -> Figure:
    """A tile per row of the frame, coloured by its outcome, with a text of the row."""
    columns, lines = list(across[1]), list(down[1])
    with look():
        figure, axes = panels(1, 1, 1.2 + 0.44 * len(lines))
        axis = axes[0][0]
        for row in estimates.rows_of(frame):
            x, y = columns.index(getattr(row, across[0])), lines.index(getattr(row, down[0]))
            colour = OUTCOME_COLOUR[row.outcome]
            axis.add_patch(Rectangle((x + 0.02, y + 0.06), 0.96, 0.88, color=colour, linewidth=0))
            ink = PAPER if row.outcome in LIGHT_TEXT_ON else INK
            axis.text(x + 0.5, y + 0.5, text(row), ha="center", va="center", color=ink, size=9)
        axis.set_xlim(0, max(len(columns), 4))  # few columns do not become banners
        axis.set_ylim(len(lines), 0)
        axis.set_xticks([place + 0.5 for place in range(len(columns))], across[1].values())
        axis.set_yticks([place + 0.5 for place in range(len(lines))], down[1].values())
        axis.set_xlabel(label, loc="left")
        axis.tick_params(length=0)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
        seen = [name for name in OUTCOME_COLOUR if name in set(frame["outcome"])]
        legend(figure, [Patch(color=OUTCOME_COLOUR[name], label=name) for name in seen])
    return figure


def overview_frame(found: Frames) -> pd.DataFrame:
    """A row per launch: block, arm, model, layers, outcome, valid, void (windows)."""
    columns = ["block", "arm", "model", "layers", "outcome", "valid", "void"]
    if found.launches.empty:
        return pd.DataFrame(columns=columns)
    windows = estimates.windows(found)
    counts = windows.groupby(["launch", "verdict"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=["valid", "void"], fill_value=0)
    joined = found.launches.join(counts, on="launch").fillna({"valid": 0, "void": 0})
    joined = joined.astype({"valid": int, "void": int})
    return estimates.in_reading_order(joined.sort_values("block"))[columns]


def _arm_names(frame: pd.DataFrame) -> list[str]:
    unique = frame.drop_duplicates("arm")
    if unique.duplicated(["model", "layers"]).any():  # they differ in something else
        return [str(name) for name in unique["arm"]]
    return [f"{spelled(row.model)}, {row.layers} layers" for row in estimates.rows_of(unique)]


def _overview_caption(frame: pd.DataFrame) -> str:
    outcomes = frame["outcome"].value_counts()
    counted = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return (
        f"Every launch that was asked for: {len(frame)} ({counted}). The numbers count windows: "
        f"{frame['valid'].sum()} valid, {frame['void'].sum()} void. A block holds one launch of "
        "every arm, in random order; arms are compared inside blocks only."
    )


# --- what a window is -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """The raw material of one window; times on one monotonic clock.

    median_s: of the steady parts of all valid windows of its experiment; NaN where not known.
    """

    title: str
    level: int
    requests: pd.DataFrame
    chunks: pd.DataFrame
    samples: pd.DataFrame
    median_s: float = np.nan

    @property
    def steady(self) -> Steady | None:
        return steady_part(self.requests, self.level)


def example(found: Frames, store: Store | None = None) -> Window | None:
    """A window to explain windows with: of the valid ones the most usual, see `_most_usual`.

    None when no window is on disk.
    """
    seen = estimates.windows(found)
    if seen.empty:
        return None
    chosen, median_s = _most_usual(seen)
    best = (store or Store()).best(str(chosen["launch"]))
    for folder in best.windows if best else []:
        plan = orjson.loads((folder / "window.json").read_bytes())["plan"]
        which = (plan["workload"]["name"], plan["level"], plan["again"])
        if which == (chosen["workload"], chosen["level"], chosen["again"]):
            recording = Recording.load(folder / "load")
            title = (
                f"{spelled(str(chosen['model']))}, {chosen['layers']} layers, block "
                f"{chosen['block'] + 1}, {chosen['workload']}, level {chosen['level']}, "
                f"{chosen['verdict']}"
            )
            samples = pd.read_parquet(folder / "samples.parquet")
            level = int(chosen["level"])
            return Window(
                title, level, recording.requests, recording.chunks, samples, median_s=median_s
            )
    return None


def _most_usual(seen: pd.DataFrame) -> tuple[pd.Series, float]:
    """The window whose steady part is nearest to the median of the valid ones, and that median (s).

    One with several requests in flight, so that there is a ramp, if there is any; void only where
    none is valid, and then without a median.
    """
    seen = seen.reset_index(drop=True)
    median_s = float(seen.loc[seen["verdict"] == "valid", "steady_s"].median())
    for wanted in (seen["verdict"] == "valid", seen["level"] > 1):
        rows = seen[wanted.reindex(seen.index)]
        seen = rows if len(rows) else seen
    order = (seen["steady_s"] - median_s).abs().sort_values(kind="stable").index
    return seen.loc[order[0]], median_s


def timeline(window: Window | None) -> Drawn:
    """One window over time: in flight at the client, held by the engine, tokens per second."""
    if window is None or window.steady is None:
        return Drawn(None, pd.DataFrame(), "Not drawn: no window with a steady part is on disk.")
    frame = timeline_frame(window)
    steady = window.steady
    start_s = float(np.nanmin(floats(window.requests, "sent_s")))
    edges = (steady.start_s - start_s, steady.end_s - start_s)
    all_s = window.median_s
    usual = "" if np.isnan(all_s) else f" (median of all valid windows here: {all_s:.1f} s)"
    with look():
        figure, axes = panels(2, 1, 4.6)
        held, rate = axes[0][0], axes[1][0]
        for axis in (held, rate):
            _shade(axis, edges, float(frame["time_s"].max()))
        _held(held, frame, window.level)
        tokens = frame[frame["series"] == "output tokens"]
        rate.fill_between(tokens["time_s"], tokens["value"], step="mid", color="#d1d5db")
        rate.step(tokens["time_s"], tokens["value"], where="mid", color=INK, linewidth=1.2)
        rate.set_ylim(bottom=0)
        rate.set_ylabel("output (tok/s)")
        rate.set_xlabel("seconds since the first request")
        held.set_title(window.title)
        _name_parts(held, edges, float(frame["time_s"].max()))
    return Drawn(
        figure,
        frame,
        "One window. Slots join one by one (ramp); when the level is full the steady part "
        "begins, and it ends when the first slot has nothing left: here after "
        f"{steady.duration_s:.1f} s{usual}, {steady.latencies:.1f} median latencies. Only the "
        "steady part is measured. The step "
        "line is the client's own count; the dots are what the engine reports (running and "
        "waiting). They prove that the level was there where such samples suffice; elsewhere the "
        "engine's clock of every request does. Below: tokens by the time of "
        f"their chunk, in {RATE_BINS} bins.",
    )


def timeline_frame(window: Window) -> pd.DataFrame:
    """What `timeline` draws: series, time_s since the first request, value."""
    requests = window.requests
    sent_s, ended_s = floats(requests, "sent_s"), floats(requests, "ended_s")
    start_s = float(np.nanmin(sent_s))
    client_s, in_flight = _in_flight(sent_s, ended_s)
    parts = [_series("in flight, client", client_s - start_s, in_flight)]
    held = window.samples[["running", "waiting"]].sum(axis=1, min_count=1)
    looked_s = floats(window.samples, "time_s") - start_s
    inside = (looked_s >= 0) & (looked_s <= client_s[-1] - start_s)
    parts.append(_series("held, engine", looked_s[inside], held.to_numpy(dtype=float)[inside]))
    times_s = floats(window.chunks, "time_s") - start_s
    tokens, edges = np.histogram(
        times_s,
        bins=RATE_BINS,
        range=(0, client_s[-1] - start_s),
        weights=floats(window.chunks, "tokens"),
    )
    middles = (edges[1:] + edges[:-1]) / 2
    parts.append(_series("output tokens", middles, tokens / (edges[1] - edges[0])))
    return pd.concat(parts, ignore_index=True)


def _in_flight(sent_s: Floats, ended_s: Floats) -> tuple[Floats, Floats]:
    """Times at which the client's count changes, and the count from then on.

    A slot that ends one request and sends the next at the same instant changes nothing, so all
    changes of an instant are added before they count.
    """
    sent_s, ended_s = sent_s[np.isfinite(sent_s)], ended_s[np.isfinite(ended_s)]
    times_s, place = np.unique(np.concatenate([sent_s, ended_s]), return_inverse=True)
    change = np.concatenate([np.ones(sent_s.size), -np.ones(ended_s.size)])
    return times_s, np.cumsum(np.bincount(place, weights=change))


def _series(name: str, time_s: Floats, value: Floats) -> pd.DataFrame:
    return pd.DataFrame({"series": name, "time_s": time_s, "value": value})


def _shade(axis: Axes, edges: tuple[float, float], end_s: float) -> None:
    for low, high in ((0.0, edges[0]), (edges[1], end_s)):
        axis.axvspan(low, high, color="#f3f4f6", zorder=0, linewidth=0)
    for edge in edges:
        axis.axvline(edge, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
    axis.set_xlim(0, end_s)
    axis.grid(visible=False, axis="x")


def _name_parts(axis: Axes, edges: tuple[float, float], end_s: float) -> None:
    top = axis.get_ylim()[1]
    for name, low, high in (
        ("ramp", 0, edges[0]),
        ("steady part", *edges),
        ("drain", edges[1], end_s),
    ):
        if high - low > 0.1 * end_s / WIDTH_IN * len(name):  # else the word would not fit
            axis.text((low + high) / 2, top, name, ha="center", va="top", size=9, weight="bold")


def _held(axis: Axes, frame: pd.DataFrame, level: int) -> None:
    client, engine = (frame[frame["series"] == s] for s in ("in flight, client", "held, engine"))
    axis.axhline(level, color=MUTED, linewidth=1)
    axis.text(
        0.004,
        level,
        f"level {level}",
        transform=axis.get_yaxis_transform(),
        va="bottom",
        color=MUTED,
        size=9,
    )
    axis.step(
        client["time_s"],
        client["value"],
        where="post",
        color=INK,
        linewidth=1.2,
        label="client: in flight",
    )
    axis.plot(
        engine["time_s"],
        engine["value"],
        ".",
        color=ENGINE_COLOUR,
        markersize=8,
        label="engine: running + waiting",
    )
    axis.set_ylim(0, level * 1.3)
    axis.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.grid(visible=False)
    axis.set_ylabel("requests")
    axis.legend(loc="lower center", ncols=2)
