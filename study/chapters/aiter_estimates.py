"""What the chapter on engine-side switches says, as tidy frames: pure functions of what was found.

A *pair* is a setting with the one that it is compared with. A pair that this platform cannot have
is no part of the family that intervals are adjusted for: that is known before anything is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as distributions

from study import estimates, stats
from study.chapter import Part
from study.estimates import INTERVAL, LIMITS, RATIO, as_columns, at, launch_values, paired, rows_of
from study.experiments.aiter import MASTER, settings
from study.frames import Frames
from study.once import once
from study.plan import Launch
from study.same_output import Agreement, compare
from study.spread import spread, spread_ratio
from study.standing import NOT_APPLICABLE

HEADLINE = "output_tok_s"
ENOUGH = 5  # launches of an arm: with fewer the interval of a spread says next to nothing
ORDER = {one.name: place for place, one in enumerate(settings(eager=True))}
SWITCH_NAMES = {"compile": "Compilation", "kv_split": "KV split", "aiter": "AITER"}
TWICE = "A/A"  # the same server under two names: what differs between them is chance
PARTS = "parts of AITER"
WITH_AITER = {one.name for one in settings(eager=True) if one.environment.get(MASTER) == "1"}
NOT_SHOWN = "AITER not shown"  # the engine ran, and names no kernel of AITER: nothing is claimed
CELL = ("workload", "level")
PAIR = (
    *("switch", "setting", "baseline_setting", "model", "attention", "feed_forward"),
    *("treatment", "baseline", "treatment_outcome", "baseline_outcome"),
)
IN_FORCE = ("eager", "attention_backend", "mla_prefill", "moe_backend", "rms_norm", "aiter")


# --- arms and pairs -------------------------------------------------------------------------------


@once
def arms(found: Frames) -> pd.DataFrame:
    """Every arm once, by model and in the order of the settings.

    Columns: arm, switch, setting, baseline, model, attention, feed_forward, layers, outcome
    (`measured` if any of its launches was, but `AITER not shown` where neither its log nor, for a
    part that is off, that of its baseline names a kernel of AITER).
    """
    columns = ["arm", "switch", "setting", "baseline", *estimates.FACTORS, "outcome"]
    if found.launches.empty:
        return pd.DataFrame(columns=columns)
    outcome = found.launches.groupby("arm")["outcome"].agg(_best)
    known = found.launches[columns[:-1]].drop_duplicates("arm").join(outcome, on="arm")
    used = _with_aiter(found)  # a part that is off may be all that the log of its baseline names
    shown = known["arm"].isin(used) | known["baseline"].isin(used)
    shown |= ~known["setting"].isin(WITH_AITER)
    known["outcome"] = known["outcome"].mask(known["outcome"].eq("measured") & ~shown, NOT_SHOWN)
    order = known["setting"].map(ORDER)
    return known.assign(order=order).sort_values(["model", "order"], ignore_index=True)[columns]


def _best(outcomes: pd.Series) -> str:
    return "measured" if "measured" in set(outcomes) else str(outcomes.iloc[0])


def _with_aiter(found: Frames) -> set[str]:
    """Arms of which every measured launch names a kernel of AITER."""
    measured = found.launches[found.launches["outcome"] == "measured"]
    used = measured.reindex(columns=["arm", "aiter"]).groupby("arm")["aiter"]
    return {str(arm) for arm, said in used if said.eq("used").all()}


def applicable(found: Frames) -> pd.DataFrame:
    """The arms that this platform can have."""
    known = arms(found)
    return known[known["outcome"] != NOT_APPLICABLE].reset_index(drop=True)


def left_out(found: Frames) -> str:
    """A sentence for each switch that this platform cannot have: it is in no figure."""
    known = arms(found)
    drawn = applicable(found)
    rest = known[~known["switch"].isin(drawn["switch"])].drop_duplicates("switch")
    return "".join(f" {SWITCH_NAMES[row.switch]}: {row.outcome}." for row in rows_of(rest))


def switch_columns(found: Frames) -> list[str]:
    """Columns of the launches frame with a switch as the engine's own page reports it."""
    return [str(name) for name in found.launches if str(name).startswith("VLLM_")]


def pairs(found: Frames) -> pd.DataFrame:
    """A row per setting and its baseline, for arms that this platform can have: PAIR."""
    known = applicable(found)
    compared = known[known["arm"] != known["baseline"]]
    return _pairs(known, zip(compared["arm"], compared["baseline"], strict=True))


