"""A limit on time: how it is written, what comes first, and when to stop."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import budget, notebooks, plan, profiles, reproduce
from study.budget import Budget
from study.errors import StudyError
from study.experience import NOTHING, Experience
from study.experiments import EXPERIMENTS, Architecture, Offload
from study.store import Store

SETUP: dict[str, Any] = {"engine": {"kind": "cpu"}, "packages": {}, "machine": {}}


@given(st.integers(0, 99), st.integers(0, 59), st.integers(1, 59))
def test_a_written_time_is_read(hours: int, minutes: int, seconds: int) -> None:
    expected = hours * 3600 + minutes * 60 + seconds
    assert budget.parse(f"{hours}h{minutes}m{seconds}s") == expected
    assert budget.parse(f"{hours}h {minutes}min {seconds}s") == expected


@pytest.mark.parametrize("text", ["", "2", "h", "two hours", "-1h", "2h!", "0h", "2d"])
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(StudyError, match=r"as in 2h|more than nothing"):
        budget.parse(text)


def test_without_a_limit_the_order_stays_random() -> None:
    launches = plan.launches(Architecture.of({"depths": [2, 4]}), SETUP)
    assert Budget().order(launches) == launches
    assert Budget().allows(launches[0]) and Budget().ordering == "random"


def test_with_one_the_arms_that_tell_most_lead_each_block() -> None:
    launches = plan.launches(Offload.of({"launches": 3}), SETUP)
    ordered = Budget(deadline=time.monotonic()).order(launches)
    assert [one.block for one in ordered] == sorted(one.block for one in launches)
    for block in range(3):
        modes = [one.arm.factors["offload"] for one in ordered if one.block == block]
        assert modes == ["file", "file", "native", "native", "off", "off"]
    assert {one.id for one in ordered} == {one.id for one in launches}


def test_a_launch_is_begun_only_if_it_would_be_over_in_time() -> None:
    launch = plan.launches(Architecture(), SETUP)[0]
    assert Budget(deadline=time.monotonic() + 1.2 * launch.expected_s).allows(launch)
    assert not Budget(deadline=time.monotonic() + 0.9 * launch.expected_s).allows(launch)
    assert not Budget(deadline=time.monotonic() - 1).allows(launch)


def test_a_machine_that_was_slow_is_given_fewer_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = plan.launches(Architecture(), SETUP)[0]
    monkeypatch.setenv(budget.DEADLINE, str(time.monotonic() + 1.5 * launch.expected_s))
    assert Budget.from_environment(NOTHING).allows(launch)
    assert not Budget.from_environment(Experience(1, 20.0, 10.0)).allows(launch)


def test_that_a_machine_is_quick_is_believed_after_a_few_launches() -> None:
    launch = plan.launches(Architecture(), SETUP)[0]
    for launches, fits in ((1, False), (budget.EXPERIENCED, True)):
        known = Experience(launches, took_s=5.0, expected_s=10.0)
        limit = Budget(time.monotonic() + 0.6 * launch.expected_s, known)
        assert limit.allows(launch) is fits


def test_with_a_budget_every_first_block_comes_before_any_second(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the only block of an experiment that has one."""
    ran: list[tuple[str, Any]] = []
    monkeypatch.setattr(notebooks, "execute", lambda name, given: ran.append((name, dict(given))))
    monkeypatch.setattr(reproduce, "render", lambda _, path: path)
    monkeypatch.setattr(reproduce, "Store", lambda: Store(scratch / "data/raw"))
    monkeypatch.setenv(budget.DEADLINE, "")
    monkeypatch.setattr(reproduce, "acquainted", lambda _: nullcontext(lambda: None))
    load = profiles.load

    def uneven(choice: profiles.Choice) -> profiles.Profile:
        known = load(choice)
        aiter = known.experiments["50_aiter"].model_copy(update={"launches": 1})
        return replace(known, experiments={**known.experiments, "50_aiter": aiter})

    monkeypatch.setattr(profiles, "load", uneven)
    reproduce.reproduce(profiles.Choice("cpu", only=["block_size", "aiter"]), budget_s=1e6)
    asked = [(name, given["launches"]) for name, given in ran if name in EXPERIMENTS]
    assert asked == [
        ("30_block_size", 1), ("50_aiter", 1),
        ("30_block_size", 2), ("50_aiter", 1),
        ("30_block_size", 3), ("50_aiter", 1),
    ]  # fmt: skip
