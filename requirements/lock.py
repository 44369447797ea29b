"""Remake the locks: `pip install uv && python requirements/lock.py`. Needs the package index.

cpu.txt   everything but torch, which is installed by itself (its CPU build has its own index).
cuda.txt  what the study needs beside an installed vLLM, and which that vLLM does not bring.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
# Builds that do not match a CPU torch break the import of transformers; triton serves GPUs only.
OMITTED = ("torch", "torchvision", "torchaudio", "torchcodec", "triton")
HEAD = "# Made by requirements/lock.py from {source}; installed without resolution.\n"


def resolve(source: str, *options: str) -> str:
    """The lock of one input file."""
    command = [sys.executable, "-m", "uv", "pip", "compile", source, "--no-header", "-q"]
    answer = subprocess.run(
        [*command, "--no-annotate", *options], cwd=HERE, check=True, capture_output=True, text=True
    )
    return answer.stdout


def entries(lock: str) -> dict[str, str]:
    """The entries of a lock, hashes included, by package name (several where markers differ)."""
    found: dict[str, str] = {}
    for entry in re.split(r"(?m)^(?=[a-zA-Z0-9])", lock):
        if name := re.match(r"[\w.-]+", entry):
            found[name.group()] = found.get(name.group(), "") + entry
    return found


def main() -> None:
    """Write cpu.txt and cuda.txt."""
    everywhere = ("--universal", "--python-version", "3.11", "--generate-hashes")
    cpu = entries(resolve("cpu.in", *everywhere))
    kept = "".join(entry for name, entry in cpu.items() if name not in OMITTED)
    (HERE / "cpu.txt").write_text(HEAD.format(source="cpu.in") + kept)
    brought = entries(resolve("cuda.in", "--python-platform", "linux", "--python-version", "3.12"))
    study = {name for name in entries(resolve("study.in", *everywhere)) if name not in brought}
    rest = "".join(entry for name, entry in cpu.items() if name in study)
    (HERE / "cuda.txt").write_text(HEAD.format(source="study.in, less what vLLM brings") + rest)


if __name__ == "__main__":
    main()
