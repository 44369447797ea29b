"""A format is recognised by what it must hold, read into SI units, or refused with a reason."""

from __future__ import annotations

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from audit_results import Result, closed_loop, in_seconds, save, summary_only
from hypothesis import given
from hypothesis import strategies as st

from study.audit.formats import (
    COLUMNS,
    TABLE,
    VLLM,
    VLLM_DETAILED,
    VLLM_KEYS,
    VLLM_SECONDS,
    Source,
    read,
)
from study.errors import StudyError

RESULT = closed_loop(requests=24)


def table(path: Path, text: str) -> Source:
    path.write_text(text)
    return read(path)


def test_detail_is_in_seconds_and_summaries_in_milliseconds(tmp_path: Path) -> None:
    source = read(save(tmp_path / "a.json", RESULT))
    (window,) = source.windows
    assert source.format == VLLM_DETAILED
    assert window.time_s("e2e", "p50") == pytest.approx(RESULT["median_e2el_ms"] / 1e3)
    assert window.detail is not None and window.detail.gaps is not None
    assert window.detail.ttft_s.tolist() == RESULT["ttfts"]
    np.testing.assert_allclose(
        window.detail.ttft_s + window.detail.gaps.sum_s, RESULT["latencies"], rtol=1e-9
    )
    assert (window.level, window.completed, window.requests) == (8, 24, 24)
    assert math.isnan(window.rate_s)


def test_milliseconds_and_seconds_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    in_ms = read(save(tmp_path / "ms.json", summary_only(RESULT)))
    in_s = read(save(tmp_path / "s.json", in_seconds(summary_only(RESULT))))
    assert (in_ms.format, in_s.format) == (VLLM, VLLM_SECONDS)
    for metric, times_s in in_ms.windows[0].times_s.items():
        assert times_s == pytest.approx(in_s.windows[0].times_s[metric])
    both = summary_only(RESULT) | {"p99_ttft": 0.1}
    with pytest.raises(StudyError, match="in one unit; they are in milliseconds and in seconds"):
        read(save(tmp_path / "both.json", both))


def test_keys_of_older_versions(tmp_path: Path) -> None:
    """No failures counted, goodput with a colon, no limit, no latencies, an infinite rate."""
    old = {key: RESULT[key] for key in RESULT if key not in ("failed", "latencies", "start_times")}
    del old["max_concurrency"], old["request_goodput"]
    old |= {"request_goodput:": 1.5, "request_rate": math.inf, "best_of": 1}
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))  # as Python writes it: Infinity
    (window,) = read(path).windows
    assert window.rate("goodput_request_s") == 1.5
    assert math.isnan(window.failed) and math.isnan(window.level) and math.isnan(window.rate_s)
    assert window.detail is not None and not window.detail.has_e2e and not window.detail.placed
    np.testing.assert_allclose(window.detail.e2e_s, RESULT["latencies"], rtol=1e-9)


@pytest.mark.parametrize("written", ['"inf"', "Infinity", "null", "0"])
def test_a_limit_that_limits_nothing_is_no_level(written: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.json", RESULT)
    text = path.read_text().replace('"max_concurrency":8', f'"max_concurrency":{written}')
    path.write_text(text)
    assert math.isnan(read(path).windows[0].level)


def test_summaries_of_today_keep_their_latencies(tmp_path: Path) -> None:
    source = read(save(tmp_path / "a.json", summary_only(RESULT, latencies=True)))
    detail = source.windows[0].detail
    assert source.format == VLLM and detail is not None and detail.has_e2e and not detail.placed


def test_several_results_in_one_file(tmp_path: Path) -> None:
    """--append-result writes one after the other, the sweep's summary is an array."""
    lines = read(save(tmp_path / "a.jsonl", summary_only(RESULT), summary_only(RESULT)))
    (tmp_path / "b.json").write_text(json.dumps([summary_only(RESULT)] * 2))
    for source in (lines, read(tmp_path / "b.json")):
        assert [window.name for window in source.windows] == [
            "result 1, level 8",
            "result 2, level 8",
        ]
    mixed = save(tmp_path / "c.jsonl", summary_only(RESULT), in_seconds(summary_only(RESULT)))
    with pytest.raises(StudyError, match="several formats"):
        read(mixed)


@given(st.sets(st.sampled_from(VLLM_KEYS), min_size=1))
def test_a_result_that_lacks_a_key_is_refused_by_name(missing: set[str]) -> None:
    less = {key: value for key, value in summary_only(RESULT).items() if key not in missing}
    with TemporaryDirectory() as folder, pytest.raises(StudyError) as refused:
        read(save(Path(folder) / "a.json", less))
    for key in missing:
        assert key in str(refused.value)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"benchmarks": [], "metadata": {}}, "GuideLLM"),
        ({"input_config": {}, "error_summary": [], "ttft": 1}, "AIPerf"),
        ({"hw": "b200", "conc": 4, "tput_per_gpu": 1.0}, "per GPU"),
        (summary_only(RESULT) | {"completed": "24"}, "completed must be a number"),
        ({key: RESULT[key] for key in VLLM_KEYS}, "they are missing"),
        (RESULT | {"ttfts": [0.1]}, "equally long"),
        (RESULT | {"itls": [[0.1]]}, "a row for each"),
        (RESULT | {"itls": [[0.1]] * 30}, "a row for each"),
        (RESULT | {"ttfts": ["x"] * 24}, "array of numbers"),
        (RESULT | {"errors": 0}, "errors must be an array of texts; it was 0"),
        (RESULT | {"errors": {"a": 1}}, "errors must be an array"),
    ],
)
def test_refusals_say_what_is_wrong(tmp_path: Path, result: Result, says: str) -> None:
    with pytest.raises(StudyError, match=says):
        read(save(tmp_path / "a.json", result))


