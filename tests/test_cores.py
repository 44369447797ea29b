"""Who is kept to which core: a real process with a thread, and the rule for when."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from study import cores, engine, platform

CHILDREN = """
import subprocess, sys, threading, time
threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
TWO = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


@pytest.fixture
def server() -> Iterator[tuple[int, int]]:
    """A process with a second thread, and its child: their ids."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILDREN], stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout
        child = int(one.stdout.readline())
        yield one.pid, child
        for pid in (child, one.pid):
            psutil.Process(pid).kill()


def on(monkeypatch: pytest.MonkeyPatch, kind: platform.Kind, count: int) -> list[int]:
    """An engine of this kind on so many of the cores."""
    used = sorted(os.sched_getaffinity(0))[:count]
    monkeypatch.setattr(platform, "engine", lambda: platform.Engine("vllm", "1.0", kind))
    monkeypatch.setattr(cores, "_all", lambda: used if count <= len(used) else [*range(count)])
    return used


@TWO
def test_scheduler_and_worker_have_one_core_and_all_else_the_other(
    server: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = on(monkeypatch, "cpu", 2)
    leader, core = server
    said = cores.bind(leader, core)
    assert said == {"engine core": [first], "API server and client": [second]}
    assert os.sched_getaffinity(core) == {first}
    threads = [thread.id for thread in psutil.Process(leader).threads()]
    assert len(threads) == 2
    assert all(os.sched_getaffinity(thread) == {second} for thread in threads)
    assert cores.client() == [second]


@TWO
@pytest.mark.parametrize("kind", ["cuda", "rocm"])
def test_an_engine_on_a_gpu_leaves_the_client_its_core(
    server: tuple[int, int], monkeypatch: pytest.MonkeyPatch, kind: platform.Kind
) -> None:
    first, second = on(monkeypatch, kind, 2)
    assert cores.environment() == {}
    assert cores.bind(server[0], None) == {"server": [first], "client": [second]}
    for pid in server:
        threads = psutil.Process(pid).threads()
        assert all(os.sched_getaffinity(thread.id) == {first} for thread in threads)


def test_a_cpu_engine_with_cores_enough_keeps_its_own_layout(
    server: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, "cpu", 8)
    before = os.sched_getaffinity(server[0])
    assert cores.environment() == {}
    assert cores.bind(*server) == {}
    assert os.sched_getaffinity(server[0]) == before


def test_on_two_cores_the_engine_is_told_to_be_one_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on(monkeypatch, "cpu", 2)
    assert cores.ONE_PROCESS.items() <= engine.environment().items()


def test_a_server_that_ended_or_does_not_say_who_computes_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on(monkeypatch, "cpu", 2)
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert cores.bind(ended.pid, None) == {}
    assert "engine core" in cores.bind(ended.pid, ended.pid)  # gone meanwhile: no error


@pytest.mark.parametrize(
    ("log", "pid"),
    [
        ("(APIServer pid=1) INFO x\n(EngineCore pid=24147) INFO [core.py:133] y", 24147),
        ("(EngineCore_DP0 pid=7) INFO z", 7),
        ("WARNING (EngineCore pid=7) quoted in a line", None),
        ("", None),
    ],
)
def test_the_engine_signs_with_the_process_that_computes(log: str, pid: int | None) -> None:
    assert engine.core_pid(log) == pid
