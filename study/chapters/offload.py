"""The chapter on offload."""

from __future__ import annotations

from study.chapter import Part, Shown
from study.sentences import Values


def summary(part: Part, values: Values) -> list[Shown]:
    """The headline."""
    del part, values
    return []


def results(part: Part, values: Values) -> list[Shown]:
    """Figures and tables."""
    del part, values
    return []
