"""How quick a core of this machine is just now, beside the one that the plan's times are from.

Before anything was measured here this is the best guess of how long things take: an engine's start
is imports for the most part, and so is a notebook's. Compiling Python would be a quicker look, but
tells of the interpreter's own build too: between two builds of one version it differs by a fifth.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import cache

PIECE = "import pandas, scipy.stats"  # what the plan itself has imported: no disk is waited for
PIECE_S = 1.2  # what it takes where the CPU engine starts in 20 s


@cache
def slowness() -> float:
    """Seconds that a core takes here for a second there; a look of a second or two, once a
    process."""
    return piece_s() / PIECE_S


def piece_s() -> float:
    """Seconds in which a new Python imports two large libraries."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", PIECE], check=True)
    return time.perf_counter() - began
