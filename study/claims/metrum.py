"""Metrum AI for Dell: Kimi K2.5 on MI355X and MI300X, derived again."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial

from study import capacity, hardware, models, theory
from study.claims.evidence import OTHER, PHYSICS, Derivation, Evidence
from study.claims.printed import Number, exact, stated, through
from study.claims.published import Claim, Published

SOURCE = "metrum-2026"
REPLICAS = 8
MI300X, MI355X = {"hardware": "MI300X"}, {"hardware": "MI355X"}
GENERATION, LONG, SHORT = (128, 2048), (2048, 2048), (128, 128)  # tokens in, tokens out
TABLE_2 = (
    *((GENERATION, 128), (GENERATION, 256), (GENERATION, 512), (LONG, 128), (LONG, 256)),
    *((SHORT, 512), (SHORT, 1024)),
)
AITER_MLA_HEADS = (16, 128)  # a rank, in vLLM before 0.18 (pull request 35850; asserted in 0.14.1)
TABLE_2_DECIMALS = 2


def _throughput(published: Published, lengths: tuple[int, int], level: int, gpu: str) -> Number:
    return published.number(
        source=SOURCE, hardware=gpu, input_tokens=lengths[0], output_tokens=lengths[1],
        concurrency=level, metric="output_throughput",
    )  # fmt: skip


def _ratio(above: float, below: float) -> float:
    return above / below


def gen_on_gen(
    claim: Claim, published: Published, lengths: tuple[int, int], level: int
) -> Evidence:
    """MI355X over MI300X, from the rows of Table 2."""
    new, old = (_throughput(published, lengths, level, gpu) for gpu in ("MI355X", "MI300X"))
    return Evidence(
        computed=(through(_ratio, new, old),),
        unit="ratio",
        why=f"{new.value:g} / {old.value:g} tok/s.",
        stated=stated(claim.stated, TABLE_2_DECIMALS),
    )


# --- errors and effective throughput --------------------------------------------------------------


def implied_raw(treatment: float, advantage: float, error_share: float) -> float:
    """The raw throughput of the baseline behind `advantage` = treatment / (raw (1 - error))."""
    return treatment / advantage / (1 - error_share)


def effective(
    claim: Claim,
    published: Published,
    lengths: tuple[int, int],
    level: int,
    raw: Mapping[str, str],
) -> Evidence:
    """What the effective advantage implies for the throughput that is not printed.

    If raw throughput counts the tokens of completed requests, as load generators do, failed ones
    are in it already and multiplying by (1 - error) takes them off twice.
    """
    where = {"source": SOURCE, "concurrency": level}
    new = published.number(**where, hardware="MI355X", **raw)
    least = "at least " if raw["metric"].endswith("at_least") else ""
    new = Number(new.value, new.low, math.inf) if least else new
    errors = published.number(
        **where, hardware="MI300X", metric="error_rate",
        input_tokens=lengths[0], output_tokens=lengths[1],
    )  # fmt: skip
    (advantage,) = stated(claim.stated)
    share = through(lambda percent: percent / 100, errors)
    old = through(implied_raw, new, advantage, share)
    once = new.value / old.value
    missing = published.lacks(
        f"MI300X's raw throughput at {level}, and which tokens it counts",
        **where, hardware="MI300X", metric="output_throughput", input_tokens=lengths[0],
        output_tokens=lengths[1],
    )  # fmt: skip
    return Evidence(
        computed=(old,),
        unit=f"tok/s raw on MI300X, implied{', at least' if least else ''}",
        why=f"{least.capitalize()}{new.value:,.0f} tok/s over {claim.stated} and over "
        f"1 - {share.value:.3g} implies {least}{old.value:,.0f} tok/s raw on MI300X; if that "
        "counts completed requests only, the failed ones are taken off twice and the advantage is "
        f"{once:.2f}.",
        relation="alone",
        missing=missing,
    )


# --- power ----------------------------------------------------------------------------------------


def _power(published: Published) -> Number:
    return published.number(source=SOURCE, metric="system_power")


def tokens_per_watt(_: Claim, published: Published) -> Evidence:
    """Output tokens per second over watts."""
    rate, power = _throughput(published, GENERATION, 1024, "MI355X"), _power(published)
    return Evidence(
        computed=(through(_ratio, rate, power),),
        unit="tok/s/W",
        why=f"{rate.value:,.0f} tok/s / {power.value:,.0f} W: tokens per second and watt, that is "
        f"{power.value / rate.value:.3g} J a token.",
    )


def node_power(_: Claim, published: Published) -> Evidence:
    """The node's power against what its boards may draw."""
    node, board = _power(published), hardware.load("mi355x")
    assert board.power_w
    most, each = exact(REPLICAS * board.power_w), node.value / REPLICAS
    return Evidence(
        computed=(most,),
        unit="W of the boards at most",
        why=f"{node.value:,.0f} W for {REPLICAS} boards, were the host free, is {each:.0f} W each: "
        f"{each / board.power_w:.0%} of the {board.power_w:,.0f} W that a board may draw, and the "
        "same at every level.",
        relation="at most",
        missing=published.lacks(
            "what the meter covers, and an idle power", source=SOURCE, metric="idle_power"
        ),
    )


