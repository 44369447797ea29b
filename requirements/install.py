"""Make the environment: `python requirements/install.py VENV ENGINE`. Standard library only.

ENGINE: cpu, cuda, rocm, system (the vLLM that this Python already has), or auto: system where
vLLM is found, else what this machine's GPU takes, else cpu.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
FORGETFUL = "PYTHONDONTWRITEBYTECODE"
ENGINES = ("auto", "system", "cpu", "cuda", "rocm")
UV = "uv==0.13.9"
# What servers and notebooks import: 7,000 of the 28,000 files that are installed.
IMPORTED = (
    "import vllm.entrypoints.launchers.api_server.entry, vllm.v1.worker.cpu_worker",
    "import ipykernel.kernelapp, nbconvert, papermill, study.notebooks, study.report, "
    "openai, sympy, transformers.generation, vllm.benchmarks.serve",
)


def main() -> None:
    """Create the environment and say what was done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--torch-index", required=True, help="where CPU builds of torch are")
    options = parser.parse_args()
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        stop(
            f"Python must be 3.11 or 3.12, for which the engine is built; this is "
            f"{sys.version.split()[0]}. Try `make setup PYTHON=python3.11`."
        )
    engine = find() if options.engine == "auto" else options.engine
    if engine in ("system", "rocm") and not has_vllm():
        stop(
            f"ENGINE={engine} needs vLLM in {sys.executable}; it has none. On AMD GPUs use an "
            "image that holds it (vllm/vllm-openai-rocm); elsewhere ENGINE=cpu or ENGINE=cuda."
        )
    print(f"setting up {options.venv} with engine: {engine}", flush=True)
    venv.create(options.venv, with_pip=True, clear=True, system_site_packages=engine != "cpu")
    if engine != "cpu":
        inherit(options.venv)
    install(options.venv / "bin" / "python", engine, options.torch_index)


def inherit(environment: Path) -> None:
    """Hand on the packages of a Python that is itself in a virtual environment (some images are).

    A new environment sees the packages of its base only, not of the one it was made from.
    """
    if sys.prefix == sys.base_prefix:
        return
    see(environment, "engine", Path(sysconfig.get_path("purelib")))


def see(environment: Path, name: str, folder: Path) -> None:
    """Let Python in this environment import from a folder."""
    # Asked for by name: outside of environments, Debian's own Python would name another folder.
    inside = Path(sysconfig.get_path("purelib", "venv", vars={"base": str(environment)}))
    (inside / f"{name}.pth").write_text(f"{folder}\n")


def has_vllm() -> bool:
    """Whether the Python that runs this has vLLM."""
    return importlib.util.find_spec("vllm") is not None


def find() -> str:
    """The engine that suits this machine."""
    if has_vllm():
        return "system"
    if (
        shutil.which("nvidia-smi")
        and subprocess.run(["nvidia-smi", "-L"], check=False).returncode == 0
    ):
        return "cuda"
    if Path("/dev/kfd").exists():
        return "rocm"
    return "cpu"


def install(python: Path, engine: str, torch_index: str) -> None:
    """Install the locks of an engine, without resolution, and the study itself."""
    if engine == "cuda" and not has_vllm():
        pip(python, "-r", str(HERE / "cuda.in"))
    lock = "cpu" if engine == "cpu" else "rocm" if engine == "rocm" else "cuda"
    locked = ("--no-deps", "--require-hashes", "-r", str(HERE / f"{lock}.txt"))
    if engine != "cpu":
        # Also what the image has in the same version: Jupyter looks for its files beside Python.
        pip(python, "--ignore-installed", *locked)
    else:
        with ThreadPoolExecutor() as beside:  # it is large, and may come from another place
            torch = beside.submit(install_torch, python, torch_index)
            if not uv(python, *locked):
                pip(python, "--no-compile", *locked)
        torch.result()
    # The study needs no build: for an editable one, setuptools is too old in many images.
    see(python.parent.parent, "study", HERE.parent)
    precompile(python, engine)
    (python.parent.parent / f"ready-{engine}").touch()  # as make knows it: see the Makefile


def install_torch(python: Path, index: str) -> None:
    """Install torch's CPU build from where pip looks, or else from PyTorch's own index."""
    torch = ("--no-compile", "--no-deps", "-r", str(HERE / "torch-cpu.txt"))
    if not pip(python, *torch, check=False):
        print("torch's CPU build is not where pip looks; trying PyTorch's index", flush=True)
        pip(python, "--index-url", index, *torch)


def precompile(python: Path, engine: str) -> None:
    """Keep what Python compiles, even where it may not later: then every process would do it.

    Of what is installed for the CPU engine only what will be imported: all would take minutes.
    """
    keeping = {name: value for name, value in os.environ.items() if name != FORGETFUL}
    commands = [["-m", "compileall", "-q", str(HERE.parent / "study")]]
    commands += [["-c", modules] for modules in IMPORTED if engine == "cpu"]
    compiling = [
        subprocess.Popen([str(python), *command], env=keeping, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    for process in compiling:
        process.wait()


def pip(python: Path, *arguments: str, check: bool = True) -> bool:
    """Run pip install quietly; whether it succeeded."""
    command = [str(python), "-m", "pip", "install", "-qq", *arguments]
    quiet = {} if check else {"stderr": subprocess.DEVNULL}
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    status = subprocess.run(command, check=False, env=environment, **quiet).returncode  # type: ignore[call-overload]
    if status and check:
        stop(f"pip must install {arguments[-1]}; it ended with status {status} (see above)")
    return bool(status == 0)


def uv(python: Path, *arguments: str) -> bool:
    """Install by uv, in a third of pip's time; False where pip has to do it.

    That is where uv cannot be had, and where pip was given an index of its own: uv would not ask
    that one.
    """
    settings = subprocess.run(
        [str(python), "-m", "pip", "config", "list"], check=False, capture_output=True, text=True
    )
    if re.search(r"\.index-url=", settings.stdout) or not pip(python, UV, check=False):
        return False
    # The system's certificates, as pip does it: uv's own do not know a company's proxy.
    how = ("-q", "--system-certs")
    command = [str(python), "-m", "uv", "pip", "install", *how, *arguments]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode == 0


def stop(message: str) -> None:
    """End with one clear sentence."""
    sys.exit(f"make setup: {message}")


if __name__ == "__main__":
    main()
