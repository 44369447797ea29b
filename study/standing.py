"""What has become of each launch, and whether there is still something to do for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from study import budget
from study.plan import Launch
from study.store import Attempt, Store, best_of, enough

NOT_MEASURED = "not measured"
NOT_APPLICABLE = "not applicable"
FINAL = (
    "rejected",
    "overridden",
)  # the engine's answer to an arm; another block would not ask anew


@dataclass(frozen=True)
class Standing:
    """A launch and what is known of it. `attempt` is the try that counts, if any ended."""

    launch: Launch
    outcome: str
    reason: str
    attempt: Attempt | None
    attempts: int
    to_do: bool


def standings(launches: Sequence[Launch], store: Store) -> tuple[Standing, ...]:
    """The standing of every launch, in the order given.

    Where the engine refused an arm, or ran something else, in one block, the other blocks of that
    arm are settled: the same question would get the same answer.
    """
    tries: dict[str, list[Attempt]] = {}
    for attempt in store.attempts():
        tries.setdefault(attempt.launch, []).append(attempt)
    own = [_own(launch, tries.get(launch.id, [])) for launch in launches]
    answers: dict[tuple[str, str], Standing] = {}
    for one in own:
        if one.outcome in FINAL:
            answers.setdefault((one.launch.experiment, one.launch.arm.name), one)
    return tuple(_settled(one, answers) for one in own)


def missing(launches: Sequence[Launch], store: Store) -> tuple[Launch, ...]:
    """The launches for which there is still something to do."""
    return tuple(one.launch for one in standings(launches, store) if one.to_do)


def _own(launch: Launch, tries: Sequence[Attempt]) -> Standing:
    if launch.not_applicable:
        return Standing(launch, NOT_APPLICABLE, launch.not_applicable, None, 0, to_do=False)
    best = best_of(tries)
    if best is None or best.record is None or best.outcome is None:
        return Standing(launch, NOT_MEASURED, _why_not(tries), None, len(tries), to_do=True)
    reason = str(best.record["reason"])
    return Standing(launch, best.outcome, reason, best, len(tries), not enough(tries))


def _settled(one: Standing, answers: dict[tuple[str, str], Standing]) -> Standing:
    answer = answers.get((one.launch.experiment, one.launch.arm.name))
    if not one.to_do or answer is None:
        return one
    block = answer.launch.block + 1
    reason = f"{answer.reason} (asked in block {block}; not asked again)"
    return Standing(one.launch, answer.outcome, reason, None, one.attempts, to_do=False)


def _why_not(tries: Sequence[Attempt]) -> str:
    if not tries:
        return "not measured within the budget" if budget.DEADLINE in os.environ else ""
    if any(one.record is None for one in tries):
        return "a record on disk cannot be read"
    return "interrupted; its windows are kept but not counted"
