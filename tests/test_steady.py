"""The steady part against loops whose truth is known by construction."""

from __future__ import annotations

import time
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from simulate import simulate

from study.steady import (
    Steady,
    chunk_gaps_s,
    in_flight_when_sent,
    least_sample,
    measure,
    percentile,
    steady_part,
    token_rate_drift,
    trend,
)


def loop_of(*rows: tuple[int, float, float]) -> pd.DataFrame:
    """Requests of (slot, sent_s, ended_s), error-free."""
    slot, sent_s, ended_s = zip(*rows, strict=True)
    return pd.DataFrame(
        {
            "request": range(len(rows)),
            "slot": slot,
            "due_s": sent_s,
            "sent_s": sent_s,
            "first_s": sent_s,
            "last_s": ended_s,
            "ended_s": ended_s,
            "input_tokens": 10.0,
            "output_tokens": 2.0,
            "error": "",
        }
    )


TWO_SLOTS = loop_of((0, 0, 4), (1, 1, 3), (0, 4, 8), (1, 3, 6), (1, 6, 11))


def test_steady_part_runs_from_full_to_the_first_dry_slot() -> None:
    steady = steady_part(TWO_SLOTS, level=2)
    assert steady == Steady(start_s=1, end_s=8, median_latency_s=4, latencies=7 / 4, level=2)


def test_a_level_that_was_never_full_has_no_steady_part() -> None:
    assert steady_part(TWO_SLOTS, level=3) is None


def test_no_steady_part_when_a_slot_is_dry_before_the_level_is_full() -> None:
    late_third = loop_of((0, 0, 2), (1, 1, 9), (2, 3, 5), (3, 4, 6))
    assert steady_part(late_third, level=3) is None


def test_ending_and_sending_in_one_instant_is_one_request_in_flight() -> None:
    _, in_flight = in_flight_when_sent(loop_of((0, 0, 1), (0, 1, 2), (0, 2, 3)))
    assert in_flight.tolist() == [1, 1, 1]


def test_a_request_that_never_ended_stays_in_flight_and_its_slot_is_never_dry() -> None:
    hung = TWO_SLOTS.copy()
    hung.loc[2, ["last_s", "ended_s"]] = np.nan
    steady = steady_part(hung, level=2)
    assert steady is not None
    assert steady.end_s == 11


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 9)).map(lambda x: (x[0], x[0] + x[1])),
        min_size=1,
        max_size=20,
    )
)
def test_in_flight_agrees_with_counting_one_by_one(spans: list[tuple[int, int]]) -> None:
    requests = loop_of(*[(i, float(a), float(b)) for i, (a, b) in enumerate(spans)])
    sent_s, in_flight = in_flight_when_sent(requests)
    last_of_each_time = {time_s: int(n) for time_s, n in zip(sent_s, in_flight, strict=True)}
    for time_s, n in last_of_each_time.items():
        assert n == sum(a <= time_s < b for a, b in spans)


def test_a_million_requests_take_about_a_second() -> None:
    slots, rounds = 1000, 1000
    sent_s = (np.arange(rounds)[:, None] + np.arange(slots)[None, :] / slots).ravel()
    requests = pd.DataFrame(
        {"slot": np.tile(np.arange(slots), rounds), "sent_s": sent_s, "ended_s": sent_s + 1.0}
    )
    requests["last_s"], requests["error"] = requests["ended_s"], ""
    before_s = time.perf_counter()
    steady = steady_part(requests, level=slots)
    # Three times the aim: the machine may be shared.
    assert time.perf_counter() - before_s < 3
    assert steady is not None
    assert (steady.start_s, steady.end_s) == (0.999, 1000.0)


