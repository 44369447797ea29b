"""`study audit`: may these results be believed? A verdict for every file, with its reasons.

Reads what others have: results of `vllm bench serve` (with and without --save-detailed, one or
several to a file), the same with its summaries in seconds, and tables with one row a level. A
file is void when it contradicts itself or its level, valid when its detail shows that it does
not, undecided otherwise: a summary can refute a level, but not confirm it.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from study.audit.arithmetic import printable
from study.audit.claims import SAME_LENGTH, Judged, fit_tokens, load_curve
from study.audit.formats import COLUMNS, TABLE, UNKNOWN, read
from study.audit.gates import NOT_IN_FILES, FileVerdict, judge, together, verdict
from study.audit.joint import Curve, Read, curves, joinable, judge_together, without_copies
from study.errors import StudyError
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `study audit`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = __doc__
    parser.epilog = EPILOG
    parser.add_argument("path", nargs="+", type=Path, metavar="PATH", help="a file or a folder")
    parser.add_argument("--json", action="store_true", help="a list of verdicts and reasons")


def main(options: argparse.Namespace) -> int:
    """Audit and print; 0 when everything could be read, else 1."""
    files, copies = without_copies([audit_file(path) for path in found_files(options.path)])
    wholes = wholes_of(options.path, [file.path for file in files])
    files = judge_together(files, wholes)
    sets = {folder: curves(folder, inside, files) for folder, inside in wholes.items()}
    sets = {folder: found for folder, found in sets.items() if found}
    if options.json:
        of_folders = [audited_folder(folder, found) for folder, found in sets.items()]
        _write(as_json([*map(audited, files), *of_folders]).decode())
    else:
        _write(printable("\n".join(report(files, sets))))
    for path in copies:
        print(f"study audit: {path}: a copy, counted once", file=sys.stderr)
    for file in files:
        if file.refusal:
            print(f"study audit: {file.path}: {file.refusal}", file=sys.stderr)
    return 1 if any(file.refusal for file in files) else 0


def _write(text: str) -> None:
    """Print it; a reader who leaves early (`| head`) has what they wanted."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is still unwritten must go somewhere, or Python complains when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    """Whether it is a folder, or a file. What cannot be examined is neither; `read` says why."""
    try:
        return kind(path)
    except OSError:
        return False


def found_files(paths: Sequence[Path]) -> list[Path]:
    """The files of a call, each once: named ones whatever their suffix, and those that a folder
    holds at any depth. A folder without any stands for itself, to be refused. A link is the file
    that it leads to, under whose own name it is found first."""
    found: dict[str, Path] = {}
    for path in paths:
        inside = sorted(_inside(path), key=_links_last) if _is(Path.is_dir, path) else [path]
        for one in inside or [path]:
            found.setdefault(os.path.realpath(one), one)
    return list(found.values())


def wholes_of(paths: Sequence[Path], files: Sequence[Path]) -> dict[Path, list[Path]]:
    """What is judged as a whole: the files by each folder of a call, and those that it names by
    the folder that they share."""
    wholes = {
        folder: [one for one in files if one.absolute().is_relative_to(folder.absolute())]
        for folder in paths
        if _is(Path.is_dir, folder)
    }
    named = [one for one in files if one in paths]
    if len(named) > 1:
        common = Path(os.path.commonpath([one.absolute().parent for one in named]))
        wholes.setdefault(common, named)
    return wholes


def _links_last(path: Path) -> tuple[bool, Path]:
    return path.is_symlink(), path


def _inside(folder: Path) -> Iterator[Path]:
    """Files that may hold results, at any depth; what is hidden or cannot be seen is left out."""
    for top, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(top, name) for name in names if not name.startswith(".")):
            if path.suffix.lower() in SUFFIXES and _is(Path.is_file, path):
                yield path


def audit_file(path: Path) -> Read:
    """Read and judge one file; a refusal in its stead where it cannot be read."""
    if _is(Path.is_dir, path):
        return Read(path, refusal=f"no file with {', '.join(SUFFIXES)} can be seen in this folder.")
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
        placed = window.detail is not None and window.detail.placed
        parts.append((Judged(window.name, slim, verdict(reasons), fit, placed), reasons))
    return Read(path, source.format, parts=tuple(parts), listed=source.listed)


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
    plain: list[dict[str, Any]] = [asdict(one, dict_factory=_plain) for one in everything]
    return orjson.dumps(plain, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY)


def _plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: printable(it) if isinstance(it, str) else it for name, it in fields}


def report(files: Sequence[Read], sets: Mapping[Path, Sequence[Curve]]) -> list[str]:
    """The text for a terminal: every file, every folder's curves, and the count."""
    lines = [line for file in files for line in _of_file(file)]
    for folder, found in sets.items():
        whole = audited_folder(folder, found)
        lines += ["", f"{whole.verdict:<10} {folder}  [{FOLDER}: its levels together]"]
        for curve in found:
            lines += [f"  {curve.name}", *_together(curve.claims, curve.windows)]
    return [*lines, "", *_not_joined(files, sets), *_count(files)]


def _not_joined(files: Sequence[Read], sets: Mapping[Path, Sequence[Curve]]) -> list[str]:
    """One line on the files that state a level and might have made a curve, and did not."""
    joined = {id(one) for found in sets.values() for curve in found for one in curve.windows}
    levelled = [
        [one for one in joinable(file) if not math.isnan(one.window.level)] for file in files
    ]
    stated = [windows for windows in levelled if windows]
    alone = sum(all(id(one) not in joined for one in windows) for windows in stated)
    if len(stated) < 2 or not alone:
        return []
    what = "1 file with a level is" if alone == 1 else f"{alone} files with a level are"
    return [
        f"{what} in no curve: none at another level has the same name but for the level, the same "
        f"model, and mean lengths within {SAME_LENGTH:.0%}."
    ]


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
