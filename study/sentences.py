"""The report's sentences: Markdown from what was found, every number by way of `Values`.

No digit is typed here. A number enters a sentence only through `Values`, which keeps it under a
key and gives back its text; the keys and numbers end up in report/values.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from study import estimates, families, stats
from study.equivalence import EQUIVALENT, MARGIN, SMALL
from study.errors import StudyError
from study.estimates import INTERVAL, METRICS, rows_of
from study.frames import Frames
from study.plan import Launch
from study.replication import PILOT, needed_by_cell
from study.style import spelled
from study.tables import count, interval, number


@dataclass
class Values:
    """Every number of a text by key: what it is, and how it was written."""

    known: dict[str, dict[str, Any]] = field(default_factory=dict)

    def count(self, key: str, value: float) -> str:
        """A whole number."""
        return self._put(key, {"value": round(value)}, count(value))

    def number(self, key: str, value: float) -> str:
        """A number with three significant digits."""
        return self._put(key, {"value": float(value)}, number(value))

    def percent(self, key: str, share: float) -> str:
        """A share as '95 %'."""
        text = "n/a" if math.isnan(share) else f"{share * 100:.3g} %"
        return self._put(key, {"value": float(share)}, text)

    def interval(self, key: str, row: Any, scale: float = 1.0) -> str:
        """A row with point, low, high and n, as 'point [low, high]'."""
        limits = {name: float(getattr(row, name)) * scale for name in ("point", "low", "high")}
        return self._put(key, {**limits, "n": int(row.n)}, interval(*limits.values()))

    def label(self, key: str, text: str) -> str:
        """A word of the data that may hold digits: a name, a version, a method."""
        return self._put(key, {"value": text}, text)

    def _put(self, key: str, facts: dict[str, Any], text: str) -> str:
        entry = {**facts, "text": text}
        if repr(self.known.get(key, entry)) != repr(entry):  # NaN is equal to NaN here
            raise StudyError(f"the value {key} must be one number; it was {self.known[key]} before")
        self.known[key] = entry
        return text


# --- what was measured ----------------------------------------------------------------------------


def outcomes(name: str, found: Frames, launches: Sequence[Launch], values: Values) -> str:
    """How many launches and windows there are, and what became of them."""
    sizes = {
        "launch": len(launches),
        "arm": len({launch.arm.name for launch in launches}),
        "block": len({launch.block for launch in launches}),
    }
    asked, arms, blocks = (_many(f"{name}.{what}", n, what, values) for what, n in sizes.items())
    counts = found.launches["outcome"].value_counts() if len(found.launches) else pd.Series()
    became = [
        f"{values.count(f'{name}.launches.{outcome}', n)} {outcome}"
        for outcome, n in counts.items()
    ]
    seen = estimates.windows(found)
    void = int((seen["verdict"] == "void").sum())
    first = estimates.first_tries(found)
    again, searched = len(seen) - len(first), int(first["searched"].sum())
    planned = values.count(f"{name}.windows.asked", len(estimates.planned(launches)) + searched)
    measured = values.count(f"{name}.windows.measured", len(seen))
    if again:
        measured += f" ({values.count(f'{name}.windows.again', again)} of them once more)"
    refused = values.count(f"{name}.windows.void", void)
    valid = values.count(f"{name}.windows.valid", len(seen) - void)
    text = (
        f"{asked} of {arms} in {blocks} asked for: "
        f"{', '.join(became) or 'none was found'}. Windows asked for: {planned}; measured: "
        f"{measured}; valid: {valid}; void: {refused}."
    )
    return text + _unjudged(name, found, values)


def one_block(ratios: pd.DataFrame) -> str:
    """A caution behind ratios that have no interval."""
    return "; one block carries no interval" if (ratios["n"] == 1).any() else ""


def ties(key: str, n: int, prompts: str, values: Values) -> str:
    """How many prompts gave another token although the outputs are held to be the same."""
    said = values.count(f"{key}.ties", n)
    if not n:
        return f"no token differs in {prompts} prompts"
    return f"{said} of {prompts} prompts give another token, each first at a tie"


def valid_of_asked(
    key: str, found: Frames, launches: Sequence[Launch], values: Values, what: str
) -> str:
    """How many of the windows asked for are valid, and how many only at their second try."""
    seen = estimates.windows(found)
    ones = seen[seen["verdict"] == "valid"]
    valid = values.count(f"{key}.valid", len(ones))
    asked = values.count(f"{key}.asked", len(estimates.planned(launches)))
    again = int(ones["again"].astype(bool).sum())
    late = f", {values.count(f'{key}.again', again)} of them at a second try" if again else ""
    return f"{valid} of {asked} windows {what} are valid{late}."


def _many(key: str, n: int, noun: str, values: Values) -> str:
    plural = "" if n == 1 else "es" if noun.endswith("ch") else "s"
    return f"{values.count(key, n)} {noun}{plural}"


def _unjudged(name: str, found: Frames, values: Values) -> str:
    if found.windows.empty or not (found.windows["verdict"] == "valid").any():
        return ""
    if found.unproven().empty:
        return " Every gate could judge every valid window."
    return f" {unsure(f'{name}.windows.unproven', found, values)}{NOT_PROVEN}"


NOT_PROVEN = ": they are not refuted, but not fully proven either."


def unsure(key: str, found: Frames, values: Values) -> str:
    """In how many of the valid windows a gate could not judge; some must be."""
    valid, unproven = (found.windows["verdict"] == "valid").sum(), len(found.unproven())
    said = values.count(key, unproven)
    many = "all" if unproven == valid else said
    return f"In {many} of the valid ones at least one gate could not judge"


def refusals(name: str, found: Frames, values: Values) -> str:
    """Every arm that was not, or not always, measured; the reason in the engine's own words."""
    if found.launches.empty:
        return "No arm was asked for."
    told = estimates.outcomes(found)
    told["asked"] = told.groupby("arm")["launches"].transform("sum")
    told = told[told["outcome"] != "measured"]
    if told.empty:
        return "Every arm was measured."
    lines = []
    for (outcome, reason), group in told.groupby(["outcome", "reason"], sort=False):
        arms = [_how_often(name, row, values) for row in rows_of(group.sort_values("arm"))]
        key = f"{name}.reason.{group['arm'].iloc[0]}"
        why = f": {values.label(key, _plain(str(reason)))}" if reason else ""
        lines.append(f"- {', '.join(arms)}: {outcome}{why}")
    return "\n".join(lines)


