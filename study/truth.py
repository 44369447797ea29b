"""How true a client is: what it claims beside what the null server's own clock says.

The null server writes into every token the moment it sent it, and into the first one when the
request came (see study.nullserver). So the error of a client is what it claims minus what was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from study.client import Recording
from study.finite import Floats

ERRORS = (
    "in_flight_mean", "ttft_error_median_ms", "ttft_error_p99_ms", "first_read_late_median_ms",
    "first_read_late_p99_ms", "itl_error_median_ms", "itl_error_p99_ms", "client_cpu_s",
    "chunks_per_s", "server_late_p99_ms",
)  # fmt: skip
TRUE_MS = 10.0  # at p99; a client, or a null server, that errs by more is no instrument


@dataclass(frozen=True)
class Claims:
    """What a client says of its completed requests, and what the server wrote into them.

    `first_s`, `ttft_s`: per request, first token on the client's clock (CLOCK_MONOTONIC) and TTFT.
    `gaps_s`: requests x (tokens - 1). `told_s`: requests x (1 + tokens), received and written.
    """

    client: str
    first_s: Floats
    ttft_s: Floats
    gaps_s: Floats
    told_s: Floats
    failed: int
    cpu_s: float


def told(texts: Sequence[str]) -> Floats:
    """The server's own times out of the text of each request, in seconds."""
    return np.array([text.split() for text in texts], dtype=np.float64) / 1e9


def claims_of(recording: Recording) -> Claims:
    """The claims of our own client, from a recording with text (equal lengths, one a chunk)."""
    fine = recording.requests[recording.requests["error"] == ""]
    read = recording.chunks[recording.chunks["request"].isin(fine["request"])]["time_s"]
    tokens = read.size // max(len(fine), 1)
    return Claims(
        client="study",
        first_s=fine["first_s"].to_numpy(),
        ttft_s=(fine["first_s"] - fine["due_s"]).to_numpy(),
        gaps_s=np.diff(read.to_numpy().reshape(len(fine), tokens), axis=1),
        told_s=told(fine["text"].tolist()),
        failed=len(recording.requests) - len(fine),
        cpu_s=recording.info["cpu_s"],
    )


def errors(claims: Claims, stats: Mapping[str, float]) -> dict[str, float]:
    """Errors (claimed minus true) in ms, and the load by the server's clock.

    `stats`: what the null server says of itself. ITL errors are absolute: a token read late makes
    one gap longer and the next one shorter. All NaN where no request completed.
    """
    counted = {"completed": len(claims.told_s), "failed": claims.failed}
    if not counted["completed"]:
        return counted | dict.fromkeys(ERRORS, math.nan)
    received_s, written_s = claims.told_s[:, 0], claims.told_s[:, 1:]
    ttft_ms = (claims.ttft_s - (written_s[:, 0] - received_s)) * 1e3
    read_ms = (claims.first_s - written_s[:, 0]) * 1e3
    itl_ms = np.abs(claims.gaps_s - np.diff(written_s, axis=1)) * 1e3
    return counted | {
        "in_flight_mean": in_flight(received_s, written_s[:, -1]),
        "ttft_error_median_ms": float(np.median(ttft_ms)),
        "ttft_error_p99_ms": float(np.quantile(ttft_ms, 0.99)),
        "first_read_late_median_ms": float(np.median(read_ms)),
        "first_read_late_p99_ms": float(np.quantile(read_ms, 0.99)),
        "itl_error_median_ms": float(np.median(itl_ms)),
        "itl_error_p99_ms": float(np.quantile(itl_ms, 0.99)),
        "client_cpu_s": claims.cpu_s,
        "chunks_per_s": float(written_s.size / (written_s.max() - received_s.min())),
        "server_late_p99_ms": stats["tick_late_p99_ms"],
    }


def untrue(found: Mapping[str, Any]) -> bool:
    """Past TRUE_MS at p99: the client's errors, or the server's own lateness."""
    names = ("first_read_late_p99_ms", "itl_error_p99_ms", "server_late_p99_ms")
    return max(float(found[name]) for name in names) > TRUE_MS


def in_flight(received_s: Floats, ended_s: Floats) -> float:
    """Mean requests in flight over the middle 40 % of the load, by the server's clock."""
    begin_s, end_s = received_s.min(), ended_s.max()
    low, high = begin_s + 0.3 * (end_s - begin_s), begin_s + 0.7 * (end_s - begin_s)
    inside_s = np.clip(ended_s, low, high) - np.clip(received_s, low, high)
    return float(inside_s.sum() / (high - low))


def steady_rate(told_s: Floats) -> float:
    """Chunks per second in the middle fifth of the load, by the server's clock."""
    written_s = told_s[:, 1:].ravel()
    low, high = np.quantile(written_s, [0.4, 0.6])
    return float(0.2 * written_s.size / (high - low))
