"""Published numbers, drawn again from the figures that their sources print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from study import style
from study.claims import inferencex, levels, metrum, mi325x
from study.claims.printed import Number
from study.claims.published import Published, claims
from study.style import HOLLOW_FACE, INK, MUTED, Drawn

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GPU_LOOK = {"MI300X": (BLUE, "s"), "MI355X": (ORANGE, "o")}
WORKLOADS = ((128, 128), (128, 2048), (2048, 2048))
MODEL_LOOK = {
    "Llama-3.1-405B": (BLUE, "o"),
    "Qwen3-VL-235B": (GREEN, "s"),
    "Kimi-K2.5": (ORANGE, "D"),
}
NO_INTERVAL = "One printed figure a point: no number of runs and no interval is stated."


def _frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows))


# --- throughput and errors ------------------------------------------------------------------------


def throughput_and_errors(published: Published) -> Drawn:
    """Output throughput and error rate by concurrency, MI300X and MI355X, by workload."""
    frame = _frame(_rates_and_errors(published))
    with style.look():
        figure, axes = style.panels(2, len(WORKLOADS), 5.2)
        for column, (given, made) in enumerate(WORKLOADS):
            of = frame[frame["workload"] == f"{given}/{made}"]
            for row, metric in enumerate(("output_throughput", "error_rate")):
                axis = axes[row][column]
                for gpu, (colour, marker) in GPU_LOOK.items():
                    drawn = of[(of["hardware"] == gpu) & (of["metric"] == metric)]
                    axis.plot(drawn["level"], drawn["value"], marker, color=colour, ls="-")
                least = of[of["metric"] == f"{metric}_at_least"]
                axis.plot(least["level"], least["value"], "^", color=ORANGE, mfc=HOLLOW_FACE)
                style.level_axis(axis, [128, 256, 512, 1024, 2048], "concurrency, as printed")
            if of[of["metric"] == "error_rate"].empty:
                axes[1][column].text(0.5, 0.5, "none printed", ha="center", color=MUTED,
                                     transform=axes[1][column].transAxes)  # fmt: skip
            axes[0][column].set_title(f"{given:,} tokens in, {made:,} out")
        style.log_axis(axes[0][0], 250, 4000)
        axes[0][0].set_ylabel("output tok/s")
        axes[1][0].set_ylabel("failed requests (%)")
        axes[1][0].set_ylim(-4, 100)
        entries = [
            Line2D([], [], color=colour, marker=marker, label=gpu)
            for gpu, (colour, marker) in GPU_LOOK.items()
        ]
        least_of: dict[str, Any] = {"marker": "^", "color": ORANGE, "mfc": HOLLOW_FACE, "ls": ""}
        entries.append(Line2D([], [], label="MI355X, at least", **least_of))
        style.legend(figure, entries)
    return Drawn(
        figure,
        frame,
        "Output throughput and failed requests by concurrency, as Metrum prints them for Kimi "
        "K2.5 on one node. Where requests fail, no throughput of MI300X is printed, so its "
        f"effective throughput cannot be drawn. {NO_INTERVAL}",
    )


def _rates_and_errors(published: Published) -> list[dict[str, Any]]:
    wanted = ("output_throughput", "output_throughput_at_least", "error_rate")
    found = published.measurements
    found = found[(found["source"] == metrum.SOURCE) & found["metric"].isin(wanted)]
    rows: list[dict[str, Any]] = []
    for row in found.to_dict("records"):
        # Without lengths it is of all three workloads; only the last has no figure of its own.
        lengths = row["input_tokens"] or WORKLOADS[-1][0], row["output_tokens"] or WORKLOADS[-1][1]
        rows.append(
            {
                "hardware": row["hardware"],
                "workload": f"{lengths[0]}/{lengths[1]}",
                "level": int(row["concurrency"]),
                "metric": row["metric"],
                "value": float(row["value"]),
            }
        )
    return sorted(rows, key=lambda one: (one["hardware"], one["level"]))


# --- interactivity --------------------------------------------------------------------------------

ISO_TOK_S = (337, 380)
CURVES = {
    inferencex.BEFORE: ("vLLM 0.16, TP=8 (1 March)", BLUE, "s"),
    inferencex.AFTER: ("vLLM 0.18, TP=8 (26 March)", ORANGE, "o"),
    inferencex.AFTER_TP4: ("vLLM 0.18, TP=4 (26 March)", GREEN, "D"),
}


def interactivity(published: Published) -> Drawn:
    """Throughput per GPU against interactivity, before and after, with the iso-throughput lines."""
    rows: list[dict[str, Any]] = []
    with style.look():
        figure, ((axis,),) = style.panels(1, 1, 4.4)
        for table, (label, colour, marker) in CURVES.items():
            aside = (-11, -11) if table == inferencex.AFTER else (6, 4)
            speeds = inferencex.curve(published, table, "interactivity")
            rates = inferencex.curve(published, table, "total_throughput_per_gpu")
            x, y = _values(speeds), _values(rates)
            axis.plot(x, y, marker=marker, color=colour, label=label)
            for level, at, rate in zip(speeds, x, y, strict=True):
                axis.annotate(f"{level}", (at, rate), aside, textcoords="offset points",
                              fontsize=8, color=colour)  # fmt: skip
                rows.append({"curve": label, "level": level, "tok_s_user": at, "tok_s_gpu": rate})
        for wanted in ISO_TOK_S:
            rows += _iso(axis, published, wanted)
        axis.set_xscale("log")
        axis.set_xticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
        axis.minorticks_off()
        axis.set_xlim(4, 110)
        style.log_axis(axis, 20, 4000)
        axis.set_xlabel("interactivity (tok/s a user)")
        axis.set_ylabel("tok/s/GPU, input and output")
        entries = [
            Line2D([], [], color=colour, marker=marker, label=label)
            for label, colour, marker in CURVES.values()
        ]
        entries.append(
            Line2D([], [], ls="", marker="o", color=INK, mfc=HOLLOW_FACE, label="extrapolated")
        )
        style.legend(figure, entries)
    return Drawn(
        figure,
        _frame(rows),
        "Throughput per GPU against interactivity, Kimi K2.5 in MXFP4 on MI355X, 8k/1k tokens; "
        "numbers at points are requests in flight. Dotted: the throughputs at which the article "
        "compares the two versions; the upper one lies beyond what vLLM 0.16 was measured at. "
        f"{NO_INTERVAL}",
    )


def _iso(axis: Axes, published: Published, wanted: int) -> list[dict[str, Any]]:
    before = inferencex.speed_at(published, inferencex.BEFORE, wanted).value
    after = inferencex.after_at(published, wanted)
    rates = inferencex.curve(published, inferencex.BEFORE, "total_throughput_per_gpu")
    within = inferencex.measured_at(rates, wanted)
    axis.plot([before, after], [wanted, wanted], ":", color=MUTED, linewidth=1.2, zorder=1)
    face = INK if within else HOLLOW_FACE
    axis.plot([before], [wanted], "o", color=INK, mfc=face, markersize=4)
    place = (np.sqrt(before * after), wanted * (0.86 if within else 1.15))
    axis.annotate(f"{wanted} tok/s/GPU: {after / before:.1f} times", place,
                  ha="center", va="center", fontsize=8.5, color=INK)  # fmt: skip
    label = f"iso {wanted}"
    return [
        {"curve": label, "level": "", "tok_s_user": one, "tok_s_gpu": wanted}
        for one in (before, after)
    ]


def _values(numbers: Mapping[int, Number]) -> list[float]:
    return [one.value for one in numbers.values()]


# --- power ----------------------------------------------------------------------------------------


def tokens_per_watt(published: Published) -> Drawn:
    """Tokens per second and watt by concurrency, and what they would be for one request."""
    source = metrum.SOURCE
    power = published.number(source=source, metric="system_power").value
    curve = published.curve(
        source=source, hardware="MI355X", metric="output_throughput", input_tokens=128,
        output_tokens=2048,
    )  # fmt: skip
    (gain,) = (float(one.stated) for one in claims([source]) if one.claim == "efficiency gain")
    implied = curve[1024].value / gain / power
    allowed = curve[128].value / metrum.REPLICAS / power
    levels = [1, *curve]
    with style.look():
        figure, ((axis,),) = style.panels(1, 1, 3.6)
        each = [rate / power for rate in _values(curve)]
        axis.plot(list(curve), each, "o-", color=ORANGE, label="printed")
        hollow: dict[str, Any] = {"color": INK, "mfc": HOLLOW_FACE, "ls": ""}
        axis.plot([1], [implied], "D", label=f"implied by {gain:g} times", **hollow)
        axis.plot([1], [allowed], "v", label="at most, by 128 requests on 8 replicas", **hollow)
        style.level_axis(axis, levels, "concurrency, as printed")
        style.log_axis(axis, 0.015, 2)
        axis.set_ylabel("output tok/s per W")
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3)
    kinds = ["implied", "at most", *["printed"] * len(curve)]
    frame = pd.DataFrame(
        {"level": [1, 1, *curve], "tok_s_w": [implied, allowed, *each], "kind": kinds}
    )
    return Drawn(
        figure,
        frame,
        f"Output tokens per second and watt of the MI355X node, at the {power:,.0f} W that the "
        "article states for every concurrency (128 tokens in, 2,048 out). One request is not "
        "printed: the diamond is what the article's gain implies, the triangle the most that eight "
        f"independent replicas allow, given 128 requests. {NO_INTERVAL}",
    )


# --- levels ---------------------------------------------------------------------------------------

TABLES = (
    *("stress saturation", "stress scaling", "multi-run"),
    *("validation saturation (quick mode)", "validation scaling (quick mode)"),
)


def in_flight() -> Drawn:
    """Upper bound of the requests in flight against the nominal concurrency, by table."""
    frame = levels.frame()
    frame = frame[frame["table"].isin(TABLES) & frame["model"].isin(MODEL_LOOK)]
    with style.look():
        figure, axes = style.panels(2, 3, 5.6)
        places = [axis for row in axes for axis in row]
        for axis, table in zip(places, TABLES, strict=False):
            _levels_of(axis, frame[frame["table"] == table])
            axis.set_title(table)
        for row in axes:
            row[0].set_ylabel("requests in flight, at most")
        for axis in places[len(TABLES) :]:
            axis.axis("off")
        entries = [
            Line2D([], [], ls="", marker=marker, color=colour, label=model)
            for model, (colour, marker) in MODEL_LOOK.items()
        ]
        entries += [
            Line2D([], [], ls="", marker="o", color=INK, mfc=HOLLOW_FACE, label="level refuted"),
            Line2D([], [], ls=":", color=MUTED, label="as nominal"),
        ]
        places[-1].legend(handles=entries, loc="center left")
    return Drawn(
        figure,
        frame,
        "The most requests that can have been in flight on average, against the nominal "
        "concurrency, in the cookbook's tables (points moved apart a little): the level itself, "
        "the requests made, or what the lowest level of the same load allows, with 5 % of noise in "
        "rate and in latency. Rate x p99 refutes none by itself: requests are not counted, nor "
        "their lengths stated. DeepSeek's table is left out, as no one length explains it. Hollow: "
        "fewer requests were made, or the level shows the rate and latency of a much lower one.",
    )


def _levels_of(axis: Axes, of: pd.DataFrame) -> None:
    levels = sorted(set(of["level"]))
    axis.plot(levels, levels, ":", color=MUTED, linewidth=1.2, zorder=1)
    for place, (model, (colour, marker)) in enumerate(MODEL_LOOK.items()):
        for refuted in (False, True):
            shown = of[(of["model"] == model) & ((of["verdict"] == "fail") == refuted)]
            face = HOLLOW_FACE if refuted else colour
            x = [level * 2 ** (0.16 * (place - 1)) for level in shown["level"]]
            axis.plot(x, shown["in_flight"], marker, color=colour, mfc=face, markersize=4.5)
    style.level_axis(axis, levels, "concurrency, nominal")
    axis.tick_params(axis="x", labelrotation=60)
    style.log_axis(axis, 4, 1300)


# --- AITER ----------------------------------------------------------------------------------------


def aiter(published: Published) -> Drawn:
    """p of AITER's gain as a function of the unknown variation of its runs."""
    means, spread = mi325x.ablation(published), mi325x.variation(published)
    lost = mi325x.losing(published)
    x = np.linspace(0.005, 0.06, 111)
    rows: list[dict[str, Any]] = []
    looks = zip(mi325x.ABLATED_HIGH, (BLUE, ORANGE, GREEN), ("-", "--", "-."), strict=True)
    with style.look():
        figure, ((axis,),) = style.panels(1, 1, 3.8)
        axis.axvspan(1, 5, color=style.GRID, alpha=0.6, zorder=0)
        axis.axhline(mi325x.SIGNIFICANCE, color=MUTED, linewidth=1.2, linestyle=":")
        for level, colour, line in looks:
            on, off = (one.value for one in means[level])
            p = [mi325x.p_of_gain(on, off, cov, spread["off"].value) for cov in x]
            axis.plot(100 * x, p, linestyle=line, color=colour, label=f"nominal {level}")
            axis.plot([100 * lost[level]], [mi325x.SIGNIFICANCE], "o", color=colour)
            rows += [{"level": level, "cov": c, "p": q} for c, q in zip(x, p, strict=True)]
        style.log_axis(axis, 1e-4, 1)
        axis.set_xlim(0.5, 6)
        axis.set_xlabel("coefficient of variation of the five runs with AITER (%)")
        axis.set_ylabel("p, Welch, two-sided")
        handles, labels = axis.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3)
    crossing = ", ".join(f"{100 * cov:.1f} % at {level}" for level, cov in lost.items())
    return Drawn(
        figure,
        _frame(rows),
        "p of the gain with AITER (Llama-3.1-405B, n = 5 runs an arm), as a function of what is "
        "not printed: how much the runs with AITER vary at each level. Shaded: the range that is "
        f"printed. Dots: where p passes {mi325x.SIGNIFICANCE:g}, unadjusted: {crossing}. "
        f"Without AITER the runs are taken to vary by {spread['off'].value:.1%}.",
    )
