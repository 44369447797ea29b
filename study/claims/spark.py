"""The forum thread on Kimi K2.5 on DGX Sparks, derived again."""

from __future__ import annotations

import math

from study import bounds, capacity, hardware, models
from study.claims.evidence import Derivation, Evidence
from study.claims.printed import exact, stated, through
from study.claims.published import Claim, Published

SOURCE = "dgx-spark-thread"
ACTIVE, BYTES_A_WEIGHT = 32e9, 0.5  # as the thread counts
CLUSTER, PADDED_NODES = 8, 6


def decode_bound(bandwidth_gb_s: float, parameters: float, bytes_a_weight: float) -> float:
    """Tokens per second of one stream if each reads every active weight once."""
    return bandwidth_gb_s * 1e9 / (parameters * bytes_a_weight)


def thread_bound() -> float:
    """The bound with the thread's own numbers and the data sheet's bandwidth."""
    return decode_bound(hardware.load("dgx-spark").bandwidth_gb_s, ACTIVE, BYTES_A_WEIGHT)


def own_bound() -> float:
    """The same with the weights that a step must read in the published checkpoint."""
    model, node = models.load("kimi-k2.5"), hardware.load("dgx-spark")
    return bounds.decode_tok_s(model, capacity.weights(model, "nvfp4"), node, 1, 0.0)


def bandwidth_bound(_: Claim, __: Published) -> Evidence:
    """Bandwidth over bytes."""
    bound = thread_bound()
    return Evidence(
        computed=(exact(bound),),
        unit="tok/s",
        why=f"{hardware.load('dgx-spark').bandwidth_gb_s:g} GB/s over {ACTIVE / 1e9:g}e9 x "
        f"{BYTES_A_WEIGHT:g} byte; with scales and what stays in 16 bits as in the checkpoint, "
        f"{own_bound():.1f}.",
    )


def efficiency(_: Claim, published: Published) -> Evidence:
    """What was measured on one node over the bound."""
    one = published.number(source=SOURCE, metric="decode_speed", gpus=1)
    bound = thread_bound()
    share = through(lambda speed: speed / bound, one)
    return Evidence(
        computed=(share,),
        unit="ratio",
        why=f"{one.value:g} / {bound:.2f} tok/s, the only measurement of one node; the factor is "
        "a poster's rule of thumb.",
    )


def nodes_needed(_: Claim, published: Published) -> Evidence:
    """Nodes by capacity, and by the heads that must divide."""
    size = published.number(source=SOURCE, metric="checkpoint_size")
    model, node = models.load("kimi-k2.5"), hardware.load("dgx-spark")
    nominal = math.ceil(size.value / node.memory_gb)
    usable = math.ceil(size.value / (node.memory_gb * capacity.USABLE_SHARE))
    divided = capacity.devices_by_divisibility(model, nominal)
    assert divided
    return Evidence(
        computed=(exact(nominal), exact(divided)),
        unit="nodes",
        why=f"{size.value:g} GB over {node.memory_gb:g} GB each; {usable} at "
        f"{capacity.USABLE_SHARE:.0%} usable; {model.heads} heads divide by {divided}.",
    )


def dummy_heads(_: Claim, __: Published) -> Evidence:
    """Heads padded to a multiple of the nodes."""
    heads = models.load("kimi-k2.5").heads
    padded = -(-heads // PADDED_NODES) * PADDED_NODES
    return Evidence(
        computed=(exact(100 * (padded / heads - 1)),),
        unit="percent",
        why=f"{padded} / {heads} heads on {PADDED_NODES} nodes.",
    )


def two_nodes(_: Claim, published: Published) -> Evidence:
    """Two nodes over one."""
    one, two = (published.number(source=SOURCE, metric="decode_speed", gpus=n) for n in (1, 2))
    return Evidence(
        computed=(through(lambda a, b: a / b, two, one),),
        unit="ratio",
        why=f"{two.value:g} / {one.value:g} tok/s.",
    )


def zero_context(claim: Claim, published: Published) -> Evidence:
    """The bound of as many nodes as a cluster has; the post does not say how many."""
    bound, (speed,) = thread_bound(), stated(claim.stated)
    return Evidence(
        computed=(exact(CLUSTER * bound),),
        unit=f"tok/s at most on {CLUSTER} nodes",
        why=f"One node's bound is {bound:.1f}, and one cannot hold the model; the bound of "
        f"{math.ceil(speed.low / bound)} or more allows it.",
        relation="at most",
        missing=published.lacks(
            "how many nodes", source=SOURCE, metric="decode_speed", model="Kimi-K2.5"
        ),
    )


def expert_parallel(_: Claim, published: Published) -> Evidence:
    """No figure."""
    return Evidence(
        computed=(),
        unit="",
        why="Reported in words only.",
        relation="alone",
        missing=published.lacks(
            "speeds with and without expert parallelism", source=SOURCE, table="expert parallel"
        ),
    )


DERIVATIONS: dict[str, Derivation] = {
    "bandwidth bound": bandwidth_bound,
    "efficiency factor": efficiency,
    "nodes needed": nodes_needed,
    "dummy heads": dummy_heads,
    "two-node scaling": two_nodes,
    "20 tok/s at zero context": zero_context,
    "expert parallel gives nothing": expert_parallel,
}
