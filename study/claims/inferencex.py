"""SemiAnalysis InferenceX: MI355X before and after vLLM 0.18, derived again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import numpy as np

from study import models
from study.claims.evidence import Derivation, Evidence
from study.claims.printed import Number, exact, printed, stated, through
from study.claims.published import Claim, Published

SOURCE = "semianalysis-2026-03"
BEFORE, AFTER, AFTER_TP4 = "TP=8 2026-03-01", "TP=8 2026-03-26", "TP=4 2026-03-26"
LEVELS = (4, 8, 16, 32, 64)
INPUT_TOKENS, OUTPUT_TOKENS = 8192, 1024
# What the article itself says has changed beside the pull request.
ALSO_CHANGED = ("AITER enabled", "expert parallel enabled", "GEMM tuning")
ACCEPTED_SINCE_0_18 = (4, 8, *range(16, 129, 16))  # heads a rank, AITER's MLA
ACCEPTED_BEFORE = (16, 128)


def curve(published: Published, table: str, metric: str) -> dict[int, Number]:
    """A metric of one table by concurrency."""
    return published.curve(source=SOURCE, table=table, metric=metric)


def matched(_: Claim, published: Published, level: int) -> Evidence:
    """Interactivity after over before at the same concurrency."""
    old, new = (curve(published, table, "interactivity")[level] for table in (BEFORE, AFTER))
    return Evidence(
        computed=(through(lambda a, b: a / b, new, old),),
        unit="ratio",
        why=f"{new.value:g} / {old.value:g} tok/s a user.",
    )


# --- at one throughput ----------------------------------------------------------------------------


def at_throughput(rates: Mapping[int, float], speeds: Mapping[int, float], wanted: float) -> float:
    """Interactivity at a throughput per GPU: linear between measured points, and beyond the last
    two along their line (see `measured_at` for whether it had to be)."""
    x = np.array(list(rates.values()))
    y = np.array(list(speeds.values()))
    right = int(np.clip(np.searchsorted(x, wanted), 1, len(x) - 1))
    slope = (y[right] - y[right - 1]) / (x[right] - x[right - 1])
    return float(y[right - 1] + slope * (wanted - x[right - 1]))


def measured_at(rates: Mapping[int, Number], wanted: float) -> bool:
    """Whether a throughput lies within what was measured."""
    return min(n.low for n in rates.values()) <= wanted <= max(n.high for n in rates.values())


def speed_at(published: Published, table: str, wanted: float) -> Number:
    """Interactivity at a throughput, from TPOT as printed: 1,000 / ms has more digits than the
    printed interactivity of the slow curve."""
    rates = {
        level: n.value for level, n in curve(published, table, "total_throughput_per_gpu").items()
    }
    times = curve(published, table, "tpot")

    def of(*tpot_ms: float) -> float:
        speeds = {level: 1000 / ms for level, ms in zip(times, tpot_ms, strict=True)}
        return at_throughput(rates, speeds, wanted)

    return through(of, *times.values())


def after_at(published: Published, wanted: float) -> float:
    """Interactivity after, from the printed one, which has more digits than its TPOT."""
    rates = curve(published, AFTER, "total_throughput_per_gpu")
    speeds = curve(published, AFTER, "interactivity")
    return at_throughput(
        {level: n.value for level, n in rates.items()},
        {level: n.value for level, n in speeds.items()},
        wanted,
    )


def iso_throughput(_: Claim, published: Published, wanted: int) -> Evidence:
    """The gain at one throughput per GPU; outside of what was measured before, only said."""
    rates = curve(published, BEFORE, "total_throughput_per_gpu")
    new, old = after_at(published, wanted), speed_at(published, BEFORE, wanted)
    gain = through(lambda slow: new / slow, old)
    why = f"{new:.1f} / {old.value:.2f} tok/s a user, the latter from unrounded 1,000 / TPOT"
    if measured_at(rates, wanted):
        return Evidence((gain,), "ratio", f"{why}, between its two highest levels.")
    highest = max(n.value for n in rates.values())
    return Evidence(
        computed=(gain,),
        unit="ratio, extrapolated",
        why=f"{why}; but vLLM 0.16 was measured to {highest:g} tok/s/GPU only, so {wanted} is "
        "beyond its range, as the source says itself.",
        relation="alone",
        missing=f"vLLM 0.16 above {highest:g} tok/s/GPU: more than {max(rates)} requests",
    )


# --- peaks ----------------------------------------------------------------------------------------


def _peak(published: Published, table: str) -> Number:
    return max(curve(published, table, "total_throughput_per_gpu").values(), key=lambda n: n.value)


def _b200(published: Published) -> Number:
    return published.number(source=SOURCE, hardware="B200", metric="total_throughput_per_gpu")


def peak(_: Claim, published: Published) -> Evidence:
    """The best after, at TP=4, over the best before, at TP=8."""
    new, old, same = (_peak(published, table) for table in (AFTER_TP4, BEFORE, AFTER))
    return Evidence(
        computed=(through(lambda a, b: a / b, new, old),),
        unit="ratio",
        why=f"{new.value:,.0f} at TP=4 over {old.value:g} at TP=8; TP=8 over TP=8 is "
        f"{same.value / old.value:.1f}.",
    )


def against_b200(_: Claim, published: Published) -> Evidence:
    """The best after as a share of B200's."""
    new, other = _peak(published, AFTER_TP4), _b200(published)
    return Evidence(
        computed=(through(lambda a, b: a / b, new, other),),
        unit="ratio",
        why=f"{new.value:,.0f} / {other.value:,.0f} tok/s/GPU.",
    )


