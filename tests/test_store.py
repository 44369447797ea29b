"""Raw records: written first, whole or not at all, never overwritten, never counted twice."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from study import plan, standing
from study.errors import StudyError
from study.experiments import Architecture
from study.store import FORGIVEN, MAX_ATTEMPTS, Store, write_atomically

SETUP = {"engine": {"version": "1", "kind": "cpu"}, "packages": {}, "machine": {}}
LAUNCH = plan.launches(Architecture(), SETUP)[0]


def is_done(store: Store) -> bool:
    """Whether the launch needs no further try."""
    return not standing.missing([LAUNCH], store)


def test_the_record_is_there_before_anything_is_measured(tmp_path: Path) -> None:
    writer = Store(tmp_path).begin(LAUNCH)
    record = orjson.loads((writer.folder / "record.json").read_bytes())
    assert record["status"] == "started"
    assert record["outcome"] is None
    assert record["arm"]["name"] == LAUNCH.arm.name
    assert set(record["source"]) == {"commit", "dirty"}
    assert not is_done(Store(tmp_path))


@pytest.mark.parametrize("outcome", ["measured", "rejected", "overridden"])
def test_an_engines_answer_is_final(tmp_path: Path, outcome: str) -> None:
    store = Store(tmp_path)
    store.begin(LAUNCH).end(outcome, "its words")
    assert is_done(store)
    best = store.best(LAUNCH.id)
    assert best is not None
    assert best.outcome == outcome


def test_a_failure_is_tried_once_more_and_both_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(LAUNCH).end("failed", "first")
    assert not is_done(store)
    store.begin(LAUNCH).end("failed", "second")
    assert is_done(store)
    assert len(store.attempts()) == MAX_ATTEMPTS
    assert {attempt.launch for attempt in store.attempts()} == {LAUNCH.id}


def test_tries_are_in_order_beyond_the_ninth(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(1, 12):
        store.begin(LAUNCH).end("failed", str(number))
    reasons = [attempt.record["reason"] for attempt in store.attempts() if attempt.record]
    assert reasons == [str(number) for number in range(1, 12)]


def test_a_place_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(StudyError, match=r"can be locked.*No locks available.*STUDY_ROOT"),
        Store(tmp_path).measuring(),
    ):
        pytest.fail("it must not measure")


def test_a_lock_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(StudyError, match=r"\.lock cannot"), Store(tmp_path).measuring():
        pytest.fail("it must not measure")


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_new_try_never_takes_the_folder_of_another(tmp_path: Path, gone: int) -> None:
    store = Store(tmp_path)
    folders = [store.begin(LAUNCH).folder for _ in range(3)]
    shutil.rmtree(folders.pop(gone))
    assert store.begin(LAUNCH).folder not in folders
    assert len(store.attempts()) == 3


def test_a_failure_is_forgiven_once_its_cause_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    for _ in range(MAX_ATTEMPTS):
        store.begin(LAUNCH).end("failed", "no memory left")
    assert is_done(store)
    monkeypatch.setenv(FORGIVEN, "2999-01-01T00:00:00+00:00")
    assert not is_done(store)
    store.begin(LAUNCH).end("measured")
    assert is_done(store)  # what was measured is never asked for again


def test_a_forgiven_launch_that_fails_again_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    monkeypatch.setenv(FORGIVEN, "2000-01-01T00:00:00+00:00")
    for _ in range(MAX_ATTEMPTS):
        assert not is_done(store)
        store.begin(LAUNCH).end("failed", "no memory left")
    assert is_done(store)


def test_what_was_measured_counts_not_what_failed_or_was_interrupted(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.begin(LAUNCH).end("failed", "crash")
    store.begin(LAUNCH).update(status="interrupted")
    store.begin(LAUNCH).end("measured")
    best = store.best(LAUNCH.id)
    assert best is not None
    assert (best.outcome, best.folder.name) == ("measured", f"{LAUNCH.id}.3")


@pytest.mark.parametrize("left", [b"", b'{"status": "ended", "outc', b"[]"])
def test_a_half_written_record_counts_as_nothing_and_costs_nothing(
    tmp_path: Path, left: bytes
) -> None:
    store = Store(tmp_path)
    writer = store.begin(LAUNCH)
    (writer.folder / "record.json").write_bytes(left)
    assert store.best(LAUNCH.id) is None
    assert not is_done(store)
    store.begin(LAUNCH).end("measured")
    assert is_done(store)
    assert (writer.folder / "record.json").read_bytes() == left


def test_a_window_counts_once_its_own_record_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    writer = store.begin(LAUNCH)
    first, second = (writer.window_folder(index, "short-1") for index in range(2))
    (first / "window.json").write_text("{}")
    writer.end("failed", "died in the second window")
    best = store.best(LAUNCH.id)
    assert best is not None
    assert best.windows == [first]
    assert second.is_dir()


def test_a_write_that_breaks_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, b"old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_data_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StudyError, match=r"must be a folder that can be written to.*STUDY_ROOT"):
        Store(tmp_path / "file").prepare()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_data_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StudyError, match="must be a folder that can be written to"):
        Store(tmp_path).prepare()


def test_two_measurements_at_once_are_refused(tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from study.store import Store\n"
        f"with Store(Path({str(tmp_path)!r})).measuring():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    try:
        with (
            pytest.raises(StudyError, match=f"only one measurement.*process {other.pid}"),
            Store(tmp_path).measuring(),
        ):
            pytest.fail("it must not measure")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with Store(tmp_path).measuring():
        pass
