"""What a derivation finds, and the class that follows from it: by comparison, never typed.

A claim states a number; a derivation computes what that number must equal, or what bounds it.
The tolerance is the rounding of the printed digits (see study.claims.printed).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from study.claims.printed import Number
from study.claims.published import Claim, Published
from study.errors import StudyError

Class = Literal[
    "confirmed",
    "confirmed within rounding",
    "contradicted by the source's own numbers",
    "contradicted by another source",
    "physically impossible",
    "not derivable",
]
CONFIRMED: Class = "confirmed"
ROUNDING: Class = "confirmed within rounding"
OWN: Class = "contradicted by the source's own numbers"
# Not the source's own: a model's card, a data sheet or the engine's source is neither the
# source's own number nor a law of nature.
OTHER: Class = "contradicted by another source"
PHYSICS: Class = "physically impossible"
UNKNOWN: Class = "not derivable"
CLASSES: tuple[Class, ...] = (CONFIRMED, ROUNDING, OWN, OTHER, PHYSICS, UNKNOWN)
# Of several comparisons the gravest counts.
GRAVITY: tuple[Class, ...] = (CONFIRMED, ROUNDING, UNKNOWN, OTHER, OWN, PHYSICS)

Relation = Literal["equals", "at most", "at least", "alone"]


@dataclass(frozen=True)
class Evidence:
    """What was computed beside a claim.

    relation: the stated number `equals` the computed one, or may be `at most` or `at least` so
    much; `alone`: what is stated cannot be compared. refutes: the class of a claim that breaks
    the relation. missing: what would decide a claim that a bound does not refute. stated: where
    the claim says its number in words. Several computed numbers go with several stated ones, or
    each with the only one.
    """

    computed: tuple[Number, ...]
    unit: str
    why: str
    relation: Relation = "equals"
    refutes: Class = OWN
    missing: str = ""
    stated: tuple[Number, ...] = ()

    def __post_init__(self) -> None:
        if self.relation != "equals" and not self.missing:
            raise StudyError(f"a bound confirms nothing, so what is missing must be said: {self}")


Derivation = Callable[[Claim, Published], Evidence]


def classify(stated: tuple[Number, ...], evidence: Evidence) -> Class:
    """The class that follows from comparing what is stated with what was computed."""
    stated = evidence.stated or stated
    if evidence.relation == "alone":
        return UNKNOWN
    if not stated or not evidence.computed or len(stated) not in (1, len(evidence.computed)):
        raise StudyError(f"nothing to compare: stated {stated}, computed {evidence.computed}")
    several = stated if len(stated) > 1 else stated * len(evidence.computed)
    found = [_one(*pair, evidence) for pair in zip(several, evidence.computed, strict=True)]
    return max(found, key=GRAVITY.index)


def _one(stated: Number, computed: Number, evidence: Evidence) -> Class:
    if evidence.relation == "equals":
        if stated.holds(computed.value):
            return CONFIRMED
        return ROUNDING if stated.meets(computed) else evidence.refutes
    above, below = stated.low > computed.high, stated.high < computed.low
    broken = above if evidence.relation == "at most" else below
    return evidence.refutes if broken else UNKNOWN
