"""Each gate finds exactly its flaw in a result that is good but for it, and arithmetic holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from audit_results import Result, closed_loop, open_loop, save, schedule, summary_only
from hypothesis import example, given
from hypothesis import strategies as st

from study.audit.arithmetic import half_unit
from study.audit.formats import Window, read, table_windows
from study.audit.gates import judge, verdict
from study.audit.level import bound_of, level_reached
from study.errors import StudyError
from study.finite import Floats
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
    "p50 above p99": (edited(median_itl_ms=900.0), {"times", "conservation"}),
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
    ramped = judged(poisson(20, 20, 7) | {"ramp_up_strategy": "linear", "request_rate": "inf"})
    assert ramped["level_reached"].verdict == ramped["steady_part"].verdict == "cannot judge"
    assert "ramped" in ramped["level_reached"].text
    assert judged(summary_only(poisson(14, 20, 8)))["level_reached"].verdict == "cannot judge"


def test_a_limit_below_the_rate_makes_a_closed_loop_of_it_not_a_bad_open_one() -> None:
    said = judged(poisson(14, 20, 8) | {"max_concurrency": 16})["level_reached"]
    assert said.verdict == "cannot judge" and "limit of 16 in flight" in said.text
    over = judged(poisson(28, 20, 8) | {"max_concurrency": 16})["level_reached"]
    assert over.verdict == "fail"  # no limit makes more of them


def test_an_open_loop_that_is_sent_more_than_is_served_is_not_valid() -> None:
    """Its token rate is as even as can be: the queue takes the rest."""
    kept, overloaded = judged(open_loop(10.0)), judged(open_loop(12.5))
    assert verdict(kept.values()) == "valid"
    assert verdict(overloaded.values()) == "undecided"
    said = overloaded["steady_part"]
    assert said.verdict == "cannot judge" and "more may arrive than are served" in said.text


def test_a_few_long_requests_do_not_look_like_a_growing_queue() -> None:
    """One in five takes eight seconds, so for that long the requests in flight must grow."""
    result = open_loop(10.0, slots=64, requests=400)
    longer_s = np.where(np.arange(400) % 5 == 0, 7.5, 0.0)
    for name in ("ttfts", "latencies"):
        result[name] = (np.array(result[name]) + longer_s).tolist()
    said = judged(result)["steady_part"]
    assert said.verdict != "fail" and "more may arrive" not in said.text, said.text


def test_an_open_loop_with_nothing_in_flight_between_two_bursts_is_judged() -> None:
    result = open_loop(10.0, requests=4) | {"latencies": [0.5] * 4}
    result["start_times"] = [1000.0] * 3 + [1008.0]
    assert judged(result)["steady_part"].verdict == "cannot judge"


SHAPES: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "fixed": lambda rng, n: np.ones(n),
    "uniform": lambda rng, n: rng.uniform(0.5, 1.5, n),
    "exponential": lambda rng, n: rng.exponential(1, n),
    "lognormal": lambda rng, n: rng.lognormal(0, 1, n),
    # Fewer than one in a hundred, so that the p99 knows nothing of them.
    "stragglers": lambda rng, n: rng.normal(1, 0.01, n) * np.where(np.arange(n) % 128 == 127, 3, 1),
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


def of_two_lengths(slots: int) -> Window:
    """A full level of which one request in ten is eleven times as long; E2E is not stated."""
    tokens = np.where(np.arange(640) % 10 == 9, 1105.0, 100.0)
    service_s = 0.2 + 0.04 * (tokens - 1)
    return replace(
        summary_window(service_s, slots),
        output_tokens=float(tokens.sum()),
        times_s={"ttft": {"p99": 0.2}, "tpot": {"p99": 0.04}},
    )


def test_what_is_refuted_says_how_long_a_request_was_allowed_for() -> None:
    window = summary_window(np.ones(640), 64)
    cap = replace(window, duration_s=4 * window.duration_s)
    said = level_reached(cap)
    assert said.verdict == "fail" and said.text.endswith("even if its longest request took 3 s.")


@pytest.mark.parametrize("slots", [1, 8, 64])
def test_where_lengths_vary_one_request_may_last_the_whole_run(slots: int) -> None:
    window = of_two_lengths(slots)
    assert level_reached(window).verdict == "cannot judge"
    untimed = replace(window, duration_s=np.nan, rates={"request_s": 640 / window.duration_s})
    assert level_reached(untimed).verdict == "cannot judge"
    bound = bound_of(untimed)
    assert bound is not None and bound.share == (1 if slots == 1 else 0)


def test_where_all_lengths_may_be_one_the_longest_is_known() -> None:
    window = of_two_lengths(64)
    assert level_reached(replace(window, output_tokens=640 * 200.0)).verdict == "fail"


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


def of_table(**columns: object) -> dict[str, Judgement]:
    (window,) = table_windows([[*columns], [str(value) for value in columns.values()]])
    return {said.gate: said for said in judge(window)}


@given(st.integers(10, 10**5), st.floats(10, 900), st.integers(2, 6), st.integers(0, 6))
@example(100, 12.4, 6, 0)
def test_numbers_that_are_rounded_where_they_are_written_are_no_contradiction(
    count: int, duration_s: float, digits: int, of_duration: int
) -> None:
    said = of_table(
        level=8,
        completed=count,
        duration_s=f"{duration_s:.{of_duration}f}",
        request_s=f"{count / duration_s:.{digits}f}",
    )
    assert said["conservation"].verdict == "pass"


@pytest.mark.parametrize(("written", "verdict"), [("0.42", "pass"), ("0.43", "fail")])
def test_half_a_unit_of_the_last_digit_is_rounding_and_more_is_not(
    written: str, verdict: str
) -> None:
    rated = of_table(level=8, requests=100, completed=100, duration_s=240.9, request_s=written)
    assert rated["conservation"].verdict == verdict
    asked = {"input_tokens": 1024, "output_tokens": 1024}
    lengths = of_table(level=8, request_s=written, total_tok_s=850.1, **asked)
    assert lengths["lengths_delivered"].verdict == verdict


@pytest.mark.parametrize(("rate", "verdict"), [(1.4, "pass"), (1.5, "fail")])
def test_a_rate_of_json_is_taken_with_the_digits_it_has(rate: float, verdict: str) -> None:
    result = summary_only(closed_loop(1, 20))
    assert round(result["request_throughput"], 2) == 1.39
    assert judged(result | {"request_throughput": rate})["conservation"].verdict == verdict


@pytest.mark.parametrize(
    ("written", "half"),
    [("0.42", 0.005 / 0.42), ("-850.1", 0.05 / 850.1), ("4.20e+2", 0.5 / 420), ("20", 0.5 / 20),
     ("0", 0), ("0.00", 0), ("", 0), ("null", 0), ('"inf"', 0), ("NaN", 0), ("1" * 400, 0)],
)  # fmt: skip
def test_half_a_unit_of_a_number_as_it_was_written(written: str, half: float) -> None:
    assert half_unit(written) == pytest.approx(half)


ODD = st.sampled_from([0, -1, 1e-9, 1e300, None, 2.5, 400, "inf"])
NUMERIC = [key for key, value in GOOD.items() if isinstance(value, int | float)]


@given(st.dictionaries(st.sampled_from(NUMERIC), ODD, max_size=6), st.booleans())
def test_odd_numbers_are_judged_and_never_crash(changes: Result, detailed: bool) -> None:
    """All failed, nothing counted, negative levels: a verdict, whatever the numbers."""
    result = closed_loop(requests=16) | changes
    try:
        said = judged(result if detailed else summary_only(result))
    except StudyError:
        refused = (1e300, "inf") if changes.get("max_concurrency") != -1 else (-1, 1e300, "inf")
        assert set(changes.values()) & set(refused)
        return
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
