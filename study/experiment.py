"""What is asked: the parameters of each experiment, and the arms and windows they stand for.

A notebook's parameters cell, `make run P="..."` and a profile all end here, so that one place
says what is allowed.
"""

from __future__ import annotations

import ast
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from study import models, theory
from study.errors import StudyError, unknown_name
from study.models import Model

T = TypeVar("T")

STEADY_LATENCIES = 6.0  # the gate wants 5; the median that it counts by is known only afterwards
LIMIT_S = 600.0  # no window lasts longer, whatever its latency


class Workload(BaseModel):
    """What the requests look like. Written `name:input/output`, as in `short:128/64`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    input_tokens: int = Field(gt=0)
    output_tokens: int = Field(gt=1)  # TPOT needs two tokens

    @classmethod
    def parse(cls, text: str) -> Self:
        """A workload from its written form."""
        try:
            name, lengths = text.split(":")
            given, made = lengths.split("/")
            return cls(name=name, input_tokens=int(given), output_tokens=int(made))
        except (ValueError, AttributeError) as error:
            raise ValueError(
                "must be written name:input/output, as in 'short:128/64', "
                "with at least 1 token in and 2 out"
            ) from error

    def __str__(self) -> str:
        return f"{self.name}:{self.input_tokens}/{self.output_tokens}"


class WindowPlan(BaseModel):
    """One level of one workload, to be measured on one launch."""

    model_config = ConfigDict(frozen=True)

    workload: Workload
    level: int  # requests in flight (closed loop)
    steady_s: float  # the steady part lasts at least this long
    steady_latencies: float  # and at least so many median latencies
    limit_s: float  # and the whole window never longer than this

    @property
    def name(self) -> str:
        return f"{self.workload.name}-{self.level}"


class Arm(BaseModel):
    """One server configuration inside an experiment.

    `factors` are what the analysis compares by; `flags` go to the engine; `expected` is what the
    engine must say of itself for the treatment to be in force.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    factors: dict[str, str | int]
    model: Model
    flags: dict[str, str | int | float | bool]
    environment: dict[str, str]
    expected: dict[str, str]
    windows: tuple[WindowPlan, ...]


def _parsed(value: object) -> object:
    """Text where a list belongs: plain papermill (`-p levels "[1,16]"`) can only pass text."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value.replace("'", '"'))
        except ValueError:
            return value
    return list(value) if isinstance(value, tuple) else value


def _workloads(value: object) -> object:
    value = _parsed(value)
    if not isinstance(value, list):
        return value
    return tuple(Workload.parse(item) if isinstance(item, str) else item for item in value)


def _tuple(value: object) -> object:
    value = _parsed(value)
    return tuple(value) if isinstance(value, list) else value


def _distinct(values: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(values)) < len(values):
        raise ValueError("must hold each value once")
    return values


def _known(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        models.load(name)  # its StudyError lists the known ones
    return names


Level = Annotated[int, Field(ge=1, le=4096)]
Some = (Field(min_length=1), AfterValidator(_distinct))
Levels = Annotated[tuple[Level, ...], BeforeValidator(_tuple), *Some]
Models = Annotated[tuple[str, ...], BeforeValidator(_tuple), *Some, AfterValidator(_known)]
Workloads = Annotated[tuple[Workload, ...], BeforeValidator(_workloads), *Some]


class Experiment(BaseModel, ABC):
    """What every experiment is asked. Subclasses add their factors and say their arms."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    notebook: ClassVar[str]
    name: ClassVar[str]
    question: ClassVar[str]

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

    @abstractmethod
    def arms(self) -> tuple[Arm, ...]:
        """Every arm of the experiment, in reading order."""


def _just_assigned(history: list[str]) -> list[str]:
    """Names assigned by the cells right before the current one that do nothing but assign."""
    names: list[str] = []
    for source in reversed(history[:-1]):
        try:
            body = ast.parse(source).body
        except SyntaxError:
            break
        if not body or not all(isinstance(node, ast.Assign | ast.AnnAssign) for node in body):
            break
        for node in ast.walk(ast.Module(body=body, type_ignores=[])):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.append(node.id)
    return names


