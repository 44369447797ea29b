"""Each gate finds exactly its flaw in a result that is good but for it, and arithmetic holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from audit_results import Floats, Result, closed_loop, save, schedule, summary_only
from hypothesis import given
from hypothesis import strategies as st

from study.audit.formats import Window, read
from study.audit.gates import judge, verdict
from study.audit.level import bound_of, level_reached
from study.validity import Judgement

GOOD = closed_loop()


def judged(result: Result) -> dict[str, Judgement]:
    with TemporaryDirectory() as folder:
        (window,) = read(save(Path(folder) / "a.json", result)).windows
    return {said.gate: said for said in judge(window)}


def failed(result: Result) -> set[str]:
    return {gate for gate, said in judged(result).items() if said.verdict == "fail"}


def edited(**changes: Any) -> Result:
    return GOOD | changes


def swapped(key: str, index: int, value: object) -> Result:
    values = list(GOOD[key])
    values[index] = value
    return edited(**{key: values})


def test_a_good_detailed_result_is_valid() -> None:
    said = judged(GOOD)
    assert verdict(said.values()) == "valid"
    assert {one.verdict for one in said.values()} == {"pass"}


@pytest.mark.parametrize("without", ["itls", "latencies", "generated_texts", "errors"])
def test_it_stays_valid_without_what_is_not_needed(without: str) -> None:
    less = {key: value for key, value in GOOD.items() if key != without}
    assert verdict(judged(less).values()) == "valid"


def test_only_detail_can_make_valid() -> None:
    said = judged(summary_only(GOOD))
    assert verdict(said.values()) == "undecided"
    assert said["level_reached"].verdict == said["steady_part"].verdict == "cannot judge"
    assert said["conservation"].verdict == said["times"].verdict == "pass"


FLAWS: dict[str, tuple[Result, set[str]]] = {
    "rate edited": (edited(output_throughput=GOOD["output_throughput"] * 1.1), {"conservation"}),
    "duration edited": (edited(duration=GOOD["duration"] * 1.1), {"conservation"}),
    "mean edited": (edited(mean_ttft_ms=GOOD["mean_ttft_ms"] * 0.9), {"conservation"}),
    "p99 edited": (edited(p99_tpot_ms=GOOD["p99_tpot_ms"] * 1.1), {"conservation"}),
    "tokens edited": (edited(total_output_tokens=1 + 400 * 32), {"conservation"}),
    "more than were made": (edited(num_prompts=399), {"conservation"}),
    "goodput above all": (edited(request_goodput=99.0), {"conservation"}),
    "negative gap": (swapped("itls", 3, [-0.1] + [0.0] * 30), {"times", "conservation"}),
    "no first token": (swapped("ttfts", 3, -0.1), {"times", "conservation"}),
    "ended before its first token": (swapped("latencies", 3, 0.05), {"times", "conservation"}),
    "p50 above p99": (edited(median_itl_ms=900.0), {"times"}),
    "longer than the run": (edited(p99_itl_ms=1e6), {"times"}),
    "sent after the end": (
        swapped("start_times", 3, 1e6),
        {"times", "level_reached", "steady_part"},
    ),
    "early stops": (swapped("output_lens", 3, 7), {"lengths_delivered", "conservation"}),
    "other prompts": (swapped("input_lens", 3, 131), {"lengths_delivered", "conservation"}),
    "another level": (edited(max_concurrency=9), {"level_reached"}),
    "drift": (closed_loop(drift=0.3, seed=1), {"steady_part"}),
    "five latencies are not there": (closed_loop(requests=40, seed=2), {"steady_part"}),
}


@pytest.mark.parametrize("name", FLAWS)
def test_a_planted_flaw_is_found_and_no_other(name: str) -> None:
    result, gates = FLAWS[name]
    found = failed(result) - {"percentile_supported"}
    assert found == gates
    assert verdict(judged(result).values()) == "void"


def test_failures_above_one_percent() -> None:
    def with_failures(count: int) -> Result:
        errors = ["HTTP 500: no"] * count + [""] * (400 - count)
        return edited(errors=errors, completed=400 - count, failed=count)

    few, many = judged(with_failures(4))["errors"], judged(with_failures(5))["errors"]
    assert (few.verdict, many.verdict) == ("pass", "fail")
    assert "HTTP 500: no (5)" in many.text


def test_failures_of_a_summary() -> None:
    summary = summary_only(GOOD)
    assert judged(summary | {"completed": 390, "failed": 10})["errors"].verdict == "fail"
    old = {key: value for key, value in summary.items() if key != "failed"}
    assert judged(old | {"completed": 380})["errors"].verdict == "fail"
    assert judged(old)["errors"].verdict == "pass"


def test_lengths_that_vary_are_no_flaw_but_cannot_be_judged() -> None:
    lengths = [20 + i % 13 for i in range(400)]
    said = judged(edited(output_lens=lengths))["lengths_delivered"]
    assert said.verdict == "cannot judge" and "20 to 32 out" in said.text


def test_a_p99_that_is_not_supported_withholds_it_and_voids_nothing() -> None:
    said = judged(summary_only(closed_loop(requests=80, seed=3)))
    assert said["percentile_supported"].verdict == "fail"
    assert said["percentile_supported"].limit == 368
    assert verdict(said.values()) == "undecided"


# ------------------------------------------------------------------------------- levels


def test_a_cap_below_the_level_is_refuted_by_detail_and_by_summary() -> None:
    capped = closed_loop(level=16, slots=8, seed=4)
    detail, summary = judged(capped), judged(summary_only(capped))
    assert detail["level_reached"].verdict == summary["level_reached"].verdict == "fail"
    assert float(summary["level_reached"].observed) == pytest.approx(8, rel=0.1)


@pytest.mark.parametrize(("failed", "verdict"), [(2, "cannot judge"), (0, "fail")])
def test_failed_requests_may_have_held_what_is_missing(failed: int, verdict: str) -> None:
    """2 of 8 slots lost to requests that hung and failed: the level may have been full."""
    result = closed_loop(level=8, slots=6, seed=10)
    result |= {
        "completed": 400 - failed,
        "failed": failed,
        "errors": ["TimeoutError"] * failed + [""] * (400 - failed),
    }
    assert judged(result)["level_reached"].verdict == verdict
    assert judged(summary_only(result))["level_reached"].verdict == verdict


def test_fewer_requests_than_slots_never_fill_a_level() -> None:
    said = judged(summary_only(closed_loop(level=200, requests=100, seed=5)))["level_reached"]
    assert said.verdict == "fail" and "Only 100 requests" in said.text


def test_without_a_level_or_e2e_nothing_is_said() -> None:
    summary = summary_only(GOOD)
    assert judged(summary | {"max_concurrency": None})["level_reached"].verdict == "cannot judge"
    rates_only = {
        key: value for key, value in summary.items() if not key.endswith(("e2el_ms", "tpot_ms"))
    }
    assert judged(rates_only)["level_reached"].verdict == "cannot judge"


def test_ttft_and_tpot_stand_for_an_e2e_that_is_not_there() -> None:
    """By default `vllm bench serve` writes no E2E."""
    capped = summary_only(closed_loop(level=16, slots=8, seed=6))
    default = {key: value for key, value in capped.items() if not key.endswith("e2el_ms")}
    said = judged(default)["level_reached"]
    assert said.verdict == "fail" and "TTFT" in said.text


def poisson(rate_s: float, asked_s: float, seed: int) -> Result:
    """Arrivals at a rate, each answered as in the closed loop."""
    result = closed_loop(seed=seed)
    gaps_s = np.random.default_rng(seed).exponential(1 / rate_s, 400)
    start_s = 5.0 + np.cumsum(gaps_s)
    ends_s = start_s + np.array(result["latencies"])
    duration_s = float(ends_s.max() - start_s.min())
    scale = result["duration"] / duration_s
    rates = {key: result[key] * scale for key in result if key.endswith("throughput")}
    return result | rates | {
        "start_times": start_s.tolist(),
        "duration": duration_s,
        "request_rate": asked_s,
        "max_concurrency": None,
    }  # fmt: skip


def test_open_loop_is_judged_by_its_arrivals() -> None:
    kept, late = judged(poisson(20, 20, 7)), judged(poisson(14, 20, 8))
    assert kept["level_reached"].verdict == "pass"
    assert late["level_reached"].verdict == "fail"
    ramped = judged(poisson(20, 20, 7) | {"ramp_up_strategy": "linear"})
    assert ramped["level_reached"].verdict == "cannot judge"
    assert judged(summary_only(poisson(14, 20, 8)))["level_reached"].verdict == "cannot judge"


SHAPES: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "fixed": lambda rng, n: np.ones(n),
    "uniform": lambda rng, n: rng.uniform(0.5, 1.5, n),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1, n),
}


def summary_window(service_s: Floats, slots: int) -> Window:
    ends_s = schedule(service_s, slots) + service_s
    times_s = {"e2e": {"p99": float(np.percentile(service_s, 99))}}
    n, duration_s = float(service_s.size), float(ends_s.max())
    return Window("", level=slots, requests=n, completed=n, duration_s=duration_s, times_s=times_s)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rounds", [1, 2, 10])
def test_a_full_level_is_never_refuted_whatever_its_drain(shape: str, rounds: int) -> None:
    for seed in range(20):
        slots = (4, 16, 64)[seed % 3]
        service_s = SHAPES[shape](np.random.default_rng(seed), slots * rounds)
        window = summary_window(service_s, slots)
        assert level_reached(window).verdict == "cannot judge"
        bound = bound_of(window)
        assert bound is not None and bound.mean >= float(service_s.sum()) / window.duration_s


@given(st.integers(1, 30), st.lists(st.floats(0.01, 100), min_size=30, max_size=90))
def test_with_all_latencies_the_bound_is_grahams(slots: int, service: list[float]) -> None:
    """Not even one straggler a thousand times as long refutes a level that was full."""
    service_s = np.array(service)
    result = summary_only(GOOD, latencies=True)
    ends_s = schedule(service_s, slots) + service_s
    result |= {
        "max_concurrency": slots,
        "latencies": service,
        "num_prompts": len(service),
        "completed": len(service),
        "duration": float(ends_s.max()),
    }
    assert judged(result)["level_reached"].verdict == "cannot judge"


@given(st.integers(1, 10**6), st.floats(0.1, 1e5), st.floats(0.01, 0.5), st.sampled_from([-1, 1]))
def test_rates_that_are_not_counts_over_duration_fail(
    count: int, duration_s: float, share: float, sign: int
) -> None:
    def said(rate: float) -> str:
        (found,) = (
            one
            for one in judge(
                Window("", completed=count, duration_s=duration_s, rates={"request_s": rate})
            )
            if one.gate == "conservation"
        )
        return found.verdict

    assert said(count / duration_s) == "pass"
    assert said(count / duration_s * (1 + sign * share)) == "fail"


ODD = st.sampled_from([0, -1, 1e-9, 1e300, None, 2.5, 400])
NUMERIC = [key for key, value in GOOD.items() if isinstance(value, int | float)]


@given(st.dictionaries(st.sampled_from(NUMERIC), ODD, max_size=6), st.booleans())
def test_odd_numbers_are_judged_and_never_crash(changes: Result, detailed: bool) -> None:
    """All failed, nothing counted, negative levels: a verdict, whatever the numbers."""
    result = closed_loop(requests=16) | changes
    said = judged(result if detailed else summary_only(result))
    assert verdict(said.values()) in ("void", "undecided")  # two rounds: too short to be valid


def test_a_run_of_which_all_failed_is_void() -> None:
    nothing = {key: 0 for key in NUMERIC if key not in ("num_prompts", "max_concurrency")}
    result = summary_only(GOOD) | nothing | {"duration": 3.0, "failed": 400}
    said = judged(result)
    assert said["errors"].verdict == "fail" and verdict(said.values()) == "void"


def test_nan_among_the_gaps_is_an_impossible_time(tmp_path: Path) -> None:
    result = closed_loop(requests=80)
    path = save(tmp_path / "a.json", result)
    path.write_bytes(path.read_bytes().replace(b"]],", b",NaN]],", 1))
    (window,) = read(path).windows
    said = {one.gate: one for one in judge(window)}
    assert said["times"].verdict == "fail" and "nan" in said["times"].text