def twins(found: Frames) -> pd.DataFrame:
    """Arms of different switches that the engine runs alike, as pairs with switch A/A.

    Alike is the same model with the same answers of the engine about all that a switch changes.
    """
    known = applicable(found)
    same: dict[tuple[str, ...], list[Any]] = {}
    for row in rows_of(known[known["outcome"] == "measured"]):
        answers = _in_force(found, row.arm, [*IN_FORCE, *switch_columns(found)])
        same.setdefault((row.model, *answers), []).append(row)
    found_pairs = [
        (other.arm, first.arm)
        for first, *others in same.values()
        for other in others
        if other.switch != first.switch
    ]
    return _pairs(known, found_pairs).assign(switch=TWICE)


def told_apart(found: Frames, one: str, other: str) -> bool:
    """Whether the engine names something that differs between two arms, beside the switches."""
    return [*_in_force(found, one, IN_FORCE)] != [*_in_force(found, other, IN_FORCE)]


def _in_force(found: Frames, arm: str, columns: Sequence[str]) -> Iterator[str]:
    of_arm = found.launches[found.launches["arm"] == arm]
    said = of_arm.reindex(columns=list(columns))
    measured = said[of_arm["outcome"] == "measured"].astype(object).fillna("")
    for column in measured:
        yield ", ".join(sorted(set(measured[column].astype(str))))


def _pairs(known: pd.DataFrame, names: Any) -> pd.DataFrame:
    of: Mapping[str, Any] = {row.arm: row for row in rows_of(known)}
    rows = [
        {
            **{name: getattr(of[treatment], name) for name in PAIR if hasattr(of[treatment], name)},
            "treatment": treatment,
            "baseline": baseline,
            "baseline_setting": of[baseline].setting,
            "treatment_outcome": of[treatment].outcome,
            "baseline_outcome": of[baseline].outcome,
        }
        for treatment, baseline in names
        if baseline in of
    ]
    return pd.DataFrame(rows, columns=list(PAIR))


def pair_name(row: Any) -> str:
    """A row's pair as a reader sees it: 'compiled / eager', 'AITER: without-mla / on'."""
    name = f"{row.setting} / {row.baseline_setting}"
    if row.switch == "aiter":
        name = f"{SWITCH_NAMES['aiter']}: {name.replace('aiter-', '')}"
    return f"{TWICE}: {name}" if row.switch == TWICE else name


def why(row: Any) -> str:
    """Why there is no ratio: what became of an arm, or that windows are void or too few."""
    if row.treatment_outcome != "measured":
        return str(row.treatment_outcome)
    if row.baseline_outcome != "measured":
        return f"baseline {row.baseline_outcome}"
    return "no valid pair" if row.n == 0 else "one launch"


def cells(launches: Sequence[Launch]) -> list[tuple[str, int]]:
    """Every workload and level asked for, in that order."""
    return estimates.cells(estimates.planned(launches))


def question(pair: Mapping[str, Any]) -> str:
    """To which question a pair belongs: a switch as a whole, the parts of AITER, or A/A."""
    of_a_part = pair["switch"] == "aiter" and pair["baseline_setting"] == "aiter-on"
    return PARTS if of_a_part else str(pair["switch"])


def family(found: Frames, launches: Sequence[Launch]) -> int:
    """Comparisons of one metric: pairs x workloads x levels. A/A is a check, not a comparison."""
    return max(1, len(pairs(found)) * len(cells(launches)))


# --- ratios inside blocks -------------------------------------------------------------------------


def ratios(found: Frames, launches: Sequence[Launch], metric: str) -> pd.DataFrame:
    """Treatment / baseline inside blocks, a row per pair (A/A last), workload and level.

    Columns: PAIR, workload, level, metric, and `estimates.RATIO`. Bonferroni over the family.
    Each pair keeps a variance of its own, for whether a switch changes that is in question too.
    """
    values, comparisons = _values(found, metric), family(found, launches)
    rows = [
        {**pair, **dict(zip(CELL, cell, strict=True)), "metric": metric}
        | paired(at(values, cell), pair["treatment"], pair["baseline"], comparisons)
        for pair, cell in _comparisons(found, launches)
    ]
    return pd.DataFrame(rows, columns=[*PAIR, *CELL, "metric", *RATIO])


def block_ratios(found: Frames, launches: Sequence[Launch], metric: str) -> pd.DataFrame:
    """The ratio in every single block: what `ratios` is made of. PAIR, CELL, metric, block, point.

    Only blocks that hold a valid window of both.
    """
    values, rows = _values(found, metric), []
    for pair, cell in _comparisons(found, launches):
        of = at(values, cell).pivot(index="block", columns="arm", values="value")
        sides = of.reindex(columns=[pair["treatment"], pair["baseline"]]).astype(float).dropna()
        ratio = sides.iloc[:, 0] / sides.iloc[:, 1]
        rows += [
            {**pair, **dict(zip(CELL, cell, strict=True)), "metric": metric, "block": b, "point": r}
            for b, r in ratio.items()
        ]
    return pd.DataFrame(rows, columns=[*PAIR, *CELL, "metric", "block", "point"])


