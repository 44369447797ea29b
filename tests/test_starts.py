"""Two servers that start together: each is measured in its turn, and nothing of them is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from test_run import SMALL, fake, nothing_is_left, run

from study import plan
from study.budget import Budget
from study.experiments import Architecture
from study.plan import Launch
from study.store import WAITING, Store
from study.telemetry import Telemetry
from study.window import Session

pytestmark = pytest.mark.quiet
__all__ = ["fake", "nothing_is_left"]  # fixtures

TWO = {"depths": [2, 4], "levels": [1], "slope_levels": [1]}


@pytest.fixture
def before_each_window(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """What is called with the session before each of its windows."""

    def install(look: Callable[..., None]) -> None:
        measure = Session.measure

        def looked_at(self: Session, *rest: object) -> None:
            look(self)
            measure(self, *rest)  # type: ignore[arg-type]

        monkeypatch.setattr(Session, "measure", looked_at)

    return install


def records(store: Store) -> list[dict[str, object]]:
    found = [one.record for one in store.attempts() if one.record is not None]
    return sorted(found, key=lambda record: str(record["started_utc"]))


def test_two_of_a_block_start_together_and_are_measured_in_turn(
    fake: Path, before_each_window: Callable[[Callable[..., None]], None]
) -> None:
    waited: list[bool] = []

    def look(session: Session) -> None:
        waiting = session.waiting
        waited.append(waiting is not None and psutil.pid_exists(waiting))

    before_each_window(look)
    began = time.monotonic()
    store, found, said = run(**TWO)
    took_s = time.monotonic() - began
    assert waited == [True, False]
    assert list(found.launches["outcome"]) == ["measured"] * 2
    first, second = found.launches["launch"]
    assert [one["started_beside"] for one in records(store)] == [second, first]
    assert [one["waiting"] for one in records(store)] == [second, None]
    # the time of their start is in one of them only, or half of it in each
    assert sum(found.launches["wall_s"]) < took_s
    assert "starting the server, and that of" in said and "has waited, ready" in said


def test_both_are_asked_what_they_run_before_the_first_window(
    fake: Path, before_each_window: Callable[[Callable[..., None]], None]
) -> None:
    """Their answers take seconds, in which the machine would not be quiet."""
    answered: list[int] = []

    def look(_: Session) -> None:
        raw = Path(os.environ["STUDY_ROOT"]) / "data/raw"
        answered.append(len(list(raw.glob("*/outputs.json"))))

    before_each_window(look)
    store, _, _ = run(**TWO)
    assert answered == [2, 2]
    assert all(one["in_force"] for one in records(store))


def test_who_dies_when_it_is_asked_fails_in_its_own_turn(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "dies")
    store, found, _ = run(**TWO)
    first, second = found.launches["launch"]
    assert [one.launch for one in store.attempts()] == [first, first, second, second]
    assert [one.outcome for one in store.attempts()] == ["failed"] * 4
    assert found.launches["reason"].str.len().gt(0).all()
    assert found.launches["ready_s"].gt(0).all()  # they had been ready: that is not lost


def test_each_block_has_its_own_pair(fake: Path) -> None:
    store, found, _ = run(**TWO, launches=2)
    assert list(found.launches["outcome"]) == ["measured"] * 4
    block = {str(one["launch"]): one["block"] for one in records(store)}
    for one in records(store):
        assert block[str(one["started_beside"])] == one["block"]


def test_a_refusal_of_both_is_asked_once_each(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAULT", "refuse")
    store, found, _ = run(**TWO, launches=2)
    assert [one.outcome for one in store.attempts()] == ["rejected"] * 2
    assert list(found.launches["outcome"]) == ["rejected"] * 4


def test_who_dies_while_it_waits_is_tried_again(
    fake: Path, before_each_window: Callable[[Callable[..., None]], None]
) -> None:
    def kill(session: Session) -> None:
        if session.waiting is not None:
            for process in psutil.Process(session.waiting).children(recursive=True):
                process.kill()
            time.sleep(0.5)

    before_each_window(kill)
    store, found, _ = run(**TWO)
    outcomes = [(one.launch, one.outcome) for one in store.attempts()]
    first, second = found.launches["launch"]
    assert outcomes[0] == (first, "measured")
    assert outcomes[1:] == [(second, "failed"), (second, "measured")]
    again = store.attempts()[2].record
    assert again is not None and again["started_beside"] is None  # alone this time


def test_a_second_try_has_the_machine_to_itself(
    fake: Path, before_each_window: Callable[[Callable[..., None]], None]
) -> None:
    waited: list[bool] = []

    def kill(session: Session) -> None:
        waited.append(session.waiting is not None)
        if waited == [True]:
            for process in psutil.Process(session.server.pid).children(recursive=True):
                process.kill()
            time.sleep(0.5)

    before_each_window(kill)
    store, found, _ = run(**TWO)
    assert list(found.launches["outcome"]) == ["measured"] * 2
    assert waited == [True, False, False]
    assert [one.outcome for one in store.attempts()].count("failed") == 1


def test_who_never_had_its_turn_is_no_try(fake: Path) -> None:
    """As a process that was killed leaves it."""
    store, _, _ = run(**TWO)
    launches = plan.launches(Architecture.of({**SMALL, **TWO, "launches": 2}), plan.setup())
    store.begin(launches[-1]).update(status=WAITING)
    assert len(store.attempts()) == 2
    store, found, _ = run(**TWO, launches=2)
    assert len(store.attempts()) == 4
    assert list(found.launches["attempts"]) == [1] * 4


def test_an_interruption_leaves_no_try_of_who_waits(
    fake: Path, before_each_window: Callable[[Callable[..., None]], None]
) -> None:
    def interrupt(_: Session) -> None:
        raise KeyboardInterrupt

    before_each_window(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(**TWO)
    store = Store(Path(os.environ["STUDY_ROOT"]) / "data/raw")
    assert [one["status"] for one in records(store)] == ["interrupted"]


def test_who_waits_when_the_time_is_over_leaves_no_try(
    fake: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allows(_: Budget, *launches: Launch, done_s: float = 0.0) -> bool:
        store = Store(Path(os.environ["STUDY_ROOT"]) / "data/raw")
        return not any(one.outcome for one in store.attempts())  # until one was measured

    monkeypatch.setattr(Budget, "allows", allows)
    store, found, said = run(**TWO)
    assert "and that of" in said
    assert list(found.launches["outcome"]) == ["measured", "not measured"]
    assert len(store.attempts()) == 1
    assert "the budget leaves no time for it" in said


def test_the_work_of_who_waits_counts_as_foreign() -> None:
    spin = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for waiting, own in ((spin.pid, False), (None, True)):
            with Telemetry(None, None, waiting) as telemetry:
                time.sleep(0.6)
            looks = telemetry.frame()
            grew_s = looks["own_s"].iloc[-1] - looks["own_s"].iloc[0]
            assert bool(grew_s > 0.2) is own
    finally:
        spin.kill()
        spin.wait()
