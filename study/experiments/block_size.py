"""KV block size: what the engine accepts, changes or refuses, and what the accepted ones cost."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from study import models
from study.experiment import Arm, Levels
from study.experiments.serving import Loaded


class BlockSize(Loaded):
    """`--block-size` per attention family; what runs is read from the engine."""

    notebook: ClassVar[str] = "30_block_size"
    name: ClassVar[str] = "block_size"
    title: ClassVar[str] = "KV block size"
    question: ClassVar[str] = (
        "Which KV block sizes does the engine really run for each attention family, and what do "
        "they change?"
    )

    block_sizes: Levels = Field(default=(1, 16, 32, 64, 128), description="--block-size, in tokens")
    layers: int = Field(default=2, ge=1, description="depth of the models")
    levels: Levels = Field(default=(4,), description="requests in flight")

    def arms(self) -> tuple[Arm, ...]:
        """One arm per model and block size."""
        return tuple(self._arm(name, size) for name in self.models for size in self.block_sizes)

    def _arm(self, name: str, size: int) -> Arm:
        model = models.load(name).at_depth(self.layers)
        return self.arm(
            f"{name}-block{size}",
            model,
            self.windows(self.levels),
            factors={"block_size_asked": size},
            flags={"block_size": size, **self.cache(model)},
            expected={"block_size": str(size), "prefix_caching": "False"},
            output_passes=1,
        )
