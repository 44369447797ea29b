"""What this machine can do: its memory and a cache read, its matrices multiplied, for seconds.

Measured on the cores that the engine computes on (all but the client's), or on the GPU. The best
of several repeats counts: a bound wants what the machine can do, not what it usually does. The
record lies with the raw data and is never edited; another machine gets a record of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from study import cores, paths, platform
from study.errors import StudyError
from study.hardware import Hardware
from study.store import Store, now, write_json

NAME = "this-machine"
NODES = Path("/sys/devices/system/node")
METHOD = 3  # raise it when what is measured here changes
READ_BYTES = 2**30  # far beyond any cache, little beside any memory
CACHED_BYTES = 2**22  # less than the smallest model: read again and again, from a cache
MATRIX = 2048
REPEATS = 60
ENOUGH_S = 4.0  # a busy neighbour spoils some of these repeats and not all
LIMIT_S = 300
MEASURED = ("memory_gb", "bandwidth_gb_s", "cache_gb_s", "rates_tflop_s")


def record_path() -> Path:
    """Where this machine's record lies, measured or not."""
    identity = {"machine": platform.machine().as_dict(), "cores": _cores(), "method": METHOD}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    return paths.RAW / f"machine-{digest}.json"


def measured() -> Hardware | None:
    """This machine as it was measured; None when it was not yet."""
    path = record_path()
    return _hardware(json.loads(path.read_text())) if path.is_file() else None


def measure() -> Hardware:
    """This machine, measured now if it was not yet."""
    known = measured()
    if known:
        return known
    with Store(paths.RAW).measuring():
        cores = _cores()
        command = [sys.executable, "-m", "study.machine", json.dumps(cores)]
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_S, check=False,
            cwd=paths.PACKAGE.parent, env={**os.environ, "OMP_NUM_THREADS": str(len(cores))},
        )  # fmt: skip
        if answer.returncode:
            raise StudyError(f"this machine could not be measured: {answer.stderr[-500:]}")
        record = {
            "machine": platform.machine().as_dict(),
            "cores": cores,
            "method": METHOD,
            "measured_utc": now(),
            **json.loads(answer.stdout),
        }
        write_json(record_path(), record)
    return _hardware(record)


def _cores() -> list[int]:
    """The cores that the engine computes on."""
    every, client = sorted(os.sched_getaffinity(0)), set(cores.client())
    return _first_node([core for core in every if core not in client] or every)


def _first_node(given: list[int]) -> list[int]:
    """Those of the first memory node that has any of them: a CPU engine of one rank keeps to it."""
    for path in sorted(NODES.glob("node*/cpulist"), key=lambda path: int(path.parent.name[4:])):
        if here := sorted({*given} & {*cores.listed(path.read_text())}):
            return here
    return given


def _hardware(record: dict[str, Any]) -> Hardware:
    here, cores = record["machine"], record["cores"]
    device = ", ".join(here["gpus"]) or f"{here['cpu']}, {len(cores)} of {here['cores']} cores"
    said = f"measured {record['measured_utc']}"
    rates = {name: max(rate) / 1e12 for name, rate in record["matrix_flop_s"].items()}
    return Hardware(
        name=NAME,
        description=device,
        memory_gb=record["memory_bytes"] / 1e9,
        bandwidth_gb_s=max(record["read_bytes_s"]) / 1e9,
        cache_gb_s=max(record["cached_read_bytes_s"]) / 1e9,
        rates_tflop_s=rates,
        sources=dict.fromkeys(MEASURED, said),
    )


# --- in a process of its own, which has these cores and nothing else ------------------------------


def _probe(cores: list[int]) -> dict[str, Any]:
    os.sched_setaffinity(0, cores)  # before any library counts its threads
    try:
        import torch
    except ImportError:
        return _with_numpy()
    torch.set_num_threads(len(cores))
    return _with_torch("cuda" if torch.cuda.is_available() else "cpu")


def _with_torch(device: str) -> dict[str, Any]:
    import torch

    gpu = device == "cuda"
    done: Callable[[], None] = torch.cuda.synchronize if gpu else lambda: None
    data = torch.ones(READ_BYTES // 4, dtype=torch.float32, device=device)
    size = 4 * MATRIX if gpu else MATRIX
    matrix = torch.ones(size, size, dtype=torch.bfloat16, device=device)

    def reads(data: torch.Tensor) -> list[float]:
        return [
            data.nbytes / seconds
            for read in (lambda: data.sum(), lambda: torch.dot(data, data))
            for seconds in _timed(read, done)
        ]

    flops = [2 * size**3 / seconds for seconds in _timed(lambda: matrix @ matrix, done)]
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else _memory()
    return {
        "memory_bytes": memory,
        "read_bytes_s": reads(data),
        "cached_read_bytes_s": reads(data[: CACHED_BYTES // 4]),
        "matrix_flop_s": {"bf16": flops},
        "library": f"torch {torch.__version__}",
    }


def _with_numpy() -> dict[str, Any]:
    import numpy as np

    data = np.ones(READ_BYTES // 4, np.float32)
    matrix = np.ones((MATRIX, MATRIX), np.float32)

    def reads(data: np.ndarray) -> list[float]:
        return [data.nbytes / seconds for seconds in _timed(lambda: np.dot(data, data))]

    flops = [2 * MATRIX**3 / seconds for seconds in _timed(lambda: matrix @ matrix)]
    return {
        "memory_bytes": _memory(),
        "read_bytes_s": reads(data),
        "cached_read_bytes_s": reads(data[: CACHED_BYTES // 4]),
        "matrix_flop_s": {"fp32": flops},
        "library": f"numpy {np.__version__}",
    }


def _memory() -> int:
    return int(psutil.virtual_memory().total)


def _timed(work: Callable[[], object], done: Callable[[], None] = lambda: None) -> list[float]:
    """Seconds of each repeat, after one that does not count."""
    work()
    done()
    seconds: list[float] = []
    while len(seconds) < REPEATS and sum(seconds) < ENOUGH_S:
        began = time.perf_counter()
        work()
        done()
        seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    print(json.dumps(_probe(json.loads(sys.argv[1]))))