def _how_often(name: str, row: Any, values: Values) -> str:
    """An arm, and in how many of its launches, if not in all of them."""
    arm = f"`{values.label(f'{name}.arm.{row.arm}', row.arm)}`"
    key, n = f"{name}.launches.{row.arm}", row.launches
    if n == row.asked:
        return arm
    return f"{arm} ({values.count(f'{key}.{n}', n)} of {values.count(key, row.asked)} launches)"


def _plain(text: str) -> str:
    return "`" + " ".join(text.replace("`", "'").split()) + "`"  # code: Markdown leaves it alone


# --- attention and feed-forward -------------------------------------------------------------------


def attention(name: str, found: Frames, metric: str, values: Values) -> str:
    """A line per workload: MLA / GQA at the highest level of the first depth."""
    frame = at_top_level(found, families.attention_ratios(found, metric))
    if frame.empty:
        return "- " + estimates.why_not(found, estimates.NO_PAIR)
    lines = []
    for (workload, level), group in frame.groupby(["workload", "level"], sort=False):
        key = f"{name}.{metric}.{workload}.{level}"
        said = " ".join(_ratio_sentence(key, row, metric, values) for row in rows_of(group))
        lines.append(f"- {_place(key, found, workload, level, values)}: {said}")
    return "\n".join(lines)


def _ratio_sentence(key: str, row: Any, metric: str, values: Values) -> str:
    words, key = METRICS[metric], f"{key}.{row.model}.mla_over_gqa"
    family = "dense layers" if row.feed_forward == "dense" else "a mixture of experts"
    if size := families.without(row.model, "mla", row.feed_forward):
        family += f" ({values.label(f'{key}.size', size)})"
    if row.n == 0:
        return f"With {family} no block could be compared."
    ratio = values.interval(key, row)
    gqa = values.number(f"{key}.gqa_{words.unit}", row.baseline_point * words.scale)
    mla = values.number(f"{key}.mla_{words.unit}", row.treatment_point * words.scale)
    return (
        f"With {family}, MLA's {lower(words.name)} is **{ratio}** times GQA's "
        f"({mla} against {gqa} {words.unit}): {verdict(row)}."
    )


