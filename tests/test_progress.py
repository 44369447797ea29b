"""Progress: one line a step, and a time left that follows the plan and the pace."""

from __future__ import annotations

import io
import time

import pytest

from study import plan
from study.experience import Experience
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
        for window in launch.arm.windows:
            progress.window(launch, window)
            left = seconds_left(out.getvalue().splitlines()[-1])
            assert left == pytest.approx(total - (clock[0] - 100), abs=31)
            clock[0] += launch.window_s(window)
            progress.window_done(launch, window)
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
    progress.window(launches[2], launches[2].arm.windows[0])
    done = launches[0].expected_s + launches[1].expected_s + launch.start_s
    expected = 3 * (progress.plan.seconds - done)
    assert seconds_left(out.getvalue().splitlines()[-1]) == pytest.approx(expected, abs=31)
    assert "rejected: its words" in out.getvalue()


def test_what_earlier_launches_took_counts_from_the_first_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    launch = plan.launches(Architecture.of({"launches": 1}), SETUP)[0]
    out = io.StringIO()
    progress = Progress([launch], out, Experience(5, took_s=4000.0, expected_s=1000.0))
    progress.launch(launch, 1, 1)
    progress.window(launch, launch.arm.windows[0])
    left_s = launch.expected_s - launch.start_s
    slowness = 4000.0 / (1000.0 + launch.start_s)  # the start, as it seems, took no time at all
    assert seconds_left(out.getvalue()) == pytest.approx(left_s * slowness, abs=31)


def test_before_any_launch_the_guess_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    launch = plan.launches(Architecture.of({"launches": 1}), SETUP)[0]
    out = io.StringIO()
    progress = Progress([launch], out, Experience(guess=3.0))
    progress.launch(launch, 1, 1)
    progress.window(launch, launch.arm.windows[0])
    left_s = launch.expected_s - launch.start_s
    assert seconds_left(out.getvalue()) == pytest.approx(3 * left_s, abs=31)


def test_a_launch_that_failed_and_is_tried_once_more_counts_once() -> None:
    launches = plan.launches(Architecture.of({"launches": 1}), SETUP)
    first, rest = launches[0], launches[1:]
    progress = Progress(launches, io.StringIO())
    progress.launch(first, 1, 1)
    windows = first.arm.windows
    for tried in (windows[:1], windows):  # it dies after a window, then comes to its end
        for window in tried:
            progress.window(first, window)
            progress.window_done(first, window)
        progress.launch_done(first, "failed", "died")
    assert progress.plan.windows == 1 + len(windows) + sum(len(x.expected_windows) for x in rest)
    assert progress._launches_done_s == first.expected_s


def test_windows_of_a_search_correct_the_total() -> None:
    """The plan expects some; the search of a launch may end sooner, or later."""
    asked = Architecture.of({"saturated": ["gqa-dense", "mla-dense"], "launches": 1})
    launches = [one for one in plan.launches(asked, SETUP) if one.arm.search]
    out = io.StringIO()
    progress = Progress(launches, out)
    first, second = (list(launch.expected_windows) for launch in launches)
    assert (
        progress.plan.windows
        == len(first) + len(second)
        > sum(len(launch.arm.windows) for launch in launches)
    )
    progress.launch(launches[0], 1, 1)
    for window in [*first, *first[-2:]]:  # two more than expected
        progress.window(launches[0], window)
        progress.window_done(launches[0], window)
    progress.launch_done(launches[0], "measured", "")
    assert progress.plan.windows == len(first) + 2 + len(second)
    progress.launch(launches[1], 2, 1)
    progress.launch_done(launches[1], "failed", "died at the start")
    assert progress.plan.windows == len(first) + 2
    done = [line.split(" windows done")[0].rsplit(" ")[-1] for line in out.getvalue().splitlines()]
    counted = [tuple(map(int, text.split("/"))) for text in done if "/" in text and "·" not in text]
    assert counted and all(so_far < total for so_far, total in counted)
