"""The gates on warmth, cache, machine, consistency and percentiles: at their limits, and blind.

That each flaw fails its gate and no other is tests/test_validity.py; here is where a gate begins
to fail, what it says, and that it never judges what it cannot see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from simulate import IN_FORCE, simulate

from study import engine
from study.gates.cache import cache_temperature, came_from, meant
from study.gates.consistency import conservation, not_repeated, times
from study.gates.machine import machine_quiet
from study.gates.percentiles import claim_sample, percentile_supported, percentiles_supported
from study.gates.warm import warm
from study.telemetry import COLUMNS
from study.validity import WindowEvidence

# --- warm -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("slices_s", "expected"),
    [
        ((1.0, 1.0499), "pass"),
        ((1.0, 1.0501), "fail"),
        ((1.0, 0.9501), "pass"),
        ((1.0, 0.9499), "fail"),
        ((2.0, 1.0, 1.0), "pass"),
        ((1.0, 1.0, 2.0), "fail"),
        ((1.0,), "cannot judge"),
        ((), "cannot judge"),
    ],
)
def test_the_last_two_slices_must_agree(slices_s: tuple[float, ...], expected: str) -> None:
    assert warm(simulate("slices", warm_latencies_s=slices_s)).verdict == expected


# As engines write them; each with what is in its place when all is well.
WORDS = {
    "(Worker pid=7) WARNING [jit_monitor.py:149] Triton kernel JIT compilation during inference: "
    "_fwd.": "(APIServer pid=5) INFO [loggers.py:257] Engine 000: Avg prompt throughput: 9",
    "INFO [backends.py:399] Compiling a graph for compile range (1, 64) takes 3.20 s": "INFO ok",
    "INFO [gpu_model_runner.py:6582] Capturing CUDA graphs (decode): 40%": "INFO [x.py:1] decoded",
    "Triton autotuning for function _k finished after 0.4s": "Triton function _k finished",
    "[aiter] start build [module_moe] in the cache": "[aiter] import [module_moe] under "
    "/opt/aiter/jit/module_moe.so",
    "INFO [kernel_warmup.py:368] Running FlashInfer autotune with 64 tokens": "INFO: 200 OK",
}


@pytest.mark.parametrize("line", WORDS)
def test_the_engines_words_for_compiling_are_known(line: str) -> None:
    quiet = WORDS[line] + '\nINFO: 127.0.0.1:1 - "POST /v1/completions HTTP/1.1" 200 OK\n'
    assert engine.compiling(quiet) == []
    assert engine.compiling(f"{quiet}{line}\n{quiet}") == [line]
    judged = warm(simulate("words", log=f"{quiet}{line}\n"))
    assert judged.verdict == "fail" and line[:30] in judged.text


def test_a_log_that_is_not_there_and_a_warm_up_not_wanted_cannot_be_judged() -> None:
    seen = simulate("blind")
    assert warm(replace(seen, log=None)).verdict == "cannot judge"
    cold = replace(seen, warmed=False, warm_latencies_s=())
    assert warm(cold).verdict == "cannot judge"
    assert warm(replace(cold, log="Starting torch.compile")).verdict == "fail"


# --- cache_temperature ----------------------------------------------------------------------------


def came_back(phase: str, memory: float, restored: float, **in_force: str) -> WindowEvidence:
    """320 requests of 128 tokens that come back, in blocks of 32: 96 can be reused of each."""
    seen = simulate("came back")
    after = {**seen.after, "external_hits_tokens": restored * 320 * 96}
    after["prefix_hits_tokens"] = seen.before["prefix_hits_tokens"] + memory * 320 * 96
    return replace(seen, after=after, phase=phase, in_force={**IN_FORCE, **in_force})


CONNECTED = {"kv_connector": "OffloadingConnector", "prefix_caching": "True"}


@pytest.mark.parametrize(
    ("phase", "memory", "restored", "in_force", "expected"),
    [
        ("restored", 0.0, 1.0, CONNECTED, "pass"),
        ("restored", 0.0, 0.95, CONNECTED, "pass"),
        ("restored", 0.0, 0.94, CONNECTED, "fail"),  # some had to be computed
        ("restored", 1.0, 0.0, CONNECTED, "fail"),  # memory had not dropped them
        ("memory", 1.0, 0.0, CONNECTED, "pass"),
        ("memory", 0.0, 1.0, CONNECTED, "fail"),
        ("memory", 0.0, 1.0, CONNECTED | {"prefix_caching": "False"}, "pass"),
        ("restored", 0.0, 0.0, {"prefix_caching": "True"}, "pass"),
        ("restored", 0.06, 0.0, {"prefix_caching": "True"}, "fail"),
        ("memory", 0.0, 0.0, {"prefix_caching": "True"}, "fail"),
    ],
)
def test_prompts_that_come_back_must_meet_the_cache_that_is_meant(
    phase: str, memory: float, restored: float, in_force: dict[str, str], expected: str
) -> None:
    judged = cache_temperature(came_back(phase, memory, restored, **in_force))
    assert judged.verdict == expected, judged.text


def test_one_hit_of_a_fresh_prompt_is_too_many() -> None:
    assert cache_temperature(simulate("fresh")).verdict == "pass"
    restored = came_back("cold", 0.0, 1 / 320, **CONNECTED)
    assert cache_temperature(restored).verdict == "fail"


@pytest.mark.parametrize("lost", ["phase", "hits", "external", "block size"])
def test_without_counters_or_meaning_the_cache_cannot_be_judged(lost: str) -> None:
    seen = came_back("restored", 0.0, 1.0, **CONNECTED)
    assert cache_temperature(seen).verdict == "pass"
    name = {"hits": "prefix_hits_tokens", "external": "external_hits_tokens"}.get(lost)
    before = {key: value for key, value in seen.before.items() if key != name}
    in_force = {key: value for key, value in seen.in_force.items() if key != "block_size"}
    blind = replace(
        seen,
        before=before,
        phase=None if lost == "phase" else seen.phase,
        in_force=in_force if lost == "block size" else seen.in_force,
    )
    assert cache_temperature(blind).verdict == "cannot judge"


def test_half_from_memory_and_half_restored_is_mixed() -> None:
    assert came_from(50, 50, 100) == "mixed"
    assert meant("memory", restores=False, caches=False) == "computed"


# --- machine_quiet --------------------------------------------------------------------------------


def looks(**columns: float) -> pd.DataFrame:
    """Two looks, 10 s apart, at 16 cores of which the study keeps 4 busy; `columns` is growth."""
    grown = {"time_s": 10.0, "busy_s": 40.0, "own_s": 40.0, **columns}
    first = dict.fromkeys(COLUMNS, np.nan) | {"cores": 16.0} | dict.fromkeys(grown, 100.0)
    second = {name: value + grown.get(name, 0.0) for name, value in first.items()}
    return pd.DataFrame([first, second])


def on(telemetry: pd.DataFrame | None) -> WindowEvidence:
    return replace(simulate("machine"), telemetry=telemetry)


@pytest.mark.parametrize(
    ("cores", "busy_s", "expected"),
    [
        (2, 40.99, "pass"),  # 0.1 core, 5 % of two
        (2, 41.01, "fail"),
        (16, 47.9, "pass"),
        (16, 48.1, "fail"),
        (256, 49.9, "pass"),  # one whole core, however many there are
        (256, 50.1, "fail"),
        (2, 35.0, "pass"),  # ticks are counted in sampled steps
    ],
)
def test_others_may_have_a_twentieth_of_the_machine_but_no_core(
    cores: float, busy_s: float, expected: str
) -> None:
    assert machine_quiet(on(looks(busy_s=busy_s).assign(cores=cores))).verdict == expected


@pytest.mark.parametrize(
    ("stolen_s", "words"), [(9.0, "(0.90 by other virtual machines on this host)"), (0.0, "busy;")]
)
def test_who_has_the_host_besides_is_named(stolen_s: float, words: str) -> None:
    judged = machine_quiet(on(looks(busy_s=49.5, steal_s=stolen_s)))
    assert judged.text.startswith("Others kept 0.95 of 16 cores busy") and words in judged.text


@pytest.mark.parametrize(
    ("growth", "text"),
    [
        (
            {"busy_s": 41.04, "steal_s": 1.03, "quota_throttled_s": 0.0},
            "Others kept 0.104 of 2 cores busy (0.103 by other virtual machines on this host); at "
            "most 0.1 may be. Beside that, not throttled: container; a change",
        ),
        (
            {"quota_throttled_s": 0.1004},
            "A CPU limit of the container took 1.004% of the time; 1% may be. Beside that, others "
            "kept 0.00 of 2 cores busy; a change",
        ),
        (
            {"busy_s": 45.0, "heat_throttles": 1.0},
            "Others kept 0.50 of 2 cores busy; at most 0.1 may be; cores were throttled for their "
            "heat.",
        ),
    ],
)
def test_what_voids_comes_first_and_is_seen_to_pass_its_limit(
    growth: dict[str, float], text: str
) -> None:
    judged = machine_quiet(on(looks(**growth).assign(cores=2)))
    assert judged.verdict == "fail" and judged.text.startswith(text)


def test_time_stolen_is_others_work_even_where_a_guest_counts_it_as_its_own() -> None:
    judged = machine_quiet(on(looks(busy_s=40.0, own_s=41.0, steal_s=9.0)))
    assert judged.verdict == "fail" and judged.text.startswith("Others kept 0.90 of 16 cores busy")
    assert judged.observed == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("told", "unseen"), [({}, True), ({"clock_mhz": 0.0}, False), ({"heat_throttles": 0.0}, False)]
)
def test_cores_whose_clock_is_not_told_are_said_to_be_unseen(
    told: dict[str, float], unseen: bool
) -> None:
    judged = machine_quiet(on(looks(**told)))
    assert judged.verdict == "pass"
    assert ("change of the cores' clock could not be seen" in judged.text) == unseen


@pytest.mark.parametrize(
    ("column", "inside", "beyond", "words"),
    [
        ("quota_throttled_s", 0.09, 0.11, "CPU limit of the container"),
        ("heat_throttles", 0.0, 1.0, "for their heat"),
    ],
)
def test_throttling_voids(column: str, inside: float, beyond: float, words: str) -> None:
    quiet, hot = (machine_quiet(on(looks(**{column: value}))) for value in (inside, beyond))
    assert (quiet.verdict, hot.verdict) == ("pass", "fail")
    assert words in hot.text and words not in quiet.text


@pytest.mark.parametrize(("throttled", "expected"), [(0.0, "pass"), (1.0, "fail")])
def test_a_gpu_that_is_held_back_voids(throttled: float, expected: str) -> None:
    frame = looks()
    frame.loc[1, "gpu_throttled"] = throttled
    frame.loc[0, "gpu_throttled"] = 0.0
    judged = machine_quiet(on(frame))
    assert judged.verdict == expected and "GPU" in judged.text


@pytest.mark.parametrize(
    ("gpus", "busy_s", "expected"),
    [(0.0, 40.0, "pass"), (np.nan, 40.0, "pass"), (8.0, 40.0, "cannot judge"), (8.0, 60.0, "fail")],
)
def test_gpus_that_do_not_say_whether_they_are_held_back_are_not_called_free(
    gpus: float, busy_s: float, expected: str
) -> None:
    """As rocm-smi never does, and nvidia-smi where it is another than is known here."""
    judged = machine_quiet(on(looks(busy_s=busy_s).assign(gpus=gpus)))
    assert judged.verdict == expected
    assert ("a GPU of 8 was throttled is not reported" in judged.text) == (gpus == 8)
    before = looks(busy_s=busy_s).drop(columns="gpus")
    assert machine_quiet(on(before)).verdict == ("fail" if busy_s == 60 else "pass")


@pytest.mark.parametrize(
    "blind", [None, looks().iloc[:1], looks().assign(busy_s=np.nan), looks()[["time_s"]]]
)
def test_a_machine_that_does_not_show_itself_cannot_be_judged(blind: pd.DataFrame | None) -> None:
    assert machine_quiet(on(blind)).verdict == "cannot judge"


def test_how_long_client_and_server_waited_is_said() -> None:
    text = machine_quiet(on(looks(client_wait_s=0.2, server_wait_s=1.5))).text
    assert "client's main thread 2.0%" in text and "server's processes together 15.0%" in text


# --- conservation and times -----------------------------------------------------------------------

Change = Callable[[WindowEvidence], WindowEvidence]


def requests_with(**columns: float) -> Change:
    """Request 17 with other values: a number is added, in seconds for times."""

    def change(seen: WindowEvidence) -> WindowEvidence:
        requests = seen.requests.copy()
        for name, value in columns.items():
            others = requests["request"] != 17
            requests[name] = requests[name].where(others, requests[name] + value)
        return replace(seen, requests=requests)

    return change


def chunk_at(shift_s: float) -> Change:
    def change(seen: WindowEvidence) -> WindowEvidence:
        chunks = seen.chunks.copy()
        middle = chunks.index[chunks["request"] == 17][5]
        chunks.loc[middle, "time_s"] += shift_s
        return replace(seen, chunks=chunks)

    return change


TIMES: dict[str, tuple[Change, Change, str]] = {
    "sent before due": (
        requests_with(due_s=0.0025),
        requests_with(due_s=0.0015),
        "`sent` before `due`",
    ),
    "token before request": (
        requests_with(first_s=-0.2),
        requests_with(first_s=-0.01),
        "`first` before `sent`",
    ),
    "ended before last token": (
        requests_with(ended_s=-0.1),
        requests_with(ended_s=-5e-6),
        "`ended` before `last`",
    ),
    "no first token": (
        requests_with(first_s=np.nan),
        requests_with(),
        "without a first token",
    ),
    "chunk after the end": (chunk_at(60.0), chunk_at(0.001), "after the last"),
    "outside of the load": (
        lambda seen: replace(seen, load={**seen.load, "ended_s": seen.load["ended_s"] - 0.01}),
        lambda seen: replace(seen, load={**seen.load, "ended_s": seen.load["ended_s"] + 0.01}),
        "outside of the load",
    ),
}


@pytest.mark.parametrize("name", TIMES)
def test_an_impossible_time_is_found_and_a_possible_one_is_not(name: str) -> None:
    flaw, inside, words = TIMES[name]
    seen = simulate("times")
    wrong, right = times(flaw(seen)), times(inside(seen))
    assert (wrong.verdict, right.verdict) == ("fail", "pass"), (wrong, right)
    assert words in wrong.text


SUMS: dict[str, tuple[Change, str]] = {
    "a request twice": (
        lambda seen: replace(seen, requests=pd.concat([seen.requests, seen.requests.iloc[:1]])),
        "1 requests are there twice",
    ),
    "chunks of nobody": (
        lambda seen: replace(seen, chunks=seen.chunks.assign(request=seen.chunks["request"] + 1)),
        "chunks are of no request",
    ),
    "a chunk fewer": (requests_with(chunks=1), "1 requests have more or fewer chunks"),
    "another usage": (requests_with(output_tokens=1), "1 requests streamed other tokens"),
    "a longer load": (
        lambda seen: replace(seen, load={**seen.load, "wall_s": seen.load["wall_s"] * 1.1}),
        "a load of",
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_that_do_not_agree_are_found(name: str) -> None:
    flaw, words = SUMS[name]
    assert conservation(simulate("sums")).verdict == "pass"
    judged = conservation(flaw(simulate("sums")))
    assert judged.verdict == "fail" and words in judged.text


def test_failed_requests_and_missing_usage_are_no_wrong_sums() -> None:
    failing = simulate("failing", failed_share=0.05)
    failing.requests.loc[failing.requests.index[-1], "output_tokens"] = np.nan
    assert conservation(failing).verdict == times(failing).verdict == "pass"


def test_an_older_recording_without_facts_of_the_load_is_still_judged() -> None:
    seen = replace(simulate("older"), load={})
    assert conservation(seen).verdict == times(seen).verdict == "pass"


def test_a_result_counts_once() -> None:
    assert not_repeated("").verdict == "pass"
    judged = not_repeated("launch/00")
    assert judged.verdict == "fail" and "launch/00" in judged.text


# --- percentiles ----------------------------------------------------------------------------------


def test_mlperfs_own_numbers_follow_from_its_rule() -> None:
    assert (claim_sample(0.90), claim_sample(0.99)) == (64, 662)


@pytest.mark.parametrize(
    ("n", "expected", "words"),
    [
        (367, "fail", "withheld: it needs 368"),
        (368, "pass", "too few for a claim"),
        (661, "pass", "too few for a claim"),
        (662, "pass", "enough for a claim"),
        (np.nan, "cannot judge", "unknown number"),
    ],
)
def test_a_p99_needs_its_sample(n: float, expected: str, words: str) -> None:
    judged = percentile_supported("p99", n, 0.99)
    assert (judged.scope, judged.verdict) == ("metric", expected)
    assert words in judged.text


def test_a_window_is_asked_for_each_of_its_tails() -> None:
    seen = simulate("tails", level=8, rounds=12)  # about 80 requests
    said = {one.text[:3]: one.verdict for one in percentiles_supported(seen.requests, seen.steady)}
    assert said == {"p90": "pass", "p95": "pass", "p99": "fail"}
    assert {one.observed for one in percentiles_supported(seen.requests, None)} == {0}
