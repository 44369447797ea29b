"""Raw records: one folder a launch attempt, written atomically, never edited afterwards.

    data/raw/<launch>/record.json                   first of all, with status `started`
    data/raw/<launch>/server.log                    from the engine's first byte
    data/raw/<launch>/windows/<nn>-<name>/          load/ and warm/<n>/ (requests, chunks), samples,
                                                    and last window.json

A second attempt at a launch gets a folder of its own, `<launch>.2`: nothing is overwritten.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import orjson

from study import paths, plan
from study.errors import StudyError
from study.plan import Launch

MAX_ATTEMPTS = 2  # a launch that failed is tried once more; after that, failing is its outcome
WAITING = "waiting"  # the status of a try whose server is up before its turn
FORGIVEN = "STUDY_FORGIVEN"  # in the environment: what failed before this time is tried anew

Record = dict[str, Any]


def write_atomically(path: Path, content: bytes, durably: bool = True) -> None:
    """Replace `path` by `content` whole, or not at all.

    `durably`: also if the power fails now. What can be made again need not wait for the disk.
    """
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(content)
        if durably:
            file.flush()
            os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, content: object) -> None:
    """Write JSON atomically; NaN becomes null."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    write_atomically(path, orjson.dumps(content, option=options))


def now() -> str:
    """The time of day in UTC, for people to read."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Attempt:
    """One try at a launch, as found on disk. `record` is None when it cannot be read."""

    launch: str
    folder: Path
    record: Record | None

    @property
    def outcome(self) -> str | None:
        """The arm's outcome if this try came to its end."""
        if self.record is None or self.record.get("status") != "ended":
            return None
        return str(self.record["outcome"])

    @property
    def started_utc(self) -> str:
        """When it began, as `now` says it; the empty text if its record does not tell."""
        return str((self.record or {}).get("started_utc", ""))

    @property
    def windows(self) -> list[Path]:
        """Folders of the windows that were measured whole, in order."""
        return sorted(path.parent for path in self.folder.glob("windows/*/window.json"))


def best_of(tries: Sequence[Attempt]) -> Attempt | None:
    """The try that counts: the last that ended, measured before failed; else None."""
    ended = [one for one in tries if one.outcome is not None]
    whole = [one for one in ended if one.outcome != "failed"]
    return next(reversed(whole or ended), None)


def enough(tries: Sequence[Attempt]) -> bool:
    """Whether a launch with these tries needs no further one."""
    ended = [one for one in tries if one.outcome is not None]
    since = os.environ.get(FORGIVEN, "")
    failed = [one for one in ended if one.outcome == "failed" and one.started_utc >= since]
    return len(failed) >= MAX_ATTEMPTS or any(one.outcome != "failed" for one in ended)


class Store:
    """The raw data of the study under one folder."""

    def __init__(self, folder: Path = paths.RAW) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Make sure that measurements can be kept, before any is made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StudyError(
                f"the data folder must be a folder that can be written to; {self.folder} is not "
                f"({error.strerror}). Mend its permissions, or set STUDY_ROOT to another place."
            ) from error

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Hold the right to measure: two measurements at once would disturb each other."""
        self.prepare()
        with self._lock_file() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise StudyError(
                    "only one measurement may run at a time; another one is running "
                    f"(process {lock.read().strip() or 'unknown'}). Wait for it, or stop it."
                ) from error
            except OSError as error:
                raise self._no_lock(error) from error
            _sign(lock)
            yield

    def _lock_file(self) -> IO[str]:
        try:
            return (self.folder / ".lock").open("a+")
        except OSError as error:
            raise self._no_lock(error) from error

    def _no_lock(self, error: OSError) -> StudyError:
        return StudyError(
            "the data folder must be one where a file can be locked, so that no two measurements "
            f"run at once; {self.folder / '.lock'} cannot ({error.strerror}). Make that file your "
            "own, or set STUDY_ROOT to a place on another file system."
        )

    def attempts(self) -> list[Attempt]:
        """Every try at every launch, oldest first for each launch; not what never had its turn."""
        found = []
        for path in self.folder.glob("*/record.json"):
            launch, number = _numbered(path.parent.name)
            record = _read(path)
            if record is None or record.get("status") != WAITING:
                found.append((launch, number, Attempt(launch, path.parent, record)))
        return [attempt for *_, attempt in sorted(found, key=lambda one: one[:2])]

    def best(self, launch: str) -> Attempt | None:
        """The try at this launch that counts, if any ended."""
        return best_of(self._of(launch))

    def _of(self, launch: str) -> list[Attempt]:
        return [one for one in self.attempts() if one.launch == launch]

    def begin(self, launch: Launch) -> LaunchWriter:
        """A folder for a new try, its record written with status `started`."""
        self.prepare()
        names = [path.name for path in self.folder.glob(f"{launch.id}*")]
        ends = [name.removeprefix(launch.id).removeprefix(".") or "1" for name in names]
        number = 1 + max((int(end) for end in ends if end.isdecimal()), default=0)
        folder = self.folder / (launch.id if number == 1 else f"{launch.id}.{number}")
        folder.mkdir()
        return LaunchWriter(folder, launch)


def _numbered(folder: str) -> tuple[str, int]:
    """The launch that a folder's name tells, and which try at it."""
    launch, number = re.fullmatch(r"(.*?)(?:\.(\d+))?", folder).groups()  # type: ignore[union-attr]
    return launch, int(number or 1)


def _sign(lock: IO[str]) -> None:
    lock.seek(0)
    lock.truncate()
    lock.write(str(os.getpid()))
    lock.flush()


def _read(path: Path) -> Record | None:
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


class LaunchWriter:
    """Writes the record of one try; every change is on disk, whole, before it returns."""

    def __init__(self, folder: Path, launch: Launch) -> None:
        self.folder = folder
        self.log = folder / "server.log"
        self._record: Record = {
            "launch": launch.id,
            "status": "started",
            "outcome": None,
            "reason": "",
            "started_utc": now(),
            "expected_s": launch.expected_s,
            "pace": plan.pace(launch.setup).digest,
            **launch.identity,
            "source": source_state(),
        }
        self.update()

    def update(self, **changes: object) -> None:
        """Change the record and write it."""
        self._record |= changes
        write_json(self.folder / "record.json", self._record)

    def end(self, outcome: str, reason: str = "") -> None:
        """The launch came to its end, well or not."""
        self.update(status="ended", outcome=outcome, reason=reason, ended_utc=now())

    def discard(self) -> None:
        """Nothing was measured in this try, and nothing will be: it leaves no trace."""
        shutil.rmtree(self.folder)

    def window_folder(self, index: int, name: str) -> Path:
        """The folder for the next window; it counts once `window.json` is in it."""
        folder = self.folder / "windows" / f"{index:02d}-{name}"
        folder.mkdir(parents=True)
        return folder


def source_state() -> Mapping[str, object]:
    """Commit of the study's own source, and whether it was changed since."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _git(*arguments: str) -> str:
    answer = subprocess.run(
        ["git", *arguments],
        cwd=paths.PACKAGE,
        capture_output=True,
        text=True,
        timeout=10,
        check=True,
    )
    return answer.stdout.strip()
