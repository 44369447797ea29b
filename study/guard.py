"""`python -m study.guard -- COMMAND`: a command that cannot outlive the process that asked for it.

The asker holds the other end of this process's standard input. When it closes, however the asker
died, the whole process group is stopped: SIGTERM, then SIGKILL for what is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_S = 10.0  # the engine needs 0.3 to 8 s to stop by itself


def main(argv: list[str]) -> int:
    """Run the command in this process group; return its exit status."""
    if os.getpid() != os.getpgrp():
        print("study.guard must lead its own process group", file=sys.stderr)
        return 2
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the group gets them; the guard waits for the child
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=_default_signals)
    threading.Thread(target=_watch, daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


def _default_signals() -> None:
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)


def _watch() -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock would trouble the exit
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :]))
