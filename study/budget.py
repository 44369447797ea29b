"""A limit on the time of the whole study: what comes first, and when to stop."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from study.errors import StudyError
from study.experience import NOTHING, Experience
from study.plan import Launch

DEADLINE = "STUDY_DEADLINE"  # in the environment, so that it reaches the notebooks' kernels
UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
MARGIN = 1.1  # a launch is begun only if it would fit with so much to spare
EXPERIENCED = 3  # after so many launches a machine that seems quicker than planned is believed


def parse(text: str) -> float:
    """Seconds of a written duration: `2h`, `90min`, `1h30m`, `1800s`."""
    parts = re.findall(r"(\d+(?:\.\d+)?) ?(h|min|m|s)", text.strip())
    if not parts or "".join(a + b for a, b in parts) != text.replace(" ", ""):
        raise StudyError(
            f"a budget must be a time with its unit, as in 2h, 90min or 1h30m; it was {text!r}"
        )
    seconds = sum(float(number) * UNITS_S[unit] for number, unit in parts)
    if seconds <= 0:
        raise StudyError(f"a budget must be more than nothing; it was {text!r}")
    return seconds


@dataclass
class Budget:
    """When to stop (seconds of `time.monotonic`, one clock for all processes of a machine; None:
    never), and how slow this machine has been."""

    deadline: float | None = None
    known: Experience = NOTHING

    @classmethod
    def from_environment(cls, known: Experience) -> Budget:
        """The budget that the study as a whole was given."""
        given = os.environ.get(DEADLINE)
        return cls(float(given) if given else None, known)

    @property
    def ordering(self) -> str:
        """How blocks are ordered, for the record."""
        return "random" if self.deadline is None else "by rank"

    def order(self, missing: Sequence[Launch]) -> tuple[Launch, ...]:
        """What to measure, in order. With a deadline the arms of a lower rank lead their block."""
        if self.deadline is None:
            return tuple(missing)
        return tuple(sorted(missing, key=lambda launch: (launch.block, launch.arm.rank)))

    def allows(self, *launches: Launch, done_s: float = 0.0) -> bool:
        """Whether the launches would be over in time, by what was seen so far; `done_s` of what
        they are expected to take is behind them."""
        if self.deadline is None:
            return True
        expected_s = sum(launch.expected_s for launch in launches) - done_s
        return time.monotonic() + MARGIN * self.slowness * expected_s <= self.deadline

    @property
    def slowness(self) -> float:
        """How much longer than planned launches take here, as far as that may be believed yet."""
        seen = self.known.slowness
        return seen if self.known.launches >= EXPERIENCED else max(1.0, seen)