def _problem(item: dict[str, Any]) -> str:
    where = item["loc"][0] if item["loc"] else "the parameters"
    text = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "tuple_type":
        text = "must be a list, as in [1, 16]"
    return f"{where}: {text[0].lower()}{text[1:]}; it was {item['input']!r}"


class Architecture(Experiment):
    """Attention {GQA, MLA} x feed-forward {dense, mixture of experts}, all else equal."""

    notebook: ClassVar[str] = "20_architecture"
    name: ClassVar[str] = "architecture"
    question: ClassVar[str] = (
        "What do the attention family and the feed-forward family cost a server, all else equal?"
    )

    models: Models = Field(
        default=("gqa-dense", "gqa-moe", "mla-dense", "mla-moe"),
        description="names of files in study/models",
    )
    depths: Levels = Field(default=(2,), description="layers; further depths give the slope")
    levels: Levels = Field(default=(1, 4), description="requests in flight, at the first depth")
    slope_levels: Levels = Field(default=(1, 4), description="the same, at further depths")
    workloads: Workloads = Field(
        default=("short:128/64", "long:1024/64"),
        validate_default=True,
        description="name:input/output tokens",
    )
    max_num_seqs: int = Field(default=64, ge=1, le=4096, description="the engine's own limit")
    kv_cache_gib: int = Field(default=2, ge=1, le=1024, description="cache size (CPU engine)")
    steady_s: float = Field(default=2.5, gt=0, le=3600, description="shortest steady part")

    def arms(self) -> tuple[Arm, ...]:
        """One arm per model and depth; only the first depth sees every level."""
        return tuple(
            self._arm(models.load(name).at_depth(depth), depth)
            for depth in self.depths
            for name in self.models
        )

    def _arm(self, model: Model, depth: int) -> Arm:
        levels = self.levels if depth == self.depths[0] else self.slope_levels
        longest = max(w.input_tokens + w.output_tokens for w in self.workloads)
        return Arm(
            name=f"{model.name}-{depth}",
            factors={
                "model": model.name,
                "attention": model.attention,
                "feed_forward": model.feed_forward,
                "layers": depth,
            },
            model=model,
            flags={
                "max_model_len": longest,
                # Prompts are taken whole, so a batch must have room for the longest.
                "max_num_batched_tokens": max(2048, longest),
                "max_num_seqs": self.max_num_seqs,
                "enforce_eager": True,
                # MLA on a CPU has neither; so nobody gets them, or they would hide in the ratio.
                "enable_prefix_caching": False,
                "enable_chunked_prefill": False,
            },
            environment={"VLLM_CPU_KVCACHE_SPACE": str(self.kv_cache_gib)},
            expected={
                # The cache of one token tells the attention families apart, whatever the log says.
                "kv_bytes_per_token": str(theory.kv_bytes_per_token(model)),
                "model_class": str(models.config(model)["architectures"][0]),  # type: ignore[index]
                "max_num_seqs": str(self.max_num_seqs),
                "prefix_caching": "False",
                "chunked_prefill": "False",
            },
            windows=tuple(
                WindowPlan(
                    workload=workload,
                    level=level,
                    steady_s=self.steady_s,
                    steady_latencies=STEADY_LATENCIES,
                    limit_s=LIMIT_S,
                )
                for workload in self.workloads
                for level in levels
            ),
        )


EXPERIMENTS: dict[str, type[Experiment]] = {kind.notebook: kind for kind in (Architecture,)}


def by_notebook(notebook: str) -> type[Experiment]:
    """The experiment that a notebook runs, by the notebook's name without suffix."""
    if notebook not in EXPERIMENTS:
        raise unknown_name("an experiment notebook", notebook, EXPERIMENTS)
    return EXPERIMENTS[notebook]
