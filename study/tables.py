"""The tables of an experiment: what a reader sees, and its twin in numbers.

Each function is pure and gives a `Table`: `shown` has formatted text, `data` the same facts as
numbers, which `keep` writes to data/derived/<name>.csv. A cell never stays empty without a word:
it says void, not measured, not reported, or that no block has both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from study import estimates, families, paths, theory
from study.equivalence import EQUIVALENT, MARGIN, UNDECIDED
from study.estimates import LIMITS, METRICS, of_metrics, rows_of
from study.frames import NOT_MEASURED, Frames
from study.plan import Launch
from study.store import write_atomically
from study.style import as_html, spelled

NOT_REPORTED = "not reported"
DIGITS = 3
FAR = 1000.0  # times a point: an interval that wide says that next to nothing is known
WORDY = 30  # characters
FEW = 5  # columns
THIN = "\u202f"  # between thousands: a comma would be taken for the one between two limits


@dataclass(frozen=True)
class Table:
    """A display table, the numbers behind it, and a caption."""

    shown: pd.DataFrame
    data: pd.DataFrame
    caption: str

    def keep(self, name: str) -> Table:
        """Save the twin under `name`, and hand the table on to be shown."""
        save(self.data, name)
        return self

    def _repr_html_(self) -> str:
        if self.shown.empty:  # without numbers something is missing; with them the caption says all
            kind = "missing" if self.data.empty else "table-caption"
            return f'<p class="{kind}">{as_html(self.caption)}</p>'
        wordy = self.shown.iloc[:, -1].astype(str).str.len().max() > WORDY
        few = self.shown.shape[1] <= FEW  # columns; in a wide table only the last one may wrap
        classes = f"tidy {'wordy' if few else 'ends-in-words'}" if wordy else "tidy"
        body = self.shown.to_html(index=False, border=0, classes=classes, escape=True)
        return (
            f'<div class="table">{body}</div><p class="table-caption">{as_html(self.caption)}</p>'
        )


def save(data: pd.DataFrame, name: str) -> str:
    """Write data/derived/<name>.csv; return it as written from ROOT."""
    paths.DERIVED.mkdir(parents=True, exist_ok=True)
    path = paths.DERIVED / f"{name}.csv"
    write_atomically(path, data.to_csv(index=False).encode(), durably=False)
    return str(path.relative_to(paths.ROOT))


# --- numbers as text ------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits, never in powers of ten: 0.0123, 4.50, 1 230 000."""
    if value is None or math.isnan(value):
        return "n/a"
    if value == 0:
        return "0"
    decimals = DIGITS - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, decimals)
    decimals = DIGITS - 1 - math.floor(math.log10(abs(rounded)))  # 9.996 has become 10.0
    return f"{rounded:,.{max(decimals, 0)}f}".replace(",", THIN)


def count(value: float) -> str:
    """A whole number, whole."""
    return f"{value:,.0f}".replace(",", THIN)


def interval(point: float, low: float, high: float) -> str:
    """'12.3 [11.9, 12.8]'; without limits only the point; '0.8 [< 0.0008, > 800]' where a limit
    is more than `FAR` times away from the point, which is all that anybody can use of it."""
    if math.isnan(low) or math.isnan(high):
        return number(point)
    near, far = point / FAR, point * FAR
    below = f"< {number(near)}" if 0 < low < near else number(low)
    above = f"> {number(far)}" if high > far > 0 else number(high)
    return f"{number(point)} [{below}, {above}]"


def p_value(value: float) -> str:
    """'0.013', '< 0.001', or that there is none."""
    if math.isnan(value):
        return "none"
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def reported(value: Any, form: Callable[[Any], str] = str) -> str:
    """What the engine said, in this form; or that it did not."""
    return NOT_REPORTED if pd.isna(value) else form(value)


# --- arms and models ------------------------------------------------------------------------------


