"""A small closed loop, simulated: a good window by default, with one flaw planted at a time.

`simulate("name", level=8)` gives the evidence of a valid window; every keyword after the sizes is
a flaw. The seed comes from the name, so that each test has its own noise and always the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from study.calibration import Calibration
from study.telemetry import COLUMNS
from study.validity import WindowEvidence

Floats = NDArray[np.float64]

IN_FORCE: Mapping[str, str] = {"block_size": "32", "attention_backend": "CPU_ATTN"}


@dataclass(frozen=True)
class Loop:
    """What the simulated loop is like; the defaults are a good window."""

    level: int = 8
    rounds: int = 40
    input_tokens: int = 128
    output_tokens: int = 32
    ttft_s: float = 0.050
    itl_s: float = 0.010
    noise: float = 0.03  # relative standard deviation of a request's speed
    staggered: bool = True  # the ramp spread over one latency; else every slot starts at once
    turnaround_s: float = 0.0005  # between the end of a request and the sending of the next
    sample_every_s: float = 0.05
    # flaws
    slots: int | None = None  # the client really runs so many slots
    engine_cap: int | None = None  # something before the engine lets only so many through
    drift: float = 0.0  # relative growth of a request's duration from first to last round
    short_share: float = 0.0  # share of requests that stop at half the output
    failed_share: float = 0.0  # share of requests that end in a time-out
    lost_chunks: int = 0  # chunks that the client never counted
    client_delay_s: float = 0.0  # added to TTFT after the engine sent the token
    engine_extra_requests: int = 0  # work of somebody else on the same engine
    still_running: int = 0  # requests in the engine after the load
    warm_latencies_s: tuple[float, ...] = (0.40, 0.37, 0.36)
    log: str = 'INFO: 127.0.0.1:40090 - "POST /v1/completions HTTP/1.1" 200 OK'
    hit_tokens: int = 0  # that the prefix cache already held
    foreign: float = 0.03  # cores that somebody else keeps busy
    throttled: bool = False
    client_adds_ms: float = 0.1  # to TTFT, as it was calibrated
    repeated: str = ""  # the window whose recording this is


def simulate(name: str, **settings: object) -> WindowEvidence:
    """The evidence of one window of a simulated loop; `name` seeds the noise."""
    loop = replace(Loop(), **settings)  # type: ignore[arg-type]
    rng = np.random.default_rng(sum(map(ord, name)))
    requests = _requests(loop, rng)
    chunks = _chunks(requests)
    before, after = _counters(loop, requests)
    if loop.lost_chunks:
        chunks = chunks.drop(index=chunks.index[5 : 5 + loop.lost_chunks])
    return WindowEvidence(
        level=loop.level,
        input_tokens=loop.input_tokens,
        output_tokens=loop.output_tokens,
        requests=requests,
        chunks=chunks,
        samples=_samples(loop, requests),
        before=before,
        after=after,
        asked=IN_FORCE,
        in_force=IN_FORCE,
        load=_info(requests),
        warm_latencies_s=loop.warm_latencies_s,
        log=loop.log,
        phase="cold",
        telemetry=_telemetry(loop, requests),
        repeated=loop.repeated,
        calibration=_calibration(loop),
    )


def _info(requests: pd.DataFrame) -> dict[str, float]:
    """When the client says that the load began and ended."""
    start_s, end_s = float(requests["due_s"].min()), float(requests["ended_s"].max())
    times = {"started_s": start_s, "ended_s": end_s, "wall_s": end_s - start_s}
    return {**times, "loop_lag_p99_s": 0.001}


def _calibration(loop: Loop) -> Calibration:
    """Two loads against the null server, gentler and harder than any window that is simulated."""
    gentle = {"kind": "grid", "level": 1, "chunks_per_s": 1.0}
    hard = {"kind": "ramp", "level": 4096, "chunks_per_s": 1e6}
    points = pd.DataFrame([gentle, hard]).assign(
        itl_ms=4.0,
        asked_per_s=lambda points: points["chunks_per_s"],
        ttft_added_median_ms=loop.client_adds_ms,
        itl_error_median_ms=0.1,
        held=True,
        true=True,
    )
    return Calibration(points, (1,), (1,))


def _telemetry(loop: Loop, requests: pd.DataFrame) -> pd.DataFrame:
    """A look every half second at two cores of which the study keeps 1.2 busy."""
    time_s = np.arange(requests["due_s"].min() - 0.1, requests["ended_s"].max() + 0.6, 0.5)
    since_s = time_s - time_s[0]
    looks = pd.DataFrame(np.nan, index=range(time_s.size), columns=list(COLUMNS))
    return looks.assign(
        time_s=time_s,
        cores=2.0,
        busy_s=5000 + (1.2 + loop.foreign) * since_s,
        steal_s=40.0,
        own_s=30 + 1.2 * since_s,
        client_wait_s=0.01 * since_s,
        server_wait_s=0.05 * since_s,
        heat_throttles=7.0 + loop.throttled * (since_s > since_s.mean()),
        quota_throttled_s=0.0,
    )


def _requests(loop: Loop, rng: np.random.Generator) -> pd.DataFrame:
    """Every slot works through its rounds, one request after the other."""
    slots = loop.slots or loop.level
    latency_s = loop.ttft_s + (loop.output_tokens - 1) * loop.itl_s
    due_s = 100 + np.arange(slots) / slots * latency_s * loop.staggered
    rounds = []
    for index in range(loop.rounds):
        pace = 1 + loop.drift * index / max(1, loop.rounds - 1)
        pace_of_slot = pace * np.maximum(0.2, rng.normal(1, loop.noise, slots))
        short = rng.random(slots) < loop.short_share
        tokens = np.where(short, loop.output_tokens // 2, loop.output_tokens)
        sent_s = due_s + 1e-5
        first_s = sent_s + loop.ttft_s * pace_of_slot + loop.client_delay_s
        last_s = first_s + (tokens - 1) * loop.itl_s * pace_of_slot
        rounds.append(
            pd.DataFrame(
                {
                    "slot": np.arange(slots),
                    "due_s": due_s,
                    "sent_s": sent_s,
                    "first_s": first_s,
                    "last_s": last_s,
                    "ended_s": last_s + 1e-5,
                    "output_tokens": tokens.astype(float),
                }
            )
        )
        due_s = last_s + loop.turnaround_s
    requests = pd.concat(rounds, ignore_index=True)
    requests.insert(0, "request", np.arange(len(requests)))
    requests["input_tokens"] = float(loop.input_tokens)
    requests["chunks"] = requests["output_tokens"].astype(int)
    return _with_failures(requests, round(loop.failed_share * len(requests)), rng)


def _with_failures(requests: pd.DataFrame, count: int, rng: np.random.Generator) -> pd.DataFrame:
    """Turn `count` requests into time-outs before their first token."""
    requests["error"], requests["error_text"] = "", ""
    failed = rng.choice(len(requests), count, replace=False)
    requests.loc[failed, ["first_s", "last_s", "input_tokens", "output_tokens"]] = np.nan
    requests.loc[failed, "chunks"] = 0
    requests.loc[failed, ["error", "error_text"]] = ["time-out", "no token in 30 s"]
    return requests


def _chunks(requests: pd.DataFrame) -> pd.DataFrame:
    """One token a chunk, evenly spaced from first to last, in the order of their arrival."""
    done = requests[requests["error"] == ""]
    count = done["chunks"].to_numpy()
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    gap_s = ((done["last_s"] - done["first_s"]) / np.maximum(1, count - 1)).to_numpy()
    time_s = np.repeat(done["first_s"].to_numpy(), count) + step * np.repeat(gap_s, count)
    chunks = pd.DataFrame(
        {
            "request": np.repeat(done["request"].to_numpy(), count).astype(np.int32),
            "time_s": np.minimum(time_s, np.repeat(done["last_s"].to_numpy(), count)),
            "tokens": np.ones(step.size, dtype=np.int32),
        }
    )
    return chunks.sort_values("time_s", ignore_index=True)


def _samples(loop: Loop, requests: pd.DataFrame) -> pd.DataFrame:
    """The engine's gauges: it sees a request from 0.1 ms after it was sent."""
    start_s, end_s = requests["sent_s"].min(), requests["ended_s"].max()
    time_s = np.arange(start_s, end_s, loop.sample_every_s)
    arrived = np.searchsorted(np.sort(requests["sent_s"].to_numpy() + 1e-4), time_s, side="right")
    left = np.searchsorted(np.sort(requests["ended_s"].to_numpy()), time_s, side="right")
    running = np.maximum(0, arrived - left).astype(float)
    if loop.engine_cap is not None:
        running = np.minimum(running, loop.engine_cap)
    return pd.DataFrame({"time_s": time_s, "running": running, "waiting": np.zeros(running.size)})


