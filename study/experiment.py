"""What is asked: the parameters of each experiment, and the arms and windows they stand for.

A notebook's parameters cell, `make run P="..."` and a profile all end here, so that one place
says what is allowed.
"""

from __future__ import annotations

import ast
import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from study import models, prompt_files
from study.errors import StudyError, unknown_name
from study.models import Model
from study.search import Search

T = TypeVar("T")

STORAGE = "{storage}"
STEADY_LATENCIES = 6.0  # the gate wants 5; the median that it counts by is known only afterwards
LIMIT_S = 600.0  # no window lasts longer, whatever its latency


class Workload(BaseModel):
    """What the requests look like. Written `name:input/output`, as in `short:128/64`.

    Or `name:@file.jsonl/output`, for prompts of one's own; `input_tokens` is then their longest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    input_tokens: int = Field(gt=0)
    output_tokens: int = Field(gt=1)  # TPOT needs two tokens
    prompts: str | None = Field(default=None, exclude=True)  # a path is not what tells files apart,
    digest: str | None = None  # this is

    @classmethod
    def parse(cls, text: str) -> Self:
        """A workload from its written form. StudyError for a file that holds no prompts."""
        try:
            name, lengths = text.split(":", 1)
            given, made = lengths.rsplit("/", 1)
            if given.startswith("@"):
                return cls._of_file(name, Path(given[1:]), int(made))
            return cls(name=name, input_tokens=int(given), output_tokens=int(made))
        except (ValueError, AttributeError) as error:
            raise ValueError(
                "must be written name:input/output, as in 'short:128/64', or "
                "name:@file.jsonl/output, with at least 1 token in and 2 out"
            ) from error

    @classmethod
    def _of_file(cls, name: str, path: Path, output_tokens: int) -> Self:
        path = path.expanduser().resolve()  # notebooks run in a folder of their own
        return cls(
            name=name,
            input_tokens=prompt_files.longest(prompt_files.read(path)),
            output_tokens=output_tokens,
            prompts=str(path),
            digest=prompt_files.digest(path),
        )

    def __str__(self) -> str:
        given = f"@{self.prompts}" if self.prompts else self.input_tokens
        return f"{self.name}:{given}/{self.output_tokens}"


# cold: nothing, the prompts are new; restored: they came before, but memory dropped them since;
# memory: it holds them.
Phase = Literal["cold", "restored", "memory"]


class WindowPlan(BaseModel):
    """One level of one workload, to be measured on one launch."""

    model_config = ConfigDict(frozen=True)

    workload: Workload
    level: int  # requests in flight (closed loop)
    steady_s: float = 0.0  # the steady part lasts at least this long
    steady_latencies: float = STEADY_LATENCIES  # and at least so many median latencies
    limit_s: float = LIMIT_S  # and the whole window never longer than this
    requests: int | None = None  # instead of a time: the window is over after so many
    repeats: int | None = None  # it sends the prompts of this window of the launch once more
    warm_up: bool = True  # not where it would change what the cache holds
    phase: Phase = "cold"  # what the prefix cache holds of its prompts (study.gates.cache)
    second: bool = False  # the second instrument sends the same load, right after
    searched: bool = False  # the arm's search chose the level
    again: bool = False  # it is measured once more, for the first was void

    @property
    def name(self) -> str:
        return f"{self.workload.name}-{self.level}"

    def at(self, level: int) -> WindowPlan:
        """The same at a level that a search chose, and without a second instrument."""
        return self.model_copy(update={"level": level, "second": False, "searched": True})

    def once_more(self) -> WindowPlan:
        """The same a second time, in the place of a void one."""
        return self.model_copy(update={"again": True})

    @property
    def repeatable(self) -> bool:
        """Whether it may be measured once more: not where that would find another cache."""
        return self.requests is None and not self.again


class Arm(BaseModel):
    """One server configuration inside an experiment.

    `factors` are what the analysis compares by; `flags` go to the engine; `expected` is what the
    engine must say of itself for the treatment to be in force. In a flag, `STORAGE` stands for a
    folder that lasts as long as the launch. `output_passes` are the times that the fixed prompts
    of `same_output` are sent, with the cache reset in between: none where no two arms should
    compute the same. After `windows`, the search asks for further levels of each of their
    workloads, by what it has seen on the same launch.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    factors: dict[str, str | int]
    model: Model
    flags: dict[str, str | int | float | bool]
    environment: dict[str, str]
    expected: dict[str, str]
    windows: tuple[WindowPlan, ...]
    output_passes: int = 0
    search: Search | None = None
    # Neither changes what is measured, so neither is part of a launch's identity:
    platforms: tuple[str, ...] = Field(default=(), exclude=True)  # engines that have it; (): all
    rank: int = Field(default=0, exclude=True)  # when time is short, a lower rank comes first


