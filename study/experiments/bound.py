"""Windows of a model with gigabytes of weights, to be set beside what memory and arithmetic allow.

Tiny models measure the engine's overhead; a bound says nothing about them. A step of this one has
so much to read that the reading is most of the step.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from study import models
from study.experiment import Arm, Levels, NoModels, Workloads
from study.experiments.serving import Loaded


class Bound(Loaded):
    """How near a server comes to the bound; with no model, only the arithmetic is shown."""

    notebook: ClassVar[str] = "70_theory"
    name: ClassVar[str] = "theory"
    title: ClassVar[str] = "Models, devices and bounds"
    question: ClassVar[str] = "What does physics allow, and how near to it does a server come?"

    models: NoModels = Field(
        default=(), description="large ones, to be measured beside their bound; empty for none"
    )
    workloads: Workloads = Field(
        default=("brief:32/32",),
        validate_default=True,
        description="name:input/output tokens, name:@file.jsonl/output",
    )
    levels: Levels = Field(default=(1, 4), description="requests in flight")

    def arms(self) -> tuple[Arm, ...]:
        """One arm per model, at its full depth."""
        return tuple(
            self.arm(
                model.name,
                model,
                self.windows(self.levels),
                flags=self.cache(model),
                expected={"dtype": "bfloat16"},
            )
            for model in map(models.synthetic, self.models)
        )
