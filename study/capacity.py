"""What fits: bytes of weights by format, and room for the cache beside them."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from study import theory
from study.errors import unknown_name
from study.hardware import Hardware
from study.models import Checkpoint, Model, Part

# Bits that a weight takes with its scales. OCP MX v1.0: 8 bits for 32 values; NVFP4: 8 bits for
# 16 (NVIDIA, Blackwell); int4 as in compressed-tensors: 16 bits for 32; fp8 and int8: one scale for
# a block of 128 x 128 or more, which does not count.
BITS = {"bf16": 16.0, "fp8": 8.0, "int8": 8.0, "int4": 4.5, "mxfp4": 4.25, "nvfp4": 4.5}
# What quantisers leave in bf16 when nobody says which parts a checkpoint has in its format.
LEFT: tuple[Part, ...] = ("router", "embedding", "head", "vision")
# Of a device's memory, what an engine takes for weights and cache; the rest is for activations,
# graphs and the system (vLLM's --gpu-memory-utilization, 0.9 until 0.18, 0.92 in 0.32).
USABLE_SHARE = 0.9
GIGA = 1e9


@dataclass(frozen=True)
class Weights:
    """The weights of a model in a format. `how` says where the bytes come from."""

    format: str
    quantised: tuple[Part, ...]
    bytes: float
    how: str

    def bytes_of(self, part: Part, parameters: float) -> float:
        """Bytes of so many parameters of a part."""
        return parameters * _bits(part, self.quantised, self.format) / 8


def usual_format(model: Model, hardware: Hardware) -> str:
    """The first of the hardware's formats that the model has a checkpoint in; else bf16."""
    return next((one for one in hardware.formats if one in model.checkpoints), "bf16")


def weights(model: Model, weight_format: str) -> Weights:
    """The weights of the main model in this format, without layers for multi-token prediction.

    As its publisher states them where that is so; else from the architecture. StudyError for a
    format that nobody knows.
    """
    if weight_format not in BITS:
        raise unknown_name("a format", weight_format, BITS)
    known = model.checkpoints.get(weight_format)
    if known is None:
        quantised = tuple(part for part in theory.PARTS if part not in LEFT)
        how = f"by the architecture, all but {', '.join(LEFT)} in {weight_format}"
        return Weights(weight_format, quantised, _stored(model, weight_format, quantised), how)
    if known.bytes and not known.includes_mtp:
        return Weights(weight_format, known.quantised, float(known.bytes), known.source)
    held = f", {', '.join(known.quantised)} in {weight_format}" if known.quantised else ""
    how = f"by the architecture{held} as in {known.source}"
    size = _stored(model, weight_format, known.quantised)
    return Weights(weight_format, known.quantised, size, how)


def checkpoint_bytes(model: Model, weight_format: str, published: Checkpoint) -> float:
    """Bytes of a published checkpoint by the architecture alone, to be held against its own."""
    size = _stored(model, weight_format, published.quantised)
    if not published.includes_mtp:
        return size
    bits = _bits("experts", published.quantised, weight_format)  # nearly all of that layer
    copies = model.mtp_layers * theory.counted(model, ("embedding", "head"), active=False)
    return size + theory.mtp_parameters(model) * bits / 8 + copies * theory.BF16_BYTES


def _stored(model: Model, weight_format: str, quantised: Collection[Part]) -> float:
    every = theory.parts(model, active=False)
    return sum(count * _bits(part, quantised, weight_format) / 8 for part, count in every.items())


def _bits(part: Part, quantised: Collection[Part], weight_format: str) -> float:
    return BITS[weight_format] if part in quantised else BITS["bf16"]


# --- how many devices ---------------------------------------------------------------------------


def devices_by_capacity(size: Weights, hardware: Hardware, share: float = 1.0) -> int:
    """Devices whose memory together holds the weights, and nothing else."""
    return math.ceil(size.bytes / (hardware.memory_bytes * share))


def divides(model: Model, devices: int) -> bool:
    """Whether tensor parallelism can share the heads out: whole heads to each, and KV heads
    either shared out evenly or replicated evenly (vLLM refuses everything else)."""
    if model.heads % devices:
        return False
    kv = model.kv_heads
    return kv is None or kv % devices == 0 or devices % kv == 0


def devices_by_divisibility(model: Model, at_least: int) -> int | None:
    """The fewest devices, of at least so many, among which tensor parallelism can share the
    heads; None when there are more devices than heads."""
    return next((n for n in range(at_least, model.heads + 1) if divides(model, n)), None)


def devices_by_experts(
    model: Model, size: Weights, hardware: Hardware, share: float = USABLE_SHARE
) -> int | None:
    """The fewest devices with expert parallelism: each holds a whole number of experts of every
    layer and all other weights (attention is data parallel). None without experts."""
    if not model.experts:
        return None
    room = hardware.memory_bytes * share
    return next(
        (
            n
            for n in range(1, model.experts + 1)
            if model.experts % n == 0 and expert_parallel_bytes(model, size, n) <= room
        ),
        None,
    )


def expert_parallel_bytes(model: Model, size: Weights, devices: int) -> float:
    """Bytes of weights on each device with expert parallelism."""
    routed = size.bytes_of("experts", theory.parts(model, active=False)["experts"])
    return size.bytes - routed + routed / devices


# --- how much cache, and so how many requests -----------------------------------------------------


@dataclass(frozen=True)
class Topology:
    """One way to lay a model out: `replicas` instances of `devices` each."""

    kind: str  # "tensor", or "expert": experts shared out, attention data parallel
    devices: int
    replicas: int
    weight_bytes_per_device: float
    kv_bytes_per_token: int  # on each device
    kv_tokens: int  # of one replica
    requests: int  # of the context asked for that one replica's cache holds


def topology(
    model: Model,
    size: Weights,
    hardware: Hardware,
    kind: str,
    each: int,
    devices: int,
    context_tokens: int,
) -> Topology | None:
    """The layout with `each` devices a replica; None where the weights do not fit."""
    tensor = kind == "tensor"
    held = size.bytes / each if tensor else expert_parallel_bytes(model, size, each)
    room = hardware.memory_bytes * USABLE_SHARE - held
    if room < 0:
        return None
    per_token = theory.kv_bytes_per_token(model, tensor_parallel=each if tensor else 1)
    # With tensor parallelism every device holds (its share of) every token; with data-parallel
    # attention each holds whole requests of its own.
    tokens, ranks = int(room // per_token), 1 if tensor else each
    requests = tokens // context_tokens * ranks
    return Topology(kind, each, devices // each, held, per_token, tokens * ranks, requests)


def topologies(
    model: Model, size: Weights, hardware: Hardware, devices: int, context_tokens: int
) -> list[Topology]:
    """Every layout of a model over so many devices that holds its weights: tensor parallelism by
    every count that shares the heads out, and expert parallelism by every count that shares the
    experts out; the rest of the devices hold further replicas."""
    found = []
    for each in (n for n in range(1, devices + 1) if devices % n == 0):
        if divides(model, each):
            found.append(topology(model, size, hardware, "tensor", each, devices, context_tokens))
        if each > 1 and model.experts and model.experts % each == 0:
            found.append(topology(model, size, hardware, "expert", each, devices, context_tokens))
    return [one for one in found if one]
