"""`study load` writes what `vllm bench serve` writes, and says plainly when it cannot."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.nullserver import serve

pytestmark = pytest.mark.quiet

# The keys of a vLLM 0.32 file written with --save-result --save-detailed, without its options.
VLLM_KEYS = {
    "date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts",
    "request_rate", "burstiness", "max_concurrency", "duration", "completed", "failed",
    "total_input_tokens", "total_output_tokens", "request_throughput", "request_goodput",
    "output_throughput", "total_token_throughput", "input_lens", "output_lens", "ttfts", "itls",
    "latencies", "start_times", "generated_texts", "errors",
    *(f"{statistic}_{metric}_ms" for statistic in ("mean", "median", "std", "p99")
      for metric in ("ttft", "tpot", "itl", "e2el")),
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve(ttft_ms=10, itl_ms=3) as base_url:
        yield base_url


def call(base_url: str, save: Path, **more: object) -> subprocess.CompletedProcess[str]:
    options: dict[str, object] = {
        "base-url": base_url, "model": "null", "concurrency": 4, "requests": 12,
        "input-tokens": 16, "output-tokens": 6, "save": save,
    }  # fmt: skip
    options |= {name.replace("_", "-"): value for name, value in more.items()}
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return subprocess.run(
        [sys.executable, "-m", "study.load", *words], capture_output=True, text=True, timeout=60
    )


def written(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_file_has_vllms_keys_and_agrees_with_itself(server: str, tmp_path: Path) -> None:
    done = call(server, tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    result = written(tmp_path / "r.json")
    assert set(result) == VLLM_KEYS | {"client"}
    assert (result["completed"], result["failed"], result["num_prompts"]) == (12, 0, 12)
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (12 * 16, 12 * 6)
    assert result["request_rate"] == "inf"
    assert result["max_concurrency"] == 4
    assert result["output_throughput"] == pytest.approx(72 / result["duration"])
    assert [len(gaps) for gaps in result["itls"]] == [5] * 12
    assert result["generated_texts"] == [""] * 12
    assert result["errors"] == [""] * 12
    ttft_s, e2el_s = np.array(result["ttfts"]), np.array(result["latencies"])
    assert np.allclose(ttft_s + [sum(gaps) for gaps in result["itls"]], e2el_s)
    assert result["median_ttft_ms"] == pytest.approx(np.median(ttft_s) * 1e3)
    assert result["mean_tpot_ms"] == pytest.approx(np.mean((e2el_s - ttft_s) / 5) * 1e3)
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_table_gives_a_p99_only_with_enough_requests(server: str, tmp_path: Path) -> None:
    few = call(server, tmp_path / "few.json")
    assert few.stdout.count("p99 needs 368 requests") == 3
    many = call(server, tmp_path / "many.json", requests=368, concurrency=64, output_tokens=2)
    assert "needs 368" not in many.stdout
    assert "requests     368, completed 368" in many.stdout


def test_open_loop_names_its_rate(server: str, tmp_path: Path) -> None:
    assert call(server, tmp_path / "r.json", concurrency=None, rate=100.0).returncode == 0
    result = written(tmp_path / "r.json")
    assert (result["request_rate"], result["max_concurrency"]) == (100.0, None)
    assert np.all(np.diff(result["start_times"]) > 0)


def test_failures_are_counted_by_kind_and_are_not_in_the_latencies(tmp_path: Path) -> None:
    with serve(ttft_ms=10, itl_ms=3, fault="drop=2", fault_every=3) as base_url:
        done = call(base_url, tmp_path / "r.json")
    result = written(tmp_path / "r.json")
    assert done.returncode == 0
    assert "failures     reset 4" in done.stdout
    assert (result["completed"], result["failed"]) == (8, 4)
    failed = [index for index, error in enumerate(result["errors"]) if error.startswith("reset")]
    assert len(failed) == 4
    for index in failed:
        assert (result["ttfts"][index], result["itls"][index]) == (0.0, [])
        assert result["output_lens"][index] == 0
    assert result["total_output_tokens"] == 8 * 6


def test_exit_is_1_when_every_request_failed(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        done = call(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path / "r.json")
    assert done.returncode == 1
    assert "refused 12" in done.stdout
    assert written(tmp_path / "r.json")["mean_ttft_ms"] is None


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"concurrency": None}, "Exactly one of concurrency and rate_per_s"),
        ({"rate": 3.0}, "Exactly one of concurrency and rate_per_s"),
        ({"concurrency": "many"}, "invalid int value: 'many'"),
        ({"requests": 0}, "requests must be"),
        ({"save": "no-such-folder/r.json"}, "--save must be a file in a folder"),
        ({"save": os.sep}, "--save must be a file"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_sent(
    more: dict[str, object], words: str, tmp_path: Path
) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        done = call(base_url, **({"save": tmp_path / "r.json"} | more))  # type: ignore[arg-type]
        assert done.returncode == 2
        assert words in done.stderr
        with pytest.raises(BlockingIOError):
            listening.accept()
