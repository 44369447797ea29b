"""`study fit`: how many devices a model needs, how it can be laid out, and how fast it can be.

Weights and cache are arithmetic on the architecture, as `study/models` has it; memory, bandwidth
and rates are those of `study/hardware`. What it prints are bounds: nothing runs faster, and what
really runs is slower.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass

import orjson

from study import bounds, capacity, hardware, models, theory
from study.capacity import GIGA, USABLE_SHARE, Topology, Weights
from study.hardware import Hardware
from study.models import Model


@dataclass(frozen=True)
class Laid:
    """One layout that holds the weights; figures of one replica, but for `decode_tok_s`."""

    kind: str
    devices: int
    replicas: int
    weights_gb_per_device: float
    kv_bytes_per_token_per_device: int
    kv_tokens: int
    requests: int  # of the context asked for, at once
    decode_tok_s: float  # bound, all replicas together, at the concurrency asked for
    ttft_s: float | None  # bound, a prompt of that length alone


@dataclass(frozen=True)
class Fit:
    """Everything that is said of a model on some hardware; the fields are those of `--json`."""

    weights_gb: float
    kv_bytes_per_token: int
    devices_by_capacity_nominal: int
    devices_by_capacity_usable: int
    devices_by_divisibility: int | None
    fits_one_device: bool
    topologies: list[Laid]
    bounds: dict[str, float | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `study fit`."""
    parser.description = __doc__
    parser.add_argument("--model", required=True, help=f"one of {', '.join(models.names())}")
    parser.add_argument(
        "--hardware", required=True, help=f"one of {', '.join(hardware.names())}, this-machine"
    )
    parser.add_argument("--format", help=f"of the weights: {', '.join(capacity.BITS)}")
    parser.add_argument("--context", type=_count, default=32768, help="tokens a request holds")
    parser.add_argument("--concurrency", type=_count, default=8, help="requests in flight")
    parser.add_argument("--json", action="store_true", help="the same as one JSON object")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def main(options: argparse.Namespace) -> int:
    """Reckon and print."""
    model, device = models.load(options.model), _device(options.hardware)
    size = capacity.weights(model, options.format or capacity.usual_format(model, device))
    found = fit(model, device, size, options.context, options.concurrency)
    if options.json:
        print(orjson.dumps(asdict(found), option=orjson.OPT_INDENT_2).decode())
    else:
        print("\n".join(_lines(found, model, device, size, options.context, options.concurrency)))
    return 0


def _device(name: str) -> Hardware:
    from study import machine

    return machine.measure() if name == machine.NAME else hardware.load(name)


