"""Runs one function of the engine's source, statement by statement, and says what refused.

A refusal is a `raise` or an `assert` of the engine that fired: its words, its file and its line
are the evidence. Any other error comes from a stand-in, and means that nothing was learnt.
"""

from __future__ import annotations

import ast
import copy
import inspect
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import CodeType
from typing import Any

from study.compat.loader import Loader, bound, compile_statements
from study.compat.source import Parsed, Tree
from study.compat.standin import Undecided, Unknown

_MISREAD = (TypeError, AttributeError, NameError)  # what a stand-in in the wrong place causes
# What is asked about, as the engine names it.
ASKED = {"block_size", "num_heads", "num_kv_heads", "head_size", "kv_cache_dtype", "cache_dtype"}
_LONGEST = 240  # characters of the engine's words that are kept


@dataclass(frozen=True)
class Evidence:
    """Where in the engine's source something is said, and its words if it has some."""

    file: str
    line: int
    function: str
    words: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


class Refused(Exception):
    """The engine's source refuses."""

    def __init__(self, evidence: Evidence) -> None:
        super().__init__(evidence.words)
        self.evidence = evidence


class NotDerived(Exception):
    """What the engine would do rests on something that was not read."""


@dataclass
class Ran:
    """What became of a function: the names it had at the end, and what could not be run."""

    scope: dict[str, Any]
    skipped: list[tuple[ast.stmt, str]] = field(default_factory=list)
    value: Any = None


class _Returned(BaseException):
    def __init__(self, value: Any = None) -> None:
        self.value = value


def call(loader: Loader, function: Callable[..., Any], *values: Any, **named: Any) -> Any:
    """The value of a function of the engine, run whole.

    Raises Refused, or NotDerived with the reason.
    """
    try:
        value = function(*values, **named)
    except (Exception, Undecided) as error:
        raise _judged(loader.tree, error) from error
    if isinstance(value, Unknown):
        raise NotDerived(f"rests on {value.path}")
    return value


def steps(loader: Loader, function: Callable[..., Any], scope: dict[str, Any]) -> Ran:
    """A function of the engine statement by statement: what can't be decided is skipped, and kept.

    scope: its arguments by name. Raises Refused when a statement refuses.
    """
    plain = inspect.unwrap(getattr(function, "__func__", function))
    node, parsed = definition(loader.tree, plain)
    names = {**plain.__globals__, **scope, "__returned__": _Returned}
    ran = Ran(names)
    for statement in node.body:
        try:
            exec(_code(parsed.file, statement), names)
        except _Returned as returned:
            ran.value = returned.value
            break
        except (Exception, Undecided) as error:
            judged = _judged(loader.tree, error, within=plain.__qualname__)
            if isinstance(judged, Refused) and is_asked(statement):
                raise judged from error
            ran.skipped.append((statement, str(judged)))
            names.update({name: Unknown(f"{name} ({judged})") for name in bound(statement)})
    return ran


def definition(tree: Tree, function: Any) -> tuple[ast.FunctionDef, Parsed]:
    """The syntax of a function of the tree."""
    code = function.__code__
    parsed = tree.module(code.co_filename.removesuffix(".py").replace("/", ".")) or tree.module(
        code.co_filename.removesuffix("/__init__.py").replace("/", ".")
    )
    if parsed is None:
        raise NotDerived(f"{code.co_filename} is not in the tree")
    for node in ast.walk(parsed.syntax):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            if first == code.co_firstlineno:
                return node, parsed
    raise NotDerived(f"{code.co_name} was not found in {code.co_filename}")


def place(function: Any) -> Evidence:
    """Where a function of the engine stands."""
    code = inspect.unwrap(getattr(function, "__func__", function)).__code__
    return Evidence(code.co_filename, code.co_firstlineno, code.co_qualname)


def is_asked(statement: ast.AST) -> bool:
    """Whether a statement is about something that is asked about."""
    names = {getattr(one, "id", "") or getattr(one, "attr", "") for one in ast.walk(statement)}
    return bool(names & ASKED)


def matters(statement: ast.stmt) -> bool:
    """Whether a statement may change the answer: it sets a block size, or refuses on something
    that is asked about."""
    nodes = list(ast.walk(statement))
    sets = any(
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr == "block_size"
        for node in nodes
    )
    refuses = any(isinstance(node, ast.Raise | ast.Assert) for node in nodes)
    return sets or (refuses and is_asked(statement))


def _judged(tree: Tree, error: BaseException, within: str = "") -> Refused | NotDerived:
    if isinstance(error, Refused | NotDerived):
        return error
    if isinstance(error, Undecided):
        return NotDerived(f"rests on {error}")
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    lines = _refusals(tree, last.filename) if last.filename.startswith("vllm/") else {}
    statement = lines.get(last.lineno or 0)
    if statement is None or not _is_deliberate(statement, error):
        return NotDerived(f"{type(error).__name__}: {error}"[:_LONGEST])
    function = within if last.name == "<module>" else last.name
    words = " ".join(str(error).split())
    said = shortened(words) or type(error).__name__
    return Refused(Evidence(last.filename, last.lineno or 0, function, said))


def shortened(words: str) -> str:
    """Long words without their middle: what is refused comes first, why comes last."""
    if len(words) <= _LONGEST:
        return words
    return f"{words[: _LONGEST // 3]} [...] {words[-2 * _LONGEST // 3 :]}"


def _is_deliberate(statement: ast.Raise | ast.Assert, error: BaseException) -> bool:
    """Whether the engine refuses what was asked, rather than stumbling over a planted fact.

    A bare `assert x` without words counts only if it is about something that is asked.
    """
    if isinstance(statement, ast.Raise):
        return not isinstance(error, _MISREAD)
    return isinstance(error, AssertionError) and bool(str(error) or is_asked(statement))


@cache
def _refusals(tree: Tree, file: str) -> dict[int, ast.Raise | ast.Assert]:
    """The `raise` and `assert` statements of a file, by line."""
    return {
        line: node
        for node in ast.walk(ast.parse(tree.text(file)))
        if isinstance(node, ast.Raise | ast.Assert)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }


@cache
def _code(file: str, statement: ast.stmt) -> CodeType:
    return compile_statements([_Returns().visit(copy.deepcopy(statement))], file)


class _Returns(ast.NodeTransformer):
    """`return x` of a function's own scope, as an exception: its statements run outside it."""

    def visit_Return(self, node: ast.Return) -> ast.Raise:
        value = [node.value] if node.value else []
        raised = ast.Call(ast.Name("__returned__", ast.Load()), value, [])
        return ast.copy_location(ast.Raise(raised, None), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.Lambda:
        return node


def doubts(ran: Ran) -> Iterator[str]:
    """Why the outcome is not derived: statements that were skipped and may have mattered."""
    for statement, reason in ran.skipped:
        if matters(statement):
            yield f"line {statement.lineno}: {reason}"
