"""What launches took here corrects the plan, and nothing else does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from study import experience, plan, speed
from study.experience import Experience
from study.experiments import Architecture
from study.plan import Launch
from study.store import Store

SETUP: dict[str, Any] = {
    "engine": {"version": "1", "kind": "cpu"},
    "packages": {"torch": "2"},
    "machine": {"gpus": ("one", "two")},  # JSON knows lists only
}
OTHER = SETUP | {"machine": {"gpus": ()}}


def ended(store: Store, launch: Launch, slowness: float, outcome: str = "measured") -> None:
    """A launch on disk that took `slowness` times what the plan says."""
    writer = store.begin(launch)
    writer.update(wall_s=slowness * launch.expected_s)
    writer.end(outcome)


@pytest.fixture(autouse=True)
def slow_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "slowness", lambda: 1.8)


@pytest.mark.parametrize(("kind", "guess"), [("cpu", 1.8), ("cuda", 1.0)])
def test_where_nothing_was_measured_the_speed_of_a_core_is_all(
    tmp_path: Path, kind: str, guess: float
) -> None:
    found = experience.of_this_machine(Store(tmp_path), SETUP | {"engine": {"kind": kind}})
    assert found == Experience(guess=guess) and found.slowness == guess
    assert "guesses" in str(found)
    assert ("a core of it takes 1.8 times as long" in str(found)) == (kind == "cpu")


def test_it_is_the_ratio_of_all_that_was_measured(tmp_path: Path) -> None:
    store, launches = Store(tmp_path), plan.launches(Architecture.of({"depths": [2, 8]}), SETUP)
    for launch, slowness in zip(launches[:3], (1.0, 2.0, 3.0), strict=True):
        ended(store, launch, slowness)
    found = experience.of_this_machine(store, SETUP)
    expected = [launch.expected_s for launch in launches[:3]]
    assert found.launches == 3
    assert found.expected_s == pytest.approx(sum(expected))
    of_all = sum(n * seconds for n, seconds in enumerate(expected, start=1)) / sum(expected)
    assert found.slowness == pytest.approx(of_all)
    assert str(found).startswith("3 launches measured here took ")


def test_other_machines_versions_and_ends_say_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, launches = Store(tmp_path), plan.launches(Architecture(), SETUP)
    elsewhere = plan.launches(Architecture(), OTHER)
    ended(store, elsewhere[0], 5.0)
    ended(store, launches[0], 5.0, outcome="failed")
    ended(store, launches[1], 5.0, outcome="rejected")
    store.begin(launches[2]).update(wall_s=5.0)  # killed before its end
    with monkeypatch.context() as patched:
        patched.setattr("study.protocol.VERSION", 0)
        ended(store, plan.launches(Architecture.of({"seed": 9}), SETUP)[0], 5.0)
    with monkeypatch.context() as patched:  # the plan has learnt better since
        patched.setattr(plan, "ON_A_CPU", replace(plan.ON_A_CPU, compile_s=1.0))
        ended(store, launches[3], 5.0)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "record.json").write_text("{")
    assert experience.of_this_machine(store, SETUP).launches == 0
    assert experience.of_this_machine(store, OTHER).slowness == pytest.approx(5.0)


def test_a_launch_more_is_added() -> None:
    assert Experience(1, 10.0, 20.0).after(50.0, 20.0) == Experience(2, 60.0, 40.0)
    assert Experience(2, 60.0, 40.0).slowness == 1.5
