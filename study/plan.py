"""From an experiment to its launches: which, in what order, and how long they will take."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from study import engine, platform, protocol, theory
from study.experiment import Arm, Experiment, WindowPlan
from study.search import Seen

OUTPUTS_S = 1.0  # a pass of the fixed prompts
# A warm-up is a round of the level, then slices of at least so long until two agree.
SLICE_S, SLICES, AROUND_S = 0.5, 1.3, 0.15
STOP_S = 2.0
TOGETHER = 0.6  # of the time of a start alone is what each of two takes that start together
SERVER_BYTES = 4 * 2**30  # of memory, without KV cache and weights
SECOND_S = 12.0  # start-up of the second instrument


@dataclass(frozen=True)
class Pace:
    """How fast a kind of machine is, roughly: enough to plan by; the run learns the truth.

    A decoding step has a part of its own, and per layer a part of its own and one per stream, but
    never takes less than reading the weights; a prefill costs a layer so much per token.
    """

    start_s: float
    compile_s: float  # the first time; later launches find much of it in the engine's cache
    compiled_s: float
    step_s: float
    layer_s: float
    stream_s: float
    prefill_s: dict[str, float]  # by attention family
    make_bytes_s: float  # how fast weights are made up
    read_bytes_s: float  # and read
    again: float  # the share of windows that are void and measured once more

    @property
    def digest(self) -> str:
        """Tells paces apart: times expected by one and by another do not compare."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]

    def latency_s(self, arm: Arm, window: WindowPlan) -> float:
        """Of one request. Beyond what the engine runs at once, requests wait for as long again."""
        layers, workload = arm.model.layers, window.workload
        running = min(window.level, int(arm.flags["max_num_seqs"]))
        own_s = layers * (self.layer_s + self.stream_s * running)
        read_s = theory.BF16_BYTES * theory.read_parameters(arm.model) / self.read_bytes_s
        step_s = self.step_s + max(own_s, read_s)
        prefill_s = layers * self.prefill_s[arm.model.attention]
        latency_s = workload.output_tokens * step_s + running * workload.input_tokens * prefill_s
        return latency_s * window.level / running


# Measured with the small models on two cores of a server CPU, whose starts take 19 to 35 s, and
# where a window in seven is measured twice in a quiet hour, one in three in a busy one.
ON_A_CPU = Pace(
    24.0, 32.0, 4.0, 0.7e-3, 0.3e-3, 0.06e-3, {"gqa": 32e-6, "mla": 100e-6}, 80e6, 30e9, 0.25
)
# A guess from published figures for a model of 1e9 parameters; the budget corrects it as it goes.
ON_A_GPU = Pace(
    60.0, 60.0, 30.0, 1e-3, 0.15e-3, 0.5e-6, {"gqa": 0.5e-6, "mla": 0.5e-6}, 1e9, 2e12, 0.05
)


def pace(setup: Mapping[str, Any]) -> Pace:
    """How fast a machine with this engine is thought to be."""
    return ON_A_CPU if setup["engine"]["kind"] == "cpu" else ON_A_GPU


@dataclass(frozen=True)
class Launch:
    """One start of a server in an arm: the unit of replication."""

    experiment: str
    block: int
    arm: Arm
    seed: int
    setup: dict[str, Any]  # engine, packages, machine, inherited variables
    together: bool = field(default=False, compare=False)  # its server starts beside another's

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
    def not_applicable(self) -> str:
        """Why this platform cannot have the arm; empty when it can."""
        known = self.setup["engine"]
        if not self.arm.platforms or known["kind"] in self.arm.platforms:
            return ""
        built = f"{known['package']} {known['version']} is built for {known['kind']}"
        return f"it exists on {', '.join(self.arm.platforms)} only; {built}"

    @property
    def start_s(self) -> float:
        """How long until its first window, roughly: the server's start and the fixed prompts."""
        known = self._pace
        compile_s = known.compiled_s if self.block else known.compile_s
        stored = theory.BF16_BYTES * theory.parameters(self.arm.model, active=False)
        made_s = stored / known.make_bytes_s
        eager = self.arm.flags.get("enforce_eager")
        passes_s = self.arm.output_passes * OUTPUTS_S
        own_s = known.start_s * (TOGETHER if self.together else 1.0)
        return own_s + made_s + (0.0 if eager else compile_s) + passes_s

    @cached_property
    def expected_windows(self) -> tuple[WindowPlan, ...]:
        """Its windows, and those that its search would ask for if the pace were right."""
        seen: dict[str, dict[int, float | None]] = {
            one.workload.name: {} for one in self.arm.windows
        }
        expected = []
        for window in windows(self.arm, seen):
            expected.append(window)
            rate = window.level * window.workload.output_tokens / self._latency_s(window)
            seen[window.workload.name][window.level] = rate
        return tuple(expected)

    @property
    def expected_s(self) -> float:
        """How long it will take, roughly; nothing where it does not apply."""
        if self.not_applicable:
            return 0.0
        return self.start_s + sum(map(self.window_s, self.expected_windows)) + STOP_S

    def window_s(self, window: WindowPlan) -> float:
        """How long one of its windows will take, roughly, now and then twice."""
        latency_s = self._latency_s(window)
        tries = 1 + (self._pace.again if window.repeatable else 0.0)
        return load_s(window, latency_s) * tries + window.second * second_s(window, latency_s)

    def _latency_s(self, window: WindowPlan) -> float:
        return self._pace.latency_s(self.arm, window)

    @property
    def _pace(self) -> Pace:
        return pace(self.setup)


