"""Setting up: uv where it asks the same indexes as pip would, pip everywhere else."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "requirements" / "install.py"
# Stands for the Python of a new environment: keeps what it is told, answers as it is told to.
PYTHON = """#!/bin/sh
echo "$*" >> "{log}"
case "$*" in
    *"pip config list"*) echo "{config}" ;;
    *"uv pip install"*) exit {uv_status} ;;
    *"pip install"*) exit {pip_status} ;;
esac
"""


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(folder: Path, *, config: str = "", uv_status: int = 0, pip_status: int = 0) -> Path:
    """An environment's Python whose pip and uv end like this."""
    path = folder / "python"
    log = folder / "asked"
    path.write_text(
        PYTHON.format(log=log, config=config, uv_status=uv_status, pip_status=pip_status)
    )
    path.chmod(0o755)
    return path


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


def test_uv_installs_with_the_certificates_that_pip_trusts(
    install: ModuleType, tmp_path: Path
) -> None:
    assert install.uv(python(tmp_path), "-r", "lock.txt")
    last = asked(tmp_path)[-1]
    assert last.startswith("-m uv pip install")
    assert "--system-certs" in last
    assert last.endswith("-r lock.txt")


def test_an_index_of_ones_own_is_left_to_pip(install: ModuleType, tmp_path: Path) -> None:
    own = python(tmp_path, config="global.index-url='https://mirror.example/simple'")
    assert not install.uv(own, "-r", "lock.txt")
    assert not any("uv pip install" in line for line in asked(tmp_path))


@pytest.mark.parametrize(("pip_status", "uv_status"), [(1, 0), (0, 2)])
def test_without_uv_pip_has_to_do_it(
    install: ModuleType, tmp_path: Path, pip_status: int, uv_status: int
) -> None:
    failing = python(tmp_path, pip_status=pip_status, uv_status=uv_status)
    assert not install.uv(failing, "-r", "lock.txt")


def test_the_real_uv_knows_every_option_given(install: ModuleType, tmp_path: Path) -> None:
    """A renamed option would not fail the set-up, only make it three times as slow."""
    environment = tmp_path / "venv"
    install.venv.create(environment, with_pip=True)
    empty = tmp_path / "lock.txt"
    empty.write_text("")
    if not install.pip(environment / "bin" / "python", install.UV, check=False):
        pytest.skip("uv cannot be had here, so pip sets up")
    assert install.uv(environment / "bin" / "python", "--no-deps", "-r", str(empty))


def test_what_will_be_imported_is_compiled_even_where_python_may_not_keep_it(
    install: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needed.py").write_text("answer = 42\n")
    (tmp_path / "other.py").write_text("answer = 43\n")
    monkeypatch.setattr(install, "IMPORTED", ("import needed",))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    install.precompile(Path(sys.executable), "cpu")
    kept = [path.name.partition(".")[0] for path in (tmp_path / "__pycache__").iterdir()]
    assert kept == ["needed"]


def test_what_is_compiled_beforehand_exists(install: ModuleType) -> None:
    """A module that is gone would not fail the set-up, only make the first start slower."""
    names = re.findall(r"[\w.]+", " ".join(install.IMPORTED).replace("import ", ""))
    assert any(name.startswith("vllm.") for name in names)
    for name in names:
        root, *below = name.split(".")
        found = importlib.util.find_spec(root)
        assert found is not None and found.origin is not None, name
        path = Path(found.origin).parent.joinpath(*below)
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
