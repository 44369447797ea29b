"""`study audit`: may these results be believed? A verdict for every file, with its reasons.

Reads what others have: results of `vllm bench serve` (with and without --save-detailed, one or
several to a file), the same with its summaries in seconds, and tables with one row a level. A
file is void when it contradicts itself or its level, valid when its detail shows that it does
not, undecided otherwise: a summary can refute a level, but not confirm it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from study.audit.claims import Judged, claims, curve_name, fit_tokens, load_curve
from study.audit.formats import COLUMNS, EXACT, TABLE, UNKNOWN, Window, read
from study.audit.gates import NOT_IN_FILES, FileVerdict, judge, together, verdict
from study.errors import StudyError
from study.gates.consistency import not_repeated
from study.gates.judgement import Judgement

SUFFIXES = (".json", ".jsonl", ".csv")  # what a folder is searched for
FOLDER = "folder"

_LEGEND = "\n".join(f"  {name:<20}{text}" for name, text in COLUMNS.items())
EPILOG = f"""\
a table is CSV with one row a level, one arm and workload a file, blank where not stated:
{_LEGEND}

exit status: 0 everything could be read, 1 a file could not, 2 a wrong call
"""


@dataclass(frozen=True)
class Audited:
    """What is said of one file, or of a folder as a whole; the fields are those of `--json`."""

    file: str
    format: str
    verdict: FileVerdict
    reasons: tuple[Judgement, ...]


@dataclass(frozen=True)
class Read:
    """A file of the call: what was read, or the `refusal` that says why nothing was. `parts` has
    its windows with their reasons, `claims` is what is said of them together."""

    path: Path
    format: str = UNKNOWN
    refusal: str = ""
    parts: tuple[tuple[Judged, tuple[Judgement, ...]], ...] = ()
    claims: tuple[Judgement, ...] = ()


@dataclass(frozen=True)
class Curve:
    """Windows of several files that differ in nothing but their level, and what they show."""

    name: str
    windows: tuple[Judged, ...]
    claims: tuple[Judgement, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `study audit`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.epilog = EPILOG
    parser.add_argument("path", nargs="+", type=Path, metavar="PATH", help="a file or a folder")
    parser.add_argument("--json", action="store_true", help="a list of verdicts and reasons")


def main(options: argparse.Namespace) -> int:
    """Audit and print; 0 when everything could be read, else 1."""
    files = judge_together([audit_file(path) for path in found_files(options.path)])
    sets = {folder: curves(folder, files) for folder in options.path if folder.is_dir()}
    loose = [file for file in files if file.path in options.path]
    if len(loose) > 1:
        common = Path(os.path.commonpath([file.path.absolute().parent for file in loose]))
        sets[common] = curves(common, loose)
    sets = {folder: found for folder, found in sets.items() if found}
    if options.json:
        wholes = [audited_folder(folder, found) for folder, found in sets.items()]
        sys.stdout.write(as_json([*map(audited, files), *wholes]).decode() + "\n")
    else:
        print("\n".join(report(files, sets)))
    for file in files:
        if file.refusal:
            print(f"study audit: {file.path}: {file.refusal}", file=sys.stderr)
    return 1 if any(file.refusal for file in files) else 0


def found_files(paths: Sequence[Path]) -> list[Path]:
    """The files of a call, each once: named ones whatever their suffix, and those that a folder
    holds at any depth. A folder without any stands for itself, to be refused."""
    found: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(_inside(path)) if path.is_dir() else [path]
        for one in inside or [path]:
            found.setdefault(one.absolute(), one)
    return list(found.values())


def _inside(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not hidden:
            yield path


def audit_file(path: Path) -> Read:
    """Read and judge one file; a refusal in its stead where it cannot be read."""
    if path.is_dir():
        return Read(path, refusal=f"no file with {', '.join(SUFFIXES)} in this folder.")
    try:
        source = read(path)
    except StudyError as error:
        return Read(path, refusal=str(error))
    fit = fit_tokens(source.windows) if source.format == TABLE else None
    parts = []
    for window in source.windows:
        reasons = judge(window, fit)
        # The arrays have done their work: a folder may hold more of them than memory does.
        slim = replace(window, detail=None)
        parts.append((Judged(window.name, slim, verdict(reasons), fit), reasons))
    return Read(path, source.format, parts=tuple(parts))


def judge_together(files: Sequence[Read]) -> list[Read]:
    """The same files, with the results that are there twice void, and the claims of each."""
    return [replace(file, claims=_claims(file)) for file in _refuse_repeated(files)]


def _claims(file: Read) -> tuple[Judgement, ...]:
    """What is said of several windows in one file, where they are levels of one curve."""
    windows = [judged for judged, _ in file.parts]
    one_curve = len({curve_name("", judged.window) for judged in windows}) == 1
    return claims(windows) if one_curve else ()


def _refuse_repeated(files: Sequence[Read]) -> list[Read]:
    """A result that an earlier file, or an earlier line, already holds is void."""
    first: dict[str, str] = {}
    checked = []
    for file in files:
        parts = []
        for judged, reasons in file.parts:
            if judged.window.rounding == EXACT and judged.window.duration_s > 0:
                name = f"{file.path}{f' ({judged.name})' if judged.name else ''}"
                earlier = first.setdefault(_fingerprint(judged.window), name)
                said = not_repeated(earlier if earlier != name else "")
                reasons = (*reasons, said)
                judged = replace(judged, verdict=verdict(reasons))
            parts.append((judged, reasons))
        checked.append(replace(file, parts=tuple(parts)))
    return checked


def _fingerprint(window: Window) -> str:
    """What no two runs share: a duration to the last digit, with counts and times beside it."""
    times_s = sorted((metric, *sorted(times.items())) for metric, times in window.times_s.items())
    return repr((window.duration_s, window.completed, window.output_tokens, times_s))


def curves(folder: Path, files: Sequence[Read]) -> tuple[Curve, ...]:
    """Results below a folder that differ in nothing but their level, where there are several."""
    found: dict[str, list[Judged]] = {}
    for file in files:
        path, top = file.path.absolute(), folder.absolute()
        alone = file.refusal or file.format == TABLE or file.claims
        if path.is_relative_to(top) and not alone:
            stem = str(path.relative_to(top).with_suffix(""))
            for judged, _ in file.parts:
                found.setdefault(curve_name(stem, judged.window), []).append(judged)
    several = ((name, tuple(windows), claims(windows)) for name, windows in found.items())
    return tuple(Curve(*one) for one in several if one[2])


# ------------------------------------------------------------------------------------- output


def audited(file: Read) -> Audited:
    """One file as `--json` has it. A reason begins with its window where there are several."""
    if file.refusal:
        unread = Judgement("readable", "window", "cannot judge", "", "", file.refusal)
        return Audited(str(file.path), UNKNOWN, "undecided", (unread,))
    reasons = [
        replace(said, text=f"{judged.name}: {said.text}") if judged.name else said
        for judged, said_of in file.parts
        for said in said_of
    ]
    whole = together([judged.verdict for judged, _ in file.parts])
    return Audited(str(file.path), file.format, whole, (*reasons, *file.claims))


def audited_folder(folder: Path, found: Sequence[Curve]) -> Audited:
    """A folder as `--json` has it: the worst verdict of its curves' windows, and the claims."""
    reasons = [
        replace(said, text=f"{curve.name}: {said.text}") for curve in found for said in curve.claims
    ]
    whole = together([one.verdict for curve in found for one in curve.windows])
    return Audited(str(folder), FOLDER, whole, tuple(reasons))


