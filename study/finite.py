"""What is finite of an array: a value that is not known is NaN, and enters no statistic."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def only(values: Floats) -> Floats:
    """The finite ones."""
    finite: Floats = values[np.isfinite(values)]
    return finite


def mean(values: Floats) -> float:
    """Their mean; NaN of none."""
    finite = only(values)
    return float(finite.mean()) if finite.size else math.nan


def median(values: Floats) -> float:
    """Their median, a typical value and no tail: given from one value on; NaN of none."""
    finite = only(values)
    return float(np.median(finite)) if finite.size else math.nan
