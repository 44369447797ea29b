"""Whether native KV offload starts, per family: the engine's own registration of KV caches, run.

Two steps can be derived without a device: whether the platform may offload at all, and whether
the connector finds a back end for every layer that has a KV cache. Copying is not derived.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from study.compat.devices import Device
from study.compat.source import Tree
from study.compat.stages import (
    ALLOWED,
    INDEXER,
    REFUSED,
    UNKNOWN,
    Engine,
    Family,
    Question,
    selected,
)
from study.compat.standin import Planted, Unknown
from study.compat.steps import Evidence, NotDerived, Refused, call, place

CONNECTORS = "vllm.distributed.kv_transfer.kv_connector.v1"
WORKER = f"{CONNECTORS}.offloading_connector.OffloadingConnectorWorker"
MIXIN = "vllm.v1.worker.kv_connector_model_runner_mixin"
SPECS = ("vllm.v1.kv_offload.cpu", "vllm.v1.kv_offload.cpu.spec")  # before and after it grew
LAYER, INDEXER_CACHE = "model.layers.0.self_attn.attn", "model.layers.0.self_attn.indexer.k_cache"
HEADS = 16
_SIZES = {"gpu_block_size": (16,), "offloaded_block_size": 16, "block_size_factor": 1}


@dataclass(frozen=True)
class Offload:
    """What becomes of offload. route: `one tensor` for all layers, or `layer by layer`."""

    family: str
    backend: str
    outcome: str
    route: str = ""
    words: str = ""
    evidence: str = ""


def offload(tree: Tree, device: Device, family: Family) -> Offload:
    """What the engine does when KV offload is asked for, with no back end named."""
    connector = Planted("connector", prefer_cross_layer_blocks=True)
    facts = {
        **{f"{module}.CpuGpuOffloadingHandlers": _nothing for module in SPECS},
        "vllm.distributed.kv_transfer.has_kv_transfer_group": lambda: True,
        "vllm.distributed.kv_transfer.get_kv_transfer_group": lambda: connector,
    }
    engine = Engine(tree, device, facts)
    exported = engine.loader.module("vllm.config").__dict__  # the package re-exports it
    exported["get_layers_from_vllm_config"] = engine.loader.resolve(
        "vllm.config.vllm.get_layers_from_vllm_config"
    )
    name = ""
    try:
        _may_offload(engine)
        size = 1 if family.sparse and device.kind == "rocm" else None
        backend = selected(engine, Question(family, "", size, "auto", HEADS))
        name = backend.__name__
        route, where = _register(engine, family, backend)
        return Offload(family.name, name, ALLOWED, route, evidence=str(where))
    except Refused as refused:
        found = refused.evidence
        return Offload(family.name, name, REFUSED, words=found.words, evidence=str(found))
    except NotDerived as error:
        return Offload(family.name, name, UNKNOWN, words=str(error))


def _may_offload(engine: Engine) -> None:
    """The platform's own check, in the class that makes the copies between GPU and CPU."""
    for name in SPECS:
        spec = engine.loader.module(name)
        made = None if isinstance(spec, Unknown) else spec.__dict__.get("CPUOffloadingSpec")
        if made is None:
            continue
        made_later = {"create_worker": _nothing, "create_handlers": _nothing}
        worker = Planted("spec", _handlers=None, _worker=None, **made_later, **_SIZES)
        if "get_worker" in made.__dict__:
            call(engine.loader, made.__dict__["get_worker"], worker, Planted("caches"))
        else:
            handlers = made.__dict__["get_handlers"]
            caches = len(inspect.signature(handlers).parameters) - 1  # once with their back ends
            call(engine.loader, next, handlers(worker, *[{}] * caches))
        return
    raise NotDerived("the class that offloads to CPU memory was not found")


def _nothing(*_: object, **__: object) -> Planted:
    return Planted("worker")


def _register(engine: Engine, family: Family, backend: Any) -> tuple[str, Evidence]:
    worker = engine.loader.resolve(WORKER)
    mixin = engine.loader.resolve(f"{MIXIN}.KVConnectorModelRunnerMixin")
    uniform = getattr(mixin, "use_uniform_kv_cache", None)
    if isinstance(worker, Unknown) or isinstance(mixin, Unknown) or uniform is None:
        raise NotDerived("this version registers KV caches as tensors, which were not made here")
    backends = {LAYER: backend}
    if family.sparse:
        backends = {INDEXER_CACHE: engine.loader.resolve(INDEXER), **backends}
    register = worker.register_kv_caches
    groups = [[Planted("group", backend=one, kv_cache_spec=_spec(engine, family))
               for one in backends.values()]]  # fmt: skip
    if call(engine.loader, uniform, groups, "auto"):
        return "one tensor for all layers", place(uniform)
    layers = {name: _layer(engine, name, family, one) for name, one in backends.items()}
    context = SimpleNamespace(static_forward_context=layers)
    config = SimpleNamespace(compilation_config=context)
    found: dict[str, Any] = {}
    here = SimpleNamespace(
        spec=Planted("spec", vllm_config=config),
        _register_handlers=lambda _caches, by_layer: found.update(by_layer),
    )
    try:
        call(engine.loader, register, here, dict.fromkeys(layers))
    except NotDerived as error:
        raise _missing(error, layers, place(register)) from error
    if found != backends:
        raise NotDerived(f"the connector found {found}")
    return "layer by layer", place(register)


def _missing(error: NotDerived, layers: Mapping[str, Any], where: Evidence) -> Exception:
    """A layer that the connector does not find is the engine's own error, not a stand-in's."""
    cause = error.__cause__
    if isinstance(cause, KeyError) and cause.args[0] in layers:
        return Refused(Evidence(where.file, where.line, where.function, f"KeyError: {cause}"))
    return error


def _spec(engine: Engine, family: Family) -> Any:
    name = "MLAAttentionSpec" if family.mla else "FullAttentionSpec"
    kind = engine.loader.resolve(f"vllm.v1.kv_cache_interface.{name}")
    spec = object.__new__(kind)
    facts = {
        "block_size": 16,
        "num_kv_heads": family.kv_heads(HEADS),
        "head_size": family.head_size,
    }
    for field, value in facts.items():
        object.__setattr__(spec, field, value)
    return spec


def _layer(engine: Engine, name: str, family: Family, backend: Any) -> Any:
    """A layer of the class that the engine's models use, with nothing in it but its back end."""
    if name == INDEXER_CACHE:
        kind = engine.loader.resolve(
            "vllm.model_executor.models.deepseek_v2.DeepseekV32IndexerCache"
        )
    else:
        kind = _layer_class(engine, "MLAAttention" if family.mla else "Attention")
    if isinstance(kind, Unknown):
        raise NotDerived(f"the class of layer {name} was not read: {kind}")
    layer: Any = object.__new__(type(kind.__name__, (kind,), {"__abstractmethods__": frozenset()}))
    layer.attn_backend = backend
    return layer


def _layer_class(engine: Engine, name: str) -> Any:
    for module in (
        "vllm.attention.layer",
        "vllm.model_executor.layers.attention.attention",
        "vllm.model_executor.layers.attention.mla_attention",
    ):
        found = engine.loader.module(module)
        if not isinstance(found, Unknown) and isinstance(found.__dict__.get(name), type):
            return found.__dict__[name]
    raise NotDerived(f"the class {name} was not found")
