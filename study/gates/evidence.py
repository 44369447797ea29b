"""All that the window gates look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from study.steady import Steady, steady_part

if TYPE_CHECKING:  # a calibration is judged by limits that gates have
    from study.calibration import Calibration


@dataclass(frozen=True)
class WindowEvidence:
    """One window, as it was recorded. What an older recording lacks is None.

    `input_tokens` and `output_tokens` are what was asked per request (or the lengths of the
    prompts, used in turn); `before` and `after` are the engine's counters around the whole load.

    load: facts of the client (`study.client.Recording.info`); warm_latencies_s: the mean latency
    of each slice of the warm-up; warmed: whether one was wanted; log: what the engine wrote while
    the load lasted; phase: what the cache is to hold (`study.experiment.WindowPlan.phase`);
    telemetry: the machine around and during the load (`study.telemetry`); repeated: the window
    that holds the same recording, if any; calibration: of the client.
    """

    level: int
    input_tokens: int | Sequence[int]
    output_tokens: int
    requests: pd.DataFrame
    chunks: pd.DataFrame
    samples: pd.DataFrame
    before: Mapping[str, float]
    after: Mapping[str, float]
    asked: Mapping[str, str]
    in_force: Mapping[str, str | None]
    load: Mapping[str, Any] = field(default_factory=dict)
    warm_latencies_s: Sequence[float] | None = None
    warmed: bool = True
    log: str | None = None
    phase: str | None = None
    telemetry: pd.DataFrame | None = None
    repeated: str = ""
    calibration: Calibration | None = None

    @cached_property
    def steady(self) -> Steady | None:
        return steady_part(self.requests, self.level)

    def counted(self, name: str) -> float:
        """How much the engine's counter grew over the load; NaN where it does not say."""
        return delta(self.before, self.after, name)


def delta(before: Mapping[str, float], after: Mapping[str, float], name: str) -> float:
    """How much a counter grew; NaN where it is missing."""
    return after.get(name, math.nan) - before.get(name, math.nan)