def load_s(window: WindowPlan, latency_s: float) -> float:
    """How long a window takes: warm-up, ramp, steady part, drain; by the latency of a request."""
    if window.requests:
        return latency_s * (window.requests / window.level + 2 * window.warm_up)
    warm_s = latency_s + SLICES * max(latency_s, SLICE_S) + AROUND_S
    return warm_s + _loaded_s(window, latency_s)


def second_s(window: WindowPlan, latency_s: float) -> float:
    """How long the second instrument takes for it: its start-up, a run to warm up and one more."""
    return SECOND_S + 2 * _loaded_s(window, latency_s)


def _loaded_s(window: WindowPlan, latency_s: float) -> float:
    """Ramp, steady part and drain."""
    steady_s = max(window.steady_s, window.steady_latencies * latency_s)
    return min(steady_s + 2 * latency_s, window.limit_s)


def windows(arm: Arm, seen: Mapping[str, Seen]) -> Iterator[WindowPlan]:
    """The windows of the arm, then one by one those that its search asks for.

    `seen` is looked at whenever the next window is asked for: by workload and level the output
    tokens/s of what was measured by then, or None where the window was void.
    """
    yield from arm.windows
    if arm.search is None:
        return
    for first in {window.workload.name: window for window in arm.windows}.values():
        while (level := arm.search.next(seen[first.workload.name]).level) is not None:
            yield first.at(level)


def setup() -> dict[str, Any]:
    """Engine, packages, machine and inherited variables, if there are any: all that is not the
    study's own but could change a result."""
    found, inherited = platform.engine(), engine.inherited()
    return {
        "engine": {"package": found.package, "version": found.version, "kind": found.kind},
        "packages": platform.packages(),
        "machine": platform.machine().as_dict(),
        **({"environment": inherited} if inherited else {}),
    }


def launches(experiment: Experiment, setup: dict[str, Any]) -> tuple[Launch, ...]:
    """Every launch, block by block; the order of arms inside a block is random but seeded.

    The order of a block depends on nothing but seed, experiment and block: more launches later
    leave the first blocks as they were.
    """
    ordered: list[Launch] = []
    for block in range(experiment.launches):
        arms = list(experiment.arms())
        name = experiment.launched_as
        random.Random(f"{experiment.seed}/{name}/{block}").shuffle(arms)
        ordered += [Launch(name, block, arm, experiment.seed, setup) for arm in arms]
    return tuple(ordered)


def start_together(one: Launch, other: Launch) -> bool:
    """Whether the servers of two launches start at the same time, to be measured in turn.

    A CPU engine imports for half a minute before it computes, the work of one core, so that two
    take little longer than one. Only within a block, whose launches share the files of weights;
    and none that compiles, for which it needs every core and a cache, and its time is a result.
    """
    machine, pair = one.setup["machine"], (one, other)
    need_bytes = sum(map(_memory_bytes, pair))
    return (
        (one.experiment, one.block) == (other.experiment, other.block)
        and one.setup["engine"]["kind"] == "cpu"
        and all(each.arm.flags.get("enforce_eager") for each in pair)
        and machine.get("cores", 1) > 1
        and need_bytes <= 0.75 * machine.get("memory_gib", 0) * 2**30
    )


def _memory_bytes(launch: Launch) -> float:
    """What a server holds, roughly."""
    flags, model = launch.arm.flags, launch.arm.model
    offloaded_bytes = float(flags.get("kv_offloading_size", 0)) * 2**30
    kv_bytes = float(flags.get("kv_cache_memory_bytes", 0)) + offloaded_bytes
    return SERVER_BYTES + kv_bytes + theory.BF16_BYTES * theory.parameters(model, active=False)


def paired(launches: Iterable[Launch]) -> tuple[Launch, ...]:
    """The same in the same order; of those that start two at a time, each knows it."""
    found = [replace(one, together=False) if one.together else one for one in launches]
    number = 0
    while number + 1 < len(found):
        pair = found[number : number + 2]
        if start_together(*pair):
            found[number : number + 2] = [replace(each, together=True) for each in pair]
            number += 1
        number += 1
    return tuple(found)


@dataclass(frozen=True)
class Cost:
    """What is still to be done."""

    launches: int
    windows: int
    seconds: float

    def at(self, slowness: float) -> Cost:
        """The same on a machine that takes `slowness` times as long as planned."""
        return replace(self, seconds=self.seconds * slowness)

    def __str__(self) -> str:
        return f"{self.launches} launches, {self.windows} windows, about {duration(self.seconds)}"


def cost(missing: Iterable[Launch]) -> Cost:
    """What these launches will take."""
    wanted: Sequence[Launch] = paired(missing)
    return Cost(
        launches=len(wanted),
        windows=sum(len(launch.expected_windows) for launch in wanted),
        seconds=sum(launch.expected_s for launch in wanted),
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