def _counters(loop: Loop, requests: pd.DataFrame) -> tuple[dict[str, float], dict[str, float]]:
    """The engine's counters: they started long before this window, and see TTFT 1 ms earlier."""
    before = {
        "requests_finished": 1000.0,
        "output_tokens": 5000.0,
        "input_tokens": 9000.0,
        "ttft_sum_s": 12.0,
        "ttft_count": 1000.0,
        "e2e_sum_s": 400.0,
        "e2e_count": 1000.0,
        "running": 0.0,
        "waiting": 0.0,
        "preemptions": 0.0,
        "prefix_hits_tokens": 320.0,
        "external_hits_tokens": 0.0,
    }
    done = requests[requests["error"] == ""]
    ttft_s = done["first_s"] - done["due_s"] - loop.client_delay_s - 0.001
    extra = loop.engine_extra_requests
    let_through = min(1.0, (loop.engine_cap or loop.level) / loop.level)
    held_s = float((done["last_s"] - done["sent_s"]).sum()) * let_through
    after = {
        **before,
        "requests_finished": before["requests_finished"] + len(done) + extra,
        "output_tokens": before["output_tokens"]
        + float(done["output_tokens"].sum())
        + extra * loop.output_tokens,
        "input_tokens": before["input_tokens"]
        + float(done["input_tokens"].sum())
        + extra * loop.input_tokens,
        "ttft_sum_s": before["ttft_sum_s"] + float(ttft_s.sum()) + extra * loop.ttft_s,
        "ttft_count": before["ttft_count"] + len(done) + extra,
        "e2e_sum_s": before["e2e_sum_s"] + held_s + extra * loop.ttft_s,
        "e2e_count": before["e2e_count"] + len(done) + extra,
        "running": float(loop.still_running),
        "prefix_hits_tokens": before["prefix_hits_tokens"] + loop.hit_tokens,
    }
    return before, after
