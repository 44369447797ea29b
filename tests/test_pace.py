"""The piece of work that tells how quick a core is."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from study import pace

pytestmark = pytest.mark.quiet
SPIN = "import time\nend = time.monotonic() + 3\nwhile time.monotonic() < end: pass"


def quickest(turns: int, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(pace, "TURNS", turns)
    return min(pace.piece_s() for _ in range(20))


def test_more_work_takes_a_core_longer_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a core of half the pace would show."""
    once, twice = (quickest(turns, monkeypatch) for turns in (10_000, 20_000))
    assert twice / once == pytest.approx(2, rel=0.2)


def test_who_waits_for_the_core_too_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = quickest(10_000, monkeypatch)
    core = min(os.sched_getaffinity(0))
    other = subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", SPIN])
    try:
        beside = min(pace.piece_s([core]) for _ in range(20))
    finally:
        other.kill()
        other.wait()
    assert beside < 1.5 * alone


def test_the_thread_goes_back_to_the_cores_that_it_was_allowed() -> None:
    allowed = os.sched_getaffinity(0)
    for cores in ([], [min(allowed)], [max(allowed) + 1000]):
        assert pace.piece_s(cores) > 0
        assert os.sched_getaffinity(0) == allowed
