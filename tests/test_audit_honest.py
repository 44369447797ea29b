"""Honest results of real clients that were void, and forged ones that were valid."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from audit_results import Result, call, closed_loop, save, summary_only

from study.audit.claims import Judged, claims
from study.audit.formats import Window, read, table_windows
from study.audit.gates import judge, verdict
from study.audit.loads import loads
from study.errors import StudyError
from study.validity import Judgement

GOOD = closed_loop()


def judged(result: Result) -> dict[str, Judgement]:
    with TemporaryDirectory() as folder:
        (window,) = read(save(Path(folder) / "a.json", result)).windows
    return {said.gate: said for said in judge(window)}


def swapped(key: str, index: int, value: object) -> Result:
    values = list(GOOD[key])
    values[index] = value
    return GOOD | {key: values}


# ------------------------------------------------------------- summaries against one another


def test_a_mean_is_within_a_standard_deviation_of_the_median() -> None:
    honest = summary_only(GOOD)
    assert judged(honest)["conservation"].verdict == "pass"
    forged = honest | {"mean_ttft_ms": 3 * honest["mean_ttft_ms"]}
    said = judged(forged)["conservation"]
    assert said.verdict == "fail" and "mean and median of TTFT" in said.text


def test_a_standard_deviation_is_that_of_the_array() -> None:
    said = judged(GOOD | {"std_e2el_ms": 2 * GOOD["std_e2el_ms"] + 1})["conservation"]
    assert said.verdict == "fail" and "std of E2E" in said.text


def test_no_part_of_the_tokens_is_above_all_of_them() -> None:
    (window,) = table_windows([["level", "output_tok_s", "total_tok_s"], ["8", "128", "64"]])
    said = {one.gate: one for one in judge(window)}["conservation"]
    assert said.verdict == "fail" and "128 output tokens/s are above all 64" in said.text


# ------------------------------------------------------------------------- impossible numbers


@pytest.mark.parametrize("written", ["1" + "0" * 400, "1e300", "-1e16", "Infinity"])
@pytest.mark.parametrize("key", ["duration", "output_lens", "start_times", "itls"])
def test_numbers_of_no_measurement_are_refused_by_the_name_of_their_field(
    key: str, written: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    value: object = "HERE"
    if key != "duration":
        value = [[value], *GOOD[key][1:]] if key == "itls" else [value, *GOOD[key][1:]]
    path = save(tmp_path / "a.json", GOOD | {key: value})
    path.write_bytes(path.read_bytes().replace(b'"HERE"', written.encode()))
    save(tmp_path / "b.json", GOOD)
    call(tmp_path, status=1)
    said = capsys.readouterr()
    assert f"{key} must" in said.err and "valid      " in said.out


def test_a_table_with_numbers_of_no_measurement_is_refused() -> None:
    with pytest.raises(StudyError, match="line 2: level must be at most 1e"):
        table_windows([["level"], ["2e200"]])


def test_rates_that_are_very_far_apart_are_two_loads() -> None:
    windows = [
        Window("", level=level, rates={"request_s": rate}, times_s={"e2e": {"p50": 1.0}})
        for level, rate in ((1, 1e-320), (2, 1e15))
    ]
    assert len(loads(windows)) == 2


def test_rates_that_no_measurement_has_make_no_curve() -> None:
    windows = [
        Window("", level=level, rates={"request_s": rate}, times_s={"e2e": {"p50": 1.0}})
        for level, rate in ((1, 1.0), (2, 2.0), (4, 2.0), (1e12, 1e-320))
    ]
    *_, saturation = claims([Judged("", window, "undecided") for window in windows])
    assert saturation.verdict == "cannot judge" and "3 levels" in saturation.text


def test_one_request_that_began_ages_later_is_judged() -> None:
    said = judged(swapped("start_times", 399, 1e14))
    assert verdict(said.values()) == "void" and said["times"].verdict == "fail"


# ------------------------------------------------------------------------------------- counts


def test_all_prompts_that_there_are_is_no_count() -> None:
    """`--num-prompts -1`."""
    assert verdict(judged(GOOD | {"num_prompts": -1}).values()) == "valid"


@pytest.mark.parametrize("name", ["failed", "completed"])
def test_a_negative_count_is_a_contradiction(name: str) -> None:
    said = judged(summary_only(GOOD) | {name: -5})["conservation"]
    assert said.verdict == "fail" and f"-5 requests {name}" in said.text


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(StudyError, match="max_concurrency must be positive, or null; it was -8"):
        judged(GOOD | {"max_concurrency": -8})


@pytest.mark.parametrize("counted", [True, False])
def test_requests_that_vanished_keep_a_window_from_being_valid(counted: bool) -> None:
    result = GOOD | {"num_prompts": 4000}
    if not counted:
        del result["failed"]
    said = judged(result)
    assert said["errors"].verdict == "cannot judge" and "3,600 of 4,000" in said["errors"].text
    assert verdict(said.values()) == "undecided"
    assert verdict(judged(GOOD | {"num_prompts": 403}).values()) == "valid"
    assert judged(summary_only(GOOD) | {"num_prompts": 4000})["errors"].verdict == "cannot judge"


@pytest.mark.parametrize("key", ["input_lens", "output_lens", "ttfts", "latencies", "start_times"])
def test_one_entry_that_is_missing_does_not_switch_checks_off(key: str) -> None:
    said = judged(swapped(key, 3, None))
    assert said["conservation"].verdict == "cannot judge"
    assert f"{key} lacks 1 of 400" in said["conservation"].text
    assert verdict(said.values()) != "valid"


def test_a_missing_entry_does_not_hide_what_is_wrong() -> None:
    said = judged(swapped("input_lens", 3, None) | {"total_output_tokens": 1})
    assert said["conservation"].verdict == "fail"


# ------------------------------------------------------------------------------------- sweeps


def test_what_a_sweep_says_again_is_counted_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vllm bench sweep serve`: a folder a level with its runs and their list, and one table."""
    every = []
    for level in (4, 8):
        folder = tmp_path / f"BENCH--max_concurrency={level}"
        folder.mkdir()
        runs = [summary_only(closed_loop(level, seed=10 * level + run)) for run in range(2)]
        for run, result in enumerate(runs):
            save(folder / f"run={run}.json", result)
        (folder / "summary.json").write_text(json.dumps(runs))
        every += runs
    rows = [",".join(every[0]), *(",".join(map(str, one.values())) for one in every)]
    (tmp_path / "summary.csv").write_text("\n".join(rows))
    call(tmp_path)
    said = capsys.readouterr()
    assert "4 files: 0 valid, 0 void, 4 undecided." in said.out
    assert said.err.count("a copy, counted once") == 3