def efficiency_gain(claim: Claim, published: Published) -> Evidence:
    """Tokens per watt at 1,024 over those of one request: at flat power, throughput over that."""
    rate = _throughput(published, GENERATION, 1024, "MI355X")
    one = through(_ratio, rate, *stated(claim.stated))
    return Evidence(
        computed=(one,),
        unit="tok/s of one request, implied",
        why=f"{rate.value:,.0f} / {claim.stated} implies {one.value:.0f} tok/s for one request.",
        relation="alone",
        missing=published.lacks(
            "throughput of one request",
            source=SOURCE, hardware="MI355X", metric="output_throughput", concurrency=1,
        ),
    )  # fmt: skip


def least_gain(high: float, busy: float, replicas: int = REPLICAS) -> float:
    """Least gain over one request that `replicas` allow: one of them, busy with its share of the
    requests behind `busy` tok/s, makes at least as many tokens as when it has a single request."""
    return high / (busy / replicas)


def single_request(claim: Claim, published: Published) -> Evidence:
    """The nine times against the source's own throughput at 128 requests on eight replicas."""
    rate = _throughput(published, GENERATION, 1024, "MI355X")
    busy = _throughput(published, GENERATION, 128, "MI355X")
    one = rate.value / float(claim.stated)
    least = through(least_gain, rate, busy)
    return Evidence(
        computed=(least,),
        unit="ratio, at least",
        why=f"{one:.0f} tok/s for one request would be {REPLICAS * one:,.0f} for one on each of "
        f"{REPLICAS} independent replicas; {busy.value:g} are printed for 128 requests. A replica "
        f"makes no fewer tokens with more requests, so the gain would have to be {least.value:.0f} "
        "or more.",
        relation="at least",
        missing="throughput of one request",
    )


# --- memory and heads -----------------------------------------------------------------------------


def least_weights_gb() -> float:
    """Kimi K2.5 with all of its weights, embeddings too, at 4.25 bits."""
    every = theory.parts(models.load("kimi-k2.5"), active=False)
    return sum(every.values()) * capacity.BITS["mxfp4"] / 8 / 1e9


def instance_memory(_: Claim, __: Published) -> Evidence:
    """The weights of one instance at 4.25 bits each, against what is said of it."""
    gpu, size = hardware.load("mi355x"), least_weights_gb()
    kept = capacity.weights(models.load("kimi-k2.5"), "mxfp4").bytes / 1e9
    return Evidence(
        computed=(exact(size),),
        unit="GB at least",
        why=f"With every weight at {capacity.BITS['mxfp4']:g} bits an instance takes {size:.0f} GB "
        f"before any cache ({kept:.0f} with what AMD's checkpoint leaves in 16 bits); a GPU has "
        f"{gpu.memory_gb:.0f}, so eight replicas at TP=1 cannot each have been the whole model.",
        relation="at least",
        refutes=PHYSICS,
        missing="the launch command and the engine's log",
    )


def memory_gain(_: Claim, __: Published) -> Evidence:
    """Memory of the two GPUs."""
    new, old = hardware.load("mi355x").memory_gb, hardware.load("mi300x").memory_gb
    return Evidence((exact(new / old),), "ratio", f"{new:g} / {old:g} GB by the data sheets.")


def two_nodes(claim: Claim, published: Published) -> Evidence:
    """GPUs with 192 GB that the source itself runs the model on."""
    gpus = sorted(
        {int(n) for n in published.rows(source=SOURCE, table="Table 2", **MI300X)["gpus"]}
    )
    return Evidence(
        computed=tuple(exact(n) for n in gpus),
        unit="GPUs",
        why=f"Its own Table 2 runs the model on one node of {gpus[0]} MI300X with "
        f"{hardware.load('mi300x').memory_gb:g} GB each.",
        stated=tuple(exact(int(n)) for n in re.findall(r"(\d+)\+ GPUs", claim.statement)),
    )


