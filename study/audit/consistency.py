"""Two gates that need no more than the file itself: do its numbers agree, and can they be?

A result that was edited, cut or mixed up rarely stays consistent: rates are counts over the
duration, summaries are those of the arrays, and no time is negative or longer than the run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from study.audit.arithmetic import number
from study.audit.detail import ARRAYS, Detail
from study.audit.formats import Window
from study.finite import Floats, only
from study.gates.judgement import Finding, Judgement, none_of, of_findings

SLACK_S = 0.001  # clocks are read before and after what they time
SLACK = 0.001
# The end of a stream may come after its last chunk, with the count of its tokens.
STREAMED, STREAMED_S = 0.01, 0.010
# What, as stated, as it follows from other numbers, and how far they may be apart, relatively.
Pair = tuple[str, float, float, float]


def conservation(window: Window) -> Judgement:
    """Rates equal counts over the duration, counts add up, summaries are those of the arrays."""
    findings = [*_rates(window), *_counts(window), *_summaries(window), *_spreads(window)]
    limit = f"equal within {window.rounding:.1%}, rates also within half their last digit"
    if not findings:
        text = "There is nothing to check: no two numbers of it are of the same thing."
        return Judgement("conservation", "window", "cannot judge", math.nan, limit, text)
    missing = _missing(window.detail) if window.detail is not None else []
    if missing and all(right for right, _ in findings):
        text = f"{'; '.join(missing)}: what follows from them cannot be checked."
        return Judgement("conservation", "window", "cannot judge", missing[0], limit, text)
    return of_findings("conservation", findings, limit, "numbers agree with the others of the file")


def times(window: Window) -> Judgement:
    """No negative or impossible time: of the summaries, and of each request in the detail."""
    findings = [*_durations(window), *_ordered(window), *_of_requests(window)]
    if not findings:
        text = "No time is stated."
        return Judgement("times", "window", "cannot judge", math.nan, "possible", text)
    return of_findings("times", findings, "no impossible time", "checks of times hold")


# ------------------------------------------------------------------------------- conservation


def _rates(window: Window) -> Iterator[Finding]:
    duration_s, rate, slack = window.duration_s, window.rate, window.slack
    both = window.input_tokens + window.output_tokens
    pairs: list[Pair] = []
    if duration_s > 0:
        pairs += [
            (what, rate(name), count / duration_s, slack(name, "duration_s"))
            for what, name, count in (
                ("requests/s", "request_s", window.completed),
                ("input tokens/s", "input_tok_s", window.input_tokens),
                ("output tokens/s", "output_tok_s", window.output_tokens),
                ("total tokens/s", "total_tok_s", both),
            )
        ]
    for found, names in (
        (rate("input_tok_s") + rate("output_tok_s"), ("input_tok_s", "output_tok_s")),
        (rate("request_s") * window.tokens_per_request, ("request_s", "tokens_per_request")),
    ):
        pairs.append(("total tokens/s", rate("total_tok_s"), found, slack("total_tok_s", *names)))
    yield from _equal(pairs)
    for what, name in (("input", "input_tok_s"), ("output", "output_tok_s")):
        part, whole = rate(name), rate("total_tok_s")
        if not math.isnan(part + whole):
            text = f"{number(part)} {what} tokens/s are above all {number(whole)} tokens/s"
            yield part <= whole * (1 + slack(name, "total_tok_s")), text
    good, every = rate("goodput_request_s"), window.request_s
    if not math.isnan(good + every):
        room = 1 + slack("goodput_request_s", "request_s", "duration_s")
        text = f"goodput {number(good)}/s is above all {number(every)} requests/s"
        yield good <= every * room, text


def _counts(window: Window) -> Iterator[Finding]:
    for name, count in (("completed", window.completed), ("failed", window.failed)):
        if count < 0:
            yield False, f"{number(count)} requests {name}"
    made = window.completed + (0.0 if math.isnan(window.failed) else window.failed)
    if not math.isnan(window.requests + made):
        text = f"{number(made)} requests ended of {number(window.requests)} that were made"
        yield made <= window.requests, text
    detail = window.detail
    if detail is None:
        return
    fine = detail.fine
    pairs: list[Pair] = [
        ("completed", window.completed, float(fine.sum()), 0.0),
        ("failed", window.failed, float((~fine).sum()), 0.0),
        ("input tokens", window.input_tokens, float(detail.input_tokens[fine].sum()), 0.0),
        ("output tokens", window.output_tokens, float(detail.output_tokens[fine].sum()), 0.0),
    ]
    yield from _equal(pairs)


def _summaries(window: Window) -> Iterator[Finding]:
    """Mean, standard deviation and percentiles as stated, against those of the arrays."""
    if window.detail is None:
        return
    pairs: list[Pair] = []
    for metric, values_s in _samples(window.detail).items():
        kept_s = only(values_s)
        for statistic, stated_s in window.times_s.get(metric, {}).items():
            if kept_s.size and kept_s.size == values_s.size:
                found_s = _statistic(kept_s, statistic)
                what = f"{statistic} of {metric.upper()} in s"
                pairs.append((what, stated_s, found_s, window.rounding))
    gaps, fine = window.detail.gaps, window.detail.fine
    if gaps is not None and (count := float((gaps.chunks[fine] - 1).sum())) > 0:
        mean_s = float(gaps.sum_s[fine].sum()) / count
        pairs.append(("mean of ITL in s", window.time_s("itl", "mean"), mean_s, window.rounding))
    yield from _equal(pairs)


def _spreads(window: Window) -> Iterator[Finding]:
    """Mean and median are at most a standard deviation apart, whatever the distribution."""
    for metric, times_s in window.times_s.items():
        mean_s, median_s, std_s = (times_s.get(name, math.nan) for name in ("mean", "p50", "std"))
        if not math.isnan(mean_s + median_s + std_s):
            room_s = (abs(std_s) + abs(mean_s)) * window.rounding
            text = f"mean and median of {metric.upper()} are more than its standard deviation apart"
            yield abs(mean_s - median_s) <= std_s + room_s, text


def _missing(detail: Detail) -> list[str]:
    """Arrays with an entry for some of the completed requests and not for the others."""
    kept = {name: getattr(detail, name)[detail.fine] for name in ARRAYS.values()}
    if not detail.has_e2e:
        del kept["e2e_s"]
    counts = {name: (int(np.isnan(values).sum()), values.size) for name, values in kept.items()}
    keys = {name: key for key, name in ARRAYS.items()}
    return [
        f"{keys[name]} lacks {none} of {of} completed requests"
        for name, (none, of) in counts.items()
        if 0 < none < of
    ]


def _samples(detail: Detail) -> dict[str, Floats]:
    """TTFT, E2E and TPOT of the completed requests, as `vllm bench serve` defines them. Clients
    before 2025 kept no E2E, and ended it elsewhere than at the last chunk."""
    ttft_s, e2e_s = detail.ttft_s[detail.fine], detail.e2e_s[detail.fine]
    if not detail.has_e2e:
        return {"ttft": ttft_s}
    later = detail.output_tokens[detail.fine] - 1
    several = ~(later <= 0)  # a missing length is seen by its NaN
    return {
        "ttft": ttft_s,
        "e2e": e2e_s,
        "tpot": (e2e_s - ttft_s)[several] / later[several],
    }


def _statistic(values_s: Floats, name: str) -> float:
    if name in ("mean", "std"):
        return float(values_s.mean() if name == "mean" else values_s.std())
    return float(np.percentile(values_s, float(name[1:])))


def _equal(pairs: list[Pair]) -> Iterator[Finding]:
    """Pairs of which both are known, each right or wrong."""
    for what, stated, found, tolerance in pairs:
        if not math.isnan(stated + found):
            near = math.isclose(stated, found, rel_tol=tolerance, abs_tol=1e-9)
            yield near, f"{what}: {number(stated)} stated, {number(found)} by the other numbers"


# -------------------------------------------------------------------------------------- times


def _durations(window: Window) -> Iterator[Finding]:
    if not math.isnan(window.duration_s):
        text = f"a run of {window.duration_s:g} s"
        yield 0 < window.duration_s < math.inf, text
    for metric, times_s in window.times_s.items():
        for statistic, value_s in times_s.items():
            if math.isnan(value_s):
                continue
            name = f"{statistic} of {metric.upper()}"
            if window.completed > 0 and metric in ("ttft", "e2e") and statistic != "std":
                yield value_s > 0, f"{name} is {value_s:g} s"
            else:
                yield value_s >= 0, f"{name} is {value_s:g} s"
            if statistic != "std" and window.duration_s > 0:
                longest_s = window.duration_s * (1 + SLACK)
                text = f"{name}, {number(value_s)} s, is longer than the run"
                yield value_s <= longest_s, text


def _ordered(window: Window) -> Iterator[Finding]:
    """Percentiles rise, and E2E is nowhere below TTFT: not by request, so not by quantile."""
    room = 1 + window.rounding
    for metric, times_s in window.times_s.items():
        named = {name: value for name, value in times_s.items() if re.fullmatch(r"p[\d.]+", name)}
        order = sorted(named, key=lambda name: float(name[1:]))
        for low, high in pairwise(order):
            text = f"{low} of {metric.upper()} is above its {high}"
            if not math.isnan(named[low] + named[high]):
                yield named[low] <= named[high] * room, text
    for statistic, ttft_s in window.times_s.get("ttft", {}).items():
        e2e_s = window.time_s("e2e", statistic)
        if statistic != "std" and not math.isnan(ttft_s + e2e_s):
            yield ttft_s <= e2e_s * room, f"{statistic} of TTFT is above that of E2E"


def _of_requests(window: Window) -> Iterator[Finding]:
    """Each completed request: times that are not negative, in order, and inside the run."""
    detail = window.detail
    if detail is None or not detail.fine.any():
        return
    ttft_s, e2e_s = detail.ttft_s[detail.fine], detail.e2e_s[detail.fine]
    yield none_of(ttft_s <= 0, "have no positive TTFT")
    yield none_of(e2e_s <= 0, "have no positive E2E")
    yield none_of(e2e_s * (1 + SLACK) + SLACK_S < ttft_s, "ended before their first token")
    if detail.gaps is not None:
        least_s = detail.gaps.least_s
        yield least_s >= 0, f"a gap between chunks is {least_s:g} s"
        streamed_s = ttft_s + detail.gaps.sum_s[detail.fine]
        late = streamed_s > e2e_s * (1 + SLACK) + SLACK_S
        yield none_of(late, "have gaps that add up to more than their E2E")
        if detail.has_e2e:
            short = streamed_s < e2e_s * (1 - STREAMED) - STREAMED_S
            yield none_of(short, "have a TTFT and gaps that add up to less than their E2E")
    if detail.placed and window.duration_s > 0:
        start_s = detail.start_s[detail.fine]
        span_s = float((start_s + e2e_s).max() - start_s.min())
        text = f"requests span {span_s:.6g} s of a run of {window.duration_s:.6g} s"
        yield span_s <= window.duration_s * (1 + SLACK) + SLACK_S, text
