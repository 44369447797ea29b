"""Plans: every arm once a block, in a random order that is the same every time."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from study import engine, plan, platform, protocol
from study.experiments import Aiter, Architecture
from study.search import Search

SETUP: dict[str, Any] = {
    "engine": {"version": "1", "kind": "cpu"},
    "packages": {},
    "machine": {"cores": 2, "memory_gib": 16},
}


def launches(**parameters: object) -> tuple[plan.Launch, ...]:
    return plan.launches(Architecture.of(parameters), SETUP)


@given(st.integers(1, 12), st.integers(0, 2**31))
def test_every_block_holds_every_arm_once(blocks: int, seed: int) -> None:
    found = launches(launches=blocks, seed=seed)
    arms = {arm.name for arm in Architecture().arms()}
    for block in range(blocks):
        inside = [launch.arm.name for launch in found if launch.block == block]
        assert sorted(inside) == sorted(arms)
    assert [launch.block for launch in found] == sorted(launch.block for launch in found)
    assert len({launch.id for launch in found}) == len(found)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31))
def test_more_launches_leave_the_first_blocks_as_they_were(few: int, more: int, seed: int) -> None:
    before = [launch.id for launch in launches(launches=few, seed=seed)]
    after = [launch.id for launch in launches(launches=few + more, seed=seed)]
    assert after[: len(before)] == before


def test_the_order_differs_between_blocks_and_between_seeds() -> None:
    orders = {
        tuple(
            launch.arm.name for launch in launches(launches=6, seed=seed) if launch.block == block
        )
        for seed in range(4)
        for block in range(6)
    }
    assert len(orders) > 12  # of 24 possible


def test_what_could_change_a_result_changes_the_identity() -> None:
    base = launches()[0]
    others = [
        launches(steady_s=4.0)[0],
        launches(max_num_seqs=32)[0],
        launches(levels=[1, 4, 8])[0],
        plan.launches(Architecture(), {**SETUP, "engine": {"version": "2"}})[0],
        plan.launches(Architecture(), {**SETUP, "machine": {"cores": 4}})[0],
    ]
    assert base.id not in {other.id for other in others}
    assert base.id == launches(launches=7)[0].id


@pytest.fixture
def inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that steers an engine, and an engine that need not be here."""
    monkeypatch.setattr(platform, "engine", lambda: platform.Engine("fake", "1.0", "cpu"))
    for name in filter(engine.STEERING.match, list(os.environ)):
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "name",
    ["VLLM_ROCM_USE_AITER", "HIP_VISIBLE_DEVICES", "NCCL_ALGO", "TORCHINDUCTOR_X", "LD_PRELOAD"],
)
def test_what_servers_inherit_is_part_of_the_identity(
    name: str, inherited: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plan.setup()
    assert "environment" not in before  # so that ids without any are what they were
    monkeypatch.setenv(name, "1")
    after = plan.setup()
    assert after["environment"] == {name: "1"}
    ids = {plan.launches(Architecture(), setup)[0].id for setup in (before, after)}
    assert len(ids) == 2


@pytest.mark.parametrize(
    "name", ["VLLM_API_KEY", "TORCH_HUB_TOKEN", "HF_TOKEN", "VLLM_CACHE_ROOT", "HOME_OF_VLLM_"]
)
def test_secrets_and_what_every_server_is_given_are_not(
    name: str, inherited: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "secret")
    assert "environment" not in plan.setup()


def test_cost_adds_up() -> None:
    found = launches(launches=2)
    total, half = plan.cost(found), plan.cost(found[:4])
    assert (total.launches, total.windows) == (8, 8 * 4)
    assert total.seconds > half.seconds > 4 * plan.ON_A_CPU.start_s
    assert "8 launches, 32 windows, about" in str(total)


def test_the_engine_compiles_anew_in_the_first_block_only() -> None:
    found = plan.launches(Aiter.of({"launches": 3}), SETUP)
    start_s = {(one.arm.name.rpartition("-")[2], one.block): one.start_s for one in found}
    pace = plan.ON_A_CPU
    for block, compile_s in enumerate((pace.compile_s, pace.compiled_s, pace.compiled_s)):
        took_s = start_s["compiled", block] - start_s["eager", block]
        assert took_s == pytest.approx(compile_s)
    assert pace.compile_s > pace.compiled_s > 0


def test_the_plan_expects_the_windows_that_a_search_would_ask_for() -> None:
    """By the pace of the machine: the search, replayed on the throughput that the plan expects."""
    asked = {"models": ["gqa-dense"], "max_num_seqs": 16, "launches": 1}
    (fixed,), (searching,) = launches(**asked), launches(**asked, saturated=["gqa-dense"])
    more = searching.expected_windows[len(fixed.arm.windows) :]
    assert fixed.expected_windows == fixed.arm.windows == searching.arm.windows
    assert {window.workload.name for window in more} == {"short", "long"}
    assert all(window.level in Search(batch=16, ceiling=64).grid for window in more)
    of_short = {window.level for window in more if window.workload.name == "short"}
    assert max(of_short) <= 32 and len(of_short) + 2 < 12 * 0.6
    assert searching.expected_s == pytest.approx(
        fixed.expected_s + sum(searching.window_s(window) for window in more)
    )
    assert searching.id != fixed.id


def test_windows_follow_what_was_seen_by_then() -> None:
    (launch,) = launches(
        models=["gqa-dense"], workloads=["short:128/64"], saturated=["gqa-dense"], launches=1
    )
    seen: dict[str, dict[int, float | None]] = {"short": {}}
    levels = []
    for window in plan.windows(launch.arm, seen):
        levels.append(window.level)
        seen["short"][window.level] = float(min(window.level, 4))  # flat from 4 on
    assert levels[:2] == [1, 4]
    assert max(levels) <= 64 and len(levels) < 8
    assert launch.arm.search is not None and launch.arm.search.next(seen["short"]).level is None


def test_durations_as_a_person_says_them() -> None:
    said = [plan.duration(seconds) for seconds in (9.6, 89, 90, 3000, 5400, 9000)]
    assert said == ["10 s", "89 s", "2 min", "50 min", "1 h 30 min", "2 h 30 min"]


def test_the_protocol_version_follows_the_measuring_code() -> None:
    """If this fails, ask: could the change have moved a number? Then raise VERSION too."""
    assert protocol.digest() == protocol.DIGEST, f"set DIGEST to {protocol.digest()!r}"


def test_docstrings_and_comments_do_not_change_the_protocol() -> None:
    one = 'def f(x):\n    """Say."""\n    return x  # so\n'
    assert protocol._meaning(one) == protocol._meaning("def f(x):\n    return x")
    assert protocol._meaning(one) != protocol._meaning("def f(x):\n    return -x")


ONE_OF_EACH = {"models": ["gqa-dense", "mla-dense", "gqa-moe"], "launches": 2}


def on(kind: str = "cpu", cores: int = 2, memory_gib: int = 24) -> dict[str, Any]:
    found = plan.setup()
    return {
        **found,
        "engine": {**found["engine"], "kind": kind},
        "machine": {**found["machine"], "cores": cores, "memory_gib": memory_gib},
    }


def test_servers_start_two_at_a_time_within_their_block() -> None:
    launches = plan.launches(Architecture.of(ONE_OF_EACH), on())
    paired = plan.paired(launches)
    assert paired == launches and [one.id for one in paired] == [one.id for one in launches]
    assert [one.together for one in paired] == [True, True, False] * 2
    alone = sum(one.expected_s for one in launches)
    saved = 4 * (1 - plan.TOGETHER) * plan.ON_A_CPU.start_s
    assert plan.cost(launches).seconds == pytest.approx(alone - saved)
    assert sum(one.expected_s for one in paired) == pytest.approx(alone - saved)
    assert not plan.paired(paired[:1])[0].together  # its partner is gone


@pytest.mark.parametrize(
    ("where", "more"),
    [
        ({"kind": "cuda"}, {}),
        ({"cores": 1}, {}),
        ({"memory_gib": 8}, {}),
        ({}, {"kv_cache_gib": 6}),
        ({}, {"eager": False}),  # to compile takes every core, and its time is a result
    ],
)
def test_a_server_starts_alone(where: dict[str, Any], more: dict[str, Any]) -> None:
    launches = plan.launches(Architecture.of({**ONE_OF_EACH, **more}), on(**where))
    assert not any(one.together for one in plan.paired(launches))
