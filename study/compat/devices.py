"""The machines that the compatibility table asks about, as planted facts. None has to be here."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from study.compat.loader import Loader
from study.compat.source import Tree
from study.compat.standin import Planted, Undecided

AITER_ON = {"VLLM_ROCM_USE_AITER": "1"}
_NOT_ON_ROCM = ("amdsmi", "pynvml", "flashinfer")
_NOT_ON_CUDA = ("amdsmi", "aiter")
_NOT_ON_CPU = (*_NOT_ON_ROCM, "aiter", "flash_attn")
_DTYPES = ("bfloat16", "float16", "float32", "half", "float8_e4m3fn", "float8_e4m3fnuz", "uint8")
_FACTS: dict[str, Any] = {
    **{f"torch.{name}": f"torch.{name}" for name in _DTYPES},
    "vllm.triton_utils.HAS_TRITON": True,
    "vllm.model_executor.layers.batch_invariant.vllm_is_batch_invariant": lambda: False,
    "vllm.v1.worker.workspace.current_workspace_manager": lambda: _Workspace(),
    # Compiled kernels are taken as present wherever the source asks for them.
    "vllm.vllm_flash_attn.flash_attn_interface.is_fa_version_supported": lambda *_, **__: True,
}


_FLASHINFER = "vllm.utils.flashinfer"


class _Workspace:
    """Memory that a back end asks for: as many pieces as shapes."""

    def get_simultaneous(self, *shapes: object) -> list[Planted]:
        return [Planted("workspace") for _ in shapes]


@dataclass(frozen=True)
class Device:
    """One kind of machine, with the switches of the engine that select a back end there.

    platform: the class of `vllm.platforms` that answers for it.
    aiter: the master switch of AITER, on or off; "" where there is none.
    capability: what the platform calls the device's capability, (major, minor).
    absent: packages that are not installed; all others are taken as installed, kernels included.
    """

    name: str
    platform: str
    aiter: str = ""
    capability: tuple[int, int] | None = None
    plants: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.platform.split(".")[0]


def _rocm(name: str, architecture: str, *, aiter: bool) -> Device:
    properties = SimpleNamespace(gcnArchName=architecture, multi_processor_count=304)
    return Device(
        name=name,
        aiter="on" if aiter else "off",
        platform="rocm.RocmPlatform",
        capability=(9, int(architecture[4])),
        plants={
            "torch.cuda.get_device_properties": lambda *_: properties,
            "torch.version.hip": "7.0",
        },
        environment=AITER_ON if aiter else {},
        absent=_NOT_ON_ROCM,
    )


def _cuda(name: str, capability: tuple[int, int]) -> Device:
    properties = SimpleNamespace(multi_processor_count=132)
    return Device(
        name=name,
        platform="cuda.NvmlCudaPlatform",
        capability=capability,
        plants={"torch.cuda.get_device_properties": lambda *_: properties},
        absent=_NOT_ON_CUDA,
    )


def _cpu(name: str, *, amx: bool) -> Device:
    return Device(
        name=name,
        platform="cpu.CpuPlatform",
        plants={
            "torch.cpu._is_amx_tile_supported": lambda: amx,
            "torch.cpu._is_avx512_bf16_supported": lambda: amx,
        },
        absent=_NOT_ON_CPU,
    )


# MI325X stands for gfx942 (MI300X too), MI355X for gfx950 (MI350X too), H100 for sm90 (H200 too).
DEVICES = (
    _rocm("MI325X", "gfx942", aiter=False),
    _rocm("MI325X", "gfx942", aiter=True),
    _rocm("MI355X", "gfx950", aiter=False),
    _rocm("MI355X", "gfx950", aiter=True),
    _cuda("H100", (9, 0)),
    _cuda("B200", (10, 0)),
    _cpu("CPU", amx=False),
    _cpu("CPU with AMX", amx=True),
)


class _Current:
    """`current_platform` before there is one: undecided; then the platform."""

    def __init__(self) -> None:
        self.platform: Any = None

    def __getattr__(self, name: str) -> Any:
        if self.platform is None:
            raise Undecided(f"vllm.platforms.current_platform.{name}")
        return getattr(self.platform, name)


def boot(tree: Tree, device: Device, facts: Mapping[str, Any]) -> tuple[Loader, Any]:
    """The engine's modules on that device, and its platform object.

    facts: further plants, by dotted name.
    """
    current = _Current()
    plants = {
        **_FACTS,
        **device.plants,
        **_has_flashinfer(tree, "flashinfer" not in device.absent),
        **facts,
        "vllm.platforms.current_platform": current,
    }
    loader = Loader(tree, plants, device.environment, device.absent)
    platform = loader.resolve(f"vllm.platforms.{device.platform}")
    interface = loader.module("vllm.platforms.interface")
    answers: dict[str, Any] = {"get_cpu_architecture": interface.CpuArchEnum.X86}
    if device.capability:
        answers["get_device_capability"] = interface.DeviceCapability(*device.capability)
    methods: dict[str, Any] = {
        name: classmethod(_always(answer)) for name, answer in answers.items()
    }
    current.platform = type(platform.__name__, (platform,), methods)()
    return loader, current.platform


def _has_flashinfer(tree: Tree, present: bool) -> dict[str, Any]:
    """The engine's own questions on whether a kernel library is there, all with one answer."""
    parsed = tree.module(_FLASHINFER)
    body = parsed.syntax.body if parsed else []
    names = [one.name for one in body if isinstance(one, ast.FunctionDef)]
    return {f"{_FLASHINFER}.{name}": _always(present) for name in names if name.startswith("has_")}


def _always(answer: Any) -> Any:
    return lambda *_, **__: answer


def planted_config(**facts: Any) -> Planted:
    """A configuration of the engine: the given fields are facts, every other one is unknown."""
    return Planted("vllm_config", **facts)
