"""What must not harm a study: a full disk, a clock that is set back, Ctrl-C at a bad moment."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from dataclasses import asdict
from pathlib import Path

import orjson
import pytest
from test_run import fake, nothing_is_left, run  # noqa: F401  (fixtures)

from study import client as client_module
from study.budget import Budget
from study.client import Client, Load, Recording
from study.errors import StudyError
from study.server import Server
from study.store import FORGIVEN, MAX_ATTEMPTS, Store

pytestmark = pytest.mark.quiet

LOAD = Load("http://127.0.0.1:9", "null", 16, 8, 1000, concurrency=1, requests=1)


def test_a_clock_that_was_set_back_does_not_forgive_for_ever(
    fake: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "crash")
    monkeypatch.setenv(FORGIVEN, "2999-01-01T00:00:00+00:00")
    store, found, _ = run()
    assert list(found.launches["outcome"]) == ["failed"]
    assert len(store.attempts()) == MAX_ATTEMPTS


def test_a_second_try_for_which_no_time_is_left_is_no_launch_that_was_not_measured(
    fake: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "crash")
    allowed = itertools.chain([True, True], itertools.repeat(False))  # asked once for all before
    monkeypatch.setattr(Budget, "allows", lambda *_, **__: next(allowed))
    store, found, said = run()
    assert list(found.launches["outcome"]) == ["failed"] and len(store.attempts()) == 1
    assert "not tried again: the budget leaves no time for it" in said
    assert "not measured" not in said


def test_who_interrupts_the_fixed_prompts_does_not_wait_for_what_is_in_force(
    fake: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()
    monkeypatch.setattr(Server, "require", lambda *_: answered.wait(60))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("study.outputs.capture", interrupted)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            run()
        assert time.monotonic() - began < 30
    finally:
        answered.set()
    record = Store(fake / "data/raw").attempts()[0].record
    assert record is not None and record["status"] == "interrupted"


def test_a_full_disk_is_no_outcome(
    fake: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The launch is still to do."""

    def full(_: Client) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Client, "result", full)
    with pytest.raises(OSError, match="No space left"):
        run()
    assert [one.outcome for one in Store(fake / "data/raw").attempts()] == [None]


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, OSError), (errno.EPIPE, StudyError)])
def test_a_full_disk_is_told_from_a_load_that_cannot_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def broken(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Recording, "save", broken)
    order = orjson.dumps({"load": asdict(LOAD), "into": str(tmp_path)})
    answer = client_module._obey(orjson.loads(order))
    monkeypatch.setattr(Client, "_answer", lambda _: answer)
    client = Client()
    client._pending = tmp_path
    with pytest.raises(kind, match=os.strerror(code)):
        client.result()
