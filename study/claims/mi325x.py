"""Georgiou (arXiv 2603.10031) and Vultr's cookbook: four models on 8 x MI325X, derived again.

The paper's tables are not public. The cookbook's have the same hardware, models and headline
peaks; that they are the same experiments is inferred, so what follows is about these tables.
"""

from __future__ import annotations

import math
import re

from scipy import optimize, stats

from study import bounds, capacity, hardware, models, theory
from study.audit import published as cookbook
from study.claims.evidence import Derivation, Evidence
from study.claims.levels import (
    DEEPSEEK,
    INFERRED,
    KIMI,
    LLAMA,
    QWEN,
    curves,
    nominal,
    saturation_long,
    saturation_short,
    thousand_users,
)
from study.claims.printed import Number, exact, printed, through
from study.claims.published import Claim, Published

PAPER, COOKBOOK = "georgiou-2026", cookbook.COOKBOOK
RUNS = 5
ABLATED_HIGH = (100, 200, 500)  # the levels of the ablation with a gain
SIGNIFICANCE, CONFIDENCE = 0.05, 0.95
DEVICES = 8


# --- what limits it -------------------------------------------------------------------------------


def bandwidth_share(steps_s: float, bytes_a_step: float, bandwidth_bytes_s: float) -> float:
    """Share of a device's bandwidth that reading so many bytes a step takes."""
    return steps_s * bytes_a_step / bandwidth_bytes_s


def bottleneck(_: Claim, published: Published) -> Evidence:
    """Llama at its peak: least share of bandwidth, and of the matrix rate, that it needs.

    Requests in flight make one token a step, so steps are at least output tokens over them.
    """
    name = f"stress saturation, {LLAMA}"
    curve = curves()[name]
    assert curve.fit
    peak = max(curve.windows, key=lambda window: window.rate("total_tok_s"))
    model, gpu = models.load("llama-3.1-405b"), hardware.load("mi325x")
    size, batch = capacity.weights(model, "fp8"), curve.in_flight[peak.level]
    step = bounds.decode_step(model, size, round(batch), curve.fit.tokens, DEVICES)
    steps_s = peak.rate("output_tok_s") / batch
    share = bandwidth_share(steps_s, step.weight_bytes + step.kv_bytes, gpu.bandwidth_bytes_s)
    operations = bounds.FLOP_PER_WEIGHT * theory.parameters(model, active=True)
    flop_s = operations * peak.rate("total_tok_s") / DEVICES
    rate = gpu.rate_flop_s("fp8")
    assert rate
    return Evidence(
        computed=(exact(100 * share),),
        unit="% of bandwidth at least",
        why=f"At Llama's peak {steps_s:.1f} steps/s must read {share:.0%} of the bandwidth, and "
        f"{peak.rate('total_tok_s'):,.0f} tok/s take {flop_s / rate:.0%} of the FP8 matrix rate, "
        "if no prompt came from a cache. What must be done points to arithmetic; what was done was "
        f"not counted. {INFERRED}",
        relation="alone",
        missing=published.lacks(
            "a counter of memory traffic", source=PAPER, metric="memory_bandwidth"
        ),
    )


# --- AITER ----------------------------------------------------------------------------------------


def welch(
    first: tuple[float, float], second: tuple[float, float], n: int = RUNS
) -> tuple[float, float, float]:
    """t, degrees of freedom (Satterthwaite) and two-sided p of two (mean, sd), n runs each."""
    errors = [sd**2 / n for _, sd in (first, second)]
    t = (first[0] - second[0]) / sum(errors) ** 0.5
    df = sum(errors) ** 2 / sum(error**2 / (n - 1) for error in errors)
    return t, df, float(2 * stats.t.sf(abs(t), df))


def p_of_gain(on: float, off: float, cov_on: float, cov_off: float) -> float:
    """p of the difference of two means whose runs vary by these coefficients of variation."""
    return welch((on, cov_on * on), (off, cov_off * off))[2]


def cov_that_loses(on: float, off: float, cov_off: float) -> float:
    """The variation of the runs with AITER from which on their gain is no longer significant."""
    return float(
        optimize.brentq(lambda cov: p_of_gain(on, off, cov, cov_off) - SIGNIFICANCE, 1e-4, 1.0)
    )


