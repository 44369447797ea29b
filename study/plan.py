"""From an experiment to its launches: which, in what order, and how long they will take."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from study import platform, protocol
from study.experiment import Arm, Experiment, WindowPlan

# Measured on two cores of a server CPU; the run replaces them by what it sees.
START_S = 28.0
STOP_S = 2.0


@dataclass(frozen=True)
class Launch:
    """One start of a server in an arm: the unit of replication."""

    experiment: str
    block: int
    arm: Arm
    seed: int
    setup: dict[str, Any]  # engine, packages and machine

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that could change its result."""
        return {
            "experiment": self.experiment,
            "block": self.block,
            "seed": self.seed,
            "arm": self.arm.model_dump(mode="json"),
            "setup": self.setup,
            "protocol": protocol.VERSION,
        }

    @cached_property
    def id(self) -> str:
        """A readable name that ends in the hash of the identity."""
        canonical = json.dumps(self.identity, sort_keys=True).encode()
        digest = hashlib.sha256(canonical).hexdigest()[:12]
        return f"{self.experiment}-{self.block}-{self.arm.name}-{digest}"

    @property
    def expected_s(self) -> float:
        """How long it will take, roughly."""
        windows = sum(expected_window_s(self.arm, window) for window in self.arm.windows)
        return START_S + windows + STOP_S


def setup() -> dict[str, Any]:
    """Engine, packages and machine, as far as they could change a result."""
    found = platform.engine()
    return {
        "engine": {"package": found.package, "version": found.version, "kind": found.kind},
        "packages": platform.packages(),
        "machine": platform.machine().as_dict(),
    }


def launches(experiment: Experiment, setup: dict[str, Any]) -> tuple[Launch, ...]:
    """Every launch, block by block; the order of arms inside a block is random but seeded.

    The order of a block depends on nothing but seed, experiment and block: more launches later
    leave the first blocks as they were.
    """
    ordered: list[Launch] = []
    for block in range(experiment.launches):
        arms = list(experiment.arms())
        random.Random(f"{experiment.seed}/{experiment.name}/{block}").shuffle(arms)
        ordered += [Launch(experiment.name, block, arm, experiment.seed, setup) for arm in arms]
    return tuple(ordered)


def expected_window_s(arm: Arm, window: WindowPlan) -> float:
    """Seconds of one window with its warm-up: a latency each for warm-up, ramp and drain."""
    latency = expected_latency_s(arm, window)
    steady = max(window.steady_s, window.steady_latencies * latency)
    return min(steady + 3 * latency + 0.5, window.limit_s + latency)


def expected_latency_s(arm: Arm, window: WindowPlan) -> float:
    """A rough latency on two cores: a step has a fixed part, a part per stream, and prefills."""
    layers, level, workload = arm.model.layers / 4, window.level, window.workload
    context = workload.input_tokens + workload.output_tokens / 2
    step_s = (2.2e-3 + level * (0.22e-3 + 0.15e-6 * context)) * layers
    prefill_s = workload.input_tokens * 75e-6 * layers
    return workload.output_tokens * step_s + level * prefill_s


@dataclass(frozen=True)
class Cost:
    """What is still to be done."""

    launches: int
    windows: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.launches} launches, {self.windows} windows, about {duration(self.seconds)}"


def cost(missing: Iterable[Launch]) -> Cost:
    """What these launches will take."""
    wanted: Sequence[Launch] = tuple(missing)
    return Cost(
        launches=len(wanted),
        windows=sum(len(launch.arm.windows) for launch in wanted),
        seconds=sum(launch.expected_s for launch in wanted),
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
