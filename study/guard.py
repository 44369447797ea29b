"""`python -m study.guard -- COMMAND`: a command that cannot outlive the process that asked for it.

The asker holds the other end of this process's standard input. When it closes, however the asker
died, the whole process group is stopped: SIGTERM, then SIGKILL for what is left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

GRACE_S = 10.0  # the engine needs 0.3 to 8 s to stop by itself


def main(argv: list[str]) -> int:
    """Run the command in this process group; return its exit status."""
    if os.getpid() != os.getpgrp():
        print("study.guard must lead its own process group", file=sys.stderr)
        return 2
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the group gets them; the guard waits for the child
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, preexec_fn=_default_signals)
    stopping = threading.Event()
    watcher = threading.Thread(target=_watch, args=(stopping,), daemon=True)
    watcher.start()
    status = child.wait()
    if stopping.is_set():
        watcher.join()  # what the command started may outlive it
    return status if status >= 0 else 128 - status


def _default_signals() -> None:
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)


def _watch(stopping: threading.Event) -> None:
    while os.read(0, 1):  # not through sys.stdin, whose lock would trouble the exit
        pass
    stopping.set()
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        if not _others():
            return
        time.sleep(0.05)
    os.killpg(0, signal.SIGKILL)


def _others() -> bool:
    """Whether anybody but this process is left of its group; the dead, not yet reaped, are not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _, group = path.read_bytes().rpartition(b")")[2].split()[:3]
            own = path.parent.name == str(os.getpid())
            if int(group) == os.getpgrp() and state != b"Z" and not own:
                return True
    return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[sys.argv.index("--") + 1 :]))
