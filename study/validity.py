"""The verdict of a window: valid, or void when a gate of scope *window* fails.

Each gate (study.gates) is a pure function that returns one `Judgement`: pass, fail or cannot
judge, with what was observed, the limit, and one sentence. "Cannot judge" voids nothing but stays
visible. A gate of scope *metric* withholds a number and lets the window stand.

A new window gate is one function and one line in `WINDOW_GATES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from study.gates.cache import cache_temperature
from study.gates.consistency import conservation, not_repeated, times
from study.gates.delivered import errors, lengths_delivered, treatment_in_force
from study.gates.evidence import WindowEvidence
from study.gates.headroom import GATE as CALIBRATED
from study.gates.headroom import Demand, beyond, client_headroom, demand
from study.gates.judgement import Judgement, Scope, Verdict
from study.gates.level import level_reached
from study.gates.machine import machine_quiet
from study.gates.percentiles import percentiles_supported
from study.gates.reconciled import reconciled
from study.gates.steady import steady_part_found
from study.gates.warm import warm

__all__ = [
    "PASSING",
    "WINDOW_GATES",
    "Judgement",
    "Scope",
    "Verdict",
    "WindowEvidence",
    "judge_window",
    "of_the_moment",
    "verdict",
]


def _demand(seen: WindowEvidence) -> Demand | None:
    """What the window asked of the client; None without a steady part."""
    if seen.steady is None:
        return None
    return demand(seen.requests, seen.chunks, seen.steady, seen.load)


WINDOW_GATES: tuple[Callable[[WindowEvidence], Judgement], ...] = (
    lambda seen: level_reached(
        seen.requests, seen.samples, seen.steady, seen.level, seen.before, seen.after
    ),
    lambda seen: steady_part_found(seen.chunks, seen.steady),
    lambda seen: client_headroom(_demand(seen), seen.calibration),
    warm,
    cache_temperature,
    lambda seen: lengths_delivered(seen.requests, seen.input_tokens, seen.output_tokens),
    reconciled,
    lambda seen: treatment_in_force(seen.asked, seen.in_force),
    lambda seen: errors(seen.requests),
    machine_quiet,
    conservation,
    times,
    lambda seen: not_repeated(seen.repeated),
)


# What made these fail may have passed a moment later. Who takes a core from the client, say, fails
# machine_quiet and, by a late loop, client_headroom. All others tell what the engine does.
PASSING = frozenset(
    {"level_reached", "steady_part", "client_headroom", "warm", "reconciled", "machine_quiet"}
)


def judge_window(evidence: WindowEvidence) -> tuple[Judgement, ...]:
    """What every gate says of this window: those of scope window, in the order of
    `WINDOW_GATES`, then one for each tail percentile."""
    of_window = (gate(evidence) for gate in WINDOW_GATES)
    return (*of_window, *percentiles_supported(evidence.requests, evidence.steady))


def verdict(judgements: Sequence[Judgement]) -> Literal["valid", "void"]:
    """Void when a gate of scope window fails; what cannot be judged voids nothing."""
    failed = any(said.scope == "window" and said.verdict == "fail" for said in judgements)
    return "void" if failed else "valid"


def of_the_moment(judgements: Sequence[Judgement], evidence: WindowEvidence | None = None) -> bool:
    """Whether a window is void for passing reasons only, so that it is worth another try.

    The choice looks at gates, never at the number: a window is not repeated for its result. What
    the calibration alone says against the `evidence` it would say of another try.
    """
    failed = {said.gate for said in judgements if (said.scope, said.verdict) == ("window", "fail")}
    if failed == {CALIBRATED} and evidence is not None:
        return not beyond(_demand(evidence), evidence.calibration)
    return bool(failed) and failed <= PASSING
