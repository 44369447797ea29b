"""Sockets enough: every stream takes one, a null server's two, and a soft limit is often 1,024."""

from __future__ import annotations

import contextlib
import math
import resource

from study.errors import StudyError

SPARE = 64  # files, pipes and sockets of other things


def raise_limit() -> float:
    """Raise this process's soft limit of open files to the hard one; how many there may be then."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a system may have a lower limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def require(sockets: int) -> None:
    """Let this process have so many sockets open at once.

    Raises: StudyError where the hard limit is too low, which only an administrator can raise.
    """
    if (most := raise_limit()) < sockets + SPARE:
        raise StudyError(
            f"{sockets} streams at once need {sockets + SPARE} open files; no more than {most:.0f} "
            "are allowed here. Raise the limit (`ulimit -Hn`, or `--ulimit nofile` of a "
            "container), or ask for lower levels."
        )