def fit(
    model: Model, device: Hardware, size: Weights, context_tokens: int, concurrency: int
) -> Fit:
    """How a model in some format fits a device, for so many requests of so many tokens."""
    usable = capacity.devices_by_capacity(size, device, USABLE_SHARE)
    shared_out = capacity.devices_by_divisibility(model, usable)
    nodes = -(-(shared_out or usable) // device.node_devices)
    whole = nodes * device.node_devices
    asked = context_tokens, concurrency
    laid = [
        _laid(one, model, device, size, *asked)
        for one in capacity.topologies(model, size, device, whole, context_tokens)
    ]
    return Fit(
        weights_gb=size.bytes / GIGA,
        kv_bytes_per_token=theory.kv_bytes_per_token(model),
        devices_by_capacity_nominal=capacity.devices_by_capacity(size, device),
        devices_by_capacity_usable=usable,
        devices_by_divisibility=shared_out,
        fits_one_device=any(one.devices == 1 and one.requests for one in laid),
        topologies=laid,
        bounds=_bounds(model, device, size, shared_out, *asked),
    )


def _laid(
    one: Topology, model: Model, device: Hardware, size: Weights, context: int, concurrency: int
) -> Laid:
    """Requests are spread evenly over replicas (and, where attention is data parallel, over
    their devices). Replicas decode each at their own pace; the devices of one keep step, with the
    fullest, which has as many requests as the even share rounded up."""
    tensor, expert = (one.devices, 1) if one.kind == "tensor" else (1, one.devices)

    def tok_s(requests: int) -> float:
        batch = -(-requests // expert)
        step = bounds.decode_step(model, size, batch, context, tensor, expert_parallel=expert)
        return requests / step.seconds(device, size.format)

    share, more = divmod(concurrency, one.replicas)  # so many replicas have one request more
    return Laid(
        kind=one.kind,
        devices=one.devices,
        replicas=one.replicas,
        weights_gb_per_device=one.weight_bytes_per_device / GIGA,
        kv_bytes_per_token_per_device=one.kv_bytes_per_token,
        kv_tokens=one.kv_tokens,
        requests=one.requests,
        decode_tok_s=more * tok_s(share + 1) + (one.replicas - more) * tok_s(share),
        ttft_s=bounds.prefill_s(model, size, device, context, tensor, expert_parallel=expert),
    )


def _bounds(
    model: Model,
    device: Hardware,
    size: Weights,
    tensor_parallel: int | None,
    context: int,
    concurrency: int,
) -> dict[str, float | None]:
    """Of one instance with the fewest devices that tensor parallelism can use."""
    if tensor_parallel is None:
        return {}
    asked = (model, size, device, concurrency, context, tensor_parallel)
    one_s = bounds.decode_step(model, size, 1, 0, tensor_parallel).seconds(device, size.format)
    return {
        "tensor_parallel": tensor_parallel,
        "decode_tok_s_one_request_no_context": 1 / one_s,
        "decode_tok_s": bounds.decode_tok_s(*asked),
        "decode_tok_s_uniform_routing": bounds.likely_decode_tok_s(*asked),
        "ttft_s": bounds.prefill_s(model, size, device, context, tensor_parallel),
    }


# --- as text --------------------------------------------------------------------------------------


def _lines(
    found: Fit, model: Model, device: Hardware, size: Weights, context: int, concurrency: int
) -> list[str]:
    usable_gb = device.memory_gb * USABLE_SHARE
    cache_gb = found.kv_bytes_per_token * context * concurrency / GIGA
    nominal, usable = found.devices_by_capacity_nominal, found.devices_by_capacity_usable
    return [
        f"{model.name} in {size.format} on {device.name} ({device.description})",
        f"weights        {found.weights_gb:,.1f} GB: {size.how}",
        f"cache          {found.kv_bytes_per_token:,} bytes a token; {concurrency} x {context:,} "
        f"tokens = {cache_gb:,.1f} GB" + _replicated(model),
        "",
        "devices by capacity, weights alone:",
        f"  nominal      {found.weights_gb:,.1f} / {device.memory_gb:g} GB = "
        f"{found.weights_gb / device.memory_gb:.2f} -> {nominal}",
        f"  usable       {found.weights_gb:,.1f} / ({USABLE_SHARE:g} x {device.memory_gb:g}) GB = "
        f"{found.weights_gb / usable_gb:.2f} -> {usable}",
        f"devices by divisibility, at least {usable}:",
        f"  tensor parallel  {_shared_out(model, found.devices_by_divisibility)}",
        f"  expert parallel  {_experts(model, device, size)}",
        f"one instance on one device: {'yes' if found.fits_one_device else 'no'}",
        "",
        *_layouts(found, device, context),
        "",
        *_limits(found, model, device, size, context, concurrency),
    ]


def _replicated(model: Model) -> str:
    if model.attention == "mla":
        return " on every device (MLA has no heads to share out)"
    return f", shared out over up to {model.kv_heads} devices"


def _shared_out(model: Model, devices: int | None) -> str:
    heads = f"{model.heads} heads"
    if devices is None:
        return f"none: {heads} are fewer than the devices"
    return f"{devices}: {heads} / {devices} = {model.heads // devices} a device"


def _experts(model: Model, device: Hardware, size: Weights) -> str:
    if not model.experts:
        return "none: it has no experts"
    fewest = {
        share: capacity.devices_by_experts(model, size, device, share)
        for share in (USABLE_SHARE, 1.0)
    }
    devices, nominal = fewest[USABLE_SHARE], fewest[1.0]
    if devices is None:
        return "none: what every device must hold beside experts does not fit"
    held = capacity.expert_parallel_bytes(model, size, devices) / GIGA
    return (
        f"{devices}: {model.experts} experts / {devices} = {model.experts // devices} a device, "
        f"{held:,.1f} GB with all other weights on each (nominal: {nominal})"
    )


def _layouts(found: Fit, device: Hardware, context: int) -> list[str]:
    head = (
        f"{'layout':<22}{'GB a device':>12}{'cache tokens':>14}{f'x {context:,}':>11}"
        f"{'decode tok/s':>14}{'TTFT':>10}"
    )
    rows = [
        f"{f'{one.kind} {one.devices} x {one.replicas}':<22}{one.weights_gb_per_device:>12,.1f}"
        f"{one.kv_tokens:>14,}{one.requests:>11,}{one.decode_tok_s:>14,.0f}{_seconds(one.ttft_s):>10}"
        for one in found.topologies
    ]
    return [
        f"layouts that hold the weights (parallel x replicas; room at {USABLE_SHARE:.0%} of "
        f"{device.memory_gb:g} GB, bounds of all replicas together):",
        head,
        *(rows or ["none"]),
    ]


def _limits(
    found: Fit, model: Model, device: Hardware, size: Weights, context: int, concurrency: int
) -> list[str]:
    if not found.bounds:
        return ["no bounds: no number of devices can share the heads out"]
    count = int(found.bounds["tensor_parallel"] or 1)
    step = bounds.decode_step(model, size, 1, 0, count)
    alone, together = found.bounds["decode_tok_s_one_request_no_context"], found.bounds
    lines = [
        f"bounds with tensor parallel {count}:",
        f"  one request, no context   {step.weight_bytes / GIGA:.2f} GB a step and device / "
        f"{device.bandwidth_gb_s:g} GB/s -> {alone:,.1f} tok/s",
        f"  {concurrency} requests of {context:,} tokens   {together['decode_tok_s']:,.1f} tok/s",
    ]
    if model.experts:
        lines.append(
            "    and by estimate, with the experts they touch under uniform routing, "
            f"{together['decode_tok_s_uniform_routing']:,.1f} tok/s"
        )
    flop, rate = bounds.prefill_flop(model, context), device.rate_flop_s(size.format)
    reckoned = (
        f"{flop / 1e12:,.0f} TFLOP / {count} / {rate / 1e12:,.0f} TFLOP/s -> "
        f"{_seconds(together['ttft_s'])}"
        if rate
        else f"unknown: no source states a dense rate for {size.format}"
    )
    return [*lines, f"  TTFT of {context:,} tokens   {reckoned}"]


def _seconds(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} s"
