"""A tiny engine as source, whose rules are known: what reading it must find out."""

from __future__ import annotations

import zipfile
from pathlib import Path

VERSION = "9.8.7"

_INTERFACE = """
import enum
from typing import NamedTuple
class CpuArchEnum(enum.Enum):
    X86 = 1
class DeviceCapability(NamedTuple):
    major: int
    minor: int
class Platform:
    device_type = "cpu"
"""

_PLATFORM = """
import torch
from vllm.logger import init_logger
from vllm.platforms.interface import CpuArchEnum, Platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum
logger = init_logger(__name__)
torch.set_something(1)
class CpuPlatform(Platform):
    @classmethod
    def check_and_update_config(cls, vllm_config):
        cache_config = vllm_config.cache_config
        assert vllm_config.nobody_knows
        if cache_config.block_size is None:
            cache_config.block_size = 2 * {multiple}
        if vllm_config.model_config.use_mla and cache_config.block_size != {forced}:
            logger.warning("MLA needs block size %s", {forced})
            cache_config.block_size = {forced}
    @classmethod
    def get_attn_backend_cls(cls, selected_backend, attn_selector_config):
        if attn_selector_config.use_sparse:
            raise ValueError("no sparse attention here")
        chosen = AttentionBackendEnum.MLA if attn_selector_config.use_mla else (
            AttentionBackendEnum.PLAIN)
        if attn_selector_config.use_mla and torch.cuda.{rests_on}:
            chosen = AttentionBackendEnum.PLAIN
        return chosen.value
"""

_REGISTRY = """
import enum
from vllm.utils.import_utils import resolve_obj_by_qualname
class AttentionBackendEnum(enum.Enum):
    PLAIN = "vllm.v1.attention.backends.plain.PlainBackend"
    MLA = "vllm.v1.attention.backends.plain.MlaBackend"
    def get_class(self):
        return resolve_obj_by_qualname(self.value)
"""

_BACKENDS = """
import torch
from dataclasses import dataclass
from typing import ClassVar
@dataclass
class MultipleOf:
    base: int
@torch.compile(dynamic=True)
def kernel(x):
    return x
class PlainImpl(torch.nn.Module):
    def __init__(self, num_heads, head_size, kv_cache_dtype, alibi_slopes=None, **rest):
        self.table = torch.zeros(num_heads)
        if torch.distributed.is_initialized():
            self.rank = 1
        if kv_cache_dtype != "auto":
            raise ValueError("PlainImpl takes no " + kv_cache_dtype)
class MlaImpl(PlainImpl):
    def __init__(self, num_heads, head_size, kv_cache_dtype, **rest):
        super().__init__(num_heads, head_size, kv_cache_dtype, **rest)
        valid = num_heads in {heads}
        assert valid, f"heads must be of {heads}, not {{num_heads}}"
class PlainBackend:
    supported: ClassVar[list] = [MultipleOf({multiple})]
    @staticmethod
    def get_supported_kernel_block_sizes():
        return PlainBackend.supported
    @staticmethod
    def get_impl_cls():
        return PlainImpl
    @classmethod
    def is_mla(cls):
        return False
    @classmethod
    def is_sparse(cls):
        return False
class MlaBackend(PlainBackend):
    @staticmethod
    def get_supported_kernel_block_sizes():
        return [{forced}]
    @staticmethod
    def get_impl_cls():
        return MlaImpl
    @classmethod
    def is_mla(cls):
        return True
"""

_SELECTOR = """
from functools import cache
from typing import NamedTuple
from vllm.platforms import current_platform
from vllm.utils.import_utils import resolve_obj_by_qualname
class Config(NamedTuple):
    use_mla: bool
    use_sparse: bool
    block_size: int
def get_attn_backend(head_size, block_size, use_mla, use_sparse):
    config = Config(use_mla, use_sparse, block_size)
    return resolve_obj_by_qualname(current_platform.get_attn_backend_cls(None, config))
"""

_CACHE = """
from typing import Literal
BlockSize = Literal[1, 8, 16, 32, 64, 128, 256]
CacheDType = Literal["auto", "fp8"]
class CacheConfig:
    block_size = None
"""

_UTILS = """
def select_common_block_size(size, backends):
    for backend in backends:
        for one in backend.get_supported_kernel_block_sizes():
            base = getattr(one, "base", None)
            if size == one or (base and size % base == 0):
                return size
    raise ValueError(f"No common block size for {size}.")
"""


def sources(
    multiple: int = 32,
    forced: int = 16,
    heads: tuple[int, ...] = (16, 128),
    rests_on: str = "__class__ is None",
) -> dict[str, str]:
    """File -> text. multiple: of GQA's block size; forced: the size that MLA always runs;
    heads: what MLA takes; rests_on: a condition of the selector on `torch.cuda`."""
    facts = {"multiple": multiple, "forced": forced, "heads": heads, "rests_on": rests_on}
    return {
        "vllm/platforms/__init__.py": "",
        "vllm/platforms/interface.py": _INTERFACE,
        "vllm/platforms/cpu.py": _PLATFORM.format(**facts),
        "vllm/v1/attention/backends/registry.py": _REGISTRY,
        "vllm/v1/attention/backends/plain.py": _BACKENDS.format(**facts),
        "vllm/v1/attention/selector.py": _SELECTOR,
        "vllm/v1/worker/utils.py": _UTILS,
        "vllm/config/cache.py": _CACHE,
        f"vllm-{VERSION}.dist-info/METADATA": f"Name: vllm\nVersion: {VERSION}\n",
    }


def folder(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, text in files.items():
            made.writestr(name, text)
    return path