def behind(_: Claim, published: Published) -> Evidence:
    """B200's best over the best before."""
    old, other = _peak(published, BEFORE), _b200(published)
    return Evidence(
        computed=(through(lambda a, b: a / b, other, old),),
        unit="ratio",
        why=f"{other.value:,.0f} / {old.value:g} tok/s/GPU: the gap was larger than said.",
    )


def rack_scale(claim: Claim, published: Published) -> Evidence:
    """What the gap implies for the figure that is not printed."""
    best, (gap,) = _peak(published, AFTER_TP4), stated(claim.stated)
    implied = Number(best.value * gap.value, best.low * gap.low, best.high * gap.high)
    return Evidence(
        computed=(implied,),
        unit="tok/s/GPU of GB200, implied",
        why=f"{claim.stated} times {best.value:,.0f} implies {implied.low:,.0f} to "
        f"{implied.high:,.0f} tok/s/GPU.",
        relation="alone",
        missing=published.lacks("GB200's throughput", source=SOURCE, hardware="GB200 NVL72"),
    )


# --- causes ---------------------------------------------------------------------------------------


def heads_per_rank(claim: Claim, __: Published) -> Evidence:
    """64 heads over 4 and over 8 ranks, and which of them AITER's MLA accepted."""
    heads = models.load("kimi-k2.5").heads
    ranks = {4: heads // 4, 8: heads // 8}
    before = [f"TP={rank}" for rank, found in ranks.items() if found in ACCEPTED_BEFORE]
    since = [f"TP={rank}" for rank, found in ranks.items() if found in ACCEPTED_SINCE_0_18]
    return Evidence(
        computed=tuple(exact(found) for found in ranks.values()),
        unit="heads a rank",
        why=f"{heads} heads over 4 and 8 ranks; by the rule as stated {', '.join(before)} was "
        f"accepted before 0.18, {' and '.join(since)} since.",
        stated=tuple(
            exact(int(n)) for n in re.findall(r"(\d+)(?: a rank)? at TP", claim.statement)
        ),
    )


def single_change(_: Claim, published: Published) -> Evidence:
    """Whether the two tables differ in one pull request only."""
    engines = [
        published.rows(source=SOURCE, table=one)["engine"].iloc[0] for one in (BEFORE, AFTER)
    ]
    assert engines[0] != engines[1]
    return Evidence(
        computed=(exact(1 + len(ALSO_CHANGED)),),
        unit="changes together",
        why=f"The tables compare {engines[0]} with {engines[1]}, and the article names further "
        f"changes: {', '.join(ALSO_CHANGED)}.",
        relation="alone",
        missing=published.lacks(
            "a run that differs in this pull request alone",
            source=SOURCE, engine=f"{engines[0]} with PR 35850",
        ),
    )  # fmt: skip


# --- what a token is ------------------------------------------------------------------------------


def counted_tokens(rate_per_gpu: float, gpus: float, level: float, tpot_ms: float) -> float:
    """Tokens of a request that tok/s/GPU must count, at least: by Little's law `level` requests of
    at least (output - 1) TPOT each (TTFT comes on top) finish level / E2E a second."""
    return rate_per_gpu * gpus * (OUTPUT_TOKENS - 1) * tpot_ms / 1000 / level


def what_is_counted(published: Published, table: str) -> Evidence:
    """Which tokens tok/s/GPU counts: of output, input and both, those that every level allows."""
    rates, times = (curve(published, table, name) for name in ("total_throughput_per_gpu", "tpot"))
    gpus = exact(int(published.rows(source=SOURCE, table=table)["gpus"].iloc[0]))
    least = [through(counted_tokens, rates[at], gpus, exact(at), times[at]) for at in rates]
    readings = OUTPUT_TOKENS, INPUT_TOKENS, INPUT_TOKENS + OUTPUT_TOKENS
    allowed = [reading for reading in readings if all(reading >= one.low for one in least)]
    low, high = (pick(one.value for one in least) for pick in (min, max))
    return Evidence(
        computed=tuple(map(exact, allowed)),
        unit="tokens of a request that it can count",
        why=f"By Little's law from TPOT and 8k/1k lengths it counts at least {low:,.0f} to "
        f"{high:,.0f} tokens a request, TTFT left out: input and output, not output alone.",
        stated=(exact(INPUT_TOKENS + OUTPUT_TOKENS),),
    )


def reciprocal(published: Published, table: str) -> Evidence:
    """Interactivity against 1,000 / TPOT, level by level."""
    speeds, times = curve(published, table, "interactivity"), curve(published, table, "tpot")
    return Evidence(
        computed=tuple(through(lambda ms: 1000 / ms, one) for one in times.values()),
        unit="tok/s a user",
        why="1,000 / TPOT; the printed milliseconds have fewer digits than the speeds.",
        stated=tuple(speeds.values()),
    )


def read_at(published: Published) -> Evidence:
    """The four interactivities that the article read from its curves, read again."""
    rows = published.rows(source=SOURCE, table="iso-throughput")
    wanted = [float(note.split()[1]) for note in rows["note"]]
    found = [
        exact(after_at(published, rate)) if at % 2 else speed_at(published, BEFORE, rate)
        for at, rate in enumerate(wanted)
    ]
    return Evidence(
        computed=tuple(found),
        unit="tok/s a user",
        why="Linear between points; the third is beyond the measured range, as the article says.",
        stated=tuple(printed(value) for value in rows["value"]),
    )


DERIVATIONS: dict[str, Derivation] = {
    **{f"matched concurrency c={level}": partial(matched, level=level) for level in LEVELS},
    **{f"iso-throughput {rate}": partial(iso_throughput, wanted=rate) for rate in (337, 380)},
    "peak throughput": peak,
    "against B200": against_b200,
    "heads per rank": heads_per_rank,
    "a single PR": single_change,
    "10x behind on 1 March": behind,
    "rack scale gap": rack_scale,
}
