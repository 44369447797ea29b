"""Progress: one line a step, and a time left that follows the plan and the pace."""

from __future__ import annotations

import io
import time

import pytest

from study import plan
from study.experiments import Architecture
from study.progress import Progress

SETUP = {"engine": {"version": "1", "kind": "cpu"}, "packages": {}, "machine": {}}


def seconds_left(line: str) -> float:
    text = line.rpartition("about ")[2].removesuffix(" left")
    number, unit = text.split()[:2]
    return float(number) * {"s": 1, "min": 60}[unit]


def test_the_time_left_falls_as_planned_when_the_pace_is_as_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    launches = plan.launches(Architecture(), SETUP)
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    progress = Progress(launches, out)
    total = progress.plan.seconds
    for number, launch in enumerate(launches, start=1):
        progress.launch(launch, number, 2)
        clock[0] += launch.start_s
        for index, window in enumerate(launch.arm.windows):
            progress.window(launch, index)
            left = seconds_left(out.getvalue().splitlines()[-1])
            assert left == pytest.approx(total - (clock[0] - 100), abs=31)
            clock[0] += launch.window_s(window)
            progress.window_done(launch, index)
        clock[0] += plan.STOP_S
        progress.launch_done(launch, "measured", "")
    last = out.getvalue().splitlines()[-1]
    assert last.endswith(f"{launches[-1].arm.name} · measured")
    assert f"{progress.plan.windows - 1}/{progress.plan.windows} windows done" in out.getvalue()


def test_a_slower_pace_means_more_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = plan.launches(Architecture(), SETUP)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    progress = Progress(launches, out)
    for number, launch in enumerate(launches[:2], start=1):
        progress.launch(launch, number, 2)
        clock[0] += 3 * launch.expected_s
        progress.launch_done(launch, "rejected", "its words")
    progress.launch(launches[2], 3, 2)
    clock[0] += 3 * launch.start_s
    progress.window(launches[2], 0)
    done = launches[0].expected_s + launches[1].expected_s + launch.start_s
    expected = 3 * (progress.plan.seconds - done)
    assert seconds_left(out.getvalue().splitlines()[-1]) == pytest.approx(expected, abs=31)
    assert "rejected: its words" in out.getvalue()
