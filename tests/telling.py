"""What every chapter's test asks: of its text, of its numbers, and of its notebook."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pandas as pd
import pytest
import stub

from study import notebooks, paths
from study.chapter import Part, Shown, Text
from study.sentences import Values


def text_of(shown: Iterable[Shown]) -> str:
    """What is told in words."""
    return "\n".join(one.text for one in shown if isinstance(one, Text))


def rendered(one: Shown) -> str:
    """What a notebook shows of it."""
    return one._repr_markdown_() if isinstance(one, Text) else one._repr_html_()


def untold(text: str, values: Values) -> list[str]:
    """The numbers of a text that are in none of the values."""
    for known in sorted((str(entry["text"]) for entry in values.known.values()), key=len)[::-1]:
        text = text.replace(known, "")
    return re.findall(r"\d[\d.,]*", text)


def digits_typed(module: ModuleType, *, names: bool = False) -> list[str]:
    """Strings of a module that hold a digit, docstrings aside.

    `names`: a name that holds one, as tpot_p50_s does, is no number, nor is how to write one.
    """
    tree = ast.parse(Path(str(module.__file__)).read_text())
    docstrings = {
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    }
    formats = {
        id(piece)
        for node in ast.walk(tree)
        if names and isinstance(node, ast.FormattedValue) and node.format_spec
        for piece in ast.walk(node.format_spec)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value not in docstrings
        and id(node) not in formats
        and re.search(r"\d", re.sub(r"[a-z]\w*", "", node.value) if names else node.value)
    ]


def only(frame: pd.DataFrame, **wanted: object) -> Any:
    """The only row with these values."""
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, frame
    return next(frame.itertuples())


def run_notebook(part: Part, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What all cells of the part's notebook show, on its frames in place of a measurement."""
    monkeypatch.setattr("study.run.run_experiment", lambda _: part.launches)
    monkeypatch.setattr("study.frames.read", lambda _: part.found)
    monkeypatch.setattr("study.chapter.read", lambda *_: part)
    monkeypatch.setattr("study.plan.setup", lambda: stub.SETUP)
    reader: Any = nbformat
    content = reader.read(paths.NOTEBOOKS / f"{part.notebook}.ipynb", as_version=4)
    shown: list[Any] = []
    namespace: dict[str, Any] = {}
    for cell in (cell for cell in content.cells if cell.cell_type == "code"):
        exec(compile(cell.source, "cell", "exec"), namespace)
        namespace["display"] = lambda *items: shown.extend(items)
        if "parameters" in cell.metadata.get("tags", []):  # what papermill would inject
            namespace |= notebooks._plain(dict(part.experiment))
    assert namespace["experiment"] == part.experiment
    return shown
