"""Numbers as others print them: a value, and the limits that its rounding leaves.

The tolerance of every comparison with a printed number is half a unit of its last digit, carried
through the formula that it enters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

from study.errors import StudyError


@dataclass(frozen=True)
class Number:
    """What a printed number says: `value`, and that the truth lies in [low, high]."""

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise StudyError(f"a number must lie within its limits; {self} does not")

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high

    def meets(self, other: Number) -> bool:
        """Whether the two can be one and the same number."""
        return self.low <= other.high and other.low <= self.high


def exact(value: float) -> Number:
    """A number that was counted or defined, not rounded."""
    return Number(value, value, value)


def printed(text: str, decimals: int | None = None) -> Number:
    """A number as it stands in print, half a unit of its last digit either way.

    decimals: as printed, where the text at hand has dropped trailing zeros.
    """
    try:
        value = float(text)
    except ValueError as error:
        raise StudyError(f"a printed number must be digits, as in 0.82; it was {text!r}") from error
    if decimals is None:
        decimals = len(text.partition(".")[2])
    half = 0.5 * 10.0**-decimals
    return Number(value, value - half, value + half)


def stated(text: str, decimals: int | None = None) -> tuple[Number, ...]:
    """What a claim states: '0.82' is one number, '3 to 5' one span, '5 / 8' two numbers."""
    if not text.strip():
        return ()
    return tuple(_span(part, decimals) for part in text.split("/"))


def ends(text: str, decimals: int | None = None) -> tuple[Number, Number]:
    """The two ends of a span, '100 to 200'; of a single number, it twice."""
    found = [printed(end.strip(), decimals) for end in text.split(" to ")]
    return found[0], found[-1]


def _span(text: str, decimals: int | None) -> Number:
    first, last = ends(text, decimals)
    return Number((first.value + last.value) / 2, first.low, last.high)


def through(formula: Callable[..., float], *numbers: Number) -> Number:
    """A formula of printed numbers, with the limits that their rounding leaves its result.

    The formula must rise or fall with each number all the way between its limits, so that its
    extremes lie at corners.
    """
    corners = itertools.product(*((one.low, one.high) for one in numbers))
    reached = [formula(*corner) for corner in corners]
    middle = formula(*(one.value for one in numbers))
    return Number(middle, min(*reached, middle), max(*reached, middle))
