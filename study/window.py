"""One window on a running server: warm up, note the counters, load, note them again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from study import cores, prompt_files, second
from study.client import Client, Load, Recording
from study.counters import Sampler, idle_counters
from study.errors import StudyError
from study.experiment import WindowPlan
from study.plan import Launch
from study.server import DYING_S, Server
from study.store import write_json
from study.telemetry import Telemetry

WARM_SLICES = 6  # at most; then the window goes on, and its record shows that they differ
WARM_AGREEMENT = 0.05
WARM_SLICE_S = 0.5  # at least about so long, or a slice is one unlucky request
REQUEST_LIMIT_S = 300.0
OWN_SALT = WARM_SLICES  # of the window itself, beside those of its warm-up slices


@dataclass(frozen=True)
class Session:
    """A launch whose server is up.

    `storage` is the folder that the engine keeps KV cache in; `waiting` the first process of a
    server that is up too, and must be idle.
    """

    launch: Launch
    server: Server
    client: Client
    storage: Path | None = None
    waiting: int | None = None
    _prompts: dict[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)

    def measure(self, index: int, window: WindowPlan, folder: Path) -> None:
        """Measure a window, the launch's `index`-th, into `folder`; window.json comes last."""
        began = time.monotonic()
        slices = self._warm_up(index, window, folder / "warm") if window.warm_up else []
        before, stored = idle_counters(self.server), self._stored()
        load_began, log_began = time.monotonic(), self.server.log_bytes()
        telemetry = Telemetry(self.server.pid, self.client.pid, self.waiting)
        with telemetry, Sampler(self.server) as sampler:
            recording = self.client.run(self._load(index, window, slices), folder / "load")
        load_ended = time.monotonic()
        self._check_alive(recording, "the server died in a window")
        after = idle_counters(self.server)
        sampler.frame().to_parquet(folder / "samples.parquet")
        telemetry.frame().to_parquet(folder / "telemetry.parquet")
        prompts = self._own_prompts(window)
        content: dict[str, Any] = {
            "index": index,
            "plan": window.model_dump(mode="json"),
            "prompt_tokens": [len(prompt) for prompt in prompts] if prompts else None,
            "before": before,
            "after": after,
            "stored": {name: total - stored[name] for name, total in self._stored().items()},
            "warm_latencies_s": slices,
            "log_bytes": [log_began, self.server.log_bytes()],  # what it wrote during the load
            "load": recording.info,
            "load_s": load_ended - load_began,
            "warm_s": load_began - began,
            "wall_s": time.monotonic() - began,
        }
        write_json(folder / "window.json", content)

    def compare(self, index: int, window: WindowPlan, folder: Path) -> None:
        """Let the second instrument send what the window in `folder` sent; window.json says so."""
        sent = len(Recording.load(folder / "load").requests)
        cpus = self.client.cpus or cores.client()
        said = second.measure(self.launch, index, window, self.server, sent, cpus, folder)
        content = orjson.loads((folder / "window.json").read_bytes())
        write_json(folder / "window.json", {**content, "second": said})

    def _warm_up(self, index: int, window: WindowPlan, folder: Path) -> list[float]:
        """Meet the measured level with prompts of its own until two slices in a row agree.

        Returns the mean latency of each slice, in seconds.
        """
        latencies_s: list[float] = []
        rounds = 1
        for number in range(WARM_SLICES):
            load = self._base_load(index, window, number, requests=window.level * rounds)
            recording = self.client.run(load, folder / str(number))
            self._check_alive(recording, "the server died while it warmed up")
            latencies_s.append(_mean_latency_s(recording, window))
            if number and abs(latencies_s[-1] / latencies_s[-2] - 1) <= WARM_AGREEMENT:
                break
            rounds = max(1, round(WARM_SLICE_S / latencies_s[-1]))
        return latencies_s

    def _load(self, index: int, window: WindowPlan, slices: list[float]) -> Load:
        # Staggered over one latency, so that slots do not march in step.
        ramp_s = slices[-1] if slices else 0.0
        if window.requests is not None:
            return self._base_load(index, window, OWN_SALT, requests=window.requests, ramp_s=ramp_s)
        return self._base_load(
            index,
            window,
            OWN_SALT,
            min_s=window.steady_s,
            min_latencies=window.steady_latencies,
            max_s=window.limit_s,
            ramp_s=ramp_s,
        )

    def _base_load(self, index: int, window: WindowPlan, part: int, **more: Any) -> Load:
        launch = self.launch
        # No two loads of a launch share a prompt, except where a window repeats another's.
        origin = index if window.repeats is None else window.repeats
        return Load(
            base_url=self.server.base_url,
            api_key=self.server.api_key,
            model=self.server.name,
            input_tokens=window.workload.input_tokens,
            output_tokens=window.workload.output_tokens,
            vocabulary=launch.arm.model.vocabulary,
            seed=launch.seed + launch.block,
            salt=origin * (WARM_SLICES + 1) + part,
            concurrency=window.level,
            request_timeout_s=REQUEST_LIMIT_S,
            prompts=self._own_prompts(window),
            **more,
        )

    def _own_prompts(self, window: WindowPlan) -> tuple[tuple[int, ...], ...] | None:
        """The user's prompts as token ids, if the workload has any; read once a launch."""
        path = window.workload.prompts
        if path is None:
            return None
        if path not in self._prompts:
            given = prompt_files.read(Path(path))
            if prompt_files.digest(Path(path)) != window.workload.digest:
                raise StudyError(
                    "prompts must stay as they were when the experiment began; "
                    f"{path} has changed since. Put it back, or start anew with the new one."
                )
            self._prompts[path] = prompt_files.token_ids(given, self.launch.arm.model)
        return self._prompts[path]

    def _stored(self) -> dict[str, int]:
        """Bytes and files that the engine keeps in the launch's storage; nothing without one."""
        if self.storage is None:
            return {}
        sizes = [path.stat().st_size for path in self.storage.rglob("*") if path.is_file()]
        return {"bytes": sum(sizes), "files": len(sizes)}

    def _check_alive(self, recording: Recording, what: str) -> None:
        """Raise if the server died; where the last request failed, give a dying one time to end."""
        ended = recording.requests.sort_values("ended_s")
        deadline = time.monotonic() + (DYING_S if ended["error"].iloc[-1] else 0.0)
        self.server.check_alive(what)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            self.server.check_alive(what)


def _mean_latency_s(recording: Recording, window: WindowPlan) -> float:
    fine = recording.requests[recording.requests["error"] == ""]
    if fine.empty:
        kinds = recording.requests["error"].value_counts().to_dict()
        raise StudyError(
            f"warming up for {window.name} must complete requests; none of "
            f"{len(recording.requests)} did ({kinds}). The server's log and the requests are kept."
        )
    return float((fine["ended_s"] - fine["due_s"]).mean())