def test_throughput_counts_tokens_where_their_chunks_fell() -> None:
    chunks = pd.DataFrame(
        {"request": [0, 0, 3, 3, 2, 2, 4], "time_s": [0.5, 3, 4, 5, 7.9, 8, 10], "tokens": 2}
    )
    summary = measure(TWO_SLOTS, chunks, steady_part(TWO_SLOTS, level=2))
    assert summary.steady_s == 7
    assert summary.output_tok_s == pytest.approx(4 * 2 / 7)  # at 3, 4, 5, 7.9: 8 is outside
    assert summary.requests_finished == 3  # those that ended at 3, 4 and 6
    assert summary.input_tok_s == pytest.approx(4 * 10 / 7)  # first tokens at 1, 3, 4, 6
    assert summary.total_tok_s == pytest.approx(summary.output_tok_s + summary.input_tok_s)


def test_planted_times_are_measured() -> None:
    evidence = simulate("planted times", noise=0.0, rounds=20)
    summary = measure(evidence.requests, evidence.chunks, evidence.steady)
    assert summary.ttft_mean_s == pytest.approx(0.050, abs=1e-4)
    assert summary.ttft_p50_s == pytest.approx(0.050, abs=1e-4)
    assert summary.tpot_mean_s == pytest.approx(0.010)
    assert summary.itl_p50_s == pytest.approx(0.010)
    assert summary.itl_p99_s == pytest.approx(0.010)
    assert summary.e2e_p50_s == pytest.approx(0.050 + 31 * 0.010, abs=1e-4)
    assert summary.output_tok_s == pytest.approx(8 * 32 / (0.050 + 31 * 0.010), rel=0.01)
    assert summary.requests_s == pytest.approx(summary.output_tok_s / 32, rel=0.02)


def test_ttft_runs_from_the_moment_the_request_was_due() -> None:
    evidence = simulate("late sender", noise=0.0)
    late = evidence.requests.assign(due_s=evidence.requests["due_s"] - 0.2)
    summary = measure(late, evidence.chunks, evidence.steady)
    assert summary.ttft_mean_s == pytest.approx(0.250, abs=1e-4)


def test_the_slow_first_tokens_of_the_ramp_are_kept_apart() -> None:
    evidence = simulate("ramp", noise=0.0)
    assert evidence.steady is not None
    ramp = evidence.requests["first_s"] < evidence.steady.start_s
    assert ramp.sum() >= 5
    slow = evidence.requests.assign(due_s=evidence.requests["due_s"] - 10.0 * ramp)
    summary = measure(slow, evidence.chunks, evidence.steady)
    assert summary.ttft_mean_s == pytest.approx(0.050, abs=1e-4)


def test_the_tail_waits_for_enough_requests() -> None:
    few = simulate("few", rounds=20)
    many = simulate("many", rounds=60)
    assert np.isnan(measure(few.requests, few.chunks, few.steady).ttft_p99_s)
    assert measure(many.requests, many.chunks, many.steady).ttft_p99_s > 0.05


def test_failed_requests_are_no_completed_work() -> None:
    evidence = simulate("failing", noise=0.0, rounds=20)
    half = evidence.requests["request"] % 2 == 0
    failing = evidence.requests.assign(error=np.where(half, "reset", ""))
    everything = measure(evidence.requests, evidence.chunks, evidence.steady)
    rest = measure(failing, evidence.chunks, evidence.steady)
    assert rest.output_tok_s == pytest.approx(everything.output_tok_s / 2, rel=0.02)


def test_a_window_without_a_steady_part_is_nan_throughout() -> None:
    evidence = simulate("nothing")
    summary = asdict(measure(evidence.requests, evidence.chunks, None))
    assert all(np.isnan(value) for value in summary.values())


def test_unreported_usage_is_not_counted_as_nothing() -> None:
    evidence = simulate("unreported")
    evidence.requests.loc[100, "input_tokens"] = np.nan
    summary = measure(evidence.requests, evidence.chunks, evidence.steady)
    assert np.isnan([summary.input_tok_s, summary.total_tok_s]).all()
    assert summary.output_tok_s > 0


