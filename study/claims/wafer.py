"""DigitalOcean and Wafer on Kimi K2.5, DeepSeek V3.2 and GLM-5, derived again."""

from __future__ import annotations

import numpy as np

from study import bounds, capacity, hardware, models, theory
from study.claims.evidence import OTHER, Derivation, Evidence
from study.claims.printed import Number, exact, stated, through
from study.claims.published import Claim, Published

SOURCE = "digitalocean-wafer-2026"
ELEMENT_BITS, SCALE_BITS = 4, 8
BLOCKS = (32, 16)  # values that share a scale
LAYERS, DEVICES, ALL_REDUCE_US = 60, 8, (5, 15)  # as the article has them
KIMI_INPUT_TOKENS = 10_000
DRAFTS = (1, 2, 4)  # draft tokens a round
LOW_ACCEPTANCE, HIGH_ACCEPTANCE = 0.5, 0.8


def _pair(published: Published, model: str, metric: str) -> tuple[Number, Number]:
    where = {"source": SOURCE, "model": model, "metric": metric}
    old, new = (published.number(**where, engine=engine) for engine in ("stock", "optimised"))
    return new, old


def single_stream(_: Claim, published: Published) -> Evidence:
    """Optimised over stock."""
    new, old = _pair(published, "Kimi-K2.5", "output_speed_per_request")
    return Evidence(
        computed=(through(lambda a, b: a / b, new, old),),
        unit="ratio",
        why=f"{new.value:g} / {old.value:g} tok/s.",
    )


def decode_bound() -> float:
    """Tokens per second that the node's bandwidth allows one request of Kimi K2.5, at its 10k."""
    model, gpu = models.load("kimi-k2.5"), hardware.load("mi350x")
    size = capacity.weights(model, "mxfp4")
    return bounds.decode_tok_s(model, size, gpu, 1, KIMI_INPUT_TOKENS, DEVICES)


# --- per request and in aggregate -----------------------------------------------------------------


def ttft_share(per_request: float, in_all: float) -> float:
    """Share of the faster E2E that an unchanged TTFT must take for both gains to be true.

    With a level held, throughput in aggregate gains as E2E does. Let TTFT be the share x of E2E
    before. If the rest shrinks by g = `per_request` and the whole by a = `in_all`, then
    x + (1 - x) / g = 1 / a, and the share after is a x. NaN where no x in [0, 1] does that.
    """
    before = (per_request / in_all - 1) / (per_request - 1)
    after = before * in_all
    return after if 0 <= after <= 1 else np.nan


def per_request(claim: Claim, published: Published) -> Evidence:
    """The gain of one request's speed against that of all, at one level."""
    new, old = _pair(published, "DeepSeek-V3.2", "aggregate_throughput")
    in_all = through(lambda a, b: a / b, new, old)
    (gain,) = stated(claim.stated)
    share = ttft_share(gain.value, in_all.value)
    return Evidence(
        computed=(in_all,),
        unit="ratio in aggregate",
        why=f"At a held level both gains are one number if speed counts the whole request; here "
        f"{new.value:,.0f} / {old.value:g} is {in_all.value:.2f}. Both are true if TTFT "
        f"stayed as it was and is now {share:.0%} of a request's time.",
        relation="equals" if np.isnan(share) else "alone",
        missing=published.lacks(
            "TTFT at 64, and what output speed counts",
            source=SOURCE, model="DeepSeek-V3.2", metric="ttft_p50",
        ),
    )  # fmt: skip


def tokens_per_step(tok_s: float, itl_ms: float) -> float:
    """Tokens that come with each chunk if one stream makes so many tokens a second."""
    return tok_s * itl_ms / 1000


def glm_speed(_: Claim, published: Published) -> Evidence:
    """Mean throughput against the time between tokens."""
    where = {"source": SOURCE, "model": "GLM-5"}
    rate = published.number(**where, metric="output_throughput_mean")
    gap = published.number(**where, metric="itl")
    each = through(tokens_per_step, rate, gap)
    return Evidence(
        computed=(each,),
        unit="tokens a step, or streams",
        why=f"{gap.value:g} ms are {1000 / gap.value:.1f} steps/s, so {rate.value:g} tok/s take "
        f"{each.value:.1f} tokens a step (speculation), or as many streams.",
        relation="alone",
        missing=published.lacks(
            "the concurrency, and tokens a step", **where, metric="tokens_per_step"
        ),
    )


# --- formats, models, hardware --------------------------------------------------------------------


def bits_per_weight(block: int) -> float:
    """Bits of a block-scaled 4-bit weight with its share of the scale."""
    return ELEMENT_BITS + SCALE_BITS / block


def mxfp4_size(_: Claim, __: Published) -> Evidence:
    """Element and scale bits over a block."""
    with_scale = {block: bits_per_weight(block) for block in BLOCKS}
    said = ", ".join(f"{block} values: {bits:g}" for block, bits in with_scale.items())
    return Evidence(
        computed=(exact(with_scale[BLOCKS[0]]),),
        unit="bit",
        why=f"{ELEMENT_BITS} bits and a scale of {SCALE_BITS} bits over {said}.",
    )


def glm_size(_: Claim, __: Published) -> Evidence:
    """Parameters by the architecture, beside the model's own card."""
    model = models.load("glm-5")
    assert model.card
    total = theory.counted(model, model.card.total_counts, active=False) / 1e9
    active = theory.counted(model, model.card.active_counts, active=True) / 1e9
    return Evidence(
        computed=(exact(total),),
        unit="1e9 parameters",
        why=f"The architecture has {total:.0f}, {active:.0f} of them active; its own card says "
        f"{model.card.total / 1e9:.0f} and {model.card.active / 1e9:.0f}.",
        refutes=OTHER,
    )


