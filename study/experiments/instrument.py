"""The instrument itself: calibrated, beside a second one, and on the same arm twice."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from study import models
from study.experiment import SOME, Arm, Levels, Models, NoLevels, WindowPlan, as_tuple
from study.experiments.serving import Loaded
from study.nullloads import Grid

TWINS = ("a", "b")
# The second instrument sends text, of which the engine makes a few tokens more than asked; without
# room for them it cuts the output short.
MORE_TOKENS = 32


def _numbers(value: object) -> object:
    """Whole numbers too: 20 is 20.0."""
    value = as_tuple(value)
    if not isinstance(value, tuple):
        return value
    return tuple(float(one) if isinstance(one, int) else one for one in value)


Pause = Annotated[float, Field(ge=2.0, le=1000.0)]  # the null server keeps time in steps of 1 ms
Pauses = Annotated[tuple[Pause, ...], BeforeValidator(_numbers), *SOME[1:]]


class Instrument(Loaded):
    """The same arm twice in each block (A/A), its windows also seen by a second instrument."""

    notebook: ClassVar[str] = "10_instrument"
    name: ClassVar[str] = "instrument"
    title: ClassVar[str] = "The instrument itself"
    question: ClassVar[str] = (
        "What does the instrument add, do others agree with it, and does it find no difference "
        "where there is none?"
    )

    models: Models = Field(default=("gqa-dense",), description="files in study/models")
    layers: int = Field(default=2, ge=1, description="depth of the models")
    levels: Levels = Field(default=(4,), description="requests in flight")
    second_levels: NoLevels = Field(
        default=(4,), description="levels that the second instrument measures too"
    )
    null_levels: Levels = Field(
        default=(1, 4, 16), description="requests in flight at the null server"
    )
    null_itls_ms: Pauses = Field(
        default=(2.0, 5.0, 20.0), description="between the null server's tokens"
    )

    @model_validator(mode="after")
    def _seconds_are_measured(self) -> Instrument:
        if not set(self.second_levels) <= set(self.levels):
            raise ValueError(
                f"second_levels must be some of levels, {list(self.levels)}; "
                f"they were {list(self.second_levels)}"
            )
        return self

    @property
    def grid(self) -> Grid:
        """The loads that the client is calibrated with."""
        return Grid(self.null_levels, self.null_itls_ms)

    def arms(self) -> tuple[Arm, ...]:
        """Each model under two names: nothing else tells the twins apart."""
        return tuple(self._arm(name, twin) for name in self.models for twin in TWINS)

    def _arm(self, name: str, twin: str) -> Arm:
        windows = tuple(self._seen_twice(window) for window in self.windows(self.levels))
        longest = max(one.workload.input_tokens + one.workload.output_tokens for one in windows)
        model = models.load(name).at_depth(self.layers)
        return self.arm(
            f"{name}-{twin}",
            model,
            windows,
            factors={"twin": twin},
            flags={"max_model_len": longest + MORE_TOKENS, **self.cache(model)},
        )

    def _seen_twice(self, window: WindowPlan) -> WindowPlan:
        """The second instrument makes its own prompts, so it cannot send the user's."""
        second = window.level in self.second_levels and window.workload.prompts is None
        return window.model_copy(update={"second": second})