def verdict(row: Any) -> str:
    """What a ratio with its interval allows to say; overlap and points alone say nothing.

    "No difference" is said by a test of equivalence only; see `margin`.
    """
    if row.n == 0:
        return "nothing to compare"
    if math.isnan(row.low):
        return "one block carries no interval, so no difference is shown"
    small = row.equivalence in (EQUIVALENT, SMALL)
    if row.low > 1 or row.high < 1:
        side = "higher" if row.low > 1 else "lower"
        return f"{side}, by this interval" + (", but within the margin" if small else "")
    if small:
        return "no difference larger than the margin"
    return "no difference is shown, and none is excluded"


def margin(name: str, values: Values) -> str:
    """What is meant by no difference: the margin of `study.equivalence`, stated beforehand."""
    said = values.percent(f"{name}.margin", MARGIN)
    return (
        f"That there is no difference is said only where two one-sided tests show the ratio to lie "
        f"within {said} of one, the margin stated beforehand."
    )


def effects(name: str, found: Frames, metric: str, values: Values) -> str:
    """The feed-forward's main effect and the interaction, at the highest level."""
    frame = at_top_level(found, families.factorial_effects(found, metric))
    if frame.empty:
        return "- " + estimates.why_not(found, estimates.NO_QUARTET)
    words = {
        families.EFFECTS[1]: "a mixture over dense layers, mean of both attention families",
        families.EFFECTS[2]: "interaction (MLA / GQA in mixtures over MLA / GQA in dense models)",
    }
    lines, of = [], lower(METRICS[metric].name)
    for (workload, level), group in frame.groupby(["workload", "level"], sort=False):
        key = f"{name}.{metric}.{workload}.{level}"
        said = [
            f"{words[row.effect]}, {of}: {_ratio(f'{key}.{row.effect}', row, values)}"
            for row in rows_of(group)
            if row.effect in words
        ]
        lines.append(f"- {_place(key, found, workload, level, values)}: {'; '.join(said)}.")
    return "\n".join(lines)


def _ratio(key: str, row: Any, values: Values) -> str:
    if not row.n:
        return "no complete block"
    return f"**{values.interval(key, row)}**, {verdict(row)}"


