"""What the experiments have in common: models served with settings that no arm may differ in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from study import models, prompt_files, theory
from study.experiment import Arm, Experiment, Models, WindowPlan, Workload, Workloads
from study.models import Model
from study.prompts import unique_tokens

Flags = dict[str, str | int | float | bool]

# MLA on a CPU has neither; so nobody gets them, or they would hide in the ratio.
PLAIN: Flags = {"enable_prefix_caching": False, "enable_chunked_prefill": False}
WHOLE_BLOCKS = 256  # tokens; a multiple of every block size that an engine has


class Serving(Experiment):
    """Parameters of every experiment that starts servers of its own."""

    models: Models = Field(default=("gqa-dense", "mla-dense"), description="files in study/models")
    max_num_seqs: int = Field(default=64, ge=1, le=4096, description="the engine's own limit")
    eager: bool = Field(default=True, description="without compilation and graphs")

    def arm(
        self,
        name: str,
        model: Model,
        windows: tuple[WindowPlan, ...],
        *,
        factors: Mapping[str, str | int] | None = None,
        flags: Mapping[str, str | int | float | bool] | None = None,
        environment: Mapping[str, str] | None = None,
        expected: Mapping[str, str] | None = None,
        **more: object,
    ) -> Arm:
        """One server of this experiment: what all arms have, and what this one has besides."""
        longest = max(w.workload.input_tokens + w.workload.output_tokens for w in windows)
        common: Flags = {
            "max_model_len": longest,
            # Prompts are taken whole, so a batch must have room for the longest.
            "max_num_batched_tokens": max(2048, longest),
            "max_num_seqs": self.max_num_seqs,
            "enforce_eager": self.eager,
            **PLAIN,
        }
        return Arm(
            name=name,
            factors={
                "model": model.name,
                "attention": model.attention,
                "feed_forward": model.feed_forward,
                "layers": model.layers,
                **(factors or {}),
            },
            model=model,
            flags={**common, **(flags or {})},
            environment=dict(environment or {}),
            expected={
                # The cache of one token tells the attention families apart, whatever the log says.
                "kv_bytes_per_token": str(theory.kv_bytes_per_token(model)),
                "model_class": models.class_name(model),
                "max_num_seqs": str(self.max_num_seqs),
                **(expected or {}),
            },
            windows=windows,
            **more,  # type: ignore[arg-type]
        )


def require_fit(workload: Workload, model: Model) -> None:
    """Raise a ValueError, or the prompts' own error, where the model cannot take the workload."""
    most = model.context - workload.output_tokens
    if workload.input_tokens > most:
        raise ValueError(
            f"prompts of `{workload.name}` must have at most {most} tokens, for with "
            f"{workload.output_tokens} more they fill the context of {model.name}; the longest has "
            f"up to {workload.input_tokens}. Leave out the long ones, or raise `context` in "
            f"study/models/{model.name}.yaml"
        )
    if workload.prompts:
        prompt_files.token_ids(prompt_files.read(Path(workload.prompts)), model)
    elif workload.input_tokens < (least := unique_tokens(model.vocabulary)):
        raise ValueError(
            f"prompts of `{workload.name}` must have at least {least} tokens, else those of a "
            f"vocabulary of {model.vocabulary} repeat; they have {workload.input_tokens}"
        )


class Loaded(Serving):
    """Experiments whose windows hold a level of a workload for a time."""

    workloads: Workloads = Field(
        default=("short:128/64", "long:1024/64"),
        validate_default=True,
        description="name:input/output tokens, or name:@prompts.jsonl/output",
    )
    kv_cache_gib: float = Field(
        default=1, ge=2**-6, le=1024, description="KV cache of every server"
    )
    steady_s: float = Field(default=2.5, gt=0, le=3600, description="shortest steady part")

    @model_validator(mode="after")
    def _fit_the_models(self) -> Self:
        for name in self.models:
            for workload in self.workloads:
                require_fit(workload, models.load(name))
        return self

    def cache(self, model: Model) -> Flags:
        """The KV cache: as large for every arm, not what an engine finds left of its memory.

        In whole blocks, whatever their size, so that its bytes over its tokens are those of one.
        """
        blocks = WHOLE_BLOCKS * theory.kv_bytes_per_token(model)
        return {"kv_cache_memory_bytes": int(self.kv_cache_gib * 2**30) // blocks * blocks}

    def windows(self, levels: tuple[int, ...]) -> tuple[WindowPlan, ...]:
        """Every workload at every level, low levels first."""
        return tuple(
            WindowPlan(workload=workload, level=level, steady_s=self.steady_s)
            for workload in self.workloads
            for level in sorted(levels)
        )