def ablation(published: Published) -> dict[int, tuple[Number, Number]]:
    """Throughput with and without AITER, by level."""
    rows = published.rows(source=COOKBOOK, table="AITER ablation")
    arms = {
        arm: {
            int(row["concurrency"]): printed(row["value"])
            for row in rows[rows["note"].str.startswith(f"AITER {arm}")].to_dict("records")
        }
        for arm in ("on", "off")
    }
    return {level: (arms["on"][level], off) for level, off in arms["off"].items()}


def variation(published: Published) -> dict[str, Number]:
    """The coefficients of variation that are printed, as shares: a span for each arm."""
    note = published.rows(source=COOKBOOK, table="AITER ablation")["note"].iloc[0]
    found = re.search(r"CoV on ([\d.]+)-([\d.]+) %, off ([\d.]+)-([\d.]+) %", note)
    assert found
    on, off = found.groups()[:2], found.groups()[2:]
    return {"on": _shares(*map(printed, on)), "off": _shares(*map(printed, off))}


def _shares(low: Number, high: Number) -> Number:
    """A span of percentages as one of shares."""
    return Number((low.value + high.value) / 200, low.low / 100, high.high / 100)


def losing(published: Published) -> dict[int, float]:
    """By level, the variation with AITER that loses the gain; without, as in the middle of what is
    printed, which hardly matters."""
    means, off = ablation(published), variation(published)["off"].value
    high = {at: means[at] for at in ABLATED_HIGH}
    return {at: cov_that_loses(on.value, without.value, off) for at, (on, without) in high.items()}


def aiter_gain(_: Claim, published: Published) -> Evidence:
    """Gains at 100, 200, 500, and the variation at which each is lost."""
    means = ablation(published)
    gains = [through(lambda on, off: 100 * (on / off - 1), *means[at]) for at in ABLATED_HIGH]
    lost = losing(published).values()
    return Evidence(
        computed=tuple(gains),
        unit="percent, at 100, 200, 500",
        why=f"As a ratio of means. With {RUNS} runs it is not significant (Welch, two-sided, "
        f"{SIGNIFICANCE:.0%}, unadjusted) once runs with AITER vary by "
        f"{', '.join(f'{100 * cov:.1f}' for cov in lost)} %, and 1 to 5 % is all that is printed; "
        f"with 100 requests a level the three are one load. {INFERRED}",
    )


def aiter_variability(_: Claim, published: Published) -> Evidence:
    """What the printed ranges allow for the ratio of variations."""
    spread = variation(published)
    ratio = through(lambda on, off: on / off, spread["on"], spread["off"])
    return Evidence(
        computed=(ratio,),
        unit="ratio that the ranges allow",
        why=f"The ranges, {spread['on'].low:.1%} to {spread['on'].high:.1%} over "
        f"{spread['off'].low:.2%} to {spread['off'].high:.2%} with their rounding, allow "
        f"{ratio.low:.1f} to {ratio.high:.0f}. {INFERRED}",
        relation="alone",
        missing=published.lacks(
            "the variation at each level", source=COOKBOOK, metric="coefficient_of_variation"
        ),
    )


# --- the rest -------------------------------------------------------------------------------------


