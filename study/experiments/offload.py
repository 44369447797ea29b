"""KV offload: what a prompt costs when its cache is computed, in memory, or restored."""

from __future__ import annotations

import json
import math
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from study import models, theory
from study.experiment import SOME, STORAGE, Arm, Phase, WindowPlan, Workload
from study.experiments.serving import WHOLE_BLOCKS, Flags, Serving, require_fit

Mode = Literal["off", "file", "native"]


def _words(value: object) -> object:
    """YAML and the shell read a bare `off` as false."""
    if isinstance(value, list | tuple):
        return tuple("off" if one is False else one for one in value)
    return value


Modes = Annotated[tuple[Mode, ...], BeforeValidator(_words), *SOME]
GIB = 2**30
LAST_BLOCK = 128  # tokens that a request may leave empty in its last block

# vLLM's own connector that keeps the cache of whole prompts in files.
TO_FILES = {
    "kv_connector": "ExampleConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {"shared_storage_path": STORAGE},
}


class Offload(Serving):
    """Whole prompts are repeated whose set exceeds the KV cache.

    `cold`: every prompt for the first time. `restored`: the oldest ones again, which memory no
    longer holds. `memory`: the same once more, which memory now does hold.
    """

    notebook: ClassVar[str] = "40_offload"
    name: ClassVar[str] = "offload"
    title: ClassVar[str] = "KV offload"
    question: ClassVar[str] = (
        "What does KV offload save when a prompt comes back after memory has dropped it?"
    )

    modes: Modes = Field(default=("off", "file", "native"), description="off, file, native")
    layers: int = Field(default=2, ge=1, description="depth of the models")
    prompt_tokens: int = Field(default=1024, ge=16, description="length of each prompt")
    output_tokens: int = Field(default=32, ge=2, description="tokens made from each prompt")
    prompts: int = Field(default=32, ge=2, description="different prompts; memory cannot hold all")
    repeated: int = Field(default=16, ge=1, description="prompts that come back; memory holds them")
    offload_gib: float = Field(default=1.0, gt=0, description="--kv-offloading-size (native)")
    gqa_backend: str = Field(default="", description="attention back end of GQA; empty: any")

    @model_validator(mode="after")
    def _exceeds_memory(self) -> Offload:
        # Prompts are dropped oldest first, so those that come back must all have been.
        if self.prompts < 2 * self.repeated or self.prompts * self.prompt_tokens < self.held_tokens:
            raise ValueError(
                f"prompts must be at least twice repeated, and long enough to exceed the cache of "
                f"{self.held_tokens} tokens; they were {self.prompts} prompts of "
                f"{self.prompt_tokens} tokens, {self.repeated} of them repeated"
            )
        return self

    @model_validator(mode="after")
    def _fits_the_models(self) -> Offload:
        for name in self.models:
            require_fit(self._phases()[0].workload, models.load(name))
        return self

    @model_validator(mode="after")
    def _is_kept(self) -> Offload:
        """Beyond memory nothing may be dropped: the oldest prompts are those that come back."""
        if "native" not in self.modes:
            return self
        tokens = self.prompts * (self.prompt_tokens + self.output_tokens)
        for name in self.models:
            each = theory.kv_bytes_per_token(models.load(name).at_depth(self.layers))
            if tokens * each > self.offload_gib * GIB:
                raise ValueError(
                    f"offload_gib must hold the KV cache of all prompts, {tokens * each / GIB:.2f} "
                    f"GiB for {name}; it was {self.offload_gib:g}. Raise it, or ask for fewer or "
                    "shorter prompts, or fewer layers"
                )
        return self

    def arms(self) -> tuple[Arm, ...]:
        """One arm per model and mode."""
        return tuple(self._arm(name, mode) for name in self.models for mode in self.modes)

    def _arm(self, name: str, mode: Mode) -> Arm:
        model = models.load(name).at_depth(self.layers)
        flags: Flags = {
            "enable_prefix_caching": True,
            "kv_cache_memory_bytes": self.held_tokens * theory.kv_bytes_per_token(model),
        }
        expected = {} if mode == "off" else {"kv_connector": CONNECTORS[mode]}
        if self.gqa_backend and model.attention == "gqa":
            # A connector can rule out the back end that an engine would choose without one.
            flags["attention_backend"] = expected["attention_backend"] = self.gqa_backend
        if mode == "file":
            flags["kv_transfer_config"] = json.dumps(TO_FILES)
        elif mode == "native":
            flags |= {"kv_offloading_backend": "native", "kv_offloading_size": self.offload_gib}
        return self.arm(
            f"{name}-{mode}",
            model,
            self._phases(),
            factors={"offload": mode},
            environment=SAME_CORES,
            flags=flags,
            expected=expected,
            output_passes=2,
            rank=("file", "native", "off").index(mode),
        )

    @property
    def held_tokens(self) -> int:
        """Tokens that the cache holds: the prompts that come back and a quarter more, not all."""
        each = self.prompt_tokens + self.output_tokens + LAST_BLOCK
        return WHOLE_BLOCKS * math.ceil(1.25 * self.repeated * each / WHOLE_BLOCKS)

    def _phases(self) -> tuple[WindowPlan, ...]:
        def phase(name: Phase, requests: int, repeats: int | None) -> WindowPlan:
            return WindowPlan(
                workload=Workload(
                    name=name, input_tokens=self.prompt_tokens, output_tokens=self.output_tokens
                ),
                level=1,
                requests=requests,
                repeats=repeats,
                warm_up=repeats is None,
                phase=name,
            )

        return (
            phase("cold", self.prompts, None),
            phase("restored", self.repeated, 0),
            phase("memory", self.repeated, 0),
        )


# With any connector a CPU engine sets one more core aside, or, where there are too few, none: the
# arms would differ in their cores. A fixed number keeps them alike.
SAME_CORES = {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}

# What the engine says that it has created.
CONNECTORS = {"file": "ExampleConnector", "native": "OffloadingConnector"}
