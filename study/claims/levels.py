"""The levels of the cookbook's tables: how many requests were in flight, and what that leaves of
saturation.

By inference the tables are those of Georgiou's paper (arXiv 2603.10031), which are not public: they
have the same hardware, models and headline peaks. What follows is about these tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pandas as pd

from study.audit import published as cookbook
from study.audit.claims import fit_tokens
from study.audit.formats import Window
from study.audit.level import Fit, bound_of, level_reached
from study.audit.loads import NOISE, loads, most_held, refuted, same_load
from study.claims.evidence import Evidence
from study.claims.printed import Number, ends
from study.claims.published import Claim, Published
from study.gates.judgement import Judgement
from study.gates.level import LEVEL_TOLERANCE

LLAMA, QWEN, KIMI, DEEPSEEK = "Llama-3.1-405B", "Qwen3-VL-235B", "Kimi-K2.5", "DeepSeek-V3.2"
SETTLED_BY = "levels that were reached, shown by the requests running and waiting in the engine"
INFERRED = "(The tables are the cookbook's; that they are the paper's is inferred.)"


@dataclass(frozen=True)
class Curve:
    """A cookbook table as the audit reads it, with its fitted tokens per request."""

    name: str
    windows: tuple[Window, ...]
    fit: Fit | None

    @property
    def in_flight(self) -> dict[float, float]:
        """By nominal level, an upper bound of the mean number of requests in flight: the level
        itself, the requests made, rate x p99, and what the lowest level of the same load allows."""
        return {
            window.level: min(most_held(window, self.fit), same_load(load[0], self.fit))
            for load in self.distinct
            for window in load
        }

    @property
    def judged(self) -> dict[float, Judgement]:
        """By nominal level, what the gate `level_reached` says of it and of its curve."""
        alone = {window.level: level_reached(window, self.fit) for window in self.windows}
        lower = {window.level: said for window, said in refuted(self.windows, self.fit)}
        return {
            level: lower.get(level, said) if said.verdict == "cannot judge" else said
            for level, said in alone.items()
        }

    @property
    def distinct(self) -> list[list[Window]]:
        """The levels, those together that are one and the same load."""
        return loads(self.windows)


@cache
def curves() -> dict[str, Curve]:
    """Every per-level table of the cookbook, by name."""
    found = {}
    for name, table in cookbook.tables().items():
        windows = cookbook.windows(table)
        found[name] = Curve(name, windows, fit_tokens(windows))
    return found


def most_in_flight(names: Sequence[str], at_least: float) -> Number:
    """The highest bound on requests in flight at nominal levels from `at_least` on."""
    known = [
        bound
        for name in names
        for level, bound in curves()[name].in_flight.items()
        if level >= at_least
    ]
    return Number(max(known), min(known), max(known))


def as_if_alike(names: Sequence[str], at_least: float) -> Number:
    """The highest mean in flight from that level on, if the p99 was the same share of the mean
    as on the level on which the lengths were fitted."""
    known = [
        bound.mean
        for curve in (curves()[name] for name in names)
        for window in curve.windows
        if window.level >= at_least and curve.fit
        if (bound := bound_of(window, replace(curve.fit, spread=1.0)))
    ]
    return Number(max(known), min(known), max(known))


def last_rise(names: Sequence[str]) -> float:
    """Least rise of throughput to the last load that differs from the one before."""
    rises = []
    for name in names:
        *_, before, last = curves()[name].distinct
        rises.append(last[0].rate("total_tok_s") / before[0].rate("total_tok_s") - 1)
    return min(rises)


def frame() -> pd.DataFrame:
    """A row per table, model and level with a bound: table, model, level, in_flight, verdict.

    in_flight: at most so many on average; verdict: whether the level was reached.
    """
    rows = []
    for name, curve in curves().items():
        table, model, *_ = [*name.split(", "), ""]
        judged = curve.judged
        for level, bound in curve.in_flight.items():
            rows.append((table, model, int(level), bound, judged[level].verdict))
    found = pd.DataFrame(rows, columns=["table", "model", "level", "in_flight", "verdict"])
    return found.dropna(subset="in_flight").reset_index(drop=True)


def nominal(level: float) -> tuple[Number, ...]:
    """A level as the gate `level_reached` takes it."""
    slack = LEVEL_TOLERANCE * level
    return (Number(level, level - slack, level + slack),)


SHORT = tuple(f"stress saturation, {model}" for model in (LLAMA, QWEN))
REPEATED = tuple(f"multi-run, {model}" for model in (LLAMA, QWEN, KIMI))


def saturation_short(claim: Claim, _: Published) -> Evidence:
    """What was in flight at the level and beyond, in the tables that show the plateau."""
    level = float(claim.stated)
    most, alike = most_in_flight(SHORT, level), as_if_alike(SHORT, level)
    return _at_most(
        most,
        f"Nominal 500, 750 and 1,000 show one load three times, the same rate and latency, and a "
        f"limit of {most.low:.0f} holds no more: nothing shows more in flight. If the p99 has one "
        f"share of the mean at all levels, that load is {alike.low:.0f} to {alike.high:.0f}. Up to "
        f"it throughput still rises by {last_rise(SHORT):.0%}. {INFERRED}",
        stated=nominal(level),
    )


def saturation_long(claim: Claim, _: Published) -> Evidence:
    """The same from the lower end on, with 100 requests a level."""
    most = most_in_flight(REPEATED, ends(claim.stated)[0].value)
    return _at_most(
        most,
        f"100 requests were made a level, so 100 to 1,000 are one load of at most "
        f"{most.high:.0f}; from 50 up to it throughput still rises by {last_rise(REPEATED):.0%} "
        f"or more. {INFERRED}",
    )


def _at_most(most: Number, why: str, stated: tuple[Number, ...] = ()) -> Evidence:
    """A bound on what was in flight, against the levels that are stated."""
    return Evidence(
        computed=(most,),
        unit="requests in flight at most",
        why=why,
        relation="at most",
        missing=SETTLED_BY,
        stated=stated,
    )


def thousand_users(claim: Claim, _: Published) -> Evidence:
    """What was in flight at the nominal level of so many users."""
    level = float(claim.stated)
    most = most_in_flight((*SHORT, *REPEATED), level)
    return _at_most(
        most,
        f"Nominal 1,000 shows the rate and latency of nominal 500, and so its load: success is "
        f"shown for {most.high:.0f} in flight on average at most, {NOISE:.0%} allowed for in each "
        f"({most.low:.0f} with 100 requests a level). {INFERRED}",
        stated=nominal(level),
    )
