"""Runs source of the engine in isolation: no import of torch, of a GPU library, or of vLLM itself.

Modules of the tree are executed statement by statement in namespaces of their own, with their own
`__import__`; nothing enters `sys.modules`. What is not read (see `READ`) is a stand-in, and a
top-level statement that fails leaves stand-ins for the names it would have bound.
"""

from __future__ import annotations
import __future__

import ast
import builtins
import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache, reduce
from types import CodeType, ModuleType
from typing import Any

from study.compat.source import PACKAGE, Parsed, Tree
from study.compat.standin import Log, Planted, Undecided, Unknown, as_decorator

# What is read of vLLM; the rest (models, kernels, compilation, ...) is known by name only.
READ = (
    "vllm.platforms",
    "vllm.attention",
    "vllm.v1.attention",
    "vllm.v1.kv_cache_interface",
    "vllm.v1.worker.utils",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.v1.worker.kv_connector_model_runner_mixin",
    "vllm.v1.kv_offload",
    "vllm.distributed.kv_transfer.kv_connector.v1",
    "vllm.model_executor.layers.attention",
    "vllm.model_executor.layers.attention_layer_base",
    "vllm.model_executor.models.deepseek_v2",
    "vllm.config.cache",
    "vllm.config.vllm",
    "vllm.utils.torch_utils",
    "vllm.envs",
    "vllm._aiter_ops",
)
_DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_DECORATOR = "__as_decorator__"
_FLAGS = __future__.annotations.compiler_flag  # annotations are never evaluated


class Module(ModuleType):
    """A module of the tree; a name that it does not hold is a submodule, or unknown."""

    loader: Loader

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        own = self.__dict__.get("__getattr__")
        if own is not None:
            try:
                return own(name)
            except AttributeError:
                pass
        return self.loader.module(f"{self.__name__}.{name}")


class Loader:
    """The modules of one tree, on one planted machine.

    plants: `module.name` -> the fact that stands there, whatever the source would have bound.
    environment: the environment variables of the engine, and no others.
    absent: packages that this machine does not have; every other one is a stand-in.
    """

    def __init__(
        self,
        tree: Tree,
        plants: Mapping[str, Any],
        environment: Mapping[str, str],
        absent: tuple[str, ...] = (),
    ) -> None:
        self.tree = tree
        self.log = Log()
        self.absent = absent
        self._modules: dict[str, Any] = {}
        self.plants = {
            **plants,
            "vllm.logger.init_logger": lambda _: self.log,
            "vllm.utils.import_utils.resolve_obj_by_qualname": self.resolve,
        }
        system = Planted("os", environ=dict(environment), getenv=dict(environment).get)
        system.__dict__["path"] = os.path
        self._stdlib: dict[str, Any] = {
            "dataclasses": _dataclasses(),
            "regex": re,
            "os": system,
            "importlib.util": Planted("importlib.util", find_spec=self._find_spec),
        }

    def module(self, name: str) -> Any:
        """The module, executed once; a stand-in where it is not read or not in the tree."""
        if name not in self._modules:
            parsed = self.tree.module(name) if self._is_read(name) else None
            if parsed:
                self._execute(parsed)
            elif any(one.startswith(f"{name}.") for one in READ):
                self._open(name).__dict__.update(self._planted_in(name))
            else:
                self._modules[name] = self._stand_in(name)
        return self._modules[name]

    def resolve(self, qualified: str) -> Any:
        """The object of that dotted name."""
        module, _, name = qualified.rpartition(".")
        return getattr(self.module(module), name)

    def _is_read(self, name: str) -> bool:
        return any(name == one or name.startswith(f"{one}.") for one in READ)

    def _stand_in(self, name: str) -> Any:
        parent, _, own = name.rpartition(".")
        if parent and name.partition(".")[0] != PACKAGE:
            return getattr(self.module(parent), own)
        found = Unknown(name)
        for path, fact in self.plants.items():
            if path.startswith(f"{name}."):
                *middle, last = path.removeprefix(f"{name}.").split(".")
                owner = reduce(getattr, middle, found)
                owner.__dict__[last] = fact
        return found

    def _planted_in(self, module: str) -> Iterator[tuple[str, Any]]:
        for path, fact in self.plants.items():
            owner, _, name = path.rpartition(".")
            if owner == module:
                yield name, fact

    def _open(self, name: str) -> Module:
        module = Module(name)
        module.loader = self
        self._modules[name] = module
        return module

    def _execute(self, parsed: Parsed) -> None:
        module = self._open(parsed.name)
        package = parsed.name if parsed.is_package else parsed.name.rpartition(".")[0]
        space = module.__dict__
        space.update(
            __file__=parsed.file,
            __package__=package,
            __builtins__={**vars(builtins), "__import__": self._import},
        )
        space[_DECORATOR] = as_decorator
        planted = dict(self._planted_in(parsed.name))
        for names, code in compiled(parsed):
            try:
                exec(code, space)
            except (Exception, Undecided) as error:
                reason = f"{type(error).__name__}: {error}"
                space.update({name: Unknown(f"{parsed.name}.{name} ({reason})") for name in names})
            space.update({name: planted[name] for name in names if name in planted})
        space.update(planted)

    def _import(
        self,
        name: str,
        scope: Mapping[str, Any] | None = None,
        _locals: object = None,
        wanted: tuple[str, ...] | None = (),
        level: int = 0,
    ) -> Any:
        if level:
            parts = str((scope or {})["__package__"]).split(".")
            name = ".".join([*parts[: len(parts) - level + 1], *([name] if name else [])])
        root = name.partition(".")[0]
        if root in self.absent:
            raise ImportError(f"No module named {name!r} on this machine")
        if name in self._stdlib:
            return self._stdlib[name]
        if root in sys.stdlib_module_names:
            return importlib.import_module(name) if wanted else importlib.import_module(root)
        return self.module(name if wanted else root)

    def _find_spec(self, name: str, _package: str | None = None) -> object:
        return None if name.partition(".")[0] in self.absent else Planted(f"spec of {name}")


