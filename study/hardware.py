"""Hardware as data: what a device has, each figure with its source."""

from __future__ import annotations

from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from study import paths
from study.errors import StudyError, problem, unknown_name

Rate = Literal["fp4", "fp8", "bf16", "fp32"]
FIGURES = (
    *("memory_gb", "bandwidth_gb_s", "cache_gb_s", "rates_tflop_s"),
    *("link_gb_s", "power_w", "node_devices"),
)

# Which arithmetic weights of a format can go through: their own, or a wider one.
ARITHMETIC: dict[str, tuple[Rate, ...]] = {
    "bf16": ("bf16", "fp32"),
    "fp8": ("fp8", "bf16", "fp32"),
    "int8": ("fp8", "bf16", "fp32"),
    "int4": ("fp8", "bf16", "fp32"),
    "mxfp4": ("fp4", "fp8", "bf16", "fp32"),
    "nvfp4": ("fp4", "fp8", "bf16", "fp32"),
}


class Hardware(BaseModel):
    """One device. Sizes in powers of ten, as data sheets have them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    memory_gb: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    cache_gb_s: float | None = Field(default=None, gt=0)  # what fits in a cache is read so fast
    rates_tflop_s: dict[Rate, float]  # of dense matrices, no sparsity
    formats: tuple[str, ...] = ("bf16",)  # of weights, those first that one would rather serve
    link_gb_s: float | None = Field(default=None, gt=0)  # to its peers, one direction
    power_w: float | None = Field(default=None, gt=0)  # of the board, at most
    node_devices: int = Field(default=1, gt=0)
    sources: dict[str, str]  # of every figure

    @model_validator(mode="after")
    def _has_sources(self) -> Self:
        given = {name for name in FIGURES if name in self.model_fields_set}
        if given != set(self.sources):
            odd = ", ".join(sorted(given ^ set(self.sources)))
            raise ValueError(f"every figure must have a source, and every source a figure: {odd}")
        return self

    @property
    def memory_bytes(self) -> float:
        return self.memory_gb * 1e9

    @property
    def bandwidth_bytes_s(self) -> float:
        return self.bandwidth_gb_s * 1e9

    def rate_flop_s(self, weight_format: str) -> float | None:
        """The fastest matrix rate that weights of this format can use; None where no source
        states one."""
        allowed = ARITHMETIC[weight_format]
        known = [self.rates_tflop_s[one] for one in allowed if one in self.rates_tflop_s]
        return max(known) * 1e12 if known else None


def names() -> list[str]:
    """Every device that the study knows."""
    return sorted(path.stem for path in paths.HARDWARE.glob("*.yaml"))


def load(name: str) -> Hardware:
    """The device called `name`; a StudyError lists the known ones."""
    path = paths.HARDWARE / f"{name}.yaml"
    if not path.is_file():
        raise unknown_name("hardware", name, names())
    return parse(name, path.read_text())


def parse(name: str, text: str) -> Hardware:
    """A device from the text of its YAML file; a StudyError says what is wrong."""
    try:
        return Hardware(name=name, **yaml.safe_load(text))
    except ValidationError as error:
        problems = "; ".join(problem(dict(item)) for item in error.errors())
        raise StudyError(f"the hardware file {name}.yaml is no hardware: {problems}") from error
    except (yaml.YAMLError, TypeError) as error:
        raise StudyError(
            f"the hardware file {name}.yaml must be YAML of the form `key: value`: {error}"
        ) from error