def _values(found: Frames, metric: str) -> pd.DataFrame:
    """Values of launches, without those of arms that are not shown to be what they are called."""
    values, known = launch_values(found, metric), arms(found)
    unproven = known.loc[known["outcome"] == NOT_SHOWN, "arm"]
    kept: pd.DataFrame = values.loc[~values["arm"].isin(unproven)]
    return kept


def _comparisons(
    found: Frames, launches: Sequence[Launch]
) -> list[tuple[dict[str, Any], tuple[str, int]]]:
    every = [*pairs(found).to_dict("records"), *twins(found).to_dict("records")]
    return [
        ({str(k): v for k, v in pair.items()}, cell) for pair in every for cell in cells(launches)
    ]


# --- spreads --------------------------------------------------------------------------------------


def spreads(found: Frames, launches: Sequence[Launch], metric: str = HEADLINE) -> pd.DataFrame:
    """Spread of the treatment's launches / that of the baseline's, a row as in `ratios`.

    Columns: PAIR, workload, level, metric, point, low, high, confidence, method, n (the smaller
    count of launches), and the coefficient of variation of both with its own interval
    (`baseline_point`, `_low`, `_high`, `_n`, `treatment_...`; 0.03 is 3 %). The F interval takes
    arms as independent, and is Bonferroni's over the family like that of the means.
    """
    values, comparisons = _values(found, metric), family(found, launches)
    each = 1 - (1 - stats.CONFIDENCE) / comparisons
    rows = []
    for pair, cell in _comparisons(found, launches):
        here = at(values, cell)
        sides = {
            side: here.loc[here["arm"] == pair[side], "value"].astype(float)
            for side in ("treatment", "baseline")
        }
        said = spread_ratio(sides["treatment"], sides["baseline"], each)
        adjusted = f", Bonferroni over {comparisons} comparisons" if comparisons > 1 else ""
        rows.append(
            {
                **pair,
                **dict(zip(CELL, cell, strict=True)),
                "metric": metric,
                **as_columns(said),
                "point": said.point if np.isfinite(said.point) else np.nan,
                "confidence": stats.CONFIDENCE,
                "method": said.method + adjusted,
                **as_columns(spread(sides["baseline"]), (*LIMITS, "n"), "baseline_"),
                **as_columns(spread(sides["treatment"]), (*LIMITS, "n"), "treatment_"),
            }
        )
    of_sides = [f"{side}_{name}" for side in ("baseline", "treatment") for name in (*LIMITS, "n")]
    return pd.DataFrame(rows, columns=[*PAIR, *CELL, "metric", *INTERVAL, *of_sides])


def by_chance(n: int, confidence: float = stats.CONFIDENCE) -> float:
    """With n launches each, two arms of one spread give a ratio between 1/x and x: this x.

    From F(n - 1, n - 1), so for normal log values; NaN below two launches.
    """
    if n < 2:
        return np.nan
    return float(np.sqrt(distributions.f.ppf((1 + confidence) / 2, n - 1, n - 1)))


# --- starts and outputs ---------------------------------------------------------------------------


def starts(part: Part) -> pd.DataFrame:
    """A row per launch that became ready, in the order of arms and blocks.

    Columns: arm, setting, block, launch, started_utc, ready_s, and what the engine's compile
    cache held before the start: cache_files, cache_bytes (NaN where it was not recorded).
    """
    columns = ["arm", "setting", "block", "launch", "started_utc", "ready_s"]
    held = {str(one["launch"]): one.get("compile_cache") or {} for one in part.records}
    rows = part.found.launches.reindex(columns=columns)
    ready = rows[rows["ready_s"].notna()]
    order = {arm: place for place, arm in enumerate(arms(part.found)["arm"])}
    ready = ready.assign(
        **{
            f"cache_{what}": [held.get(name, {}).get(what, np.nan) for name in ready["launch"]]
            for what in ("files", "bytes")
        }
    )
    return ready.sort_values(["arm", "block"], key=lambda c: c.map(order) if c.name == "arm" else c)


def agreements(part: Part) -> list[Agreement]:
    """For each pair and A/A: do both give the same greedy tokens for the fixed prompts?"""
    every = pd.concat([pairs(part.found), twins(part.found)])
    outcomes = every[["treatment_outcome", "baseline_outcome"]]
    every = every[~outcomes.isin([NOT_SHOWN]).any(axis=1)]
    names = zip(every["treatment"], every["baseline"], strict=True)
    return [compare(part.outputs, treatment, baseline) for treatment, baseline in names]