def heads(_: Claim, published: Published) -> Evidence:
    """Of its configurations, those whose heads on each rank AITER's MLA accepted."""
    model, rows = models.load("kimi-k2.5"), published.rows(source=SOURCE, table="Table 2")
    ranks = {int(n): model.heads // int(n) for n in sorted(set(rows["tensor_parallel"]))}
    said = " and ".join(f"{found} at TP={rank}" for rank, found in ranks.items())
    return Evidence(
        computed=(exact(sum(found in AITER_MLA_HEADS for found in ranks.values())),),
        unit="of its configurations accepted",
        why=f"{model.heads} heads are {said}; AITER's MLA took {AITER_MLA_HEADS[0]} or "
        f"{AITER_MLA_HEADS[1]} a rank before vLLM 0.18, and the article ran "
        f"{rows['engine'].iloc[0]}.",
        refutes=OTHER,
        stated=(exact(len(ranks)),),
    )


def aiter_hardware(_: Claim, published: Published) -> Evidence:
    """GPUs on which AITER is switched on and off in published tables."""
    rows = published.measurements
    switched = rows[rows["note"].str.startswith("AITER on")]
    gpus = sorted(set(switched["hardware"]))
    return Evidence(
        computed=(exact(len(switched)),),
        unit="figures with AITER on, elsewhere",
        why=f"AITER is a kernel library: another source switches it on and off on {', '.join(gpus)}"
        f", an older GPU, in {len(switched)} figures, which a block of MI355X could not be.",
        refutes=OTHER,
        stated=(exact(0),),
    )


# --- what users see -------------------------------------------------------------------------------


def ttft_everywhere(_: Claim, published: Published) -> Evidence:
    """Levels for which a median TTFT is printed at all."""
    shown = published.curve(source=SOURCE, hardware="MI355X", metric="ttft_p50")
    return Evidence(
        computed=(exact(max(shown)),),
        unit="requests, the highest level with a median",
        why=f"Medians are printed for {' and '.join(f'{n:,}' for n in shown)} only, and no "
        "percentile above the median for MI355X.",
        relation="alone",
        missing=published.lacks(
            "TTFT at 2,048, and p95 or p99 at any level",
            source=SOURCE, hardware="MI355X", metric="ttft_p50", concurrency=2048,
        ),
    )  # fmt: skip


def tok_s_user(throughput: float, level: float) -> float:
    """What each of so many requests in flight sees."""
    return throughput / level


def interactive_users(_: Claim, published: Published) -> Evidence:
    """What one request sees at 1,024, and how long its answer takes."""
    rate = _throughput(published, GENERATION, 1024, "MI355X")
    each = through(tok_s_user, rate, exact(1024))
    minutes = GENERATION[1] / each.value / 60
    return Evidence(
        computed=(each,),
        unit="tok/s a request at 1,024",
        why=f"Each request sees {each.value:.2f} tok/s, so {GENERATION[1]:,} tokens take "
        f"{minutes:.0f} minutes, whatever the first one took.",
        relation="alone",
        missing=published.lacks(
            "requests per user and the speed that counts as interactive",
            source=SOURCE, metric="requests_per_user",
        ),
    )  # fmt: skip


def linear_scaling(_: Claim, published: Published) -> Evidence:
    """Throughput gained against requests added."""
    curve = published.curve(
        source=SOURCE, metric="output_throughput", input_tokens=128, output_tokens=2048, **MI355X
    )
    low, high = min(curve), max(curve)
    return Evidence(
        computed=(through(_ratio, curve[high], curve[low]),),
        unit="ratio",
        why=f"{high / low:g} times the requests, {low:,} to {high:,}, bring "
        f"{curve[high].value:,.0f} / {curve[low].value:,.0f} tok/s.",
        stated=(exact(high / low),),
    )


def expert_routing(_: Claim, published: Published) -> Evidence:
    """Nothing to derive a share of time from."""
    return Evidence(
        computed=(),
        unit="",
        why="No time of any kernel is printed.",
        relation="alone",
        missing=published.lacks("a profile of a step", source=SOURCE, metric="routing_share"),
    )


def _name(lengths: tuple[int, int]) -> str:
    return f"{lengths[0]}/{lengths[1]}"


DERIVATIONS: dict[str, Derivation] = {
    **{
        f"gen-on-gen {_name(lengths)} c={level}": partial(gen_on_gen, lengths=lengths, level=level)
        for lengths, level in TABLE_2
    },
    "effective 128/2048 c=1024": partial(
        effective, lengths=GENERATION, level=1024,
        raw={"metric": "output_throughput", "output_tokens": "2048"},
    ),
    "effective 2048/2048 c=512": partial(
        effective, lengths=LONG, level=512,
        raw={"metric": "output_throughput_at_least"},
    ),
    "tokens per watt c=1024": tokens_per_watt,
    "efficiency gain": efficiency_gain,
    "node power": node_power,
    "instance memory": instance_memory,
    "memory gain": memory_gain,
    "AITER is a hardware block": aiter_hardware,
    "median TTFT below 2 s at all levels": ttft_everywhere,
    "expert routing overhead": expert_routing,
    "single request implied": single_request,
    "AITER MLA in this configuration": heads,
    "192 GB needs two nodes": two_nodes,
    "interactive users": interactive_users,
    "linear scaling": linear_scaling,
}  # fmt: skip
