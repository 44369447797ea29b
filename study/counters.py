"""What the engine counts about itself, as its `/metrics` page says it."""

from __future__ import annotations

import http.client
import re
import threading
import time
from typing import Self

import pandas as pd

from study.server import Server

SAMPLE_S = 0.25  # a look at /metrics costs the engine's API server about 4 ms
IDLE_LIMIT_S = 30.0

# The engine's own names, and what the study calls them.
COUNTERS = {
    "vllm:request_success_total": "requests_finished",
    "vllm:generation_tokens_total": "output_tokens",
    "vllm:prompt_tokens_total": "input_tokens",
    "vllm:time_to_first_token_seconds_sum": "ttft_sum_s",
    "vllm:time_to_first_token_seconds_count": "ttft_count",
    "vllm:e2e_request_latency_seconds_sum": "e2e_sum_s",
    "vllm:e2e_request_latency_seconds_count": "e2e_count",
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:num_preemptions_total": "preemptions",
    "vllm:prefix_cache_hits_total": "prefix_hits_tokens",
    "vllm:prefix_cache_queries_total": "prefix_queries_tokens",
    "vllm:external_prefix_cache_hits_total": "external_hits_tokens",
    "vllm:external_prefix_cache_queries_total": "external_queries_tokens",
    "vllm:kv_offload_load_bytes_total": "offload_load_bytes",
    "vllm:kv_offload_store_bytes_total": "offload_store_bytes",
    # Before 0.32 the native offload counted both directions in one counter with a label.
    'vllm:kv_offload_total_bytes_total{transfer_type="CPU_to_GPU"}': "offload_load_bytes_labelled",
    'vllm:kv_offload_total_bytes_total{transfer_type="GPU_to_CPU"}': "offload_store_bytes_labelled",
    "vllm:kv_cache_usage_perc": "kv_use",
}
GAUGES = ("running", "waiting", "kv_use")
NAN = float("nan")
SERIES = re.compile(r"(?m)^([a-z0-9_:]+)(?:\{([^}]*)\})? ([0-9.eE+-]+|NaN|\+Inf)$")
TRANSFER = re.compile(r'transfer_type="[^"]*"')


def counters(metrics: str) -> dict[str, float]:
    """The engine's counters and gauges that the study reads, summed over their labels."""
    found: dict[str, float] = {}
    for series, labels, value in SERIES.findall(metrics):
        transfer = TRANSFER.search(labels)
        name = COUNTERS.get(f"{series}{{{transfer[0]}}}" if transfer else series)
        if name:
            found[name] = found.get(name, 0.0) + float(value)
    for name in ("offload_load_bytes", "offload_store_bytes"):
        labelled = found.pop(f"{name}_labelled", None)
        if labelled is not None:
            found.setdefault(name, labelled)
    return found


def idle_counters(server: Server) -> dict[str, float]:
    """The engine's counters once it has nothing left to do."""
    deadline = time.monotonic() + IDLE_LIMIT_S
    while True:
        found = counters(server.metrics())
        if found.get("running", 0) + found.get("waiting", 0) == 0 or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


class Sampler:
    """Looks at the engine's own count of requests, running and waiting, until it is left."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._rows: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(SAMPLE_S):
            began = time.monotonic()
            try:
                found = counters(self._server.get("/metrics", timeout_s=10.0)[1])
            except (OSError, http.client.HTTPException):
                continue  # a look that failed is a look less; who waits for the load sees a death
            middle = (began + time.monotonic()) / 2
            self._rows.append({"time_s": middle, **{name: found.get(name, NAN) for name in GAUGES}})

    def frame(self) -> pd.DataFrame:
        """Columns: time_s (CLOCK_MONOTONIC), running, waiting, kv_use."""
        return pd.DataFrame(self._rows, columns=["time_s", *GAUGES], dtype=float)
