"""Two gates that need no more than the recording itself: do its numbers agree, and can they be?

An edited, cut or mixed-up recording rarely stays consistent. The study's clock is one and exact, so
that next to nothing is allowed for; files of others are judged by `study.audit.consistency`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from study.gates.evidence import WindowEvidence
from study.gates.judgement import Finding, Judgement, Verdict, none_of, of_findings
from study.steady import completed, floats

ORDER = ("due_s", "sent_s", "first_s", "last_s", "ended_s")
EARLY_S = 0.002  # of a request sent before it was due: timers of the event loop count whole ms


def conservation(seen: WindowEvidence) -> Judgement:
    """Throughput counts chunks, so their tokens must add up to the usage of each request."""
    findings = [*_numbers(seen.requests, seen.chunks), *_duration(seen.load)]
    if seen.requests.empty:
        text = "No request was made, so there is nothing to add up."
        return Judgement("conservation", "window", "cannot judge", math.nan, "equal", text)
    return of_findings("conservation", findings, "equal", "sums and counts agree")


def _numbers(requests: pd.DataFrame, chunks: pd.DataFrame) -> Iterator[Finding]:
    number = requests["request"]
    yield none_of(number.duplicated().to_numpy(), "are there twice")
    yield none_of(~chunks["request"].isin(number).to_numpy(), "are of no request", "chunks")
    by_request = chunks.groupby("request")["tokens"].agg(["size", "sum"])
    streamed = by_request.reindex(number, fill_value=0)
    listed = streamed["size"].to_numpy() != requests["chunks"].to_numpy()
    yield none_of(listed, "have more or fewer chunks than were counted")
    usage, done = floats(requests, "output_tokens"), completed(requests)
    differ = done & np.isfinite(usage) & (streamed["sum"].to_numpy() != usage)
    yield none_of(differ, "streamed other tokens than their usage says")


def _duration(load: Mapping[str, Any]) -> Iterator[Finding]:
    if {"started_s", "ended_s", "wall_s"} <= load.keys():
        span_s = load["ended_s"] - load["started_s"]
        near = math.isclose(span_s, load["wall_s"], abs_tol=1e-6)
        yield near, f"a load of {load['wall_s']:.6g} s spans {span_s:.6g} s"


def times(seen: WindowEvidence) -> Judgement:
    """No impossible time: due, sent, first and last token, ended, in this order, inside the load;
    and no chunk before its request's first, or after its last."""
    requests = seen.requests
    if not np.isfinite(floats(requests, "sent_s")).any():
        text = "No request was sent, so there are no times."
        return Judgement("times", "window", "cannot judge", math.nan, "possible", text)
    findings = [*_in_order(requests), *_inside(requests, seen.load), *_chunks(seen)]
    return of_findings("times", findings, "no impossible time", "checks of times hold")


def _in_order(requests: pd.DataFrame) -> Iterator[Finding]:
    """Each time after the one before it, where both are known: NaN compares as false."""
    for earlier, later in pairwise(ORDER):
        early_s = EARLY_S if earlier == "due_s" else 0.0
        wrong = floats(requests, later) < floats(requests, earlier) - early_s
        words = [name.removesuffix("_s") for name in (later, earlier)]
        yield none_of(wrong, f"have `{words[0]}` before `{words[1]}`")
    lost = completed(requests) & ~np.isfinite(floats(requests, "first_s"))
    yield none_of(lost, "were completed without a first token")


def _inside(requests: pd.DataFrame, load: Mapping[str, Any]) -> Iterator[Finding]:
    if {"started_s", "ended_s"} <= load.keys():
        early = floats(requests, "due_s") < load["started_s"]
        late = floats(requests, "ended_s") > load["ended_s"]
        yield none_of(early | late, "lie outside of the load that they belong to")


def _chunks(seen: WindowEvidence) -> Iterator[Finding]:
    limits = seen.requests.set_index("request")[["first_s", "last_s"]]
    of_chunk = limits[~limits.index.duplicated()].reindex(seen.chunks["request"])
    time_s = floats(seen.chunks, "time_s")
    out = (time_s < of_chunk["first_s"].to_numpy()) | (time_s > of_chunk["last_s"].to_numpy())
    yield none_of(out, "lie before the first or after the last of their request", "chunks")


def not_repeated(earlier: str) -> Judgement:
    """A result that an `earlier` one already holds counts once."""
    text = f"It holds the same result as {earlier}." if earlier else "No other one holds it."
    said: Verdict = "fail" if earlier else "pass"
    return Judgement("not_repeated", "window", said, earlier or "once", "once", text)
