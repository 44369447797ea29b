"""The real engine's own answers: what it refuses, what it runs instead, what it restores."""

from __future__ import annotations

from pathlib import Path

import pytest

from study import beside, frames, machine, platform, same_output, theory
from study.experiment import Experiment
from study.experiments import Aiter, BlockSize, Bound, Offload
from study.plan import Launch
from study.run import run_experiment
from study.store import Store

pytestmark = [
    pytest.mark.engine,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        platform.engine().kind != "cpu", reason="what a GPU back end answers is its own affair"
    ),
]


AMX = "amx_tile" in platform.machine().instructions  # the engine then has another MLA
MLA_WITHOUT = ("overridden", "block_size was to be 1, the engine ran 16")
MLA_WITH_AMX = ("rejected", "No common block size for 1 (AMX_MLA")


def measured(experiment: Experiment, root: Path) -> tuple[tuple[Launch, ...], Store]:
    store = Store(root / "data/raw")
    return run_experiment(experiment, store), store


def test_block_sizes_are_refused_or_changed_and_asked_for_once(scratch: Path) -> None:
    asked = BlockSize.of(
        {"launches": 2, "block_sizes": [1], "levels": [1], "workloads": ["short:400/8"]}
        | {"steady_s": 0.3}
    )
    launches, store = measured(asked, scratch)
    found = frames.read(launches, store)
    refused = found.launches[found.launches["arm"] == "gqa-dense-block1"]
    assert set(refused["outcome"]) == {"rejected"} and len(refused) == 2
    assert refused["reason"].str.contains("No common block size for 1").all()
    other = found.launches[found.launches["arm"] == "mla-dense-block1"]
    outcome, words = MLA_WITH_AMX if AMX else MLA_WITHOUT
    assert set(other["outcome"]) == {outcome} and len(other) == 2
    assert other["reason"].str.contains(words, regex=False).all()
    assert sorted(found.launches["attempts"]) == [0, 0, 1, 1]  # one block answered for both
    assert set(found.windows.get("verdict", ())) <= {"void"}


def test_what_memory_dropped_is_restored_from_files_and_computes_the_same(scratch: Path) -> None:
    asked = Offload.of(
        {"launches": 1, "models": ["gqa-dense"], "modes": ["file", "native"]}
        | {"prompts": 16, "repeated": 8}
    )
    launches, store = measured(asked, scratch)
    found = frames.read(launches, store)
    by_arm = found.launches.set_index("arm").to_dict("index")
    assert by_arm["gqa-dense-native"]["outcome"] == "rejected"
    assert "CUDA-alike" in by_arm["gqa-dense-native"]["reason"]
    assert by_arm["gqa-dense-file"]["outcome"] == "measured"

    phases = found.windows.set_index("workload").to_dict("index")
    block = int(by_arm["gqa-dense-file"]["block_size"])
    whole_blocks = (1024 - 1) // block * block  # the connector keeps whole blocks of all but one
    assert phases["cold"]["external_hits_tokens"] == 0
    assert phases["restored"]["external_hits_tokens"] == 8 * whole_blocks
    assert phases["restored"]["prefix_hits_tokens"] == 0
    assert phases["memory"]["prefix_hits_tokens"] == 8 * whole_blocks
    model = launches[0].arm.model
    kept = 16 * 1024 // block * block * theory.kv_bytes_per_token(model)
    assert phases["cold"]["stored_bytes"] == pytest.approx(kept, rel=0.15)
    assert phases["cold"]["stored_files"] == 16 * model.layers
    assert phases["restored"]["ttft_p50_s"] < phases["cold"]["ttft_p50_s"]

    outputs = same_output.read(launches, store)
    restored = outputs[outputs["number"] == 1]
    assert (restored["external_hits_tokens"] > 0).all()
    said = same_output.compare(outputs, "gqa-dense-file", "gqa-dense-file", (1, 0)).judgement
    assert said.verdict == "pass", said.text


def test_what_is_switched_is_in_force_and_aiter_does_not_apply(scratch: Path) -> None:
    asked = Aiter.of(
        {"launches": 1, "switches": ["kv_split", "aiter"], "levels": [1], "steady_s": 0.3}
        | {"workloads": ["short:400/8"]}
    )
    launches, store = measured(asked, scratch)
    found = frames.read(launches, store).launches.set_index("arm").to_dict("index")
    assert found["gqa-dense-no-kv-split"]["outcome"] == "measured"
    assert found["gqa-dense-no-kv-split"]["VLLM_CPU_ATTN_SPLIT_KV"] == "False"
    assert found["gqa-dense-kv-split"]["VLLM_CPU_ATTN_SPLIT_KV"] == "True"
    aiter = {row["outcome"] for arm, row in found.items() if "aiter" in str(arm)}
    assert aiter == {"not applicable"}


@pytest.mark.quiet
def test_gigabytes_of_weights_come_near_the_bound_and_never_beat_it(scratch: Path) -> None:
    asked = Bound.of(
        {"launches": 1, "models": ["gqa-dense-1b"], "levels": [1], "workloads": ["brief:16/8"]}
    )
    device = machine.measure()
    found = frames.read(*measured(asked, scratch))
    assert set(found.launches["outcome"]) == {"measured"}
    seen = beside.windows(found.windows, device)
    every = seen.assign(verdict="valid")  # a busy machine voids windows, but lets none be faster
    assert beside.bound_respected(every, device).verdict == "pass"
    assert seen["share"].max() > 0.2  # tiny models stay below a hundredth
