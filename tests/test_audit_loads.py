"""Levels that show one and the same load: what that refutes, and what it must leave alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from audit_results import closed_loop, items, said, save, served, summary_only
from hypothesis import given
from hypothesis import strategies as st

from study.audit.formats import Window, table_windows
from study.audit.level import Fit
from study.audit.loads import SAME_LEVEL, refuted
from study.finite import Floats

STATISTICS: dict[str, Callable[[Floats], np.floating]] = {
    "p50": np.median,
    "mean": np.mean,
    "p99": lambda e2e_s: np.percentile(e2e_s, 99),
}


def window(level: int, slots: int, service_s: Floats, statistic: str, counted: bool) -> Window:
    """What a table says of a level that was held, on a server with so many slots."""
    duration_s, e2e_s = served(level, slots, service_s)
    times_s = {"e2e": {statistic: float(STATISTICS[statistic](e2e_s))}}
    rates = {"request_s": service_s.size / duration_s}
    made = float(service_s.size) if counted else math.nan
    return Window("", level=level, requests=made, completed=made, rates=rates, times_s=times_s)


def same(*levels: float) -> list[Window]:
    """Levels with one rate and one latency."""
    rates, times_s = {"request_s": 50.0}, {"e2e": {"p99": 10.0}}
    return [Window("", level=level, rates=rates, times_s=times_s) for level in levels]


def levels_of(windows: Sequence[Window], fit: Fit | None = None) -> list[float]:
    return [window.level for window, _ in refuted(windows, fit)]


# ------------------------------------------------------------------------------ what is refuted


def test_a_load_that_goes_on_to_twice_its_level_was_not_raised() -> None:
    (first, said), (_, last) = refuted(same(500, 750, 1000), None)
    assert first.level == 750 and said.verdict == "fail" and said.gate == "level_reached"
    assert said.observed == last.observed == pytest.approx(SAME_LEVEL * 500)
    assert "those of level 500, within 5% each, and stay so up to level 1000" in said.text


@given(st.integers(1, 64), st.integers(2, 12), st.integers(0, 99))
def test_a_server_behind_a_hidden_limit_is_refuted_from_twice_that_on(
    cap: int, times: int, seed: int
) -> None:
    """The client counts its own queue as in flight, and starts its clock behind it."""
    service_s = np.random.default_rng(seed).uniform(0.9, 1.1, 40 * cap)
    windows = [
        Window("", level=level, rates={"request_s": 40 * cap / duration_s}, times_s=times_s)
        for level in (cap, times * cap)
        for duration_s, e2e_s in [served(cap, cap, service_s)]
        for times_s in [{"e2e": {"mean": float(e2e_s.mean())}}]
    ]
    assert levels_of(windows) == [times * cap]


def test_results_of_a_folder_are_refuted_as_the_levels_of_a_table_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for level in (8, 16):
        result = closed_loop(level, 800, slots=8, drift=20.0, seed=level)
        # Without its mean the p99 stands for it, at twice as much: by itself no level is refuted.
        untold = {"mean_e2el_ms": None, "std_e2el_ms": None}
        save(tmp_path / f"run-c{level:02}.json", summary_only(result) | untold)
    one, two, _ = items(capsys, tmp_path)
    assert (one["verdict"], two["verdict"]) == ("undecided", "void")
    assert "those of level 8" in said(two, "level_reached")["text"]
    for level in (8, 16):
        (alone,) = items(capsys, tmp_path / f"run-c{level:02}.json")
        assert alone["verdict"] == "undecided"


# --------------------------------------------------------------------------- what is left alone


@given(
    st.integers(1, 12),
    st.lists(st.sampled_from([1.25, 1.5, 2.0, 3.0]), min_size=1, max_size=4),
    st.integers(1, 200),
    st.floats(0.05, 0.6),
    st.sampled_from(sorted(STATISTICS)),
    st.integers(0, 999),
)
def test_levels_that_were_held_are_not_refuted(
    lowest: int, factors: list[float], slots: int, spread: float, statistic: str, seed: int
) -> None:
    """Below saturation and beyond it, counted or not, with as many requests at each level."""
    levels = np.unique(np.ceil(lowest * np.cumprod([1.0, *factors]))).astype(int)
    rng = np.random.default_rng(seed)
    service_s = rng.lognormal(0.0, spread, 8 * levels[-1])
    for counted in (False, True):
        windows = [window(int(at), slots, service_s, statistic, counted) for at in levels]
        assert levels_of(windows) == []


def test_whole_waves_of_requests_hide_a_rise() -> None:
    """1,000 requests of one length take two waves at 500 and at 750, held in the first."""
    service_s = np.ones(1000)
    windows = [window(at, 2000, service_s, "p99", counted=False) for at in (500, 750)]
    assert windows[0].rates == windows[1].rates
    assert levels_of(windows) == []


def test_failures_and_arrivals_at_a_rate_are_left_alone() -> None:
    low, high = same(8, 64)
    assert levels_of([low, high]) == [64]
    assert levels_of([low, replace(high, failed=3.0)]) == []
    assert levels_of([replace(one, rate_s=50.0) for one in (low, high)]) == []
    assert levels_of([replace(one, steady_rate=False) for one in (low, high)]) == []


def test_a_drain_is_allowed_for_where_requests_are_counted() -> None:
    for made, void in ((32.0, []), (3200.0, [32.0])):
        counted = [replace(one, requests=made, completed=made) for one in same(8, 32)]
        assert levels_of(counted) == void


def test_a_tail_that_no_one_length_explains_says_nothing_of_the_mean() -> None:
    header = ["level", "total_tok_s", "e2e_p99_s"]
    windows = table_windows([header, ["8", "100", "10"], ["64", "100", "10"]])
    fit = Fit(100.0, "total_tok_s", 8.0)
    assert levels_of(windows, fit) == [64]
    assert levels_of(windows, Fit(100.0, "total_tok_s", 8.0, refuted=True)) == []