def failure_bound(failures: int, requests: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound of a failure rate (Clopper and Pearson, one-sided)."""
    test = stats.binomtest(failures, requests, alternative="less")
    return float(test.proportion_ci(confidence, method="exact").high)


def no_failures(_: Claim, published: Published) -> Evidence:
    """How many failures none in so many requests leaves room for."""
    requests = int(published.number(source=PAPER, metric="requests").value)
    most = failure_bound(0, requests)
    return Evidence(
        computed=(exact(100 * most),),
        unit="percent failing, at most",
        why=f"None in {requests:,} bounds the rate at {most:.3%} ({CONFIDENCE:.0%}, exact), were "
        "all requests alike; they are pooled over levels and models.",
        relation="at most",
        missing=published.lacks("requests and failures by level", source=PAPER, metric="failures"),
    )


def vision_ratio(_: Claim, published: Published) -> Evidence:
    """Peak over peak, and the same per GPU."""
    rows = {name: {"source": PAPER, "model": name, "metric": "total_throughput_peak"}
            for name in (QWEN, KIMI)}  # fmt: skip
    above, below = (published.number(**where) for where in rows.values())
    gpus = [int(published.rows(**where)["gpus"].iloc[0]) for where in rows.values()]
    each = above.value / gpus[0] / (below.value / gpus[1])
    return Evidence(
        computed=(through(lambda a, b: a / b, above, below),),
        unit="ratio",
        why=f"{above.value:,.0f} on {gpus[0]} GPUs over {below.value:,.0f} on {gpus[1]}: "
        f"{each:.1f} for each GPU, image tokens included.",
    )


def block_size(_: Claim, published: Published) -> Evidence:
    """No figure compares block sizes."""
    return _uncompared(
        published.lacks("a run with another block size", source=PAPER, table="block size"),
        "A matter of back end and version, not of arithmetic: see the notebook on compatibility.",
    )


def offload(_: Claim, published: Published) -> Evidence:
    """No figure compares with and without."""
    return _uncompared(
        published.lacks("runs with and without offload", source=PAPER, table="KV offload"),
        "No figure with offload stands beside one without it, for either family.",
    )


def _uncompared(missing: str, why: str) -> Evidence:
    return Evidence(computed=(), unit="", why=why, relation="alone", missing=missing)


def later_sweep(_: Claim, published: Published) -> Evidence:
    """The later peaks over the headline's."""
    later = published.rows(source=COOKBOOK, metric="total_throughput_peak")
    ratios = []
    for row in later.to_dict("records"):
        first = published.number(source=PAPER, model=row["model"], metric="total_throughput_peak")
        ratios.append(through(lambda a, b: a / b, printed(row["value"]), first))
    found = sorted(one.value for one in ratios)
    assert set(later["input_tokens"]) == {""}
    return Evidence(
        computed=tuple(ratios),
        unit=f"times the headline ({', '.join(later['model'])})",
        why=f"The later peaks are {found[0]:.2f} to {found[-1]:.2f} times the headline's at "
        "similar nominal levels.",
        relation="alone",
        missing="the workload of the later sweep",
    )


def in_flight(request_s: float, latency_ms: float) -> float:
    """Little's law: requests in flight on average, from their rate and mean latency."""
    return request_s * latency_ms / 1000


def client(_: Claim, published: Published) -> Evidence:
    """What an echo server had in flight at nominal 1,000."""
    where = {"source": COOKBOOK, "table": "client against an echo server", "concurrency": 1000}
    rate, p50 = (published.number(**where, metric=name) for name in ("request_rate", "e2e_p50"))
    needed = 1000 / rate.value * 1000 / p50.value
    return Evidence(
        computed=(through(in_flight, rate, p50),),
        unit="requests in flight, by the median",
        why=f"{rate.value:g}/s x {p50.value:g} ms: for 1,000 in flight the mean latency would have "
        f"to be {needed:.0f} times the median, so the client was not tried at that level.",
        relation="at most",
        missing="mean latencies",
        stated=nominal(1000),
    )


def sd_of(half_width: float, n: int = RUNS) -> float:
    """Standard deviation behind a 95 % t interval of a mean."""
    t = float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))
    return half_width * math.sqrt(n) / t


def overlapping(claim: Claim, published: Published) -> Evidence:
    """The peaks of two models, whose intervals overlap, by Welch's test."""
    found = {}
    for model in (DEEPSEEK, LLAMA):
        where = {"source": COOKBOOK, "table": "multi-run", "model": model}
        half = published.number(**where, metric="total_throughput_ci95_halfwidth")
        peak = max(published.curve(**where, metric="total_throughput").values(), key=_value)
        found[model] = peak, half.value
    (low, low_half), (high, high_half) = found.values()
    t, df, p = welch((high.value, sd_of(high_half)), (low.value, sd_of(low_half)))
    touch = "overlap" if low.value + low_half > high.value - high_half else "are apart"
    return Evidence(
        computed=(low, exact(low_half), high, exact(high_half)),
        unit="tok/s: highest of each table, half its interval",
        why=f"Their intervals {touch}, yet Welch's t is {t:.1f} (df {df:.0f}, p = {p:.2f}): "
        "overlap says nothing of a difference.",
        stated=tuple(map(printed, re.findall(r"\d{3,}", claim.statement.replace(",", "")))),
    )


def _value(number: Number) -> float:
    return number.value


PAPER_DERIVATIONS: dict[str, Derivation] = {
    "block size": block_size,
    "offload": offload,
    "AITER gain": aiter_gain,
    "AITER variability": aiter_variability,
    "saturation short": saturation_short,
    "saturation long": saturation_long,
    "1000 users": thousand_users,
    "vision ratio": vision_ratio,
    "bottleneck": bottleneck,
    "no failures": no_failures,
}
COOKBOOK_DERIVATIONS: dict[str, Derivation] = {
    "later sweep": later_sweep,
    "client is not the limit": client,
    "DeepSeek against Llama, multi-run": overlapping,
}
