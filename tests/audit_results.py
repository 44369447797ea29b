"""Results as `vllm bench serve` 0.32 writes them, made by a simulated closed loop: good by
default, for a test to plant one flaw into. And calls of the command."""

from __future__ import annotations

import argparse
import heapq
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from study.audit import command as audit
from study.errors import StudyError
from study.finite import Floats

Result = dict[str, Any]
Item = dict[str, Any]

DETAIL = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors")


def schedule(service_s: Floats, slots: int, due_s: Floats | None = None) -> Floats:
    """When each request starts if `slots` of them take one after the other without a pause, none
    before it is due."""
    free_s = [0.0] * slots
    due_s = np.zeros(service_s.size) if due_s is None else due_s
    start_s = np.empty(service_s.size)
    for i, one_s in enumerate(service_s):
        start_s[i] = max(heapq.heappop(free_s), due_s[i])
        heapq.heappush(free_s, start_s[i] + one_s)
    return start_s


def served(level: int, slots: int, service_s: Floats) -> tuple[float, Floats]:
    """How long a run takes, and the E2E of each request, in seconds: so many in flight, each next
    one sent when one has ended, served first come first served by so many slots."""
    start_s = schedule(service_s, min(level, slots))
    ends_s = start_s + service_s
    sent_s = np.concatenate([np.zeros(level), np.sort(ends_s)])[: service_s.size]
    return float(ends_s.max()), np.maximum(ends_s - sent_s, service_s)


def closed_loop(
    level: int = 8,
    requests: int = 400,
    *,
    slots: int | None = None,
    input_tokens: int = 128,
    output_tokens: int = 32,
    ttft_s: float = 0.1,
    noise: float = 0.03,
    drift: float = 0.0,
    seed: int = 0,
) -> Result:
    """A detailed result. `slots`: what really was in flight; `drift`: growth of the durations."""
    rng = np.random.default_rng(seed)
    speed = 1 + noise * rng.standard_normal((requests, output_tokens))
    speed *= np.linspace(1, 1 + drift, requests)[:, None]
    token_s = np.concatenate([np.full((requests, 1), ttft_s), np.full_like(speed, 0.02)[:, 1:]], 1)
    token_s = token_s * speed
    latency_s = token_s.sum(axis=1)
    start_s = 1000.0 + schedule(latency_s, slots or level)
    ends_s = start_s + latency_s
    duration_s = float(ends_s.max() - start_s.min())
    return {
        "date": "20261121-120000",
        "endpoint_type": "openai",
        "backend": "openai",
        "label": None,
        "model_id": "made-up",
        "tokenizer_id": "made-up",
        "num_prompts": requests,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": level,
        "input_lens": [input_tokens] * requests,
        "output_lens": [output_tokens] * requests,
        "ttfts": token_s[:, 0].tolist(),
        "itls": token_s[:, 1:].tolist(),
        "latencies": latency_s.tolist(),
        "start_times": start_s.tolist(),
        "generated_texts": ['said "]]", {and} [more]'] * requests,
        "errors": [""] * requests,
        "failed": 0,
        **summaries(duration_s, token_s, input_tokens),
    }


def open_loop(rate_s: float, slots: int = 8, **made: Any) -> Result:
    """A detailed result of even arrivals at a server that has so many slots: some 11 requests
    per second for 8 of them. More have to wait for their first token, ever longer."""
    result = closed_loop(slots, **made)
    sent_s = 1000.0 + np.arange(result["completed"]) / rate_s
    token_s = np.column_stack([result["ttfts"], result["itls"]])
    token_s[:, 0] += schedule(token_s.sum(axis=1), slots, sent_s) - sent_s
    latency_s = token_s.sum(axis=1)
    duration_s = float((sent_s + latency_s).max() - sent_s.min())
    return {
        **result,
        **summaries(duration_s, token_s, result["input_lens"][0]),
        "request_rate": rate_s,
        "max_concurrency": None,
        "start_times": sent_s.tolist(),
        "ttfts": token_s[:, 0].tolist(),
        "latencies": latency_s.tolist(),
    }


def summaries(duration_s: float, token_s: Floats, input_tokens: int) -> Result:
    """Counts, rates and latencies, in milliseconds."""
    requests, output_tokens = token_s.shape
    found: Result = {
        "duration": duration_s,
        "completed": requests,
        "total_input_tokens": requests * input_tokens,
        "total_output_tokens": requests * output_tokens,
        "request_throughput": requests / duration_s,
        "request_goodput": None,
        "output_throughput": requests * output_tokens / duration_s,
        "total_token_throughput": requests * (input_tokens + output_tokens) / duration_s,
    }
    latency_s, ttft_s = token_s.sum(axis=1), token_s[:, 0]
    for name, values_s in (
        ("ttft", ttft_s),
        ("tpot", (latency_s - ttft_s) / (output_tokens - 1)),
        ("itl", token_s[:, 1:].ravel()),
        ("e2el", latency_s),
    ):
        ms = values_s * 1e3
        found |= {
            f"mean_{name}_ms": float(ms.mean()),
            f"median_{name}_ms": float(np.median(ms)),
            f"std_{name}_ms": float(ms.std()),
            f"p99_{name}_ms": float(np.percentile(ms, 99)),
        }
    return found


def summary_only(result: Result, latencies: bool = False) -> Result:
    """What is left without `--save-detailed`; vLLM 0.32 leaves the latencies in."""
    dropped = DETAIL if latencies else (*DETAIL, "latencies")
    return {key: value for key, value in result.items() if key not in dropped}


def in_seconds(result: Result) -> Result:
    """The same with its summaries in seconds, keys without `_ms`."""
    return {
        key.removesuffix("_ms"): value / 1e3 if key.endswith("_ms") else value
        for key, value in result.items()
    }


def save(path: Path, *results: Result) -> Path:
    """One result, or several as JSON lines."""
    if not results:
        raise StudyError("nothing to save")
    path.write_bytes(b"\n".join(orjson.dumps(result) for result in results))
    return path


def call(*paths: Path | str, status: int = 0) -> None:
    parser = argparse.ArgumentParser()
    audit.add_arguments(parser)
    assert audit.main(parser.parse_args([*map(str, paths)])) == status


def items(capsys: pytest.CaptureFixture[str], *paths: Path, status: int = 0) -> list[Item]:
    call(*paths, "--json", status=status)
    found: list[Item] = json.loads(capsys.readouterr().out)
    return found


def said(item: Item, gate: str, about: str = "") -> Item:
    (found,) = (one for one in item["reasons"] if one["gate"] == gate and about in one["text"])
    assert isinstance(found, dict)
    return found