def arms(found: Frames, launches: Sequence[Launch]) -> Table:
    """A row per arm and outcome: what became of it, and what the engine says is in force."""
    cache = estimates.cache(found, launches).drop_duplicates("arm")
    if found.launches.empty:
        return Table(cache, cache, "No launch was asked for.")
    said = ["attention_backend", "moe_backend", "block_size", "ready_s"]
    told = found.launches.reindex(columns=["arm", *said])
    engine = told.groupby("arm", as_index=False).agg(
        {"attention_backend": _several, "moe_backend": _several, "ready_s": "mean"}
    )
    data = estimates.arms(found)[["arm"]].merge(estimates.outcomes(found), on="arm")
    data = data.merge(engine, on="arm").merge(cache.drop(columns=list(estimates.FACTORS)), on="arm")
    per_token = data["bytes_per_token_engine"], data["bytes_per_token_theory"]
    capacity = data["tokens_engine"], data["tokens_theory"]
    first = data[["arm", "outcome"]].assign(**{"launches asked for": data["launches"]})
    engine_said = pd.DataFrame(
        {
            "attention back end": data["attention_backend"],
            "mixture back end": data["moe_backend"],
            "block size": [reported(size, "{:.0f}".format) for size in data["block_size"]],
            "KV bytes per token: engine | arithmetic": _beside(*per_token),
            "engine / arithmetic": [
                reported(ratio, "{:.4g}".format) for ratio in per_token[0] / per_token[1]
            ],
            "KV capacity in tokens: engine | arithmetic": _beside(*capacity),
            "ready after (s)": [reported(value, number) for value in data["ready_s"]],
        }
    ).where(data["ready_s"].notna(), "–")
    return Table(
        first.join(engine_said),
        data,
        "Outcome of every arm; back ends, block size and cache as the engine itself reports them. "
        "Arithmetic is on the model's shape (capacity: before the cache is cut into blocks). "
        "–: no server of it was ready.",
    )


def _several(values: pd.Series) -> str:
    known = [str(value) for value in values.dropna().unique()]
    return ", ".join(known) or NOT_REPORTED


def _beside(engine: pd.Series, arithmetic: pd.Series) -> list[str]:
    pairs = zip(engine, arithmetic, strict=True)
    return [f"{reported(e, count)} | {reported(a, count)}" for e, a in pairs]


def models(launches: Sequence[Launch]) -> Table:
    """A row per model and depth: sizes and parameters, from arithmetic."""
    models = (launch.arm.model for launch in launches)
    unique = {(model.layers, model.name): model for model in models}
    rows = [
        {
            "model": model.name,
            "attention": model.attention,
            "feed_forward": model.feed_forward,
            "layers": model.layers,
            "width": model.width,
            "ffn_width": model.ffn_width,
            "parameters_active": theory.parameters(model, active=True),
            "parameters_stored": theory.parameters(model, active=False),
            "attention_share": model.layers
            * theory.attention_parameters(model)
            / theory.parameters(model, active=True),
            "kv_bytes_per_token": theory.kv_bytes_per_token(model),
        }
        for _, model in sorted(unique.items())
    ]
    data = pd.DataFrame(rows)
    if data.empty:
        return Table(data, data, "No model was asked for.")
    shown = pd.DataFrame(
        {
            "model": data["model"],
            "attention": data["attention"].map(spelled),
            "feed-forward": data["feed_forward"].map(spelled),
            "layers": data["layers"],
            "width": data["width"],
            "FFN width": data["ffn_width"],
            "active parameters (million)": (data["parameters_active"] / 1e6).map(number),
            "stored parameters (million)": (data["parameters_stored"] / 1e6).map(number),
            "attention's share of active": (data["attention_share"] * 100).map(number) + " %",
            "KV bytes per token": data["kv_bytes_per_token"].map(count),
        }
    )
    return Table(
        shown,
        data,
        "The models, by arithmetic; parameters without embeddings. The weights are made up, the "
        "architecture is real. FFN width is that of one expert in a mixture.",
    )


# --- results --------------------------------------------------------------------------------------


