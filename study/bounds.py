"""How fast it can be: what bandwidth and arithmetic leave room for, and what other things cost.

A *bound* counts only work that cannot be avoided, so nothing measured may beat it. An *estimate*
adds what is likely but not certain, and its docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.optimize import brentq

from study import theory
from study.capacity import Weights
from study.hardware import Hardware
from study.models import Model, Part

# Megatron-LM (arXiv 1909.08053, section 3): one after attention, one after the feed-forward.
# A source that counts one a layer (digitalocean-wafer-2026) arrives at half of this.
ALL_REDUCES_PER_LAYER = 2
FLOP_PER_WEIGHT = 2  # a multiplication and an addition for each token
SECONDS_PER_HOUR = 3600.0
MILLION = 1e6


# --- decode ---------------------------------------------------------------------------------------


def distinct_experts(experts: int, per_token: int, tokens: float) -> float:
    """Experts of a layer that a batch of tokens touches, expected under uniform routing.

    Estimate: a token misses an expert with probability 1 - k/E, independently of the others
    (occupancy; Feller, An Introduction to Probability Theory I, IV.2). Real routing is uneven and
    touches fewer; no batch touches fewer than k.
    """
    missed = (1.0 - per_token / experts) ** tokens
    return experts * (1.0 - float(missed))


@dataclass(frozen=True)
class Step:
    """What one decoding step has to do on each device."""

    batch: int
    weight_bytes: float
    kv_bytes: float
    flop: float

    def seconds(self, hardware: Hardware, weight_format: str) -> float:
        """The time it takes at least: as long as memory or arithmetic needs (the roofline of
        Williams, Waterman and Patterson, CACM 52(4), 2009)."""
        memory_s = (self.weight_bytes + self.kv_bytes) / hardware.bandwidth_bytes_s
        rate = hardware.rate_flop_s(weight_format)
        return max(memory_s, self.flop / rate) if rate else memory_s


def decode_step(
    model: Model,
    size: Weights,
    batch: int,
    context_tokens: float,
    tensor_parallel: int = 1,
    *,
    expert_parallel: int = 1,
    experts_touched: float | None = None,
) -> Step:
    """One decoding step, on each device, of a batch of requests that have so many tokens each.

    Read are all weights but the embedding (a row a token is nothing), of the experts only those
    of one token: that many are read even if all tokens choose the same. `experts_touched` (of a
    layer) makes an estimate of it; see `distinct_experts`. With expert parallelism `batch` is
    that of one device, and only the experts are shared out.
    """
    active = theory.parts(model, active=True)
    touched = experts_touched / (model.experts_per_token or 1) if experts_touched else 1.0
    read: dict[Part, float] = {**active, "experts": active["experts"] * touched / expert_parallel}
    held = {part: count for part, count in read.items() if part not in ("embedding", "vision")}
    weight_bytes = sum(size.bytes_of(part, count) for part, count in held.items())
    # Each device computes the experts of its share of all tokens: as many as its own batch.
    flop = FLOP_PER_WEIGHT * theory.read_parameters(model) * batch
    cache = theory.kv_bytes_read(model, context_tokens, tensor_parallel=tensor_parallel)
    return Step(batch, weight_bytes / tensor_parallel, batch * cache, flop / tensor_parallel)


def decode_tok_s(
    model: Model,
    size: Weights,
    hardware: Hardware,
    batch: int,
    context_tokens: float,
    tensor_parallel: int = 1,
) -> float:
    """Bound on the output tokens per second of one instance with so many requests in flight.

    No communication, no launches, no sampling: bytes that must be read, over bandwidth, and
    arithmetic over its rate. Divide by `batch` for one request's share.
    """
    step = decode_step(model, size, batch, context_tokens, tensor_parallel)
    return batch / step.seconds(hardware, size.format)


def likely_decode_tok_s(
    model: Model,
    size: Weights,
    hardware: Hardware,
    batch: int,
    context_tokens: float,
    tensor_parallel: int = 1,
) -> float:
    """Estimate: the same with the experts that a batch touches under uniform routing."""
    touched = None
    if model.experts and model.experts_per_token:
        touched = distinct_experts(model.experts, model.experts_per_token, batch)
    step = decode_step(model, size, batch, context_tokens, tensor_parallel, experts_touched=touched)
    return batch / step.seconds(hardware, size.format)


# --- prefill --------------------------------------------------------------------------------------


def prefill_flop(model: Model, tokens: int) -> float:
    """Arithmetic of one prompt: two operations a weight and token (the head only for the last),
    and causal attention, each token to all before it or, if sparse, to `index_top` of them
    (Kaplan et al., arXiv 2001.08361, section 2.1, with attention as it is here)."""
    weights = FLOP_PER_WEIGHT * theory.parameters(model, active=True) * tokens
    head = FLOP_PER_WEIGHT * theory.parts(model, active=True)["head"]
    if model.attention == "gqa":
        per_pair = 2 * (model.head_dim or 0)
    else:
        per_pair = (model.nope_dim or 0) + (model.rope_dim or 0) + (model.value_dim or 0)
    top = min(model.index_top or tokens, tokens)
    pairs = top * (top + 1) / 2 + (tokens - top) * top
    return weights + head + FLOP_PER_WEIGHT * model.layers * model.heads * per_pair * pairs


def prefill_s(
    model: Model,
    size: Weights,
    hardware: Hardware,
    tokens: int,
    tensor_parallel: int = 1,
    *,
    expert_parallel: int = 1,
) -> float | None:
    """Bound on the time to first token of a prompt alone on the machine, in seconds.

    None where no source states a matrix rate.
    """
    rate = hardware.rate_flop_s(size.format)
    if rate is None:
        return None
    routed = FLOP_PER_WEIGHT * theory.parts(model, active=True)["experts"] * tokens
    flop = prefill_flop(model, tokens) - routed * (1 - 1 / expert_parallel)
    read = decode_step(model, size, 1, 0.0, tensor_parallel, expert_parallel=expert_parallel)
    memory_s = read.weight_bytes / hardware.bandwidth_bytes_s
    return max(flop / tensor_parallel / rate, memory_s)


def serving_tok_s(
    model: Model,
    size: Weights,
    hardware: Hardware,
    level: int,
    input_tokens: float,
    output_tokens: float,
) -> float:
    """Bound on output tokens per second of a whole window with so many requests in flight.

    Prefill makes the first token and may hide behind the reading of decode, which makes the others
    at the mean of their contexts. But its arithmetic must be done as well: every output token
    carries its share of the prompt's.
    """
    decoded = (output_tokens - 1) / output_tokens  # of all output tokens
    context = decoded * (input_tokens + output_tokens / 2)
    memory_bound = decode_tok_s(model, size, hardware, level, context)
    rate = hardware.rate_flop_s(size.format)
    if rate is None:
        return memory_bound
    prompt = prefill_flop(model, round(input_tokens)) / output_tokens
    each = decoded * FLOP_PER_WEIGHT * theory.read_parameters(model)
    return min(memory_bound, rate / (each + prompt))


# --- what tensor parallelism and kernels cost -----------------------------------------------------


def all_reduce_s(model: Model, each_s: float, per_layer: int = ALL_REDUCES_PER_LAYER) -> float:
    """Time of the all-reduces of one step, from the time of one."""
    return model.layers * per_layer * each_s


def all_reduce_wire_s(model: Model, batch: int, devices: int, hardware: Hardware) -> float | None:
    """Bound on one all-reduce of a step's activations (bf16): 2 (n-1)/n of the message crosses
    each device's links (Patarasuk and Yuan, JPDC 69(2), 2009). None without a link bandwidth."""
    if hardware.link_gb_s is None:
        return None
    message = batch * model.width * theory.BF16_BYTES
    return 2 * (devices - 1) / devices * message / (hardware.link_gb_s * 1e9)


