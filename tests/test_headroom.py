"""The gate client_headroom: a client that shows in the numbers voids, one just inside does not."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from study.calibration import Calibration
from study.client import Load, Recording, run_inline
from study.connection import Connection
from study.gates.headroom import LAG_LIMIT_S, RATE_FACTOR, Demand, beyond, client_headroom, demand
from study.nullserver import serve
from study.steady import steady_part

pytestmark = pytest.mark.quiet

TRIES = 5

ASKED = Demand(level=4, chunks_per_s=1200.0, ttft_s=0.020, itl_s=0.004, loop_lag_p99_s=0.001)


def calibration(**changes: float) -> Calibration:
    """A client that adds 0.4 ms to TTFT and 0.1 ms to ITL, and keeps 40,000 chunks/s."""
    point = {"ttft_added_median_ms": 0.4, "itl_error_median_ms": 0.1, "held": True, "true": True}
    grid = [
        {"kind": "grid", "level": 4, "itl_ms": itl, "asked_per_s": rate, "chunks_per_s": rate}
        for itl, rate in ((4.0, 0.8e3), (2.0, 1.6e3))
    ]
    ramp = [
        {"kind": "ramp", "level": 256, "itl_ms": itl, "asked_per_s": rate, "chunks_per_s": rate}
        for itl, rate in ((8.0, 20e3), (4.0, 40e3))
    ]
    rows = [{**point, **one, **changes} for one in grid] + [{**point, **one} for one in ramp]
    broken = {"kind": "ramp", "level": 256, "itl_ms": 2.0, "asked_per_s": 80e3, "true": False}
    rows += [{**point, **broken, "chunks_per_s": 50e3, "held": False}] * 2
    return Calibration(pd.DataFrame(rows), (1,), (1,))


def test_a_client_with_room_passes_and_says_how_much_it_adds() -> None:
    said = client_headroom(ASKED, calibration())
    assert (said.gate, said.scope, said.verdict) == ("client_headroom", "window", "pass")
    assert "0.4 ms to TTFT" in said.text and "1,200 of 40,000 chunks/s" in said.text


FLAWS: dict[str, tuple[dict[str, float], dict[str, float], str]] = {
    # calibration changed, window changed, what the text must name
    "ttft": ({"ttft_added_median_ms": 1.01}, {}, "TTFT"),
    "itl": ({"itl_error_median_ms": 0.31}, {}, "ITL"),
    "slow pace": ({"held": 0.0}, {}, "did not keep the pace"),
    "rate": ({}, {"chunks_per_s": 40e3 / RATE_FACTOR}, "chunks/s that client and null server kept"),
    "lag": ({}, {"loop_lag_p99_s": LAG_LIMIT_S}, "loop was late by 10 ms"),
}
INSIDE: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "ttft": ({"ttft_added_median_ms": 0.99}, {}),  # below 5 % of 20 ms
    "itl": ({"itl_error_median_ms": 0.29}, {}),  # above 5 % of 4 ms, below 0.3 ms
    "slow pace": ({"held": 1.0}, {}),
    "rate": ({}, {"chunks_per_s": 40e3 / RATE_FACTOR - 1}),
    "lag": ({}, {"loop_lag_p99_s": LAG_LIMIT_S - 1e-6}),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_an_overloaded_client_fails_and_just_inside_it_passes(flaw: str) -> None:
    points, window, named = FLAWS[flaw]
    said = client_headroom(replace(ASKED, **window), calibration(**points))  # type: ignore[arg-type]
    assert said.verdict == "fail"
    assert named in said.text
    points, window = INSIDE[flaw]
    inside = replace(ASKED, **window)  # type: ignore[arg-type]
    assert client_headroom(inside, calibration(**points)).verdict == "pass"


def test_what_was_not_calibrated_cannot_be_judged() -> None:
    assert client_headroom(None, calibration()).verdict == "cannot judge"
    assert "not calibrated" in client_headroom(ASKED, None).text
    harder = replace(ASKED, level=300)
    said = client_headroom(harder, calibration())
    assert (said.verdict, "no load so hard" in said.text) == ("cannot judge", True)
    unknown = replace(ASKED, ttft_s=float("nan"))
    assert client_headroom(unknown, calibration()).verdict == "cannot judge"


def test_a_late_loop_fails_even_without_a_calibration() -> None:
    assert client_headroom(replace(ASKED, loop_lag_p99_s=0.05), None).verdict == "fail"


def test_the_ramp_tells_what_was_kept_and_where_it_broke() -> None:
    found = calibration()
    assert (found.safe_per_s, found.breaking_per_s) == (40e3, 80e3)
    spoiled = found.points.copy()
    spoiled.loc[spoiled.index[-1], "true"] = True  # asked again, it was kept
    again = replace(found, points=spoiled)
    assert np.isnan(again.breaking_per_s)
    assert again.safe_per_s == 50e3


def test_the_better_of_two_tries_at_a_load_counts() -> None:
    """A neighbour spoiled the first: no window is void for it, and none fares better for a second
    try that was worse."""
    found = calibration()
    spoiled = found.points.iloc[[0]].assign(held=False, true=False, itl_error_median_ms=9.0)
    fine = client_headroom(ASKED, found)
    for tries in ([spoiled, found.points], [found.points, spoiled]):
        both = replace(found, points=pd.concat(tries, ignore_index=True))
        assert client_headroom(ASKED, both) == fine
        assert not beyond(ASKED, both)
    worse = found.points.assign(itl_error_median_ms=9.0)  # held, and true, and slow
    for tries in ([worse, found.points], [found.points, worse]):
        both = replace(found, points=pd.concat(tries))
        assert client_headroom(ASKED, both) == fine
    twice = found.points.assign(held=False)
    both = replace(found, points=pd.concat([twice, twice], ignore_index=True))
    assert client_headroom(ASKED, both).verdict == "fail" and beyond(ASKED, both)


def test_a_late_loop_passes_and_a_calibration_does_not() -> None:
    """Which decides whether the window is worth another try."""
    late = replace(ASKED, loop_lag_p99_s=0.05)
    assert client_headroom(late, calibration()).verdict == "fail"
    assert not beyond(late, calibration())
    assert beyond(ASKED, calibration(held=0.0))
    assert not beyond(None, calibration()) and not beyond(ASKED, None)


def test_too_much_at_a_harder_load_alone_proves_nothing() -> None:
    found = calibration()
    hard = found.points["chunks_per_s"] == 1.6e3
    found.points.loc[hard, "ttft_added_median_ms"] = 5.0
    assert client_headroom(ASKED, found).verdict == "cannot judge"
    found.points.loc[hard, ["ttft_added_median_ms", "held"]] = [0.4, False]
    assert client_headroom(ASKED, replace(found)).verdict == "cannot judge"


@given(st.integers(1, 300), st.floats(1, 60e3))
def test_the_loads_looked_up_enclose_the_window(level: int, rate: float) -> None:
    found = calibration()
    levels, rates = found.points["level"], found.points["chunks_per_s"]
    harder, easier = found.harder(level, rate), found.easier(level, rate)
    assert (harder is None) == (not ((levels >= level) & (rates >= rate)).any())
    assert (easier is None) == (not ((levels <= level) & (rates <= rate)).any())
    if harder is not None:
        assert harder["level"] >= level and harder["chunks_per_s"] >= rate
    if easier is not None:
        assert easier["level"] <= level and easier["chunks_per_s"] <= rate


def recorded() -> Recording:
    """Four slots against a null server, client in this process."""
    with serve(ttft_ms=20, itl_ms=4) as base_url:
        return run_inline(
            Load(
                base_url=base_url,
                model="null",
                input_tokens=16,
                output_tokens=32,
                vocabulary=1000,
                concurrency=4,
                requests=40,
                ramp_s=0.1,
            )
        )


def judged(recording: Recording) -> tuple[str, str]:
    steady = steady_part(recording.requests, 4)
    assert steady is not None
    asked = demand(recording.requests, recording.chunks, steady, recording.info)
    said = client_headroom(asked, calibration())
    return said.verdict, said.text


def test_a_client_that_is_really_slow_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Connection.data_received

    def slow(self: Connection, data: bytes) -> None:
        time.sleep(0.015)
        read(self, data)

    monkeypatch.setattr(Connection, "data_received", slow)
    verdict, text = judged(recorded())
    assert verdict == "fail"
    assert "the client's loop was late" in text


def test_the_client_as_it_is_has_room() -> None:
    """Others on the machine can only make it later, so the best of a few tries is its own."""
    seen = []
    for _ in range(TRIES):
        recording = recorded()
        steady = steady_part(recording.requests, 4)
        assert steady is not None
        asked = demand(recording.requests, recording.chunks, steady, recording.info)
        near = (
            asked.chunks_per_s == pytest.approx(4 * 32 / (0.020 + 31 * 0.004), rel=0.2),
            asked.ttft_s == pytest.approx(0.020, abs=0.004),
            asked.itl_s == pytest.approx(0.004, abs=0.001),
        )
        seen.append((near, judged(recording)))
        if all(near) and seen[-1][1][0] == "pass":
            return
    pytest.fail(f"in none of {TRIES} tries had the client room: {seen}")