def test_gaps_stay_inside_a_request_and_skip_chunks_without_a_token() -> None:
    stream = pd.DataFrame(
        {
            "request": [0, 0, 0, 0, 1, 1],
            "time_s": [0.0, 1.0, 3.0, 3.5, 2.0, 9.0],
            "tokens": [1, 1, 1, 0, 1, 1],
        }
    )
    steady = Steady(start_s=0, end_s=5, median_latency_s=1, latencies=5, level=1)
    assert chunk_gaps_s(stream, steady).tolist() == [1.0, 2.0]


def test_percentile_rule_is_the_exact_order_statistic_interval() -> None:
    assert least_sample(0.99) == least_sample(0.01) == 368
    assert (least_sample(0.95), least_sample(0.90), least_sample(0.5)) == (72, 36, 6)


def test_percentile_of_an_unsupported_sample_is_nan() -> None:
    assert np.isnan(percentile(np.linspace(0, 366, 367), 0.99))
    assert percentile(np.linspace(0, 400, 401), 0.99) == pytest.approx(396)


@pytest.mark.parametrize("staggered", [True, False], ids=["staggered", "lock-step"])
@pytest.mark.parametrize("rounds", [7, 40])
@pytest.mark.parametrize("level", [1, 8])
def test_drift_is_found_and_not_imagined(level: int, rounds: int, staggered: bool) -> None:
    """Lock-step waves must neither look like drift nor hide it."""
    name = f"{level} {rounds} {staggered}"
    for slower, expected in ((0.0, 0.0), (0.15, -0.14)):
        evidence = simulate(
            name, level=level, rounds=rounds, staggered=staggered, noise=0.01, drift=slower
        )
        assert evidence.steady is not None
        drift = token_rate_drift(evidence.chunks, evidence.steady)
        assert drift.point == pytest.approx(expected, abs=0.05)
        assert drift.low < drift.point < drift.high


def test_the_drift_interval_covers_no_drift_in_about_nine_of_ten() -> None:
    covered = 0
    for index in range(100):
        evidence = simulate("a" * index, level=4, rounds=15, noise=0.05)
        assert evidence.steady is not None
        drift = token_rate_drift(evidence.chunks, evidence.steady)
        covered += drift.low <= 0 <= drift.high
    assert 80 <= covered <= 98


def test_a_slow_disturbance_widens_the_drift_interval() -> None:
    """Ordinary least squares takes autocorrelated noise for independent and is too sure."""
    rng = np.random.default_rng(sum(map(ord, "disturbance")))
    n, runs, hit_ours, hit_ordinary = 60, 600, 0, 0
    x = np.arange(n, dtype=np.float64)
    for _ in range(runs):
        shock = rng.normal(size=n)
        for i in range(1, n):
            shock[i] += 0.5 * shock[i - 1]
        slope, error = trend(x, shock)
        ordinary = sm.OLS(shock, sm.add_constant(x)).fit().bse[1]
        hit_ours += abs(slope) < 1.67 * error
        hit_ordinary += abs(slope) < 1.67 * ordinary
    assert hit_ordinary / runs < 0.75
    assert hit_ours / runs > hit_ordinary / runs + 0.05


def test_trend_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(sum(map(ord, "statsmodels")))
    x = np.cumsum(rng.uniform(0.5, 1.5, 100))
    smooth = np.convolve(rng.normal(size=104), np.ones(5), "valid")
    rough = np.tile([1.0, -1.0], 50) + 0.1 * rng.normal(size=100)
    design = sm.add_constant(x)
    for noise, settings in (
        (smooth, {"cov_type": "HAC", "cov_kwds": {"maxlags": 4, "use_correction": True}}),
        (rough, {}),
    ):
        slope, error = trend(x, 3 * x + noise)
        theirs = sm.OLS(3 * x + noise, design).fit(**settings)
        assert slope == pytest.approx(theirs.params[1])
        assert error == pytest.approx(theirs.bse[1])


def test_too_few_waves_give_no_drift() -> None:
    evidence = simulate("short", rounds=3)
    assert evidence.steady is not None
    assert np.isnan(token_rate_drift(evidence.chunks, evidence.steady).point)