def at_top_level(found: Frames, frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the first depth at its highest level."""
    first: pd.DataFrame = frame.loc[frame["layers"].isin(estimates.depths(found)[:1])]
    top: pd.DataFrame = first.loc[first["level"] == first["level"].max()]
    return top


def _place(key: str, found: Frames, workload: object, level: object, values: Values) -> str:
    lengths = estimates.windows(found)
    of = lengths[lengths["workload"] == workload].iloc[0]
    given = values.count(f"{key}.input_tokens", of["input_tokens"])
    made = values.count(f"{key}.output_tokens", of["output_tokens"])
    there = values.count(f"{key}.level", int(str(level)))
    return f"`{workload}` ({given} tokens in, {made} out), {there} in flight"


def lower(name: str) -> str:
    """A metric's name inside a sentence: 'output throughput', but 'TTFT, median'."""
    return name if name[:2].isupper() else name[0].lower() + name[1:]


def method(name: str, found: Frames, values: Values) -> str:
    """How the ratios above were made."""
    frame = families.attention_ratios(found, "output_tok_s")
    frame = frame[frame["n"] > 1]
    if frame.empty:
        return "No ratio has an interval: each needs at least two blocks."
    said = values.label(f"{name}.ratio.method", least_label(frame, "blocks"))
    text = f"Ratios of MLA to GQA are compared inside blocks; in brackets: {said} or more."
    effects = families.factorial_effects(found, "output_tok_s")
    effects = effects[effects["n"] > 1]
    if len(effects):
        said = values.label(f"{name}.effects.method", least_label(effects, "blocks"))
        text += f" Of what is taken over several models: {said} or more."
    return f"{text} {margin(name, values)}"


def replication(name: str, found: Frames, metric: str, values: Values) -> str:
    """How many launches an interval of a stated width needs, for the arm that needs most."""
    frame = needed_by_cell(estimates.launch_values(found, metric))
    if frame.empty:
        return "How many launches are enough cannot be said: it needs a pilot of at least two."
    row = next(rows_of(frame.sort_values("total", kind="stable").tail(1)))
    key = f"{name}.needed"
    pilot, total, level = (
        values.count(f"{key}.{of}", getattr(row, of)) for of in ("pilot", "total", "level")
    )
    width = values.percent(f"{key}.half_width", row.half_width)
    spread = values.percent(f"{key}.spread", row.spread)
    text = (
        f"How many launches are enough: for an interval of {lower(METRICS[metric].name)} that "
        f"reaches {width} to either side, the arm that needs most takes **{total}** by Stein's "
        f"two-stage rule (`{values.label(f'{key}.arm', row.arm)}` on `{row.workload}`, {level} in "
        f"flight: a spread of {spread} between {pilot} launches)."
    )
    if row.n > row.pilot:
        said = values.interval(f"{key}.two_stage", row, scale=METRICS[metric].scale)
        return f"{text} Its interval by that rule: {said} {METRICS[metric].unit}."
    if row.pilot >= PILOT:
        return text
    rule = values.count(f"{key}.rule", PILOT)
    return f"{text} With a pilot of {rule}, as the rule wants it, fewer are to be expected."


def least_label(rows: pd.DataFrame, unit: str = "launches") -> str:
    """`Interval.label` of the row with the smallest n."""
    row = rows.astype({"n": int}).sort_values("n").iloc[0]
    return stats.Interval("", **{name: row[name] for name in INTERVAL}, unit=unit).label()


# --- cache and layers -----------------------------------------------------------------------------


def cache(name: str, found: Frames, launches: Sequence[Launch], values: Values) -> str:
    """Bytes of cache a token takes, per attention family, engine against arithmetic."""
    frame = estimates.cache(found, launches)
    frame = frame[frame["layers"].isin(estimates.depths(found)[:1])]
    return "\n".join(_cache_lines(name, frame, values)) or "- No arm was asked for."


def _cache_lines(name: str, frame: pd.DataFrame, values: Values) -> Iterator[str]:
    for (family, wanted), group in frame.groupby(["attention", "bytes_per_token_theory"]):
        key = f"{name}.cache.{family}.{wanted:.0f}"
        layers = values.count(f"{key}.layers", int(group["layers"].iloc[0]))
        told = values.count(f"{key}.theory_bytes", int(float(str(wanted))))
        heard = group["bytes_per_token_engine"].dropna().unique()
        said = " and ".join(
            values.count(f"{key}.engine_bytes.{place}", value) for place, value in enumerate(heard)
        )
        same = list(heard) == [wanted]
        engine = "the engine reports the same" if same else f"the engine reports {said}"
        if not len(heard):
            engine = "the engine did not report it"
        yield (
            f"- {spelled(str(family))}, {layers} layers: one token takes **{told} bytes** by "
            f"arithmetic; {engine}."
        )


def layer_costs(name: str, found: Frames, values: Values) -> str:
    """What a layer adds to TPOT at the highest level that both depths have seen."""
    frame = families.layer_costs(found, "tpot_p50_s")
    if frame.empty:
        return "- " + estimates.why_not(found, estimates.NO_SLOPE)
    lines = []
    top = frame.loc[frame["level"] == frame["level"].max()]
    for (workload, level), group in top.groupby(["workload", "level"], sort=False):
        key = f"{name}.layer_cost.{workload}.{level}"
        said = ", ".join(_layer(f"{key}.{row.model}", row, values) for row in rows_of(group))
        lines.append(f"- {_place(key, found, workload, level, values)}: {said}.")
    return "\n".join(lines)


def _layer(key: str, row: Any, values: Values) -> str:
    model = values.label(f"{key}.model", spelled(row.model))
    if not row.n:
        return f"{model} without a complete block"
    return f"{model} **{values.interval(key, row, scale=1e3)} ms**"