def as_json(everything: Sequence[Audited]) -> bytes:
    """A list of {file, format, verdict, reasons}; unknown numbers are null."""
    plain: list[dict[str, Any]] = [asdict(one) for one in everything]
    return orjson.dumps(plain, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)


def report(files: Sequence[Read], sets: Mapping[Path, Sequence[Curve]]) -> list[str]:
    """The text for a terminal: every file, every folder's curves, and the count."""
    lines = [line for file in files for line in _of_file(file)]
    for folder, found in sets.items():
        whole = audited_folder(folder, found)
        lines += ["", f"{whole.verdict:<10} {folder}  [{FOLDER}: its levels together]"]
        for curve in found:
            lines += [f"  {curve.name}", *_together(curve.claims, curve.windows)]
    return [*lines, "", *_count(files)]


def _together(said: Sequence[Judgement], curve: Sequence[Judged]) -> list[str]:
    return [*_reasons(said, every=True), *(f"    {line}" for line in load_curve(curve))]


def _of_file(file: Read) -> list[str]:
    whole = audited(file)
    if file.refusal:
        return [f"unread     {file.path}", f"  {file.refusal}"]
    lines = [f"{whole.verdict:<10} {whole.file}  [{whole.format}]"]
    everywhere = _everywhere(file)
    once = {said.text for said in everywhere}
    lines += _reasons(everywhere, every=False)
    for judged, reasons in file.parts:
        rest = [said for said in reasons if said.text not in once]
        if rest:
            lines += [f"  {judged.verdict:<10} {judged.name}", *_reasons(rest, every=False)]
    if file.claims:
        curve = [judged for judged, _ in file.parts]
        lines += ["  its levels together", *_together(file.claims, curve)]
    return lines


def _everywhere(file: Read) -> list[Judgement]:
    """Reasons that are the same for every window of a file: said once."""
    first, *others = [reasons for _, reasons in file.parts]
    texts = [{said.text for said in reasons} for reasons in others]
    return [said for said in first if all(said.text in text for text in texts)]


def _reasons(reasons: Sequence[Judgement], every: bool) -> list[str]:
    """One line a reason; gates that passed in one line, unless `every` is wanted."""
    passed = [said.gate for said in reasons if said.verdict == "pass" and not every]
    lines = [
        f"    {said.verdict:<13}{said.gate:<21}{said.text}"
        for said in reasons
        if every or said.verdict != "pass"
    ]
    return [*lines, f"    {'pass':<13}{', '.join(passed)}"] if passed else lines


def _count(files: Sequence[Read]) -> list[str]:
    read_ones = [audited(file).verdict for file in files if not file.refusal]
    count = Counter(read_ones)
    said = ", ".join(f"{count[name]} {name}" for name in ("valid", "void", "undecided"))
    unread = len(files) - len(read_ones)
    more = f", {unread} could not be read" if unread else ""
    unjudged = ", ".join(NOT_IN_FILES)
    what = "1 file" if len(files) == 1 else f"{len(files)} files"
    return [f"{what}: {said}{more}.", f"In no such file, so not judged: {unjudged}."]


if __name__ == "__main__":
    command = argparse.ArgumentParser(prog="python -m study.audit")
    add_arguments(command)
    sys.exit(main(command.parse_args()))
