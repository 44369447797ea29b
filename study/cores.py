"""Who may use which core: the CPU engine's worker, what stands around it, and the client.

A CPU engine's worker computes on all cores but the last, to which the API server and the client
are kept. Of two cores that leaves the worker one, and the engine's own layout suits it badly: its
scheduler is a process that spins while it waits for the worker, now on the worker's core and now
on the client's, and rates wander by 10 % within a launch. There, scheduler and worker are made
one process, as they are on a single GPU, and kept to the first core. The engine refuses that
layout by default because it could not bind a worker's threads; a single thread needs no binding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from study import platform
from study.children import family
from study.platform import Kind

Cores = list[int]
CPUS = Path("/sys/devices/system/cpu")

ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}


def client() -> Cores:
    """Cores for the load generator: the last one.

    On two cores it shares that with the engine's API server; on a GPU node there is room, and it
    gets it to itself, with the other hardware thread of the same physical core.
    """
    return _all()[-1:]


def worker() -> Cores:
    """Cores on which the engine computes, or what drives its GPU."""
    kind = platform.engine().kind
    return _all()[:-1] or _all() if kind == "cpu" else api_server(kind)


def api_server(kind: Kind) -> Cores:
    """Cores of what stands between engine and client, or takes its place."""
    if kind == "cpu":
        return client()
    return sorted(set(_all()) - _siblings(client()[0])) or _all()[:-1] or client()


def single(kind: Kind, count: int) -> bool:
    """Whether so many cores leave the worker of such an engine just one."""
    return kind == "cpu" and count <= 2


def environment() -> dict[str, str]:
    """What makes scheduler and worker one process, where the worker has a single core."""
    return dict(ONE_PROCESS) if _here() else {}


def bind(server: int | None, engine_core: int | None) -> dict[str, Cores]:
    """Keep the processes of such a server to their cores; return who was kept where.

    `server`: the process that started all others of it; `engine_core`: the one that computes.
    A GPU's engine is kept off the client's core. A CPU's that has cores enough keeps to its own.
    """
    kind = platform.engine().kind
    if server is not None and kind != "cpu":
        for process in family(server):
            _keep(process.pid, api_server(kind))
        return {"server": api_server(kind), "client": client()}
    if server is None or engine_core is None or not _here():
        return {}
    around = {process.pid for process in family(server)} - {engine_core}
    for pid, cores in {engine_core: _all()[:1], **dict.fromkeys(around, client())}.items():
        _keep(pid, cores)
    return {"engine core": _all()[:1], "API server and client": client()}


def _all() -> Cores:
    return sorted(os.sched_getaffinity(0))


def _siblings(core: int) -> set[int]:
    """The hardware threads of the same physical core, itself among them."""
    with contextlib.suppress(OSError):
        return {core, *listed((CPUS / f"cpu{core}/topology/thread_siblings_list").read_text())}
    return {core}


def listed(text: str) -> Iterator[int]:
    """The numbers of a list as the kernel writes it: `0-3,8-11`."""
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _here() -> bool:
    return single(platform.engine().kind, len(_all()))


def _keep(pid: int, cores: Cores) -> None:
    """Every thread of a process, for each has an affinity of its own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for thread in psutil.Process(pid).threads():
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setaffinity(thread.id, cores)
