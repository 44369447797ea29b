"""Concurrency saturation: the same launches as the families', read for where throughput ends."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from study.experiment import Arm, NoLevels, NoModels
from study.experiments.architecture import Architecture


class Saturation(Architecture):
    """Levels from one past what the engine runs at once, until throughput stops rising.

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
    saturation_levels: NoLevels = Field(
        default=(1, 2, 4, 8, 16, 32, 64, 128), description="levels of the curve"
    )

    @model_validator(mode="after")
    def _has_a_curve(self) -> Saturation:
        if not self.saturated or not self.saturation_levels:
            raise ValueError("saturated and saturation_levels must each hold at least one value")
        return self

    def arms(self) -> tuple[Arm, ...]:
        """The arms of the families that see every level."""
        saturated = {f"{name}-{self.depths[0]}" for name in self.saturated}
        return tuple(arm for arm in super().arms() if arm.name in saturated)
