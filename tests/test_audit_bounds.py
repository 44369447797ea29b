"""What bounds the requests in flight of a summary: honest levels stay, forged ones do not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from audit_results import Result, closed_loop, save, schedule, served, summary_only

from study.audit.claims import fit_tokens
from study.audit.formats import Window, read, table_windows
from study.audit.level import FIT_SPREAD, bound_of, level_reached
from study.validity import Judgement

GOOD = closed_loop()
ROUNDED = 0.01


def of(result: Result) -> Judgement:
    with TemporaryDirectory() as folder:
        (window,) = read(save(Path(folder) / "a.json", result)).windows
    return level_reached(window)


def of_table(header: str, *rows: str) -> list[Judgement]:
    windows = table_windows([header.split(","), *(row.split(",") for row in rows)])
    fit = fit_tokens(windows)
    return [level_reached(window, fit) for window in windows]


# ------------------------------------------------------------------- tables that count nothing


def queueing(levels: Sequence[int], slots: int, rounds: int) -> list[Window]:
    """Full levels of a server with so many slots, first come first served: lengths vary, so p99
    is far above the mean at a low level, and near it where all wait."""
    windows = []
    for seed, level in enumerate(levels):
        rng = np.random.default_rng(seed)
        service_s = 0.5 + rng.exponential(1.0, level * rounds)
        tokens = float((100 * service_s).sum())
        duration_s, e2e_s = served(level, slots, service_s)
        rates = {"total_tok_s": tokens / duration_s}
        times_s = {"e2e": {"p99": float(np.percentile(e2e_s, 99))}}
        windows.append(Window("", level=level, rates=rates, times_s=times_s, rounding=ROUNDED))
    return windows


def test_saturated_levels_of_a_table_without_lengths_are_not_refuted_by_its_fit() -> None:
    windows = queueing((5, 10, 25, 50, 100, 200), slots=64, rounds=50)
    fit = fit_tokens(windows)
    assert fit is not None
    said = [level_reached(window, fit) for window in windows]
    assert {one.verdict for one in said} == {"cannot judge"}
    assert "the p99 may be up to so many times the mean" in said[-1].text


def test_the_bound_of_a_fit_is_higher_by_what_its_p99_may_be_above_the_mean() -> None:
    low, high = table_windows(
        [["level", "total_tok_s", "e2e_p99_s"], ["10", "100", "10"], ["100", "500", "10"]]
    )
    fit = fit_tokens([low, high])
    assert fit is not None
    bound = bound_of(high, fit)
    assert bound is not None and bound.mean == pytest.approx(FIT_SPREAD * 50)


def test_a_fit_still_refutes_what_is_far_off() -> None:
    header = "level,requests,total_tok_s,e2e_p99_s"
    *_, capped = of_table(header, "10,1000,100,10", "20,2000,200,10", "1000,100000,200,10")
    assert capped.verdict == "fail"


def test_an_honest_level_whose_requests_are_not_counted_is_not_refuted_by_its_drain() -> None:
    """1,000 requests at each level, of which the last three are three times as long."""
    rows = []
    for level in (100, 150, 200, 300):
        service_s = np.ones(1000)
        service_s[-3:] = 3.0
        ends_s = schedule(service_s, level) + service_s
        rows.append(f"{level},{1000 / ends_s.max():.3f},1.00")
    said = of_table("level,request_s,e2e_p99_s", *rows)
    assert {one.verdict for one in said} == {"cannot judge"}
    assert "even if no more than 300 requests were made" in said[-1].text
    (capped,) = of_table("level,request_s,e2e_p99_s", "300,60,1.00")
    assert capped.verdict == "fail"


# ---------------------------------------------------------------------------- more than a level


@pytest.mark.parametrize("without", [set[str](), {"latencies"}])
def test_more_in_flight_than_the_limit_allows_is_refuted(without: set[str]) -> None:
    """Four times the throughput, everything consistent with it, at the same latencies."""
    forged = summary_only(GOOD, latencies=True) | {"duration": GOOD["duration"] / 4}
    said = of({key: value for key, value in forged.items() if key not in without})
    assert said.verdict == "fail" and "allows no more" in said.text
    assert said.observed == pytest.approx(4 * 8, rel=0.05)


def test_milliseconds_taken_for_seconds_are_refuted_by_the_median_alone() -> None:
    honest, wrong = of_table("level,request_s,e2e_p50_s,e2e_p99_s", "8,7,1.1,1.4", "8,7,1100,1400")
    assert (honest.verdict, wrong.verdict) == ("cannot judge", "fail")


# ------------------------------------------------------------------------------- stated means


def test_a_stated_mean_is_taken_and_not_the_p99() -> None:
    """Half of the level, with a p99 of more than twice the mean: only the mean tells."""
    result = summary_only(closed_loop(16, slots=8, seed=4))
    result["p99_e2el_ms"] = 2.5 * result["mean_e2el_ms"]
    assert of(result).verdict == "fail"
    assert of(result | {"mean_e2el_ms": None, "std_e2el_ms": None}).verdict == "cannot judge"


def test_a_small_spread_bounds_the_longest_request() -> None:
    window = Window(
        "", level=8, requests=16, completed=16, duration_s=4.0,
        times_s={"e2e": {"mean": 1.0, "std": 0.01, "p99": 1.1}},
    )  # fmt: skip
    assert level_reached(window).verdict == "fail"
    times_s = {"e2e": {"mean": 1.0, "std": 1.0, "p99": 1.1}}
    alone = Window("", level=8, requests=16, completed=16, duration_s=4.0, times_s=times_s)
    bound, spread = bound_of(window), bound_of(alone)
    assert bound is not None and spread is not None
    assert bound.share == pytest.approx(2 / (2 + 7 / 8 * (1 + 0.01 * 15**0.5)))
    assert spread.share == pytest.approx(2 / (2 + 7 / 8 * 3.3))


# ------------------------------------------------------------------------------ ramped arrivals


def test_a_ramp_is_not_one_load() -> None:
    """vLLM's client writes an infinite rate for it, and the limit beside it."""
    ramped = GOOD | {"request_rate": "inf", "ramp_up_strategy": "linear", "max_concurrency": 64}
    for result in (ramped, summary_only(ramped)):
        said = of(result)
        assert said.verdict == "cannot judge" and "ramped" in said.text
