"""How long launches took on this machine, against what the plan had expected of them.

The plan's pace of a machine is a guess until something was measured there; a look at a core's
speed makes it a better one for an engine on a CPU. Every record on disk says what its launch was
expected to take and what it took; their ratio corrects what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from study import plan, protocol, speed
from study.store import Attempt, Store


@dataclass(frozen=True)
class Experience:
    """So many launches, the seconds that they took, and those that the plan had expected.

    `guess`: the slowness where there are none.
    """

    launches: int = 0
    took_s: float = 0.0
    expected_s: float = 0.0
    guess: float = 1.0

    @property
    def slowness(self) -> float:
        """Seconds that pass in a second of the plan."""
        return self.took_s / self.expected_s if self.expected_s else self.guess

    def after(self, took_s: float, expected_s: float) -> Experience:
        """This experience and one launch more."""
        return Experience(self.launches + 1, self.took_s + took_s, self.expected_s + expected_s)

    def __str__(self) -> str:
        if not self.launches:
            text = "nothing was measured here yet, so these times are guesses for such a machine"
            seen = f"; a core of it takes {self.guess:.2g} times as long as the plan's"
            return text if self.guess == 1.0 else text + seen
        was = "launch measured here took" if self.launches == 1 else "launches measured here took"
        return f"{self.launches} {was} {self.slowness:.2g} times as long as planned"


NOTHING = Experience()


def of_this_machine(store: Store, setup: Mapping[str, Any]) -> Experience:
    """What the records on disk say of launches that were measured whole with this very setup."""
    same = {
        "setup": orjson.loads(orjson.dumps(setup)),
        "protocol": protocol.VERSION,
        "pace": plan.pace(setup).digest,
    }
    found = NOTHING
    for attempt in store.attempts():
        record = attempt.record or {}
        if _measured(attempt) and {name: record.get(name) for name in same} == same:
            found = found.after(float(record["wall_s"]), float(record["expected_s"]))
    if not found.launches and setup["engine"]["kind"] == "cpu":
        return Experience(guess=speed.slowness())
    return found


def _measured(attempt: Attempt) -> bool:
    record = attempt.record or {}
    return attempt.outcome == "measured" and bool(record.get("wall_s") and record.get("expected_s"))
