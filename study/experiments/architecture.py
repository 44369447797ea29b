"""Attention {GQA, MLA} x feed-forward {dense, mixture of experts}, at equal active parameters."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from study import models
from study.experiment import Arm, Levels, Models, NoModels
from study.experiments.serving import Loaded
from study.search import Search


class Architecture(Loaded):
    """What the attention family and the feed-forward family cost a server."""

    notebook: ClassVar[str] = "20_architecture"
    name: ClassVar[str] = "architecture"
    title: ClassVar[str] = "Architecture"
    question: ClassVar[str] = (
        "What do the attention family and the feed-forward family cost a server, at equal active "
        "parameters?"
    )

    models: Models = Field(
        default=("gqa-dense", "gqa-moe", "mla-dense", "mla-moe"),
        description="names of files in study/models",
    )
    depths: Levels = Field(default=(2,), description="layers; further depths give the slope")
    levels: Levels = Field(default=(1, 4), description="requests in flight, at the first depth")
    slope_levels: Levels = Field(default=(1, 4), description="the same, at further depths")
    saturated: NoModels = Field(default=(), description="models that saturation reads as well")
    ceiling: int = Field(
        default=0, ge=0, le=4096, description="highest level of a search; 0: 4 x max_num_seqs"
    )

    def arms(self) -> tuple[Arm, ...]:
        """One arm per model and depth; only at the first depth levels are searched for."""
        return tuple(self._arm(name, depth) for depth in self.depths for name in self.models)

    @property
    def _search(self) -> Search:
        ceiling = self.ceiling or 4 * self.max_num_seqs
        return Search(batch=self.max_num_seqs, ceiling=ceiling)

    def _arm(self, name: str, depth: int) -> Arm:
        first, model = depth == self.depths[0], models.load(name).at_depth(depth)
        return self.arm(
            f"{name}-{depth}",
            model,
            self.windows(self.levels if first else self.slope_levels),
            search=self._search if first and name in self.saturated else None,
            flags=self.cache(model),
            expected={"prefix_caching": "False", "chunked_prefill": "False"},
            rank=self.depths.index(depth),
        )