def test_table_in_seconds(tmp_path: Path) -> None:
    text = "level,total_tok_s,e2e_p99_s,input_tokens,output_tokens,requests\n8,100,2.5,20,5,\n"
    source = table(tmp_path / "a.csv", text + "\n16,150,3.5,20,5,100\n")
    assert source.format == TABLE
    low, high = source.windows
    assert (low.level, low.rate("total_tok_s"), low.time_s("e2e", "p99")) == (8, 100, 2.5)
    assert low.asked_tokens == 25 and math.isnan(low.requests) and high.requests == 100
    assert math.isnan(low.request_s)


@given(st.sampled_from(sorted(COLUMNS)), st.text("abcdefghij_", min_size=1, max_size=12))
def test_unknown_columns_are_refused(known: str, name: str) -> None:
    if name in COLUMNS:
        return
    with TemporaryDirectory() as folder, pytest.raises(StudyError, match="a column"):
        table(Path(folder) / "a.csv", f"level,{known if known != 'level' else 'requests'},{name}\n")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the file is empty"),
        ("some words\nof prose\n", "neither JSON nor a CSV"),
        ("concurrency,request_s\n4,1\n", "column 'level'"),
        ("level,request_rate\n4,1\n", "Did you mean"),
        ("level,level\n4,4\n", "only once"),
        ("level,request_s\n", "no level"),
        ("level,request_s\n0,1\n", "line 2: a level must be positive"),
        ("level,request_s\n,1\n", "line 2: a level must be positive"),
        ("level,request_s\n4,fast\n", "line 2: request_s must be a number; it was 'fast'"),
        ("level,request_s\n4,inf\n", "line 2: request_s must be a number; it was 'inf'"),
        ("level,request_s\n1,000,1\n", "line 2 must have 2 fields; it has 3"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(StudyError, match=says):
        table(tmp_path / "a.csv", text)


@given(st.binary(max_size=80))
def test_junk_is_refused_and_never_crashes(junk: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "junk"
        path.write_bytes(junk)
        with pytest.raises(StudyError):
            read(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="cannot be opened: No such file"):
        read(tmp_path / "none.json")


def failing(**changes: Any) -> Result:
    return RESULT | changes


def test_failed_requests_are_known_by_their_error_or_their_zeros(tmp_path: Path) -> None:
    texts = ["", "Traceback:\n  x\nTimeoutError: late"] + [""] * 22
    (with_texts,) = read(save(tmp_path / "a.json", failing(errors=texts))).windows
    assert with_texts.detail is not None
    assert with_texts.detail.fine.tolist() == [True, False] + [True] * 22
    assert with_texts.detail.kinds == {"TimeoutError: late": 1}
    without = failing(ttfts=[0.0, *RESULT["ttfts"][1:]], output_lens=[0] + [32] * 23)
    del without["errors"]
    (window,) = read(save(tmp_path / "b.json", without)).windows
    assert window.detail is not None and window.detail.fine.tolist() == [False] + [True] * 23
