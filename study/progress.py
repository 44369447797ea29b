"""What is running now, how much is done, how long it will still take: a line a step."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import TextIO

from study.experience import NOTHING, Experience
from study.experiment import WindowPlan
from study.plan import Cost, Launch, cost, duration


class Progress:
    """Says each step on a line of its own, so that a terminal, a log and a notebook read alike.

    The time left is the plan's estimate, corrected by how earlier launches on this machine and this
    run so far have compared with it; so is the number of windows, of which the plan knows only what
    a search is expected to ask for.
    """

    def __init__(
        self,
        missing: Iterable[Launch],
        out: TextIO | None = None,
        known: Experience = NOTHING,
    ) -> None:
        self.plan: Cost = cost(missing)
        self._known = known
        self._out = out or sys.stdout
        self._began = time.monotonic()
        self._windows_done = 0
        self._of_this_launch = 0
        self._launches_done_s = 0.0  # what the plan expected of what is done
        self._launch_so_far_s = 0.0
        self._prefix = ""
        self._ended: set[str] = set()

    def launch(self, launch: Launch, number: int, of_blocks: int) -> None:
        """It is this launch's turn."""
        self._launch_so_far_s, self._of_this_launch = 0.0, 0
        self._prefix = (
            f"{launch.experiment} · launch {number}/{self.plan.launches} · "
            f"block {launch.block + 1}/{of_blocks} · {launch.arm.name}"
        )

    def window(self, launch: Launch, window: WindowPlan) -> None:
        """A window of the launch begins; before the first, the server has become ready."""
        if not self._of_this_launch:
            self._launch_so_far_s = launch.start_s
        total = max(self.plan.windows, self._windows_done + 1)
        again = " once more, for the first was void" if window.again else ""
        self.say(
            f"{window.workload} · level {window.level}{again} · "
            f"{self._windows_done}/{total} windows done, {self._left()}"
        )

    def window_done(self, launch: Launch, window: WindowPlan) -> None:
        """A window of the launch is on disk; it takes none of the time of other launches."""
        self._windows_done += 1
        self._of_this_launch += 1
        took_s = 0.0 if window.again else launch.window_s(window)  # the plan has both in one
        so_far_s = self._launch_so_far_s + took_s
        self._launch_so_far_s = min(so_far_s, launch.expected_s)

    def skipped(self, launch: Launch, why: str) -> None:
        """The launch will not be measured now."""
        self.plan = replace(
            self.plan,
            windows=self.plan.windows - len(launch.expected_windows),
            seconds=self.plan.seconds - launch.expected_s,
        )
        self.say(why)

    def launch_done(self, launch: Launch, outcome: str, reason: str) -> None:
        """The launch has come to its end; what it left undone will not be done."""
        first = launch.id not in self._ended  # or it failed, and has been tried once more
        self._ended.add(launch.id)
        more = self._of_this_launch - first * len(launch.expected_windows)
        self.plan = replace(self.plan, windows=self.plan.windows + more)
        self._launches_done_s += first * launch.expected_s
        self._launch_so_far_s, self._of_this_launch = 0.0, 0
        self.say(outcome + (f": {reason}" if reason else ""))

    def say(self, text: str) -> None:
        """One line about the present step."""
        print(f"{self._prefix} · {text}", file=self._out, flush=True)

    def _left(self) -> str:
        gone = time.monotonic() - self._began
        done = self._launches_done_s + self._launch_so_far_s
        left = max(self.plan.seconds - done, 0.0)
        seen = self._known.expected_s + done > 60
        left *= (self._known.after(gone, done) if seen else self._known).slowness
        return f"{duration(gone)} gone, about {duration(left)} left"
