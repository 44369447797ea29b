"""Attention {GQA, MLA} x feed-forward {dense, mixture of experts}, all else equal."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from study import models
from study.experiment import Arm, Levels, Models, NoLevels, NoModels
from study.experiments.serving import Loaded


class Architecture(Loaded):
    """What the attention family and the feed-forward family cost a server."""

    notebook: ClassVar[str] = "20_architecture"
    name: ClassVar[str] = "architecture"
    title: ClassVar[str] = "Architecture"
    question: ClassVar[str] = (
        "What do the attention family and the feed-forward family cost a server, all else equal?"
    )

    models: Models = Field(
        default=("gqa-dense", "gqa-moe", "mla-dense", "mla-moe"),
        description="names of files in study/models",
    )
    depths: Levels = Field(default=(2,), description="layers; further depths give the slope")
    levels: Levels = Field(default=(1, 4), description="requests in flight, at the first depth")
    slope_levels: Levels = Field(default=(1, 4), description="the same, at further depths")
    saturated: NoModels = Field(default=(), description="models that saturation reads as well")
    saturation_levels: NoLevels = Field(default=(), description="their further levels")

    def arms(self) -> tuple[Arm, ...]:
        """One arm per model and depth; only the first depth sees every level."""
        return tuple(self._arm(name, depth) for depth in self.depths for name in self.models)

    def _arm(self, name: str, depth: int) -> Arm:
        levels = self.slope_levels
        if depth == self.depths[0]:
            more = self.saturation_levels if name in self.saturated else ()
            levels = tuple({*self.levels, *more})
        return self.arm(
            f"{name}-{depth}",
            models.load(name).at_depth(depth),
            self.windows(levels),
            environment=self.cache_space,
            expected={"prefix_caching": "False", "chunked_prefill": "False"},
            rank=self.depths.index(depth),
            output_passes=0,  # no two of its arms should compute the same
        )
