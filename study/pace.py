"""How quick a core is: the CPU time that one small piece of work takes it.

Another virtual machine on the same physical core slows this one down and takes none of its time:
nothing is reported as stolen. So does a clock that a virtual machine is not shown. CPU time of
the piece tells of both; that others of this machine wait for the same core does not show in it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

TURNS = 10_000  # a third of a millisecond and more: what a window may lose twice a second


def piece_s(cores: Iterable[int] = ()) -> float:
    """CPU time in seconds for the piece, on one of these cores; of none: wherever this thread is.

    The thread goes back to the cores that it was allowed.
    """
    allowed, here = os.sched_getaffinity(0), set(cores)
    with contextlib.suppress(OSError):  # the cores are not ours any more: measured where it is
        os.sched_setaffinity(0, here & allowed or allowed)
    try:
        _piece(TURNS // 4)  # brings it into the core's caches
        began = time.thread_time()
        _piece(TURNS)
        return time.thread_time() - began
    finally:
        os.sched_setaffinity(0, allowed)


def _piece(turns: int) -> int:
    total = 0
    for turn in range(turns):
        total += turn * turn
    return total
