"""One launch: start, prime, warm, windows in order, stop. Every exit leaves a truthful record."""

from __future__ import annotations

import http.client
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TextIO

import pandas as pd

from study import engine, plan, platform
from study.client import Client, Load, Recording
from study.errors import StudyError
from study.experiment import Experiment, WindowPlan
from study.plan import Launch
from study.progress import Progress
from study.server import Server, ServerError, free_port
from study.store import LaunchWriter, Store, write_json

SAMPLE_S = 0.25  # a look at /metrics costs the engine's API server about 4 ms
IDLE_LIMIT_S = 30.0
DYING_S = 8.0  # between an engine's last answer and the end of its process
WARM_SLICES = 6  # at most; then the window goes on, and its record shows that they differ
WARM_AGREEMENT = 0.05
WARM_SLICE_S = 0.5  # at least about so long, or a slice is one unlucky request
REQUEST_LIMIT_S = 300.0

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
    "vllm:kv_cache_usage_perc": "kv_use",
}
GAUGES = ("running", "waiting", "kv_use")
NAN = float("nan")
SERIES = re.compile(r"(?m)^([a-z0-9_:]+)(?:\{[^}]*\})? ([0-9.eE+-]+|NaN|\+Inf)$")


def counters(metrics: str) -> dict[str, float]:
    """The engine's counters and gauges that the study reads, summed over their labels."""
    found: dict[str, float] = {}
    for series, value in SERIES.findall(metrics):
        if name := COUNTERS.get(series):
            found[name] = found.get(name, 0.0) + float(value)
    return found


def run_experiment(
    experiment: Experiment, store: Store | None = None, out: TextIO | None = None
) -> tuple[Launch, ...]:
    """Measure every launch of the experiment that is not on disk yet; return all its launches.

    Raises: StudyError when nothing can be measured at all; an arm that fails does not raise.
    """
    store = store or Store()
    launches = plan.launches(experiment, plan.setup())
    missing = [launch for launch in launches if not store.is_done(launch.id)]
    say = out or sys.stdout
    if not missing:
        print(f"{experiment.name}: all {len(launches)} launches are on disk", file=say, flush=True)
        return launches
    print(f"{experiment.name}: {plan.cost(missing)} to measure", file=say, flush=True)
    progress = Progress(missing, out)
    with store.measuring(), Client(cpus=platform.client_cpus()) as client:
        for number, launch in enumerate(missing, start=1):
            progress.launch(launch, number, experiment.launches)
            run_launch(launch, store, client, progress)
            if not store.is_done(launch.id):  # it failed: once more, at once, in the same block
                progress.launch(launch, number, experiment.launches)
                run_launch(launch, store, client, progress)
    return launches


def run_launch(launch: Launch, store: Store, client: Client, progress: Progress) -> None:
    """Measure one launch. Only an interruption or a full disk raises; the rest is an outcome."""
    writer = store.begin(launch)
    try:
        outcome, reason = _measure(launch, writer, client, progress)
    except ServerError as error:
        outcome, reason = ("rejected" if error.refused else "failed"), error.reason
        writer.update(error=str(error))
    except StudyError as error:
        outcome, reason = "failed", str(error)
    except BaseException as error:
        writer.update(status="interrupted", reason=f"{type(error).__name__}: {error}")
        raise
    writer.end(outcome, reason)
    progress.launch_done(launch, outcome, reason)


def _measure(
    launch: Launch, writer: LaunchWriter, client: Client, progress: Progress
) -> tuple[str, str]:
    arm, port = launch.arm, free_port()
    name = f"study-{launch.id}"
    folder = engine.model_folder(arm.model)
    # The weights are made up from the seed of the block: launches of a block share them.
    command = engine.command(arm, sys.executable, folder, name, port, launch.seed + launch.block)
    writer.update(command=command.as_shell())
    started = time.monotonic()
    with Server(command, name, port, writer.log) as server, _interruption_noted(writer):
        in_force = engine.in_force(
            server.metrics(), server.get("/server_info")[1], server.log_text()
        )
        writer.update(ready_s=server.ready_s, in_force=in_force)
        for index in range(len(arm.windows)):
            progress.window(launch, index)
            _window(launch, index, server, client, writer)
            progress.window_done(launch, index)
        stopping = time.monotonic()
    ended = time.monotonic()
    writer.update(stop_s=ended - stopping, wall_s=ended - started)
    return _outcome(arm.expected, in_force)


@contextmanager
def _interruption_noted(writer: LaunchWriter) -> Iterator[None]:
    """Put an interruption on record before the server is stopped: there may be no time after it."""
    try:
        yield
    except KeyboardInterrupt:
        writer.update(status="interrupted", reason="KeyboardInterrupt")
        raise


