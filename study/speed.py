"""How quick a core of this machine is just now, beside the one that the plan's times are from.

Before anything was measured here this is the best guess of how long things take: an engine's start
is imports for the most part, and a notebook Python too.
"""

from __future__ import annotations

import argparse
import inspect
import time
from collections.abc import Callable
from functools import cache

PIECE_S = 0.015  # what the piece of work takes where the CPU engine starts in 20 s
LONG_S = 1.0  # neighbours on the machine come and go within less


@cache
def slowness() -> float:
    """Seconds that a core takes here for a second there; a look of a second, once a process."""
    return piece_s(time.perf_counter) / PIECE_S


def piece_s(clock: Callable[[], float]) -> float:
    """Mean seconds by this clock in which Python compiles a certain module of its library."""
    source, times, began = inspect.getsource(argparse), 0, clock()
    while (gone := clock() - began) < LONG_S:
        compile(source, argparse.__name__, "exec")
        times += 1
    return gone / times