def launch_tax_s(layers: int, kernels_per_layer: int, launch_s: float, *, graphs: bool) -> float:
    """Time that launching kernels takes in one step, where it does not hide behind their work:
    each kernel's, or with a captured graph one launch for all (NVIDIA, Getting started with CUDA
    graphs; 2 to 5 microseconds a launch on ROCm by digitalocean-wafer-2026)."""
    return launch_s * (1 if graphs else layers * kernels_per_layer)


# --- speculative decoding -------------------------------------------------------------------------


def tokens_per_round(acceptance: float, draft_tokens: int) -> float:
    """Tokens that one round of drafting and verifying yields on average, if each draft token is
    accepted with the same probability (Leviathan et al., arXiv 2211.17192, equation 1)."""
    return sum(acceptance**i for i in range(draft_tokens + 1))


def speculation_speedup(
    acceptance: float, draft_tokens: int, draft_cost: float, verify_cost: float = 1.0
) -> float:
    """Tokens per second with speculation over without (the same, theorem 3.8).

    draft_cost: a draft step over a step of the target. verify_cost: verifying all draft tokens
    over an ordinary step; 1 while memory limits both, more in a batch that arithmetic limits.
    """
    return tokens_per_round(acceptance, draft_tokens) / (draft_tokens * draft_cost + verify_cost)


def break_even_acceptance(draft_tokens: int, draft_cost: float, verify_cost: float = 1.0) -> float:
    """The acceptance below which speculation loses; 0 when it never does, NaN when it always does
    (or, at its best, breaks even)."""

    def gain(acceptance: float) -> float:
        return speculation_speedup(acceptance, draft_tokens, draft_cost, verify_cost) - 1.0

    if gain(0.0) >= 0:
        return 0.0
    return float(brentq(gain, 0.0, 1.0)) if gain(1.0) > 0 else math.nan


# --- what it is worth -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """Throughput of a device against what one user sees, at one batch size."""

    batch: int
    tok_s_user: float
    tok_s_device: float
    likely_tok_s_user: float  # with the experts that the batch touches under uniform routing
    likely_tok_s_device: float


def interactivity(
    model: Model,
    size: Weights,
    hardware: Hardware,
    batches: Iterable[int],
    context_tokens: float,
    tensor_parallel: int = 1,
) -> list[Point]:
    """The bound, and the estimate, on both axes of the usual trade-off, batch by batch."""
    points = []
    for batch in batches:
        asked = (model, size, hardware, batch, context_tokens, tensor_parallel)
        bound, likely = decode_tok_s(*asked), likely_decode_tok_s(*asked)
        each = 1 / batch, 1 / tensor_parallel
        points.append(Point(batch, *(x * s for x in (bound, likely) for s in each)))
    return points


def energy_j_per_token(power_w: float, tok_s: float) -> float:
    """Joules a token, from the power of all devices and their tokens per second together."""
    return power_w / tok_s


def cost_per_million_tokens(price_per_device_hour: float, devices: int, tok_s: float) -> float:
    """Price of a million tokens, in the currency of the price, at this rate the whole hour."""
    return price_per_device_hour * devices / (tok_s * SECONDS_PER_HOUR) * MILLION
