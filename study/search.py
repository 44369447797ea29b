"""Which level to measure next, so that a knee is found without the whole grid of levels.

The grid has steps of sqrt(2) from 1 to the ceiling. Levels beyond the knee cost most, because
requests wait there. So the search climbs in long strides until throughput stops rising, halves
the gap that holds the knee until no level in it is more than a step away, and goes higher only
where the fit of what was measured (study.knee) expects the knee further up.

It is a pure function of what was measured so far, so that it can be replayed on the windows of
any launch, and simulated on any curve (benchmarks/adaptive.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from study.curves import Gunther
from study.knee import SHARE, Knee, knee

STEP = 2**0.5
ROUNDED = 1.07  # levels are whole requests: from 2 to 3 is a step as well
STRIDE = 8.0  # at most, below the batch limit: what lies there costs little
FLAT = 1.07  # a rise up to here may be the noise of two windows, 3 % each
BENT = 0.6  # a rise on log scales, where 1 is in proportion: below it a stride may hide a knee
LONG = 3.5  # or a peak, if it is so long; after a shorter one the next level up may as well tell
NEAR = 1.1  # a fitted knee so near a level may lie on either side of it
GIVE_UP = 2  # void windows above the highest valid one
BEYOND = 400  # points from 1 to the ceiling: steps of 2 % up to a ceiling of 4,096

BRACKETED, CEILING, VOID = "knee bracketed", "ceiling reached", "levels above are void"

Seen = Mapping[int, float | None]
Valid = Mapping[int, float]


@dataclass(frozen=True)
class Step:
    """The level to measure next, or None at the end of the search; and why."""

    level: int | None
    why: str


class Search(BaseModel):
    """The search for a knee on one workload of one launch.

    `batch`: requests that the engine runs at once. More of them only wait, unless something else
    holds the engine back, so the search looks at twice the batch before it looks any higher.
    `ceiling`: no level above it is measured.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int = Field(ge=1)
    ceiling: int = Field(ge=1)

    @property
    def grid(self) -> tuple[int, ...]:
        """Levels in steps of sqrt(2) from 1 to the ceiling, as whole requests."""
        steps = int(np.log(self.ceiling) / np.log(STEP) + 1e-9)
        return tuple(dict.fromkeys(round(STEP**k) for k in range(steps + 1)))

    def next(self, seen: Seen) -> Step:
        """What to do after these windows: level -> tokens/s, or None where the window was void."""
        valid = {level: rate for level, rate in sorted(seen.items()) if rate is not None}
        found = knee(list(valid), list(valid.values())) if _stopped(valid) else None
        level = self._at(found, valid, seen) if found else self._in_the_stride(valid, seen)
        if level is not None:
            return Step(level, "halves the gap that may hold the knee")
        if found and self._is_all(found):
            return Step(None, BRACKETED)
        return self._climb(valid, seen)

    def _climb(self, valid: Valid, seen: Seen) -> Step:
        top = max(valid, default=0)
        if sum(level > top for level in seen) >= GIVE_UP:
            return Step(None, VOID)
        level = self._open(top, self.ceiling + 1, self._stride(top), seen)
        return Step(level, CEILING if level is None else "throughput may still rise")

    def _stride(self, top: int) -> float:
        """Where to look next above `top`; a batch limit that is not near is not leapt over."""
        if 2 * top >= self.batch:
            return 2.0 * max(top, self.batch)
        return float(min(max(1, STRIDE * top), self.batch))

    def _in_the_stride(self, valid: Valid, seen: Seen) -> int | None:
        """A level in the last stride, where that was long and throughput rose much less."""
        if len(valid) < 2:
            return None
        below, top = list(valid)[-2:]
        rise = np.log(valid[top] / valid[below]) / np.log(top / below)
        return self._middle(below, top, LONG, seen) if rise < BENT else None

    def _at(self, found: Knee, valid: Valid, seen: Seen) -> int | None:
        """A level in a gap that may hold the knee, or a peak just above it, and is too wide.

        Two steps are narrow enough for a corner, which the lines on both sides locate; on a smooth
        bend the fit says less, and the gap must be a single step.
        """
        smooth = found.reached and isinstance(found.fit, Gunther)
        narrow = (STEP if smooth else STEP**2) * ROUNDED
        at = found.level if found.reached else _first_guess(valid)
        for below, above in pairwise(valid):
            widest = narrow if below < at * NEAR and above > at / NEAR else LONG
            if above > at / NEAR:
                level = self._middle(below, above, widest, seen)
                if level is not None or below > at:
                    return level
        return None

    def _is_all(self, found: Knee) -> bool:
        """Whether there is a knee, and the fit expects none further up when it looks beyond."""
        if not found.reached or found.fit is None:
            return False
        levels = np.geomspace(1, self.ceiling, BEYOND)
        expected = found.fit.predict(levels)
        further = float(levels[np.argmax(expected >= SHARE * expected.max())])
        return further <= found.level * STEP

    def _middle(self, below: int, above: int, widest: float, seen: Seen) -> int | None:
        if above / below <= widest:
            return None
        return self._open(below, above, (below * above) ** 0.5, seen)

    def _open(self, below: int, above: int, wanted: float, seen: Seen) -> int | None:
        """The level of the grid between these, not measured yet, that is nearest to `wanted`."""
        levels = [one for one in self.grid if below < one < above and one not in seen]
        return min(levels, key=lambda one: abs(np.log(one / wanted)), default=None)


def _stopped(valid: Valid) -> bool:
    """Whether the highest level gives no more than another one, but for noise."""
    if len(valid) < 2:
        return False
    *others, last = valid.values()
    return last <= FLAT * max(others)


def _first_guess(valid: Valid) -> float:
    """Where the knee may lie as long as there is no fit that has one."""
    levels = list(valid)
    above = next(one for one in levels if valid[one] >= SHARE * max(valid.values()))
    below = max((level for level in levels if level < above), default=above)
    return float((below * above) ** 0.5)