def bandwidth(_: Claim, published: Published) -> Evidence:
    """The data sheets of the GPUs that the article names."""
    cells = published.rows(source=SOURCE)["hardware"]
    gpus = sorted({gpu for cell in cells for gpu in cell.split("/") if gpu})
    sheets = {gpu: hardware.load(gpu.lower()).bandwidth_gb_s / 1000 for gpu in gpus}
    other = hardware.load("mi325x").bandwidth_gb_s / 1000
    return Evidence(
        computed=tuple(exact(value) for value in sheets.values()),
        unit=f"TB/s ({', '.join(sheets)})",
        why=f"The data sheet of each says {min(sheets.values()):g} TB/s or more; {other:g} is "
        "MI325X's, which the article does not run on.",
        refutes=OTHER,
    )


def mla_compression(_: Claim, __: Published) -> Evidence:
    """Full keys and values of every head, as the article's baseline, over MLA's vector."""
    found = {}
    for name in ("kimi-k2.5", "deepseek-v3.2", "glm-5"):
        model = models.load(name)
        assert model.nope_dim and model.rope_dim and model.value_dim
        assert model.kv_rank
        full = model.heads * (model.nope_dim + model.rope_dim + model.value_dim)
        found[name] = full / (model.kv_rank + model.rope_dim)
    return Evidence(
        computed=tuple(exact(ratio) for ratio in found.values()),
        unit=f"ratio ({', '.join(found)})",
        why="Against full keys and values of every head, which the article names as the baseline, "
        f"the shapes of its models give {', '.join(f'{ratio:.0f}' for ratio in found.values())}; "
        "less only against a baseline with grouped heads, which it does not name.",
        refutes=OTHER,
    )


# --- overheads ------------------------------------------------------------------------------------


def launch_overhead(_: Claim, published: Published) -> Evidence:
    """Nothing to compare with."""
    return Evidence(
        computed=(),
        unit="",
        why="A measured time; no arithmetic gives it.",
        relation="alone",
        missing=published.lacks("a measurement on ROCm", source=SOURCE, metric="launch_overhead"),
    )


def all_reduce(_: Claim, __: Published) -> Evidence:
    """The time that the wires need at least."""
    model, gpu = models.load("deepseek-v3.2"), hardware.load("mi355x")
    wire_s = bounds.all_reduce_wire_s(model, 1, DEVICES, gpu)
    assert wire_s
    return Evidence(
        computed=(exact(wire_s * 1e6),),
        unit="us on the wire at least",
        why=f"{model.width * theory.BF16_BYTES:,} bytes need {wire_s * 1e6:.3f} us on the links: "
        "what is stated is latency, which only a measurement gives.",
        relation="at least",
        missing="a measurement on this node",
    )


def tp_tax(_: Claim, __: Published) -> Evidence:
    """Layers times the time of one all-reduce, as the article counts, and with two a layer."""
    once = [LAYERS * each for each in ALL_REDUCE_US]
    twice = [bounds.ALL_REDUCES_PER_LAYER * us for us in once]
    return Evidence(
        computed=tuple(map(exact, once)),
        unit="us",
        why=f"{LAYERS} x {ALL_REDUCE_US[0]} to {ALL_REDUCE_US[1]} us, one a layer; a transformer "
        f"layer has {bounds.ALL_REDUCES_PER_LAYER}, which makes {twice[0]:,} to {twice[1]:,}.",
    )


def speculation(claim: Claim, published: Published) -> Evidence:
    """The draft cost that the stated gain leaves, and what it then gives at low acceptance."""
    gain = float(claim.stated)
    costs = {k: draft_cost(gain, HIGH_ACCEPTANCE, k) for k in DRAFTS}
    low = [bounds.speculation_speedup(LOW_ACCEPTANCE, k, cost) for k, cost in costs.items()]
    said = ", ".join(f"{cost:.2f}" for cost in costs.values())
    return Evidence(
        computed=tuple(exact(one) for one in low),
        unit="speed-up at 50 %, for 1, 2, 4 draft tokens",
        why=f"{gain:g} at {HIGH_ACCEPTANCE:.0%} takes draft steps of {said} of a target step for "
        f"{', '.join(map(str, DRAFTS))} draft tokens; at {LOW_ACCEPTANCE:.0%} these give "
        f"{', '.join(f'{one:.2f}' for one in low)}.",
        relation="alone",
        missing=published.lacks("draft length and draft cost", source=SOURCE, metric="draft_cost"),
    )


def draft_cost(speedup: float, acceptance: float, draft_tokens: int) -> float:
    """Cost of a draft step, in target steps, that leaves so much of a speed-up."""
    return (bounds.tokens_per_round(acceptance, draft_tokens) / speedup - 1) / draft_tokens


def no_accuracy_loss(_: Claim, published: Published) -> Evidence:
    """No figure of accuracy."""
    return Evidence(
        computed=(),
        unit="",
        why="No accuracy is printed, before or after, and no comparison of outputs.",
        relation="alone",
        missing=published.lacks("an accuracy figure", source=SOURCE, metric="accuracy"),
    )


DERIVATIONS: dict[str, Derivation] = {
    "Kimi single stream": single_stream,
    "DeepSeek c=64 per request": per_request,
    "GLM-5": glm_speed,
    "MXFP4 size": mxfp4_size,
    "launch overhead": launch_overhead,
    "all-reduce": all_reduce,
    "TP tax": tp_tax,
    "speculation": speculation,
    "MLA compression": mla_compression,
    "GLM-5 size": glm_size,
    "HBM bandwidth": bandwidth,
    "no accuracy loss": no_accuracy_loss,
}
