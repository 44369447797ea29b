"""Was the level reached: by the engine's gauges, by its clock of every request, and by neither."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulate import simulate

from study.gates.level import held_by_durations, level_reached
from study.validity import Judgement, WindowEvidence, judge_window


def said(evidence: WindowEvidence) -> dict[str, Judgement]:
    return {judgement.gate: judgement for judgement in judge_window(evidence)}


def of_level(evidence: WindowEvidence) -> Judgement:
    return level_reached(evidence.requests, evidence.samples, evidence.steady, evidence.level)


def flat(evidence: WindowEvidence, held: float) -> WindowEvidence:
    samples = evidence.samples.assign(running=held, waiting=0.0)
    return replace(evidence, samples=samples)


@pytest.mark.parametrize(
    ("held", "expected"), [(94, "fail"), (95, "pass"), (105, "pass"), (106, "fail")]
)
def test_the_limit_of_the_level_lies_at_5_percent(held: float, expected: str) -> None:
    evidence = simulate("limit", level=100, rounds=12)
    assert of_level(flat(evidence, held)).verdict == expected


def test_waiting_requests_are_in_the_engine_too() -> None:
    evidence = simulate("queue", level=100, rounds=12)
    queue = evidence.samples.assign(running=60.0, waiting=40.0)
    judgement = of_level(replace(evidence, samples=queue))
    assert judgement.verdict == "pass"
    assert "60 of them running" in judgement.text


def test_a_mean_that_sampling_error_explains_is_not_a_fail() -> None:
    """At level 1 the gauge is 0 or 1: a true 0.95 is often seen below it."""
    evidence = simulate("level one", level=1, rounds=120)
    rng = np.random.default_rng(sum(map(ord, "gauge")))
    verdicts = []
    for _ in range(300):
        running = (rng.random(len(evidence.samples)) < 0.95).astype(float)
        samples = evidence.samples.assign(running=running).iloc[:150]
        verdicts.append(of_level(replace(evidence, samples=samples)).verdict)
    assert verdicts.count("fail") / 300 < 0.06
    assert verdicts.count("cannot judge") > 50
    assert verdicts.count("pass") > 50


def test_an_engine_idle_a_fifth_of_the_time_is_not_at_level_one() -> None:
    evidence = simulate("idle", level=1, rounds=120, turnaround_s=0.09)
    judgement = of_level(evidence)
    assert judgement.verdict == "fail"
    assert "standard error" in judgement.text


@pytest.mark.parametrize(("level", "needed"), [(1, 59), (2, 30), (8, 10), (500, 10)])
def test_few_samples_cannot_judge(level: int, needed: int) -> None:
    evidence = simulate("few samples", level=level, rounds=20, sample_every_s=0.01)
    assert evidence.steady is not None
    inside = evidence.samples[evidence.steady.holds(evidence.samples["time_s"].to_numpy())]
    assert len(inside) > needed
    for count, expected in ((needed - 1, "cannot judge"), (needed, "pass")):
        samples = inside.iloc[:count].assign(running=float(level))
        assert of_level(replace(evidence, samples=samples)).verdict == expected


def test_gauges_that_read_too_low_are_overruled_by_the_engines_own_clock() -> None:
    """A gauge that is refreshed once a step does not know a request in its first step."""
    evidence = simulate("stale gauges", level=100, rounds=12)
    judgement = said(flat(evidence, 92))["level_reached"]
    assert judgement.verdict == "pass"
    assert float(judgement.observed) == pytest.approx(100, rel=0.05)


def test_a_queue_before_the_engine_is_seen_by_its_clock_alone() -> None:
    evidence = simulate("queue before it", level=100, rounds=12, engine_cap=80)
    held = held_by_durations(evidence.requests, 100, evidence.before, evidence.after)
    assert held == pytest.approx(80, rel=0.03)
    no_samples = replace(evidence, samples=evidence.samples.iloc[:0])
    assert said(no_samples)["level_reached"].verdict == "fail"


def test_idle_slots_are_seen_by_the_engines_clock() -> None:
    evidence = simulate("idle slots", level=4, rounds=30, turnaround_s=0.09)
    held = held_by_durations(evidence.requests, 4, evidence.before, evidence.after)
    assert held == pytest.approx(4 * 0.36 / 0.45, rel=0.03)


def test_somebody_elses_requests_leave_the_clock_unusable() -> None:
    evidence = simulate("tenant", level=4, rounds=30, engine_extra_requests=7)
    assert np.isnan(held_by_durations(evidence.requests, 4, evidence.before, evidence.after))


def test_missing_gauges_cannot_judge() -> None:
    evidence = simulate("no gauges")
    samples = evidence.samples.assign(waiting=np.nan)
    assert of_level(replace(evidence, samples=samples)).verdict == "cannot judge"