def _parsed(value: object) -> object:
    """Text where a list belongs: plain papermill (`-p levels "[1,16]"`) can only pass text."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        for read in (json.loads, ast.literal_eval):  # as YAML has it, or as Python
            with contextlib.suppress(ValueError, SyntaxError):
                return read(value)
        return value
    return list(value) if isinstance(value, tuple) else value


def _workloads(value: object) -> object:
    value = _parsed(value)
    if not isinstance(value, list):
        return value
    return tuple(Workload.parse(item) if isinstance(item, str) else item for item in value)


def as_tuple(value: object) -> object:
    """A list as the tuple that a frozen model holds."""
    value = _parsed(value)
    return tuple(value) if isinstance(value, list) else value


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must hold each value once")
    return values


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        models.synthetic(name)  # its StudyError lists the known ones
    return names


Level = Annotated[int, Field(ge=1, le=4096)]
Distinct = AfterValidator(_distinct)
SOME = (BeforeValidator(as_tuple), Field(min_length=1), Distinct)  # of any list of choices
Levels = Annotated[tuple[Level, ...], *SOME]
Models = Annotated[tuple[str, ...], *SOME, AfterValidator(_known)]
Workloads = Annotated[tuple[Workload, ...], BeforeValidator(_workloads), *SOME[1:]]
NoLevels = Annotated[tuple[Level, ...], BeforeValidator(as_tuple), Distinct]
NoModels = Annotated[tuple[str, ...], BeforeValidator(as_tuple), Distinct, AfterValidator(_known)]


class Experiment(BaseModel, ABC):
    """What every experiment is asked. Subclasses add their factors and say their arms."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    notebook: ClassVar[str]
    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    reads: ClassVar[str] = ""  # another experiment whose launches it shares, if any

    launches: int = Field(default=2, ge=1, le=100, description="launches of every arm (blocks)")
    seed: int = Field(default=2026, ge=0, description="of the prompts and of the order of arms")

    @classmethod
    def of(cls, parameters: Mapping[str, object]) -> Self:
        """The experiment with these parameters; a StudyError names what is wrong and allowed."""
        for name in parameters:
            if name not in cls.model_fields:
                raise unknown_name(f"a parameter of {cls.notebook}", name, cls.model_fields)
        try:
            return cls.model_validate(dict(parameters))
        except ValidationError as error:
            problems = "\n  ".join(_problem(dict(item)) for item in error.errors())
            raise StudyError(f"{cls.notebook} cannot run with:\n  {problems}") from error

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """The experiment that a notebook's parameters cell asks for.

        Papermill only warns of a parameter that the notebook does not have. So every name that
        the cells just executed have assigned is taken as a parameter, and must be one.
        """
        asked = {name: namespace[name] for name in cls.model_fields if name in namespace}
        for name in _just_assigned(namespace.get("In", [])):
            asked.setdefault(name, namespace.get(name))
        return cls.of(asked)

    @property
    def launched_as(self) -> str:
        """The experiment that its launches belong to."""
        return self.reads or self.name

    @abstractmethod
    def arms(self) -> tuple[Arm, ...]:
        """Every arm of the experiment, in reading order."""


def _just_assigned(history: list[str]) -> list[str]:
    """Names assigned by the cells right before the current one that only assign, without calls."""
    names: list[str] = []
    for source in reversed(history[:-1]):
        try:
            tree = ast.parse(source)
        except SyntaxError:
            break
        nodes = list(ast.walk(tree))
        assigns = all(isinstance(node, ast.Assign | ast.AnnAssign) for node in tree.body)
        if not tree.body or not assigns or any(isinstance(node, ast.Call) for node in nodes):
            break
        stored = [node for node in nodes if isinstance(node, ast.Name)]
        names += [node.id for node in stored if isinstance(node.ctx, ast.Store)]
    return names


def _problem(item: dict[str, Any]) -> str:
    where = item["loc"][0] if item["loc"] else "the parameters"
    text = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "tuple_type":
        text = "must be a list, as in [1, 16]"
    return f"{where}: {text[0].lower()}{text[1:]}; it was {item['input']!r}"
