"""Errors that a user can act on: what must be, what was, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class StudyError(Exception):
    """Something the user can mend. The message says what must be, what was, and what to do."""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> StudyError:
    """The error for a name nobody knows: it lists the known ones and points at the nearest."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return StudyError(f"{kind} must be one of {', '.join(known)}; it was {name!r}.{hint}")


def problem(item: Mapping[str, Any]) -> str:
    """One entry of a pydantic ValidationError as text: where, what must be, what it was."""
    where = ".".join(str(part) for part in item["loc"])
    text = str(item["msg"]).removeprefix("Value error, ")
    return f"{where}: {text}, it was {item['input']!r}" if where else text
