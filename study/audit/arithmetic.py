"""Numbers of others: divided without fear of a zero, and written."""

from __future__ import annotations

import math


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
