"""What the machine does around and during a window: who uses it, who waits, what is throttled.

Everything is read from the kernel's own files, a few each look, and summed up since boot, so that
two looks give the mean of what lies between them. What cannot be read here is NaN: a virtual
machine shows no clock, a container may show no other process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import pandas as pd
import psutil

from study import accelerators, cores, pace, platform
from study.children import family

LOOK_S = 0.5  # a look costs about two milliseconds of one core: 0.4 %
PROC, SYS = Path("/proc"), Path("/sys")
NAN = float("nan")
CPU_TIMES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
# Interrupts are left out: the study's own loopback traffic makes most of them, in nobody's name.
BUSY = ("user", "nice", "system", "steal")
COLUMNS = (
    "time_s", "cores", "busy_s", "steal_s", "own_s", "client_wait_s", "server_wait_s", "load_1m",
    "pace_s", "clock_mhz", "heat_throttles", "quota_throttled_s", "memory_free_bytes",
    "gpus", *accelerators.COLUMNS,
)  # fmt: skip


class Telemetry:
    """Looks at the machine from entering to leaving the block: before, in between, and after.

    `server` and `client` are the first process of each; the study's own processes are this one,
    and all that it and those have started by now, or it has started and seen end. A server that
    is `waiting` for its turn is none of them: what it did would disturb, like anybody's work.
    """

    def __init__(self, server: int | None, client: int | None, waiting: int | None = None) -> None:
        self._server = _pids(server)
        self._client = [client] if client is not None else []
        own = {*_pids(os.getpid()), *self._server, *self._client}
        self._own = sorted(own.difference(_pids(waiting)))
        self._worker = cores.worker()
        self._gpus = accelerators.find()
        self._rows: list[dict[str, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _look_on(self) -> None:
        while not self._stop.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        self._rows.append(
            {
                "time_s": time.monotonic(),
                **cpu_times(),
                "own_s": sum(map(cpu_s, self._own)) + children_cpu_s(),
                "client_wait_s": sum(map(waited_s, self._client)) if self._client else NAN,
                "server_wait_s": sum(map(waited_s, self._server)) if self._server else NAN,
                "load_1m": _first_number(PROC / "loadavg"),
                "pace_s": pace.piece_s(self._worker),
                "clock_mhz": _clock_mhz(),
                "heat_throttles": _sum(SYS / HEAT.format(core) for core in sorted(_ours())),
                "quota_throttled_s": _quota_throttled_s(),
                "memory_free_bytes": float(psutil.virtual_memory().available),
                "gpus": float(len(platform.gpus())),
                **self._gpus.look(),
            }
        )

    def frame(self) -> pd.DataFrame:
        """A row per look. Columns: time_s (CLOCK_MONOTONIC); cores; the rest in all cores since
        boot or start, as CPU seconds: busy_s (anybody's work), steal_s (of it, another virtual
        machine's), own_s (the study's processes), client_wait_s and server_wait_s (main threads,
        ready to run but without a core); load_1m; pace_s (CPU time of a piece of work on the
        worker's cores: `study.pace`); clock_mhz (mean of the cores); heat_throttles (events);
        quota_throttled_s (by a container's limit); memory_free_bytes; gpus (how many there are)
        and what `study.accelerators` says of them."""
        return pd.DataFrame(self._rows, columns=list(COLUMNS), dtype=float)


UNKNOWN = {"cores": NAN, "busy_s": NAN, "steal_s": NAN}


def cpu_times() -> dict[str, float]:
    """Number of cores that the study may use, and their busy and stolen time since boot, of
    everybody: what others do on other cores of a node is theirs."""
    lines = [line.split() for line in _text(PROC / "stat").splitlines()]
    cores = [words for words in lines if words and words[0] in _ours()]
    if not cores:
        return UNKNOWN
    ticks = [dict(zip(CPU_TIMES, map(float, words[1:]), strict=False)) for words in cores]
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    return {
        "cores": float(len(cores)),
        "busy_s": sum(of.get(name, 0.0) for of in ticks for name in BUSY) * tick_s,
        "steal_s": sum(of.get("steal", 0.0) for of in ticks) * tick_s,
    }


def _ours() -> set[str]:
    """The kernel's names of the cores that the study may use."""
    return {f"cpu{core}" for core in os.sched_getaffinity(0)}


def cpu_s(pid: int) -> float:
    """CPU time of a process since its start; 0 when it is gone."""
    return _ticks_s(pid, 11)  # utime and stime


def children_cpu_s() -> float:
    """CPU time of what this process started and saw end, as the tool that is asked for GPUs."""
    return _ticks_s(os.getpid(), 13)  # cutime and cstime


def _ticks_s(pid: int, place: int) -> float:
    """The CPU time of user and system from this place on, counted from the process's state."""
    fields = _text(PROC / str(pid) / "stat").rpartition(")")[2].split()
    return sum(map(float, fields[place : place + 2])) / os.sysconf("SC_CLK_TCK")


def waited_s(pid: int) -> float:
    """How long the main thread of a process was ready to run without a core; NaN if unknown."""
    fields = _text(PROC / str(pid) / "schedstat").split()
    return float(fields[1]) / 1e9 if len(fields) > 1 else NAN


CLOCKS = "devices/system/cpu/cpu[0-7]/cpufreq/scaling_cur_freq"  # eight stand for all
HEAT = "devices/system/cpu/{}/thermal_throttle/core_throttle_count"


def _clock_mhz() -> float:
    found = [_first_number(path) / 1e3 for path in SYS.glob(CLOCKS)]
    return sum(found) / len(found) if found else NAN


def _quota_throttled_s() -> float:
    """Time that a container's CPU limit took, by version 2 or 1 of control groups."""
    for path, name, unit in (
        (SYS / "fs/cgroup/cpu.stat", "throttled_usec", 1e-6),
        (SYS / "fs/cgroup/cpu/cpu.stat", "throttled_time", 1e-9),
    ):
        for line in _text(path).splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1]) * unit
    return NAN


def _pids(leader: int | None) -> list[int]:
    return [process.pid for process in family(leader)]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _first_number(path: Path) -> float:
    words = _text(path).split()
    return float(words[0]) if words else NAN


def _sum(paths: Iterable[Path]) -> float:
    found: Sequence[float] = [_first_number(path) for path in paths]
    return sum(found) if found else NAN
