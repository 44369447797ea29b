"""Files judged together: what one of them says of another.

A sweep may say again what its runs say, a file may be a copy, and levels in several files may be
one curve. Files that were read, each with the verdicts of its windows, in; the same out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from study.audit.claims import Judged, claims, curves_of
from study.audit.formats import EXACT, TABLE, UNKNOWN, Window, is_summary
from study.audit.gates import verdict
from study.audit.loads import refuted
from study.gates.consistency import not_repeated
from study.gates.judgement import Judgement


@dataclass(frozen=True)
class Read:
    """A file of the call: what was read, or the `refusal` that says why nothing was. `parts` has
    its windows with their reasons, `claims` is what is said of them together. `listed`: the file is
    one list of results."""

    path: Path
    format: str = UNKNOWN
    refusal: str = ""
    parts: tuple[tuple[Judged, tuple[Judgement, ...]], ...] = ()
    claims: tuple[Judgement, ...] = ()
    listed: bool = False


@dataclass(frozen=True)
class Curve:
    """Windows of several files that differ in nothing but their level, and what they show."""

    name: str
    windows: tuple[Judged, ...]
    claims: tuple[Judgement, ...]


def without_copies(files: Sequence[Read]) -> tuple[list[Read], list[Path]]:
    """The files, and apart from them those in which a sweep says again what its runs say: a list
    of results that all are in other files of its folder, and the table of all runs below its."""
    runs = [file for file in files if file.parts and not file.listed]
    marks: dict[Path, set[str]] = {}
    for file in runs:
        found = marks.setdefault(file.path.parent, set())
        found |= {_fingerprint(judged.window) for judged, _ in file.parts} - {""}
    copies = [file.path for file in files if _is_copy(file, marks)]
    return [file for file in files if file.path not in copies], copies


def _is_copy(file: Read, marks: Mapping[Path, set[str]]) -> bool:
    folder = file.path.parent
    if file.refusal:
        below = any(found and one.is_relative_to(folder) for one, found in marks.items())
        return file.path.suffix == ".csv" and below and is_summary(file.path)
    mine = {_fingerprint(judged.window) for judged, _ in file.parts}
    return file.listed and mine <= marks.get(folder, set())


def judge_together(files: Sequence[Read], wholes: Mapping[Path, Sequence[Path]]) -> list[Read]:
    """The same files, with the results void that are there twice, or that show the load of a much
    lower level of their curve; and with the claims of each. `wholes`: see `curves`."""
    files = _refuse_repeated(files)
    several = [_own_curve(file) for file in files]
    several += [
        windows
        for folder, inside in wholes.items()
        for windows in _joined(folder, inside, files).values()
    ]
    files = _refuse_lower_loads(files, several)
    return [replace(file, claims=claims(_own_curve(file))) for file in files]


def _own_curve(file: Read) -> list[Judged]:
    """The windows of one file, where they are two levels or more of one curve."""
    windows = [judged for judged, _ in file.parts]
    one_curve = len(curves_of(("", judged) for judged in windows)) == 1
    levels = {one.window.level for one in windows if not math.isnan(one.window.level)}
    return windows if one_curve and len(levels) > 1 else []


def _refuse_repeated(files: Sequence[Read]) -> list[Read]:
    """A result that another file, or line, holds as well is void; the first stays, of those with
    the times of each request where there are any, for only they can be valid."""
    named = [(_name(file, judged), judged) for file in files for judged, _ in file.parts]
    kept: dict[str, str] = {}
    for name, judged in sorted(named, key=lambda one: not one[1].placed):
        kept.setdefault(_fingerprint(judged.window), name)
    checked = []
    for file in files:
        parts = []
        for judged, reasons in file.parts:
            if mark := _fingerprint(judged.window):
                name = _name(file, judged)
                reasons = (*reasons, not_repeated("" if kept[mark] == name else kept[mark]))
                judged = replace(judged, verdict=verdict(reasons))
            parts.append((judged, reasons))
        checked.append(replace(file, parts=tuple(parts)))
    return checked


def _refuse_lower_loads(files: Sequence[Read], several: Sequence[Sequence[Judged]]) -> list[Read]:
    """A level is void that shows the load of a much lower one of its curve, if nothing in its own
    file says that it was reached."""
    said = {
        id(window): judgement
        for curve in several
        if curve
        for window, judgement in refuted([one.window for one in curve], curve[0].fit)
    }
    return [
        replace(file, parts=tuple(_with(said.get(id(one[0].window)), *one) for one in file.parts))
        for file in files
    ]


def _with(
    refutation: Judgement | None, judged: Judged, reasons: tuple[Judgement, ...]
) -> tuple[Judged, tuple[Judgement, ...]]:
    if refutation is None:
        return judged, reasons
    known = tuple(
        refutation if (one.gate, one.verdict) == (refutation.gate, "cannot judge") else one
        for one in reasons
    )
    return replace(judged, verdict=verdict(known)), known


def _name(file: Read, judged: Judged) -> str:
    return f"{file.path} ({judged.name})" if judged.name else str(file.path)


def _fingerprint(window: Window) -> str:
    """What no two runs share: a duration to the last digit, with counts and times beside it. Empty
    where there is no such duration."""
    if not (window.rounding == EXACT and window.duration_s > 0):
        return ""
    times_s = sorted((metric, *sorted(times.items())) for metric, times in window.times_s.items())
    return repr((window.duration_s, window.completed, window.output_tokens, times_s))


def curves(folder: Path, inside: Sequence[Path], files: Sequence[Read]) -> tuple[Curve, ...]:
    """Results below a folder that differ in nothing but their level, where there are several.
    `inside`: the paths of the files among which they are looked for."""
    found = _joined(folder, inside, files)
    several = ((name, tuple(windows), claims(windows)) for name, windows in found.items())
    return tuple(Curve(*one) for one in several if one[2])


def _joined(folder: Path, inside: Sequence[Path], files: Sequence[Read]) -> dict[str, list[Judged]]:
    top, wanted = folder.absolute(), set(inside)
    return curves_of(
        (str(file.path.absolute().relative_to(top).with_suffix("")), judged)
        for file in files
        if file.path in wanted
        for judged in joinable(file)
    )


def joinable(file: Read) -> list[Judged]:
    """The windows that make a curve only with those of other files."""
    alone = file.refusal or file.format == TABLE or _own_curve(file)
    return [] if alone else [judged for judged, _ in file.parts]