def _dataclasses() -> Planted:
    """The real `dataclasses`, for classes whose module is not in `sys.modules`: it looks there
    for `ClassVar`, which `typing` has too."""

    def dataclass(cls: Any = None, **options: Any) -> Any:
        if cls is None:
            return lambda one: dataclass(one, **options)
        cls.__module__, module = "typing", cls.__module__
        made = dataclasses.dataclass(cls, **options)
        made.__module__ = cls.__module__ = module
        return made

    return Planted("dataclasses", **{**vars(dataclasses), "dataclass": dataclass})


@cache
def compiled(parsed: Parsed) -> list[tuple[tuple[str, ...], CodeType]]:
    """Each top-level statement: the names it binds, and its code."""
    return [
        (tuple(bound(one)), compile_statements([one], parsed.file)) for one in parsed.syntax.body
    ]


def compile_statements(statements: list[ast.stmt], file: str) -> CodeType:
    """Code of some statements, with unknown decorators left out when it runs."""
    module = ast.Module(body=[_Decorators().visit(one) for one in statements], type_ignores=[])
    code: CodeType = compile(
        ast.fix_missing_locations(module), file, "exec", _FLAGS, dont_inherit=True
    )
    return code


def bound(statement: ast.AST) -> Iterator[str]:
    """The names that a statement binds in its own scope."""
    if isinstance(statement, _DEFINITIONS):
        yield statement.name
        return
    if isinstance(statement, ast.Name) and isinstance(statement.ctx, ast.Store):
        yield statement.id
    if isinstance(statement, ast.alias):
        yield (statement.asname or statement.name).partition(".")[0]
    for child in ast.iter_child_nodes(statement):
        yield from bound(child)


class _Decorators(ast.NodeTransformer):
    def _wrap(self, node: Any) -> Any:
        self.generic_visit(node)
        node.decorator_list = [
            ast.copy_location(ast.Call(ast.Name(_DECORATOR, ast.Load()), [one], []), one)
            if not _is_wrapped(one)
            else one
            for one in node.decorator_list
        ]
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = visit_ClassDef = _wrap


def _is_wrapped(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") == _DECORATOR