def results(found: Frames, launches: Sequence[Launch]) -> Table:
    """Per arm, workload and level: every metric with its interval over launches, and n."""
    cells = estimates.planned(launches).drop_duplicates(["arm", "workload", "level"])
    data = estimates.by_level(found, list(METRICS))
    outcome = estimates.outcomes(found).drop_duplicates("arm").set_index("arm")["outcome"]
    known = {(r.arm, r.workload, r.level, r.metric): r for r in rows_of(data)}
    rows = []
    for cell in rows_of(cells.sort_values(["layers", "model"], kind="stable")):
        found_here = [known.get((cell.arm, cell.workload, cell.level, name)) for name in METRICS]
        values = [
            _result(row, metric.scale, str(outcome.get(cell.arm, NOT_MEASURED)))
            for row, metric in zip(found_here, METRICS.values(), strict=True)
        ]
        names = [metric.label for metric in METRICS.values()]
        rows.append(
            {
                "arm": cell.arm,
                "workload": cell.workload,
                "level": cell.level,
                **dict(zip(names, values, strict=True)),
                "n": found_here[0].n if found_here[0] else 0,
                "void": found_here[0].void if found_here[0] else 0,
            }
        )
    text = "Nothing was asked for."
    if rows:
        text = (
            "Point and interval over launches per cell; n counts launches with a valid window, "
            "void the windows that a gate refused. Median latencies are the median of each "
            "window, then the geometric mean over launches."
        )
        methods = data.loc[data["n"] > 1, ["confidence", "method"]].drop_duplicates()
        text += "".join(
            f" Intervals: {r.confidence * 100:g} % {r.method}." for r in rows_of(methods)
        )
    return Table(pd.DataFrame(rows), data, text)


def _result(row: Any, scale: float, outcome: str) -> str:
    if row is None:
        return NOT_MEASURED if outcome == "measured" else outcome
    if row.n == 0:
        return "void" if row.void else "n/a"
    return interval(row.point * scale, row.low * scale, row.high * scale)


def comparisons(found: Frames) -> Table:
    """MLA / GQA inside blocks: ratio, p-value, and the absolute values that the ratio hides."""
    data = of_metrics(lambda metric: families.attention_ratios(found, metric))
    if data.empty:
        return Table(data, data, estimates.why_not(found, estimates.NO_PAIR))
    rows = [
        {
            "metric": METRICS[row.metric].label,
            "feed-forward": spelled(row.feed_forward),
            "layers": row.layers,
            "workload": row.workload,
            "level": row.level,
            **compared(row, "GQA", "MLA", "MLA / GQA"),
        }
        for row in rows_of(data)
    ]
    return ratios(
        rows,
        data,
        f"MLA against GQA inside blocks. {_methods(data)} GQA and MLA are over the same blocks; "
        "a dropped block lacked a valid window of one of the two. The p-value and the interval "
        f"come from one test. {verdict_words()}",
    )


def verdict_words() -> str:
    """What the column of verdicts says, for a caption."""
    return (
        f"{EQUIVALENT.capitalize()}: two one-sided tests show a difference of at most "
        f"{MARGIN * 100:g} %, stated beforehand; {UNDECIDED}: neither that nor a difference."
    )


def compared(
    row: Any,
    baseline: str = "baseline",
    treatment: str = "treatment",
    ratio: str = "ratio",
    missing: str = "no block to compare",
) -> dict[str, object]:
    """The cells of a row of `estimates.RATIO`: both sides, their ratio under these names, its test.

    Without a block the ratio says `missing`.
    """
    return {
        baseline: absolute(row, "baseline"),
        treatment: absolute(row, "treatment"),
        ratio: interval(row.point, row.low, row.high) if row.n else missing,
        "p": p_value(row.p_value),
        "verdict": row.equivalence if row.n else "n/a",
        "blocks": row.n,
        "dropped": row.dropped,
    }


