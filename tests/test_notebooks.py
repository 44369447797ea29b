"""The notebooks as stored: stories without outputs, their parameters equal to the models."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
import stub
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from telling import run_notebook

from study import notebooks, paths
from study.errors import StudyError
from study.experiment import Workload
from study.experiments import EXPERIMENTS

NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))
MAX_LINES = 10
PROSE = 0.4  # of the cells
STUB_VOID = [("mla-moe-4", "long", 16, block) for block in range(3)]
ALLOWED_ROOTS = {"study", "IPython"}


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> tuple[str, Any]:
    path: Path = request.param
    reader: Any = nbformat
    return path.stem, reader.read(path, as_version=4)


def _code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _parameters(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


def test_there_is_a_notebook_for_every_experiment_and_the_report_comes_last() -> None:
    stems = [path.stem for path in NOTEBOOKS]
    assert set(EXPERIMENTS) <= set(stems)
    assert stems[-1] == "90_report"
    assert all(re.fullmatch(r"\d\d_[a-z0-9_]+", stem) for stem in stems)


def test_it_is_valid_and_stored_without_outputs(notebook: tuple[str, Any]) -> None:
    _, content = notebook
    nbformat.validate(content)
    assert content.metadata.kernelspec.name == "python3"
    for cell in _code(content):
        assert cell.outputs == [] and cell.execution_count is None
        assert cell.source.strip()


def test_cells_are_short_and_half_is_prose(notebook: tuple[str, Any]) -> None:
    _, content = notebook
    for cell in content.cells:
        assert len(cell.source.splitlines()) <= MAX_LINES, cell.source
    prose = sum(cell.cell_type == "markdown" for cell in content.cells)
    assert prose / len(content.cells) >= PROSE
    assert content.cells[0].cell_type == content.cells[-1].cell_type == "markdown"
    assert content.cells[0].source.startswith("# ")


def test_code_is_calls_only_and_imports_come_first(notebook: tuple[str, Any]) -> None:
    _, content = notebook
    for number, cell in enumerate(_code(content)):
        tree = ast.parse(cell.source)  # a magic or a shell command is no Python
        for node in ast.walk(tree):
            assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            assert not isinstance(node, ast.Lambda | ast.For | ast.While)
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert number == 0, f"an import outside the first code cell: {cell.source}"
                assert _roots(node) <= ALLOWED_ROOTS


def _roots(node: ast.Import | ast.ImportFrom) -> set[str]:
    if isinstance(node, ast.ImportFrom):
        return {(node.module or "").partition(".")[0]}
    return {alias.name.partition(".")[0] for alias in node.names}


def test_every_import_is_used_and_exists(notebook: tuple[str, Any]) -> None:
    _, content = notebook
    first, *others = _code(content)
    names = [alias.name for node in ast.parse(first.source).body for alias in node.names]
    used = {
        node.id
        for cell in others
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Name)
    }
    assert set(names) <= used
    exec(compile(first.source, "imports", "exec"), {})


def test_every_name_of_study_that_is_used_exists(notebook: tuple[str, Any]) -> None:
    _, content = notebook
    first, *others = _code(content)
    namespace: dict[str, Any] = {}
    exec(compile(first.source, "imports", "exec"), namespace)
    for cell in others:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = namespace.get(node.value.id)
                assert owner is None or hasattr(owner, node.attr), f"{node.value.id}.{node.attr}"


def test_no_path_of_a_machine(notebook: tuple[str, Any]) -> None:
    _, content = notebook
    text = "\n".join(cell.source for cell in content.cells)
    assert not re.search(r"(?<![\w.])/(home|tmp|root|work|Users|mnt)\b|[A-Z]:\\", text)


def test_parameters_are_plain_literals_and_those_of_the_model(notebook: tuple[str, Any]) -> None:
    """The last of their cells is tagged: papermill puts what it is given right behind it."""
    name, content = notebook
    (tagged,) = _parameters(content)
    code = _code(content)
    place = code.index(tagged)
    # What all servers share has a cell of its own before it.
    cells = code[place - 1 : place + 1] if name in EXPERIMENTS else [tagged]
    lines = [line for cell in cells for line in cell.source.splitlines()]
    assert all(re.fullmatch(r"\w+ = .+  # .+", line) for line in lines)  # each with its help
    asked = _assigned("\n".join(lines))
    assert len(asked) == len(lines)
    if name in EXPERIMENTS:
        model = EXPERIMENTS[name]
        order = list(model.model_fields)
        for cell in cells:
            names = list(_assigned(cell.source))
            assert names == sorted(names, key=order.index)
        assert set(asked) == set(order)
        defaults = model()
        assert asked == {field: _plain(getattr(defaults, field)) for field in asked}
        assert {field: type(value) for field, value in asked.items()} == {
            field: type(_plain(getattr(defaults, field))) for field in asked
        }
        assert model.of(asked) == defaults


def test_an_experiment_is_built_right_after_its_parameters(notebook: tuple[str, Any]) -> None:
    name, content = notebook
    if name not in EXPERIMENTS:
        return
    code = _code(content)
    after = code[code.index(_parameters(content)[0]) + 1]
    kind = EXPERIMENTS[name].__name__
    assert after.source == f"experiment = {kind}.from_notebook(globals())"


def test_an_experiment_ends_with_assertions_files_versions_and_what_is_next(
    notebook: tuple[str, Any],
) -> None:
    name, content = notebook
    if name not in EXPERIMENTS:
        return
    sources = [cell.source for cell in content.cells]
    order = [
        next(at for at, source in enumerate(sources) if wanted in source)
        for wanted in ("assert ", "report.written(", "ledgers.setup(", "**Next:**")
    ]
    assert order == sorted(order) and order[-1] == len(sources) - 1
    following = re.search(r"`(\d\d_\w+)\.ipynb`", sources[-1])
    assert following and (paths.NOTEBOOKS / f"{following.group(1)}.ipynb").is_file()


def test_expectation_comes_before_the_cell_and_reading_after(notebook: tuple[str, Any]) -> None:
    name, content = notebook
    if name not in EXPERIMENTS:
        return
    expected = [
        at for at, cell in enumerate(content.cells)
        if cell.cell_type == "markdown" and "**Expectation.**" in cell.source
    ]  # fmt: skip
    assert len(expected) >= 3
    for at in expected:
        following = [cell.cell_type for cell in content.cells[at + 1 :]]
        assert following[0] == "code" and "markdown" in following


@pytest.mark.parametrize("case", ["rejected and void", "nothing measured"])
def test_the_architecture_notebook_runs_whatever_was_measured(
    case: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its cells, on stub frames in place of a measurement."""
    asked = stub.experiment(depths=[4, 8])
    frames = stub.frames(asked, rejected={"mla-moe-8": "ValueError: no"}, void=STUB_VOID)
    if case == "nothing measured":
        frames = stub.frames(asked, not_measured=[arm.name for arm in asked.arms()])
    assert len(run_notebook(stub.part(asked, frames), monkeypatch)) > 10
    assert {path.suffix for path in paths.FIGURES.iterdir()} == {".svg", ".png", ".csv"}


def _assigned(source: str) -> dict[str, Any]:
    return {
        node.targets[0].id: ast.literal_eval(node.value)  # type: ignore[attr-defined]
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
    }


def _plain(value: object) -> object:
    if isinstance(value, Workload):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (DeadKernelError("Kernel died"), "20_architecture did not run to its end: Kernel died"),
        (PapermillExecutionError(4, 4, "", "ValueError", "no 7", ""), "failed in cell 4"),
    ],
)
def test_a_notebook_that_cannot_run_to_its_end_is_an_error_that_says_so(
    error: Exception, words: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def execute(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    with pytest.raises(StudyError, match=words):
        notebooks.execute("20_architecture", {})
