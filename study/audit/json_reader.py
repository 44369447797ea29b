"""Large JSON results, member by member: memory holds one member at a time, never the file.

A detailed result is a few numbers beside arrays of gigabytes. The file is mapped, the places of
its members are found by their brackets, and only what is asked for is decoded; pages that were
read are given back. Whatever is decoded is checked as JSON; what is skipped (generated texts) is
not.
"""

from __future__ import annotations

import json
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from study.audit.arithmetic import MOST
from study.errors import StudyError
from study.finite import Floats

Span = tuple[int, int]

BLOCK_BYTES = 16 << 20  # looked through before its pages are given back
PIECE_BYTES = 2 << 20  # decoded at once: some 30 times as much in Python objects

_BEGIN = re.compile(rb"(?:\xef\xbb\xbf)?\s*")  # after a byte order mark
_SPACE = re.compile(rb"\s*")
_SPACE_OR_COMMA = re.compile(rb"[\s,]*")
_KEY = re.compile(rb'\s*"((?:[^"\\]|\\.)*+)"\s*:\s*')
_PLAIN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[^\s,\[\]{}"]+')
_MARK = re.compile(rb'\[|\{|\]|\}|"(?:[^"\\]|\\.)*+"')
_OPENS = b"[{"
_ROWS_BEGIN = re.compile(rb"\[\s*\[")
_ROWS_END = re.compile(rb"\]\s*\]")
_ROWS_END_BYTES = 4096  # no pretty-printer puts more between two brackets


@dataclass(frozen=True)
class Members:
    """The members of one JSON object: where the value of each key lies in the file."""

    data: mmap.mmap
    spans: dict[str, Span]

    def __contains__(self, key: str) -> bool:
        return key in self.spans

    def value(self, key: str) -> Any:
        """The value of a member, None where there is none. NaN and Infinity, which Python writes
        and JSON forbids, are read."""
        return _decode(self._raw(key), key) if key in self.spans else None

    def written(self, key: str) -> str:
        """How the file writes the value of a member; '' where there is none."""
        return self._raw(key).decode("utf-8", "replace") if key in self.spans else ""

    def _raw(self, key: str) -> bytes:
        start, end = self.spans[key]
        raw = self.data[start:end]
        forget(self.data, start, end)
        return raw

    def floats(self, key: str) -> Floats:
        """A member that is an array of numbers; null is NaN. StudyError for anything else."""
        raw = self._raw(key)
        try:
            if b'"' in raw:  # numpy would take "0.1" for a number
                raise TypeError
            values = np.array(_decode(raw, key), dtype=np.float64)
        except OverflowError:
            raise _too_large(key) from None
        except (TypeError, ValueError):
            raise StudyError(f"{key} must be an array of numbers; it was not.") from None
        if values.ndim != 1:
            raise StudyError(f"{key} must be an array of numbers; it was not.")
        return _possible(values, key)

    def rows(self, key: str) -> Iterator[tuple[NDArray[np.int64], Floats]]:
        """A member that is an array of arrays of numbers, in pieces: (lengths of the rows, their
        numbers one after the other). Memory is bounded by the piece and the longest row."""
        start, end = self.spans[key]
        if self.data[start : start + 1] != b"[":
            raise StudyError(f"{key} must be an array of arrays of numbers; it was not.")
        at, end = start + 1, end - 1
        while at < end:
            last = self.data.find(b"]", min(at + PIECE_BYTES, end), end) + 1 or end
            piece = self.data[at:last].strip(b", \t\r\n")
            forget(self.data, at, last)
            at = last
            if not piece:
                continue
            rows = _decode(b"[" + piece + b"]", key)
            try:
                if b'"' in piece:
                    raise TypeError
                lengths = np.fromiter(map(len, rows), np.int64, len(rows))
                values = np.fromiter(chain.from_iterable(rows), np.float64, int(lengths.sum()))
            except OverflowError:
                raise _too_large(key) from None
            except (TypeError, ValueError):
                raise StudyError(f"{key} must be an array of arrays of numbers.") from None
            yield lengths, _possible(values, key)


def objects(path: Path) -> Iterator[Members]:
    """The objects of a file: a single one, one after the other (JSON lines), or in an array.

    StudyError for what is not JSON, a file cut short, or values other than objects.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise StudyError("the file is empty.")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    at = _after(_BEGIN, data, 0)
    listed = data[at : at + 1] == b"["
    at = _after(_SPACE_OR_COMMA if listed else _SPACE, data, at + listed)
    while at < len(data) and not (listed and data[at : at + 1] == b"]"):
        if data[at : at + 1] != b"{":
            raise StudyError(f"not JSON objects: {data[at : at + 20]!r} at byte {at:,}.")
        spans, at = _spans(data, at + 1)
        yield Members(data, spans)
        at = _after(_SPACE_OR_COMMA if listed else _SPACE, data, at)
    if listed:
        if at >= len(data):
            raise _cut_short(data)
        if _after(_SPACE, data, at + 1) < len(data):
            raise StudyError(f"a file may hold one array; this one goes on at byte {at + 1:,}.")


def _possible(values: Floats, key: str) -> Floats:
    if (np.abs(values) > MOST).any():
        raise _too_large(key)
    return values


def _too_large(key: str) -> StudyError:
    return StudyError(f"{key} must hold numbers of a measurement, up to {MOST:g}; it has others.")


def forget(data: mmap.mmap, start: int, end: int) -> None:
    """Give back the pages of a range that was read; they are read again when asked for."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    if end - first >= mmap.PAGESIZE and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED, first, end - first)


def _spans(data: mmap.mmap, at: int) -> tuple[dict[str, Span], int]:
    """The members of the object whose bracket opened just before `at`, and where it ends."""
    spans: dict[str, Span] = {}
    at = _after(_SPACE, data, at)
    while data[at : at + 1] != b"}":
        named = _KEY.match(data, at)
        if named is None:
            raise _cut_short(data) if at >= len(data) else _not_json(data, at)
        key = str(_decode(b'"' + named[1] + b'"', "a key"))
        start = named.end()
        end = _end(data, start, key)
        spans[key] = start, end
        at = _after(_SPACE, data, end)
        if data[at : at + 1] == b",":
            at = _after(_SPACE, data, at + 1)
        elif data[at : at + 1] != b"}":
            raise _cut_short(data) if at >= len(data) else _not_json(data, at)
    return spans, at + 1


def _end(data: mmap.mmap, at: int, key: str) -> int:
    """Where the value that begins at `at` ends."""
    if data[at : at + 1] in (b"[", b"{"):
        rows = key == "itls" and _ROWS_BEGIN.match(data, at)
        return _end_of_rows(data, at) if rows else _end_of_nest(data, at)
    plain = _PLAIN.match(data, at)
    if plain is None:
        raise _cut_short(data) if at >= len(data) else _not_json(data, at)
    return plain.end()


def _end_of_rows(data: mmap.mmap, at: int) -> int:
    """Where an array of arrays of numbers ends: at the first two brackets that close together."""
    while at < len(data):
        until = min(at + BLOCK_BYTES, len(data))
        found = _ROWS_END.search(data, at, until)
        if found:
            return found.end()
        forget(data, at, until)
        at = until if until == len(data) else until - _ROWS_END_BYTES
    raise _cut_short(data)


def _end_of_nest(data: mmap.mmap, at: int) -> int:
    """Where an array or object ends: its brackets are counted, those inside strings are not."""
    depth, kept = 0, at
    for mark in _MARK.finditer(data, at):
        first = data[mark.start()]
        if first in _OPENS:
            depth += 1
        elif first != ord('"'):
            depth -= 1
            if depth == 0:
                return mark.end()
        if mark.end() - kept > BLOCK_BYTES:
            forget(data, kept, mark.end())
            kept = mark.end()
    raise _cut_short(data)


def _decode(raw: bytes, key: str) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise StudyError(f"{key} is not JSON: {error}.") from None


def _after(pattern: re.Pattern[bytes], data: mmap.mmap, at: int) -> int:
    found = pattern.match(data, at)
    return found.end() if found else at


def _cut_short(data: mmap.mmap) -> StudyError:
    return StudyError(f"not whole: the file ends inside a value, after {len(data):,} bytes.")


def _not_json(data: mmap.mmap, at: int) -> StudyError:
    return StudyError(f"not JSON: {data[at : at + 20]!r} at byte {at:,}.")