def ratios(rows: Sequence[Mapping[str, object]], data: pd.DataFrame, text: str) -> Table:
    """The table of ratios `data` as the cells of `rows`; one sentence where no block has any."""
    if len(data) and not (data["n"] > 0).any():
        text = f"No block has a valid window of both sides, so none of {len(data)} ratios is known."
        return Table(pd.DataFrame(), data, text)
    return Table(pd.DataFrame(rows), data, f"{text.rstrip()} {sides_words(data)}".rstrip())


def sides_words(data: pd.DataFrame) -> str:
    """What the brackets of both sides of ratios are, for a caption; empty where there are none."""
    known = data[data["n"] > 1]
    if known.empty:
        return ""
    return (
        f"Brackets of absolute values: {known['confidence'].iloc[0] * 100:g} % for each alone, not "
        "adjusted for their number; whether two differ is told by the ratio."
    )


def absolute(row: Any, side: str) -> str:
    """The `baseline` or the `treatment` of a row of `estimates.RATIO`, in the metric's unit.

    Without a block that has both there is none: one side alone may still have a value of its own.
    """
    if not row.n:
        return "not in a common block"
    scale = METRICS[row.metric].scale
    return interval(*(getattr(row, f"{side}_{name}") * scale for name in LIMITS))


def _methods(data: pd.DataFrame, of: str = "metric") -> str:
    """The methods of intervals that hold together for each `of`."""
    several = data.loc[data["n"] > 1]
    if several.empty:
        return "No interval: it needs two blocks."
    unique = several[["metric", "confidence", "method"]].drop_duplicates(["confidence", "method"])
    said = "; ".join(f"{row.confidence * 100:g} % {row.method}" for row in rows_of(unique))
    together = f", which hold together for each {of}" if "Bonferroni" in said else ""
    return f"Intervals{together}: {said}."


def effects(found: Frames) -> Table:
    """Main effects of attention and feed-forward, and their interaction, inside blocks."""
    data = of_metrics(lambda metric: families.factorial_effects(found, metric))
    if data.empty:
        return Table(data, data, estimates.why_not(found, estimates.NO_QUARTET))
    shown = pd.DataFrame(
        {
            "metric": [METRICS[name].name for name in data["metric"]],
            "effect": data["effect"],
            "layers": data["layers"],
            "workload": data["workload"],
            "level": data["level"],
            "ratio": [
                interval(row.point, row.low, row.high) if row.n else "no complete block"
                for row in rows_of(data)
            ],
            "p": data["p_value"].map(p_value),
            "blocks": data["n"],
            "dropped": data["dropped"],
        }
    )
    return Table(
        shown,
        data,
        "Effects of the two factors as ratios; absolute values stand in the table of results. "
        "A main effect is the geometric mean of its two ratios; the interaction is MLA / GQA "
        "in mixtures over MLA / GQA in dense models, and is one when the factors act "
        "independently. "
        f"{_methods(data, 'effect and metric')}",
    )


def layer_costs(found: Frames) -> Table:
    """What one more layer adds, per model, workload and level."""
    data = of_metrics(
        lambda metric: families.layer_costs(found, metric), ("tpot_p50_s", "ttft_p50_s")
    )
    if data.empty:
        return Table(data, data, estimates.why_not(found, estimates.NO_SLOPE))
    shown = pd.DataFrame(
        {
            "cost": [METRICS[name].name for name in data["metric"]],
            "model": data["model"].map(spelled),
            "workload": data["workload"],
            "level": data["level"],
            "ms per layer": [
                interval(row.point * 1e3, row.low * 1e3, row.high * 1e3)
                if row.n
                else "no complete block"
                for row in rows_of(data)
            ],
            "blocks": data["n"],
            "dropped": data["dropped"],
        }
    )
    first = data.iloc[0]
    return Table(
        shown,
        data,
        f"Slope between {first['shallow_layers']} and {first['deep_layers']} layers, inside "
        f"blocks: what one more layer (attention and feed-forward) adds. {_methods(data)}",
    )
