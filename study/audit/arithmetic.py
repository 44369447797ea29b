"""Numbers of others: divided without fear of a zero, and written."""

from __future__ import annotations

import math
import re

MOST = 1e15  # in size: more than any count, time or rate of a measurement


def possible(value: float) -> bool:
    """Whether a number may be one of a measurement; NaN is one that is not known."""
    return not abs(value) > MOST


def ratio(above: float, below: float) -> float:
    """The quotient; NaN where there is none, as for tokens per request where all failed."""
    return above / below if below else math.nan


def number(value: float) -> str:
    """Four digits, with thousands separated; whole numbers whole; NaN is 'unknown'."""
    if math.isnan(value):
        return "unknown"
    if 1000 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def printable(text: str) -> str:
    """The text with what UTF-8 cannot hold (bytes in the name of a file) written out: \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def half_unit(written: str) -> float:
    """Half a unit of the last digit of a number as it was written, relative to it: 0.005 / 0.42
    for '0.42'. 0 for what has no such thing: the value 0, and what is no number."""
    digits = float(re.sub(r"\D", "", written.lower().partition("e")[0]) or 0)
    return 0.5 / digits if digits else 0.0
