"""The tables of the chapter on saturation: knees, what lies beyond them, and what ends the rise."""

from __future__ import annotations

from typing import Any

import pandas as pd

from study import knee
from study.chapter import Part
from study.chapters.saturation_estimates import CANNOT_JUDGE, REACHED, beyond, knees, limits
from study.estimates import LIMITS, METRICS, rows_of
from study.figures import interval_words
from study.style import spelled
from study.tables import Table, compared, count, interval, number


def knee_table(part: Part) -> Table:
    """Per curve: its knee or why it has none, its maximum, and the law that it follows."""
    data = knees(part)
    if data.empty:
        return Table(data, data, "Nothing was asked for.")
    shown = pd.DataFrame([_knee_cells(row) for row in rows_of(data)])
    text = (
        f"Knee: the smallest level whose fitted throughput is at least {knee.SHARE:.0%} of the "
        "fitted maximum over the tested levels, by the model that fits the pooled windows best for "
        f"its parameters; below {knee.FEW} windows, too few to tell their own noise, one of "
        f"{knee.NOISE:.0%} a window is assumed. Windows off it: root mean square; at least so much "
        "where the model has as many parameters as there are windows. "
        "Sigma (contention) and kappa (coherence) are Gunther's, fitted to each launch, "
        "whichever model fits better. "
    )
    sure = data[data["low"].notna()]
    text += f"Knees: {interval_words(sure)}. " if len(sure) else "No knee has an interval. "
    return Table(shown, data, text + "Void windows enter nothing here.")


def _knee_cells(row: Any) -> dict[str, object]:
    laws = {
        name: interval(*(getattr(row, f"{name}_{side}") for side in LIMITS))
        for name in ("sigma", "kappa")
    }
    has_knee = row.state == REACHED
    return {
        "model": spelled(row.model),
        "workload": row.workload,
        "knee (in flight)": interval(row.point, row.low, row.high) if has_knee else row.state,
        "launches at their knee": f"{row.n} of {row.launches}" if has_knee else "n/a",
        "maximum (tok/s)": number(row.maximum_tok_s),
        "at the knee (tok/s a request)": number(row.knee_tok_s / row.point),
        "levels": row.levels,
        "highest level": count(row.highest_level) if row.levels else "none",
        "model of the fit": row.model_of_fit or "none",
        "windows off it": _misfit(row) if row.model_of_fit else "",
        **laws,
        "why no knee": "" if has_knee else row.text,
    }


def _misfit(row: Any) -> str:
    if pd.isna(row.misfit):
        return "n/a (exactly as many as parameters)"
    return f"{'' if row.spare else 'at least '}{number(row.misfit * 100)} %"


def cost_table(part: Part) -> Table:
    """Throughput, TTFT and TPOT at the knee and at the highest level, and their ratio."""
    data = beyond(part)
    if data.empty:
        return Table(data, data, "No curve has a knee and a valid level beyond it.")
    rows = [
        {
            "model": spelled(row.model),
            "workload": row.workload,
            "metric": METRICS[row.metric].label,
            "levels": f"{row.at_level:.0f} → {row.top_level:.0f}",
            **compared(row, "lower level", "highest level"),
        }
        for row in rows_of(data)
    ]
    text = (
        "The highest level against the lowest tested one at or above the knee, of those that most "
        "launches measured, on the same launches. At the knee itself throughput is "
        f"{knee.SHARE:.0%} of its fitted maximum, so a higher level can gain little: what tells is "
        "what it loses, and the price in TTFT and TPOT. "
    )
    paired = data[data["n"] > 0]
    made = f"Intervals: {interval_words(paired, 'blocks')}."
    text += made if len(paired) else "No block has both."
    return Table(pd.DataFrame(rows), data, text)


def limit_table(part: Part) -> Table:
    """What the engine says at the knee, and which resource ends the rise by the rule."""
    data = limits(part)
    if data.empty:
        return Table(data, data, "No curve has a knee, so nothing ends a rise here.")
    shown = pd.DataFrame(
        {
            "model": data["model"].map(spelled),
            "workload": data["workload"],
            "level": data["at_level"].map(count),
            "max_num_seqs": data["max_num_seqs"],
            "gauges: running | waiting": [
                f"{number(row.running_mean)} | {number(row.waiting_mean)}" for row in rows_of(data)
            ],
            "level minus waiting, at most the batch": data["running"].map(number),
            "KV cache in use": (data["kv_use_max"] * 100).map(number) + " %",
            "preemptions a window": data["preemptions"].map(number),
            "ends the rise": [f"{hedge(row)}{row.limit}" for row in rows_of(data)],
        }
    )
    text = (
        "Means over launches at the lowest level at or above the knee that most launches measured. "
        "The gauge of those that run reads low, so the rule takes the level minus those that wait, "
        "at most the batch: with no more in flight than the batch holds, that is the level itself "
        "as soon as nobody waits."
    )
    return Table(shown, data, text)


def hedge(row: Any) -> str:
    """What stands before a limit where the knee is a point without an interval."""
    return "consistent with " if pd.isna(row.low) and row.limit != CANNOT_JUDGE else ""
