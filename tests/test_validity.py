"""Each gate fails on exactly its flaw, planted in an otherwise good window, and on no other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from simulate import IN_FORCE, simulate

from study import validity
from study.gates.delivered import errors, lengths_delivered, treatment_in_force
from study.gates.steady import steady_part_found
from study.validity import (
    PASSING,
    WINDOW_GATES,
    Judgement,
    WindowEvidence,
    judge_window,
    of_the_moment,
    verdict,
)

GATES = (
    "level_reached",
    "steady_part",
    "client_headroom",
    "warm",
    "cache_temperature",
    "lengths_delivered",
    "reconciled",
    "treatment_in_force",
    "errors",
    "machine_quiet",
    "conservation",
    "times",
    "not_repeated",
)


def said(evidence: WindowEvidence) -> dict[str, Judgement]:
    return {judgement.gate: judgement for judgement in judge_window(evidence)}


def failed(evidence: WindowEvidence) -> set[str]:
    judged = judge_window(evidence)
    return {one.gate for one in judged if (one.scope, one.verdict) == ("window", "fail")}


@pytest.mark.parametrize(
    "settings",
    [
        {"level": 1, "rounds": 60},
        {"level": 8, "staggered": False},
        {"level": 64, "rounds": 12},
        {"level": 500, "rounds": 9, "output_tokens": 64},
    ],
    ids=str,
)
def test_a_good_window_passes_every_gate(settings: dict[str, object]) -> None:
    evidence = simulate(str(settings), **settings)
    judgements = [one for one in judge_window(evidence) if one.scope == "window"]
    assert tuple(judgement.gate for judgement in judgements) == GATES
    assert {judgement.verdict for judgement in judgements} == {"pass"}, judgements
    assert verdict(judgements) == "valid"


JIT = (
    "(Worker pid=7) WARNING 11-21 06:35:13 [jit_monitor.py:149] Triton kernel JIT compilation "
    "during inference: _fwd_kernel. This causes a latency spike; consider extending warmup "
    "to cover this shape/config.\n"
)

# The flaw, the gates that must see it, and the same just inside the limit, where there is one.
FLAWS: dict[str, tuple[dict[str, object], set[str], dict[str, object]]] = {
    "client runs fewer slots": ({"slots": 15, "level": 16}, {"level_reached", "steady_part"}, {}),
    "engine gets fewer": (
        {"level": 100, "engine_cap": 94, "rounds": 12},
        {"level_reached"},
        {"level": 100, "engine_cap": 96, "rounds": 12},
    ),
    "too short": ({"rounds": 5}, {"steady_part"}, {"rounds": 7}),
    "drift": ({"drift": 0.10}, {"steady_part"}, {"drift": 0.02}),
    "short outputs": ({"short_share": 0.02}, {"lengths_delivered"}, {}),
    "failures": ({"failed_share": 0.02}, {"errors"}, {"failed_share": 0.009}),
    "lost tokens": ({"lost_chunks": 1}, {"conservation"}, {}),
    "still warming": (
        {"warm_latencies_s": (0.60, 0.50, 0.46, 0.43, 0.39, 0.36)},
        {"warm"},
        {"warm_latencies_s": (0.60, 0.50, 0.40, 0.381)},
    ),
    "compiled in the window": ({"log": JIT}, {"warm"}, {}),
    "a cache left over": ({"hit_tokens": 16}, {"cache_temperature"}, {}),
    "no headroom": ({"client_adds_ms": 3.0}, {"client_headroom"}, {"client_adds_ms": 2.0}),
    "a tenant": ({"foreign": 0.12}, {"machine_quiet"}, {"foreign": 0.09}),
    "too hot": ({"throttled": True}, {"machine_quiet"}, {}),
    "the same window twice": ({"repeated": "launch/00-short-8"}, {"not_repeated"}, {}),
    "another client": ({"engine_extra_requests": 1}, {"reconciled"}, {}),
    "busy afterwards": ({"still_running": 1}, {"reconciled"}, {}),
    "slow client": ({"client_delay_s": 0.012}, {"reconciled"}, {"client_delay_s": 0.007}),
    "client before engine": ({"client_delay_s": -0.004}, {"reconciled"}, {}),
}


@pytest.mark.parametrize("name", FLAWS)
def test_each_flaw_fails_its_gate_and_only_that(name: str) -> None:
    flaw, gates, _ = FLAWS[name]
    evidence = simulate(name, **flaw)
    assert failed(evidence) == gates
    assert verdict(judge_window(evidence)) == "void"


@pytest.mark.parametrize("name", [name for name, (*_, inside) in FLAWS.items() if inside])
def test_a_flaw_just_inside_the_limit_fails_nothing(name: str) -> None:
    evidence = simulate(name, **FLAWS[name][2])
    assert failed(evidence) == set()
    assert verdict(judge_window(evidence)) == "valid"


def test_every_window_gate_has_a_planted_flaw() -> None:
    seen = set[str]().union(*(gates for _, gates, _ in FLAWS.values()))
    # A setting is planted below, impossible times in tests/test_gates.py.
    assert seen | {"treatment_in_force", "times"} == set(GATES)
    assert len(WINDOW_GATES) == len(GATES)


# steady_part


def test_a_noisy_window_can_neither_show_nor_exclude_drift() -> None:
    evidence = simulate("noisy", level=1, rounds=8, noise=0.15)
    judgement = steady_part_found(evidence.chunks, evidence.steady)
    assert judgement.verdict == "cannot judge"
    assert "longer window" in judgement.text


def test_drift_is_rarely_shown_where_there_is_none() -> None:
    verdicts = [
        said(simulate("a" * i, level=2, rounds=10, noise=0.05))["steady_part"].verdict
        for i in range(60)
    ]
    assert verdicts.count("fail") <= 2


# lengths_delivered


def test_the_text_names_the_first_request_of_another_length() -> None:
    requests = simulate("lengths").requests
    requests.loc[17, "output_tokens"] = 12
    judgement = lengths_delivered(requests, 128, 32)
    assert judgement.verdict == "fail"
    assert "1 of 320" in judgement.text
    assert "request 17 had 128 in, 12 out" in judgement.text


def test_other_prompts_than_asked_fail() -> None:
    requests = simulate("prompts").requests
    assert lengths_delivered(requests, 129, 32).verdict == "fail"
    assert lengths_delivered(requests, 128, 32).verdict == "pass"


def test_unreported_usage_cannot_be_judged_but_hides_no_wrong_length() -> None:
    requests = simulate("usage").requests
    requests.loc[3, "output_tokens"] = np.nan
    assert lengths_delivered(requests, 128, 32).verdict == "cannot judge"
    requests.loc[4, "output_tokens"] = 31
    assert lengths_delivered(requests, 128, 32).verdict == "fail"


def test_lengths_of_failed_requests_are_not_asked_for() -> None:
    requests = simulate("failed lengths").requests
    requests.loc[3, "output_tokens"] = 7
    assert lengths_delivered(requests, 128, 32).verdict == "fail"
    requests.loc[3, "error"] = "reset"
    assert lengths_delivered(requests, 128, 32).verdict == "pass"


# treatment_in_force


def test_a_switch_that_did_not_switch_fails() -> None:
    judgement = treatment_in_force({"block_size": "1"}, {"block_size": "16"})
    assert judgement.verdict == "fail"
    assert "block_size=1 asked, 16 in force" in judgement.text
    evidence = replace(simulate("switch"), in_force={**IN_FORCE, "block_size": "16"})
    assert failed(evidence) == {"treatment_in_force"}


@pytest.mark.parametrize(
    ("asked", "in_force", "expected"),
    [
        ({"a": "1"}, {"a": "1", "b": "2"}, "pass"),
        ({"a": "1"}, {}, "cannot judge"),
        ({"a": "1"}, {"a": None}, "cannot judge"),
        ({"a": "1", "b": "2"}, {"b": "3"}, "fail"),
        ({}, {}, "pass"),
    ],
)
def test_treatment(asked: dict[str, str], in_force: dict[str, str | None], expected: str) -> None:
    assert treatment_in_force(asked, in_force).verdict == expected


# errors


@pytest.mark.parametrize(("count", "expected"), [(0, "pass"), (10, "pass"), (11, "fail")])
def test_one_percent_may_fail(count: int, expected: str) -> None:
    requests = simulate("one percent", level=10, rounds=100, output_tokens=2).requests
    requests.loc[: count - 1, "error"] = "reset"
    assert errors(requests).verdict == expected


def test_errors_are_named_by_kind_even_the_silent_ones() -> None:
    requests = simulate("kinds").requests
    requests.loc[:4, "error"] = "reset"
    requests.loc[5:7, "last_s"] = np.nan
    assert errors(requests).text.endswith(
        "8 of 320 requests failed (2.50%): reset (5), no last token (3)."
    )


def test_no_request_cannot_be_judged() -> None:
    assert errors(simulate("none").requests.iloc[:0]).verdict == "cannot judge"


# reconciled


def of_account(evidence: WindowEvidence) -> Judgement:
    return said(evidence)["reconciled"]


def with_after(evidence: WindowEvidence, **changes: float) -> WindowEvidence:
    after = {key: evidence.after[key] + changes.get(key, 0.0) for key in evidence.after}
    return replace(evidence, after=after)


@pytest.mark.parametrize("key", ["requests_finished", "output_tokens", "input_tokens"])
@pytest.mark.parametrize("change", [-1.0, 1.0])
def test_without_failures_the_accounts_are_exact(key: str, change: float) -> None:
    evidence = simulate("exact")
    assert of_account(evidence).verdict == "pass"
    assert of_account(with_after(evidence, **{key: change})).verdict == "fail"


@pytest.mark.parametrize(("tokens", "expected"), [(-1, "fail"), (96, "pass"), (97, "fail")])
def test_with_failures_the_engine_may_have_done_their_work(tokens: float, expected: str) -> None:
    evidence = simulate("bounded", failed_share=3 / 320)
    assert (evidence.requests["error"] != "").sum() == 3
    assert of_account(with_after(evidence, output_tokens=tokens)).verdict == expected


@pytest.mark.parametrize("key", ["running", "output_tokens", "requests_finished", "ttft_sum_s"])
def test_a_missing_counter_cannot_be_judged(key: str) -> None:
    evidence = simulate("missing counter")
    after = {name: value for name, value in evidence.after.items() if name != key}
    assert of_account(replace(evidence, after=after)).verdict == "cannot judge"


def test_a_busy_engine_before_the_load_fails() -> None:
    evidence = simulate("busy before")
    assert (
        of_account(replace(evidence, before={**evidence.before, "waiting": 1.0})).verdict == "fail"
    )


def test_first_tokens_must_be_as_many_as_the_engine_gave() -> None:
    evidence = simulate("first tokens")
    assert of_account(with_after(evidence, ttft_count=1)).verdict == "fail"
    failing = simulate("first tokens", failed_share=3 / 320)
    assert of_account(with_after(failing, ttft_count=1)).verdict == "cannot judge"


@pytest.mark.parametrize(("later_s", "expected"), [(0.04, "pass"), (0.06, "fail")])
def test_the_allowance_of_ttft_grows_with_it(later_s: float, expected: str) -> None:
    """At a TTFT of 500 ms a tenth of it counts, not 10 ms."""
    evidence = simulate("allowance", ttft_s=0.5, client_delay_s=later_s)
    assert of_account(evidence).verdict == expected


def test_a_wrong_account_is_told_with_both_sides() -> None:
    evidence = with_after(simulate("told"), output_tokens=32)
    assert of_account(evidence).text == (
        "Client against engine: output tokens 10,240 against 10,272."
    )


# the verdict


def planted(scope: str, outcome: str) -> Judgement:
    return Judgement("planted", scope, outcome, 0.0, 0.0, "")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scope", "outcome", "expected"),
    [
        ("window", "fail", "void"),
        ("window", "cannot judge", "valid"),
        ("metric", "fail", "valid"),
        ("claim", "fail", "valid"),
    ],
)
def test_only_a_failed_window_gate_voids(scope: str, outcome: str, expected: str) -> None:
    assert verdict([planted("window", "pass"), planted(scope, outcome)]) == expected


EMPTY: dict[str, Callable[[WindowEvidence], WindowEvidence]] = {
    "no requests": lambda e: replace(e, requests=e.requests.iloc[:0], chunks=e.chunks.iloc[:0]),
    "no chunks": lambda e: replace(e, chunks=e.chunks.iloc[:0]),
    "no samples": lambda e: replace(
        e, samples=e.samples.iloc[:0], before={**e.before, "e2e_count": np.nan}
    ),
    "no counters": lambda e: replace(e, before={}, after={}),
    "nothing sent": lambda e: replace(
        e, requests=e.requests.assign(sent_s=np.nan, last_s=np.nan, ended_s=np.nan, error="refused")
    ),
    "one request": lambda e: replace(e, requests=e.requests.iloc[:1]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_whatever_is_missing_every_gate_still_speaks(name: str) -> None:
    judgements = judge_window(EMPTY[name](simulate(name)))
    assert [one.gate for one in judgements if one.scope == "window"] == list(GATES)
    assert {"fail", "cannot judge"} & {judgement.verdict for judgement in judgements}
    assert all(judgement.text.endswith(".") for judgement in judgements)


def test_evidence_is_not_changed_by_judging() -> None:
    evidence = simulate("untouched")
    requests, samples = evidence.requests.copy(), evidence.samples.copy()
    judge_window(evidence)
    pd.testing.assert_frame_equal(evidence.requests, requests)
    pd.testing.assert_frame_equal(evidence.samples, samples)


@pytest.mark.parametrize(
    ("failing", "worth_it"),
    [
        ((), False),
        (("warm",), True),
        (("machine_quiet", "client_headroom"), True),  # both fail where a core was taken from it
        (("warm", "errors"), False),
        (("errors",), False),
    ],
)
def test_only_passing_reasons_are_worth_another_try(
    failing: tuple[str, ...], worth_it: bool
) -> None:
    assert set(GATES) > PASSING
    judged = [
        Judgement(gate, "window", "fail" if gate in failing else "pass", 0, 0, "") for gate in GATES
    ]
    judged.append(Judgement("warm", "metric", "fail", 0, 0, ""))
    assert of_the_moment(judged) is worth_it


@pytest.mark.parametrize("also", ["", "machine_quiet"])
def test_what_the_calibration_alone_says_is_said_again(
    also: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"client_headroom", also}
    judged = [
        Judgement(gate, "window", "fail" if gate in failing else "pass", 0, 0, "") for gate in GATES
    ]
    seen = simulate("1")
    assert of_the_moment(judged, seen)  # a late loop
    monkeypatch.setattr(validity, "beyond", lambda *_: True)
    assert of_the_moment(judged, seen) is bool(also)