def test_a_list_with_a_result_of_its_own_is_no_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [summary_only(closed_loop(seed=seed)) for seed in range(2)]
    save(tmp_path / "run=0.json", runs[0])
    (tmp_path / "summary.json").write_text(json.dumps(runs))
    call(tmp_path)
    assert "2 files: 0 valid, 1 void" in capsys.readouterr().out
    (tmp_path / "alone.csv").write_text("model_id,level\n")
    call(tmp_path, status=1)


# ---------------------------------------------------------------------------- times and lengths


def test_e2e_of_a_client_that_kept_none_is_not_held_against_its_summaries() -> None:
    """Before 2025 a stream ended with its last event, after the last chunk with text."""
    old = {key: value for key, value in GOOD.items() if key != "latencies"}
    later = {name: old[name] + 50 for name in ("mean_e2el_ms", "median_e2el_ms", "p99_e2el_ms")}
    tpot = {name: old[name] * 1.1 for name in ("mean_tpot_ms", "median_tpot_ms", "p99_tpot_ms")}
    assert verdict(judged(old | later | tpot).values()) == "valid"
    assert judged(GOOD | later)["conservation"].verdict == "fail"


@pytest.mark.parametrize(("factor", "verdict"), [(0.1, "fail"), (0.97, "pass"), (10, "fail")])
def test_ttft_and_gaps_are_the_latency(factor: float, verdict: str) -> None:
    ttfts = (factor * np.array(GOOD["ttfts"])).tolist()
    if factor > 1:
        assert judged(GOOD | {"ttfts": ttfts})["times"].verdict == verdict
        return
    said = judged(GOOD | {"ttfts": ttfts})["times"]
    assert said.verdict == verdict
    assert verdict == "pass" or "less than their E2E" in said.text


def of_prompts(lengths: list[int]) -> Judgement:
    result = GOOD | {"input_lens": lengths, "total_input_tokens": sum(lengths)}
    return judged(result)["lengths_delivered"]


def test_prompts_that_sampling_made_longer_by_a_token_or_two_are_as_asked() -> None:
    said = of_prompts([8193 if i % 20 == 0 else 8192 for i in range(400)])
    assert said.verdict == "pass" and "but for 20 of 400" in said.text
    assert of_prompts([9999 if i % 20 == 0 else 8192 for i in range(400)]).verdict == "fail"
    assert judged(swapped("output_lens", 3, 33))["lengths_delivered"].verdict == "fail"
