"""Tables of the chapter on the instrument."""

from __future__ import annotations

import pandas as pd

from study import sentences
from study.agreement import COMPARISONS
from study.chapter import Part
from study.chapters import instrument_estimates as instrument
from study.chapters.instrument_figures import NO_CALIBRATION
from study.components import components_of_windows
from study.estimates import METRICS, of_metrics, rows_of
from study.experiments.instrument import TWINS
from study.figures import interval_words
from study.style import spelled
from study.tables import Table, compared, count, interval, number, ratios

SEVERAL = {"launch": "launches", "window": "windows", "request": "requests"}
NO_SECOND = "No window was given to a second instrument."


def calibration(part: Part) -> Table:
    """Every load against the null server: what was kept, and what the client added."""
    data = instrument.calibrated(part)
    if data.empty:
        return Table(data, data, NO_CALIBRATION)
    errors = {
        "TTFT error, median (ms)": data["ttft_error_median_ms"],
        "own part, median (ms)": data["ttft_added_median_ms"],
        "own part, p99 (ms)": data["ttft_added_p99_ms"],
        "ITL error, median (ms)": data["itl_error_median_ms"],
        "ITL error, p99 (ms)": data["itl_error_p99_ms"],
        "server late, p99 (ms)": data["server_late_p99_ms"],
    }
    shown = pd.DataFrame(
        {
            "load": data["kind"],
            "level": data["level"],
            "ITL (ms)": data["itl_ms"].map("{:g}".format),
            "chunks/s asked": data["asked_per_s"].map(count),
            "kept": data["chunks_per_s"].map(count),
            "in flight": data["in_flight_mean"].map(number),
            **{name: values.map(number) for name, values in errors.items()},
            "pace": data["held"].map({True: "kept", False: "not kept"}),
        }
    )
    text = (
        "The client against the null server, each load in the order of the measurement; the "
        "server's clock says what is true. An error of TTFT holds the way to the server and its "
        "wake-up; the client's own part is what it sent late and read late. A p99 that its sample "
        "cannot carry is n/a; a load that was untrue was asked again, and the best try counts."
    )
    return Table(shown, data, text)


def seconds(part: Part) -> Table:
    """The second instrument's files, judged as a stranger's would be."""
    data = part.seconds.files
    if data.empty:
        return Table(data, data, NO_SECOND)
    shown = pd.DataFrame(
        {
            "arm": data["arm"],
            "block": data["block"] + 1,
            "workload": data["workload"],
            "level": data["level"],
            "once more": data["again"].map({True: "yes"}).fillna(""),
            "outcome": data["outcome"],
            "verdict of its file": data["verdict"],
            "requests": data["requests"].map(count),
            "tokens in": [_range(a, b) for a, b in zip(data["input_least"], data["input_most"],
                                                       strict=True)],
            "out": [_range(a, b) for a, b in zip(data["output_least"], data["output_most"],
                                                 strict=True)],
            "level full (s of s)": [f"{number(full)} of {number(whole)}" for full, whole in
                                    zip(data["full_s"], data["duration_s"], strict=True)],
            "CPU of its client (s)": data["cpu_s"].map(number),
            "of ours (s)": data["client_cpu_s"].map(number),
            "why": data["reasons"].where(data["reason"] == "", data["reason"]),
        }
    )  # fmt: skip
    text = (
        "What `vllm bench serve` wrote of the windows that it measured too, as `study audit` reads "
        "it: the verdict is that of its own file, not of our window."
    )
    return Table(shown, data, text)


def _range(least: float, most: float) -> str:
    if not most >= least:
        return "n/a"
    return count(least) if least == most else f"{count(least)} to {count(most)}"


def agreement(part: Part) -> Table:
    """Every comparison of instruments, as a ratio over launches."""
    data = instrument.agreement(part)
    if data.empty:
        return Table(data, data, NO_SECOND)
    shown = pd.DataFrame(
        {
            "comparison": data["comparison"].map(COMPARISONS),
            "workload": data["workload"],
            "level": data["level"],
            "ratio": [
                interval(row.point, row.low, row.high) if row.n else "void" for row in rows_of(data)
            ],
            "launches": data["n"],
        }
    )
    text = (
        "Geometric means over launches of ratios inside one launch; void: no launch has a valid "
        "window and, where it counts, a valid file of the second instrument."
    )
    known = data[data["n"] > 0]
    text += f" Intervals: {interval_words(known)}." if len(known) else ""
    return Table(shown, data, text)


def twins(part: Part) -> Table:
    """One twin over the other: ratio, tests, and the values that the ratio hides."""
    data = of_metrics(lambda metric: instrument.ratios(part.found, part.launches, metric))
    rows = [
        {
            "metric": METRICS[row.metric].label,
            "model": spelled(row.model),
            "workload": row.workload,
            "level": row.level,
            **compared(row, "a", "b", "b / a"),
            "difference": sentences.verdict(row),
        }
        for row in rows_of(data)
    ]
    known = data[data["n"] > 0]
    text = "The same server under two names, inside blocks."
    text += f" Intervals: {interval_words(known, 'blocks')}." if len(known) else ""
    return ratios(rows, data, text)


def noise_floor(part: Part) -> Table:
    """How much one server differs from itself, launched anew."""
    data = instrument.noise_floor(part.found, part.launches)
    percent = {
        "standard deviation of the log ratio": data["spread"],
        "farthest ratio from one": data["farthest"] - 1,
        "least difference these blocks could show": data["shown"],
    }
    shown = pd.DataFrame(
        {
            "metric": [METRICS[name].name for name in data["metric"]],
            **{name: [_percent(value) for value in values] for name, values in percent.items()},
            "blocks": data["blocks"],
            "cells": data["cells"],
        }
    )
    text = (
        "The noise floor: what two launches of one server in one block differ by, pooled over "
        "workloads and levels. One block shows a difference but no spread."
    )
    return Table(shown, data, text)


def components(part: Part) -> Table:
    """How much of the variance of E2E lies between launches, windows and requests."""
    seen = part.found.windows
    valid = seen[seen["verdict"] == "valid"].dropna(subset="e2e_log_sd") if len(seen) else seen
    if valid.empty or valid["launch"].nunique() < len(TWINS):
        return Table(pd.DataFrame(), pd.DataFrame(), "Not measured: it needs two valid launches.")
    # Twins are one arm under two names.
    data = components_of_windows(valid.assign(arm=valid["model"]), "e2e").frame()
    shown = pd.DataFrame(
        {
            "between": [f"{row.n:,} {SEVERAL[row.source]}" for row in rows_of(data)],
            "standard deviation (%)": [
                interval(100 * row.point, 100 * row.low, 100 * row.high) for row in rows_of(data)
            ],
            "share of one request's variance": data["share"].map(_percent),
            "error of the mean": data["error"].map(_percent),
            "with ten times as many": data["error_tenfold"].map(_percent),
        }
    )
    text = (
        "Where the variance of E2E comes from, on the log scale, and what ten times as many of "
        "each would do to the error of the mean. More requests hardly help where launches differ: "
        f"they are not replication. {data['confidence'][0]:.0%} {data['method'][0]}; n/a where one "
        "window a launch cannot be told from its launch. What the launches of a block share counts "
        "as theirs: where blocks differ, the interval of launches is too narrow."
    )
    return Table(shown, data, text)


def _percent(share: float) -> str:
    return "n/a" if pd.isna(share) else f"{number(share * 100)} %"
