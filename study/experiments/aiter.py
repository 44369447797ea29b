"""Engine-side switches: AITER where it exists, and what every platform can switch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from study import models
from study.experiment import SOME, Arm, Levels, Models
from study.experiments.serving import Loaded

Switch = Literal["compile", "kv_split", "aiter"]
Switches = Annotated[tuple[Switch, ...], *SOME]
MASTER = "VLLM_ROCM_USE_AITER"
# Those asked about, each on by default under the master, and the one that quantises MLA's up
# projections to FP8. All are set in every arm of AITER, for an image may export its own; the
# engine's others stay as they are inherited, alike for all arms. MLA's prefill has no switch of its
# own: it follows the master.
SUB_SWITCHES = {
    name: f"{MASTER}_{part}"
    for name, part in (
        ("linear", "LINEAR"), ("moe", "MOE"), ("rmsnorm", "RMSNORM"), ("mla", "MLA"),
        ("mha", "MHA"), ("bmm", "FP8BMM"),
    )
}  # fmt: skip
PARTS = dict.fromkeys(SUB_SWITCHES.values(), "1")


@dataclass(frozen=True)
class Setting:
    """One position of a switch: how the engine is told, and which other it is compared with."""

    switch: Switch
    name: str
    baseline: str
    eager: bool
    environment: dict[str, str] = field(default_factory=dict)
    platforms: tuple[str, ...] = ()  # kinds of engine that have the switch; (): all


def settings(eager: bool) -> Iterator[Setting]:
    """Every setting, each baseline before what is compared with it."""
    yield Setting("compile", "eager", "eager", True)
    yield Setting("compile", "compiled", "eager", False)
    # On a CPU: without splitting the keys and values of one request over the cores.
    split = "VLLM_CPU_ATTN_SPLIT_KV"
    yield Setting("kv_split", "kv-split", "kv-split", True, {split: "1"}, ("cpu",))
    yield Setting("kv_split", "no-kv-split", "kv-split", True, {split: "0"}, ("cpu",))
    off, on = {MASTER: "0", **PARTS}, {MASTER: "1", **PARTS}
    yield Setting("aiter", "aiter-off", "aiter-off", eager, off, ("rocm",))
    yield Setting("aiter", "aiter-on", "aiter-off", eager, on, ("rocm",))
    for name, variable in SUB_SWITCHES.items():
        without = {**on, variable: "0"}
        yield Setting("aiter", f"aiter-without-{name}", "aiter-on", eager, without, ("rocm",))


class Aiter(Loaded):
    """AITER on and off on ROCm; elsewhere not applicable, beside what can be switched there."""

    notebook: ClassVar[str] = "50_aiter"
    name: ClassVar[str] = "aiter"
    title: ClassVar[str] = "Engine-side switches"
    question: ClassVar[str] = (
        "What do engine-side switches change in speed and in its variability: AITER on ROCm, "
        "compilation everywhere?"
    )

    models: Models = Field(default=("gqa-dense",), description="files in study/models")
    layers: int = Field(default=2, ge=1, description="depth of the models")
    levels: Levels = Field(default=(4,), description="requests in flight")
    switches: Switches = Field(
        default=("compile", "aiter"), description="compile, kv_split (CPU), aiter (ROCm)"
    )

    def arms(self) -> tuple[Arm, ...]:
        """One arm per model and setting of the switches asked for."""
        asked = [one for one in settings(self.eager) if one.switch in self.switches]
        return tuple(
            self._arm(name, one, place) for name in self.models for place, one in enumerate(asked)
        )

    def _arm(self, name: str, setting: Setting, place: int) -> Arm:
        """An arm whose baseline has a lower place: without that it would say nothing."""
        said = {key: str(value == "1") for key, value in setting.environment.items()}
        if MASTER in setting.environment:  # the switch alone is no proof: see study.engine.AITER
            said["aiter"] = "used" if setting.environment[MASTER] == "1" else "not used"
        model = models.load(name).at_depth(self.layers)
        return self.arm(
            f"{name}-{setting.name}",
            model,
            self.windows(self.levels),
            factors={
                "switch": setting.switch,
                "setting": setting.name,
                "baseline": f"{name}-{setting.baseline}",
            },
            flags={"enforce_eager": setting.eager, **self.cache(model)},
            environment=setting.environment,
            expected={"eager": str(setting.eager), **said},
            platforms=setting.platforms,
            output_passes=1,
            rank=place,
        )
