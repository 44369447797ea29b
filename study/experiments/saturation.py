"""Concurrency saturation: the same launches as the families', read for where throughput ends."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from study.experiment import Arm, NoModels
from study.experiments.architecture import Architecture


class Saturation(Architecture):
    """The levels of the families, then those that the search of each launch asks for.

    Its windows are windows of the architecture experiment's launches: with the same parameters
    both name the same launches, and whichever notebook comes first measures them.
    """

    notebook: ClassVar[str] = "60_saturation"
    name: ClassVar[str] = "saturation"
    reads: ClassVar[str] = Architecture.name
    title: ClassVar[str] = "Saturation"
    question: ClassVar[str] = "At how many requests in flight does throughput stop rising, and why?"

    saturated: NoModels = Field(
        default=("gqa-dense", "mla-dense"), description="models whose curve is measured"
    )

    @model_validator(mode="after")
    def _has_a_curve(self) -> Saturation:
        if not self.saturated:
            raise ValueError("saturated must hold at least one model")
        return self

    def arms(self) -> tuple[Arm, ...]:
        """The arms of the families whose knee is searched for."""
        saturated = {f"{name}-{self.depths[0]}" for name in self.saturated}
        return tuple(arm for arm in super().arms() if arm.name in saturated)