def _outcome(expected: dict[str, str], in_force: dict[str, str | None]) -> tuple[str, str]:
    """Measured, or overridden when the engine says that it ran something else than asked."""
    other = [
        f"{name} was to be {wanted}, the engine ran {in_force[name]}"
        for name, wanted in expected.items()
        if in_force.get(name) not in (None, wanted)
    ]
    return ("overridden", "; ".join(other)) if other else ("measured", "")


def _window(
    launch: Launch, index: int, server: Server, client: Client, writer: LaunchWriter
) -> None:
    window = launch.arm.windows[index]
    folder = writer.window_folder(index, window.name)
    began = time.monotonic()
    slices = _warm_up(launch, index, server, client, folder / "warm")
    before = _idle_counters(server)
    load_began = time.monotonic()
    with _Sampler(server) as sampler:
        recording = client.run(_load(launch, index, server, slices[-1]), folder / "load")
    load_ended = time.monotonic()
    _check_alive(server, recording, "the server died in a window")
    after = _idle_counters(server)
    sampler.frame().to_parquet(folder / "samples.parquet")
    content: dict[str, Any] = {
        "index": index,
        "plan": window.model_dump(mode="json"),
        "before": before,
        "after": after,
        "warm_latencies_s": slices,
        "load": recording.info,
        "load_s": load_ended - load_began,
        "warm_s": load_began - began,
        "wall_s": time.monotonic() - began,
    }
    write_json(folder / "window.json", content)


def _warm_up(
    launch: Launch, index: int, server: Server, client: Client, folder: Path
) -> list[float]:
    """Meet the measured level with prompts of its own until two slices in a row agree.

    Returns the mean latency of each slice, in seconds.
    """
    window = launch.arm.windows[index]
    latencies_s: list[float] = []
    rounds = 1
    for number in range(WARM_SLICES):
        load = _base_load(launch, index, server, part=number, requests=window.level * rounds)
        recording = client.run(load, folder / str(number))
        _check_alive(server, recording, "the server died while it warmed up")
        latencies_s.append(_mean_latency_s(recording, window))
        if number and abs(latencies_s[-1] / latencies_s[-2] - 1) <= WARM_AGREEMENT:
            break
        rounds = max(1, round(WARM_SLICE_S / latencies_s[-1]))
    return latencies_s


def _load(launch: Launch, index: int, server: Server, latency_s: float) -> Load:
    window = launch.arm.windows[index]
    return _base_load(
        launch,
        index,
        server,
        part=WARM_SLICES,
        min_s=window.steady_s,
        min_latencies=window.steady_latencies,
        max_s=window.limit_s,
        ramp_s=latency_s,  # staggered over one latency, so that slots do not march in step
    )


def _base_load(launch: Launch, index: int, server: Server, *, part: int, **more: Any) -> Load:
    window = launch.arm.windows[index]
    return Load(
        base_url=server.base_url,
        api_key=server.api_key,
        model=server.name,
        input_tokens=window.workload.input_tokens,
        output_tokens=window.workload.output_tokens,
        vocabulary=launch.arm.model.vocabulary,
        seed=launch.seed + launch.block,
        salt=index * (WARM_SLICES + 1) + part,  # no two loads of a launch share a prompt
        concurrency=window.level,
        request_timeout_s=REQUEST_LIMIT_S,
        **more,
    )


def _check_alive(server: Server, recording: Recording, what: str) -> None:
    """Raise if the server died; where the last request failed, give a dying one time to end."""
    ended = recording.requests.sort_values("ended_s")
    deadline = time.monotonic() + (DYING_S if ended["error"].iloc[-1] else 0.0)
    server.check_alive(what)
    while time.monotonic() < deadline:
        time.sleep(0.1)
        server.check_alive(what)


def _mean_latency_s(recording: Recording, window: WindowPlan) -> float:
    fine = recording.requests[recording.requests["error"] == ""]
    if fine.empty:
        kinds = recording.requests["error"].value_counts().to_dict()
        raise StudyError(
            f"warming up for {window.name} must complete requests; none of "
            f"{len(recording.requests)} did ({kinds}). The server's log and the requests are kept."
        )
    return float((fine["ended_s"] - fine["due_s"]).mean())


def _idle_counters(server: Server) -> dict[str, float]:
    """The engine's counters once it has nothing left to do."""
    deadline = time.monotonic() + IDLE_LIMIT_S
    while True:
        found = counters(server.metrics())
        if found.get("running", 0) + found.get("waiting", 0) == 0 or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


class _Sampler:
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
