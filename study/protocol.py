"""The version of the measuring code. Part of every launch's identity.

Change VERSION when a change could change a number: every launch is then measured anew. Leave it
when it could not (a message, a type). Either way DIGEST follows; a test says what it must be.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache

from study import paths

VERSION = 9
DIGEST = "f683cd48ab1790e3"

# The modules between an arm and its raw data.
MEASURING = (
    "accelerators",
    "children",
    "client",
    "connection",
    "cores",
    "counters",
    "curves",
    "drive",
    "engine",
    "knee",
    "models",
    "outputs",
    "pace",
    "prompt_files",
    "prompts",
    "run",
    "search",
    "second",
    "server",
    "starts",
    "telemetry",
    "weights",
    "window",
    "wire",
)


@cache  # the code of a running process does not change
def digest(modules: tuple[str, ...] = MEASURING) -> str:
    """The hash of what modules of study do: their syntax trees, without docstrings."""
    text = "\n".join(_meaning((paths.PACKAGE / f"{name}.py").read_text()) for name in modules)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _meaning(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return ast.unparse(tree)
