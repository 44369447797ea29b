"""The piece of work that tells how quick a core is."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import pytest

from study import pace

pytestmark = pytest.mark.quiet
SPIN = "import time\nend = time.monotonic() + 9\nwhile time.monotonic() < end: pass"


def test_more_work_takes_a_core_longer_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a core of half the pace would show; in turns, for this one's own pace may change."""
    ratios = []
    for _ in range(50):
        once, twice = (turned(turns, monkeypatch) for turns in (10_000, 20_000))
        ratios.append(twice / once)
    assert statistics.median(ratios) == pytest.approx(2, rel=0.2)


def turned(turns: int, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(pace, "TURNS", turns)
    return pace.piece_s()


def test_who_waits_for_the_core_too_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The piece and its warm-up take 1.25 of its time; beside another process, twice that."""
    monkeypatch.setattr(pace, "TURNS", 500_000)
    core = min(os.sched_getaffinity(0))
    other = subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", SPIN])
    try:
        time.sleep(0.3)  # until it spins
        waited = []
        for _ in range(9):
            began = time.perf_counter()
            took_s = pace.piece_s([core])
            waited.append((time.perf_counter() - began) / took_s)
    finally:
        other.kill()
        other.wait()
    assert statistics.median(waited) > 1.6


def test_the_thread_goes_back_to_the_cores_that_it_was_allowed() -> None:
    allowed = os.sched_getaffinity(0)
    for cores in ([], [min(allowed)], [max(allowed) + 1000]):
        assert pace.piece_s(cores) > 0
        assert os.sched_getaffinity(0) == allowed
