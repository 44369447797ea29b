"""Estimates that many sentences, tables and figures ask for, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import ParamSpec

import pandas as pd

Asked = ParamSpec("Asked")
KEPT = 32  # a report asks the same of a dozen


def once(estimate: Callable[Asked, pd.DataFrame]) -> Callable[Asked, pd.DataFrame]:
    """The same estimate, remembered for the same arguments; who asks gets a frame of his own.

    Arguments must be hashable, and must not change: what was read from disk (`Frames`, `Part`) is
    told apart by identity.
    """
    known = lru_cache(KEPT)(estimate)

    @wraps(estimate)
    def remembered(*args: Asked.args, **more: Asked.kwargs) -> pd.DataFrame:
        return known(*args, **more).copy()  # type: ignore[arg-type]

    return remembered
