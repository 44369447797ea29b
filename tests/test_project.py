"""The project's own promises: locks, names, sizes, and a README that tells the truth."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from study.__main__ import _parser

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path for place in ("study", "benchmarks", "tests") for path in (ROOT / place).rglob("*.py")
)
MOST_LINES = 420  # "about 400"
ENTRY = re.compile(r"(?m)^([\w.-]+)==([^ ;\\\n]+)(.*(?:\n    --hash=.*)*)")


def versions(lock: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, version, _ in ENTRY.findall((ROOT / "requirements" / lock).read_text()):
        found.setdefault(name.lower(), set()).add(version)
    return found


@pytest.mark.parametrize("lock", ["cpu.txt", "cuda.txt"])
def test_every_entry_of_a_lock_is_exact_and_hashed(lock: str) -> None:
    text = (ROOT / "requirements" / lock).read_text()
    entries = ENTRY.findall(text)
    assert len(entries) > 50
    assert all("--hash=sha256:" in rest for _, _, rest in entries)
    named = [line for line in text.splitlines() if line and line[0].isalnum()]
    assert [line for line in named if "==" not in line] == []


def test_the_cpu_lock_leaves_out_what_breaks_a_cpu_torch() -> None:
    broken = {"torch", "torchvision", "torchaudio", "torchcodec", "triton"}
    assert not broken & set(versions("cpu.txt"))
    assert (ROOT / "requirements/torch-cpu.txt").read_text().strip() == "torch==2.13.0+cpu"


INSTALL = ROOT / "requirements/install.py"
BASE = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"


def outside() -> list[Path]:
    """The Pythons that an environment can be made from here: ours, and the system's own."""
    found = (shutil.which(name, path=os.defpath) for name in ("python3.11", "python3.12"))
    return sorted({BASE, *(Path(path) for path in found if path)})


def set_up(made: Path, python: Path | str, *steps: str) -> None:
    """Let this Python take these steps of the set-up for an environment."""
    begin = "import sys, venv; from pathlib import Path; import install; made = Path(sys.argv[1])"
    code = "\n".join((begin, *steps))
    subprocess.run([str(python), "-c", code, str(made)], cwd=INSTALL.parent, check=True)


def seen_from(environment: Path, imports: str) -> Path:
    """Where the study lies for the Python of an environment."""
    answer = subprocess.run(
        [str(environment / "bin/python"), "-c", f"{imports}; print(study.__file__)"],
        capture_output=True, text=True, check=True, cwd=environment,
    )  # fmt: skip
    return Path(answer.stdout.strip())


def test_setup_without_the_engine_that_was_asked_for_says_what_to_do(tmp_path: Path) -> None:
    has = "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is not None)"
    if subprocess.run([str(BASE), "-c", has], check=False).returncode:
        pytest.skip("this Python has an engine")
    answer = subprocess.run(
        [str(BASE), str(INSTALL), str(tmp_path / "venv"), "rocm", "--torch-index", "none"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert "ENGINE=rocm needs vLLM" in answer.stderr
    assert "use an image that holds it" in answer.stderr
    assert not (tmp_path / "venv").exists()


def test_an_environment_made_from_an_environment_sees_its_packages_and_the_study(
    tmp_path: Path,
) -> None:
    """As in images whose vLLM lies in a virtual environment of its own."""
    made = tmp_path / "venv"
    set_up(
        made,
        sys.executable,
        "venv.create(made, system_site_packages=True); install.inherit(made)",
        "install.see(made, 'study', install.HERE.parent)",
    )
    assert seen_from(made, "import papermill, study.gates, study") == ROOT / "study/__init__.py"


def test_beside_an_engine_jupyter_finds_its_files_though_the_image_has_the_same_version(
    tmp_path: Path,
) -> None:
    """It looks for templates beside the Python that runs; here nbconvert lies elsewhere too."""
    lock = (INSTALL.parent / "cuda.txt").read_text()
    locked = next(one for one in ENTRY.finditer(lock) if one[1] == "nbconvert")
    assert locked[2] == metadata.version("nbconvert")
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/cuda.txt").write_text(f"{locked[0]}\n")
    (tmp_path / "study").symlink_to(ROOT / "study")
    made = tmp_path / "venv"
    set_up(
        made,
        sys.executable,
        "venv.create(made, with_pip=True, system_site_packages=True); install.inherit(made)",
        "install.HERE = made.parent / 'requirements'",
        "install.install(made / 'bin/python', 'system', 'none')",
    )
    shown = seen_from(made, "import study; from nbconvert import HTMLExporter; HTMLExporter()")
    assert shown == tmp_path / "study/__init__.py"


@pytest.mark.parametrize("python", outside(), ids=str)
def test_an_environment_made_from_outside_of_any_sees_the_study(
    python: Path, tmp_path: Path
) -> None:
    """Debian's own Python keeps its packages elsewhere than its environments do."""
    made = tmp_path / "venv"
    set_up(made, python, "venv.create(made); install.see(made, 'study', install.HERE.parent)")
    assert seen_from(made, "import study") == ROOT / "study/__init__.py"


def test_every_direct_need_is_in_the_lock() -> None:
    lines = (ROOT / "requirements/study.in").read_text().splitlines()
    wanted = {line.lower() for line in lines if line and not line.startswith("#")}
    assert wanted <= set(versions("cpu.txt"))


def test_conda_users_get_the_versions_of_the_locks() -> None:
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    pinned = dict(line.split("==") for line in content["dependencies"][-1]["pip"])
    assert f"vllm=={pinned.pop('vllm')}" in (ROOT / "requirements/cuda.in").read_text()
    lock = versions("cuda.txt")
    assert pinned
    assert {name: version for name, version in pinned.items() if version not in lock[name]} == {}
    cpu = yaml.safe_load((ROOT / "environment-cpu.yml").read_text())
    assert "python=3.11" in cpu["dependencies"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_small(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= MOST_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno <= 50, node.name


def tracked() -> list[Path]:
    answer = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in answer.stdout.splitlines() if (ROOT / line).is_file()]


def test_a_clone_stands_alone() -> None:
    """Nothing reaches outside the clone, and no path of one machine is written anywhere."""
    pattern = re.compile(r"(?<![\w.])/(?:home|root|work|Users)/[A-Za-z.]|\.\./shared")
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in tracked()
        if path.suffix in {".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".txt", ""}
        and path != Path(__file__)
        for match in pattern.finditer(path.read_text(errors="replace"))
    ]
    assert found == []


def test_what_the_readme_says_to_type_exists() -> None:
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?m)^([a-z]+):.*## ", makefile))
    typed = set(re.findall(r"`?make ([a-z]+)", readme))
    assert {"reproduce", "test", "run"} <= typed <= targets
    commands = set(re.findall(r"python -m study ([a-z]+)", readme))
    assert commands <= set(_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr,arg-type]
    files = set(re.findall(r"\]\(([\w./-]+)\)", readme))
    assert files
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_make_help_is_the_default_and_names_every_target() -> None:
    answer = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("setup", "reproduce", "plan", "run", "report", "test", "check", "clean"):
        assert f"make {target} " in answer.stdout
    assert "make test" in (ROOT / ".ci/run").read_text()
