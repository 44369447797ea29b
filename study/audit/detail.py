"""What the detail of a result shows: requests in flight over time, and the token rate's drift.

Everything is by the client's own clock, for that is all that a result file has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import stats

from study.audit.json_reader import Members
from study.errors import StudyError
from study.finite import Floats
from study.gates.level import LEVEL_TOLERANCE
from study.steady import DRIFT_CONFIDENCE, Drift, Mask, in_flight_when_sent, trend

LONG_LATENCY = 0.9  # the quantile of durations after which an open loop holds what it will
BINS = 1 << 16  # of the run's duration: far finer than one latency of any window worth a name
MOST_WAVES = 1 << 22  # an edited file may have next to nothing in flight, and so waves without end
ARRAYS = {
    "start_times": "start_s",
    "ttfts": "ttft_s",
    "latencies": "e2e_s",
    "input_lens": "input_tokens",
    "output_lens": "output_tokens",
}


@dataclass(frozen=True)
class Gaps:
    """The times between chunks of each request, reduced while they were read.

    `sum_s` and `chunks` (one more than the gaps) are per request; `least_s` is the smallest gap.
    """

    sum_s: Floats
    chunks: Floats
    least_s: float


@dataclass(frozen=True)
class TokensSeen:
    """Output tokens seen since the first request, at the edges of bins. `spread` where no chunk
    times are kept: each request's tokens are then spread evenly between its first and its last."""

    edge_s: Floats
    tokens: Floats
    spread: bool


@dataclass(frozen=True)
class Detail:
    """One entry per request, NaN where not kept; `fine` marks those that completed.

    Times in seconds: `start_s` when sent, on any clock; `ttft_s`, `e2e_s` from then on.
    `has_e2e`: E2E was kept, and not added up from TTFT and gaps. `kinds` counts failures by
    their text. `gaps` and `seen` are None where the file does not say.
    """

    start_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    input_tokens: Floats
    output_tokens: Floats
    fine: Mask
    has_e2e: bool
    kinds: Mapping[str, int] = field(default_factory=dict)
    gaps: Gaps | None = None
    seen: TokensSeen | None = None

    def __len__(self) -> int:
        return self.fine.size

    @property
    def placed(self) -> bool:
        """Whether the file says when each completed request began and ended."""
        begin_end = self.start_s[self.fine] + self.e2e_s[self.fine]
        return bool(begin_end.size and np.isfinite(begin_end).all())


@dataclass(frozen=True)
class Full:
    """The part of a run in which the level was full. `mean` is what was in flight in it."""

    start_s: float
    end_s: float
    mean: float
    peak: int
    latencies: float  # its length in median E2E

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def read_detail(members: Members, duration_s: float) -> Detail | None:
    """The arrays of a detailed result; None where it has none. StudyError where they disagree."""
    arrays = {name: members.floats(key) for key, name in ARRAYS.items() if key in members}
    if "ttft_s" not in arrays and "e2e_s" not in arrays:
        return None
    errors = members.value("errors")
    if not isinstance(errors, list | None):
        raise StudyError(f"errors must be an array of texts; it was {errors!r:.40}.")
    sizes = {len(values) for values in arrays.values()}
    sizes |= set() if errors is None else {len(errors)}
    if len(sizes) != 1:
        raise StudyError(f"the arrays of requests must be equally long; they have {sorted(sizes)}.")
    unknown = np.full(sizes.pop(), np.nan)
    full = {name: arrays.get(name, unknown) for name in ARRAYS.values()}
    fine = _fine(errors, full)
    kinds = Counter(_kind(error) for error in errors or () if error)
    gaps = seen = None
    if "itls" in members:
        gaps, seen = _read_gaps(members, full, fine, duration_s)
        if "e2e_s" not in arrays:
            full["e2e_s"] = full["ttft_s"] + gaps.sum_s
    if seen is None:
        seen = _spread(full, fine, duration_s)
    return Detail(**full, fine=fine, has_e2e="e2e_s" in arrays, kinds=kinds, gaps=gaps, seen=seen)


def _fine(errors: Iterable[str] | None, full: Mapping[str, Floats]) -> Mask:
    """Which requests completed. Without error texts, a failed one is one with zeros."""
    if errors is not None:
        return np.array([not error for error in errors], dtype=bool)
    zero = (full["output_tokens"] == 0) | (full["ttft_s"] == 0) | (full["e2e_s"] == 0)
    fine: Mask = ~zero
    return fine


def _kind(error: object) -> str:
    """The last line of an error text (of a traceback, that is the exception), shortened."""
    lines = str(error).strip().splitlines() or ["no text"]
    return lines[-1][:60]


def _read_gaps(
    members: Members, full: Mapping[str, Floats], fine: Mask, duration_s: float
) -> tuple[Gaps, TokensSeen | None]:
    """One pass over the gaps: their sums, the least one, and tokens binned by time."""
    n = fine.size
    sum_s, chunks = np.zeros(n), np.ones(n)
    least_s, at = math.inf, 0
    first_s = full["start_s"] + full["ttft_s"]
    edges = _edges(full, fine, duration_s)
    tokens = np.zeros(BINS)
    for lengths, gaps_s in members.rows("itls"):
        rows = slice(at, at + lengths.size)
        at = rows.stop
        if at > n:
            break
        total_s = np.concatenate([[0.0], np.cumsum(gaps_s)])
        ends = np.cumsum(lengths)
        begins = ends - lengths
        sum_s[rows] = total_s[ends] - total_s[begins]
        chunks[rows] = lengths + 1
        least_s = float(np.minimum(least_s, gaps_s.min(initial=math.inf)))  # NaN stays NaN
        if edges is not None:
            # NaN tokens (not kept) count as one a chunk; failed requests count nothing.
            each = np.nan_to_num(full["output_tokens"][rows] / chunks[rows], nan=1.0) * fine[rows]
            begin_s = np.where(fine[rows], first_s[rows], edges[0])
            chunk_s = np.repeat(begin_s - total_s[begins], lengths) + total_s[1:]
            tokens += _binned(edges, chunk_s, np.repeat(each, lengths))
            tokens += _binned(edges, begin_s, each)
    if at != n:
        raise StudyError(f"itls must have a row for each of {n} requests; it has other many.")
    gaps = Gaps(sum_s, chunks, least_s)
    if edges is None:
        return gaps, None
    return gaps, TokensSeen(edges, np.concatenate([[0.0], np.cumsum(tokens)]), spread=False)


def _edges(full: Mapping[str, Floats], fine: Mask, duration_s: float) -> Floats | None:
    """Edges of the bins: from the first request on, for the duration of the run."""
    first_s = (full["start_s"] + full["ttft_s"])[fine]
    if not (first_s.size and np.isfinite(first_s).all() and 0 < duration_s < math.inf):
        return None
    begin_s = float(full["start_s"][fine].min())
    edges: Floats = np.linspace(begin_s, begin_s + duration_s, BINS + 1)
    return edges


def _binned(edges: Floats, times_s: Floats, tokens: Floats) -> Floats:
    """Tokens in each bin; times outside (an edited file) count at the ends."""
    place = (times_s - edges[0]) * (BINS / (edges[-1] - edges[0]))
    index = np.clip(np.nan_to_num(place), 0, BINS - 1).astype(np.int64)
    counts = np.bincount(index, weights=tokens, minlength=BINS)
    return counts.astype(np.float64)


def _spread(full: Mapping[str, Floats], fine: Mask, duration_s: float) -> TokensSeen | None:
    """Tokens seen by each edge if every request's come evenly from its first to its last.

    A request that began at f and ended at l with n tokens has given 1 + s ((t - f)+ - (t - l)+)
    of them by t > f, with s = (n - 1)/(l - f); sums over requests are those of sorted arrays.
    """
    edges = _edges(full, fine, duration_s)
    later = full["output_tokens"][fine] - 1
    last_s = (full["start_s"] + full["e2e_s"])[fine]
    if edges is None or not np.isfinite(later + last_s).all():
        return None
    first_s = (full["start_s"] + full["ttft_s"])[fine] - edges[0]
    last_s = last_s - edges[0]
    slope = later / np.maximum(last_s - first_s, 1e-9)
    at_s = edges - edges[0]
    begun = np.searchsorted(np.sort(first_s), at_s, side="right")
    tokens = begun + _ramps(first_s, slope, at_s) - _ramps(last_s, slope, at_s)
    return TokensSeen(edges, np.maximum.accumulate(tokens), spread=True)


def _ramps(begin_s: Floats, slope: Floats, at_s: Floats) -> Floats:
    """The sum of slope x (t - begin), each from its begin on, at each time t."""
    order = np.argsort(begin_s)
    slopes = np.concatenate([[0.0], np.cumsum(slope[order])])
    offsets = np.concatenate([[0.0], np.cumsum((slope * begin_s)[order])])
    begun = np.searchsorted(begin_s[order], at_s, side="right")
    found: Floats = slopes[begun] * at_s - offsets[begun]
    return found


def full_part(detail: Detail, level: float) -> tuple[Full | None, int]:
    """Where the level was full, and the peak of requests in flight.

    From when 95 % of the level are first in flight until the last request is sent: from then on
    slots run dry. None where the level was never full. Only completed requests count.
    """
    sent_s, ended_s = detail.start_s[detail.fine], (detail.start_s + detail.e2e_s)[detail.fine]
    frame = pd.DataFrame({"sent_s": sent_s, "ended_s": ended_s})
    ordered_s, in_flight = in_flight_when_sent(frame)
    peak = int(in_flight.max(initial=0))
    full = in_flight >= math.ceil((1 - LEVEL_TOLERANCE) * level)
    if not full.any():
        return None, peak
    start_s, end_s = float(ordered_s[np.argmax(full)]), float(ordered_s[-1])
    return _part(detail, start_s, end_s, peak), peak


def arriving_part(detail: Detail) -> Full | None:
    """For an open loop: from when it holds as much as it will, if it keeps up, to the last request.

    That is one long latency after the first request: nine in ten are shorter. After a median one
    the requests in flight still grow wherever lengths differ much.
    """
    sent_s = detail.start_s[detail.fine]
    start_s = float(sent_s.min()) + float(np.quantile(detail.e2e_s[detail.fine], LONG_LATENCY))
    return _part(detail, start_s, float(sent_s.max()), 0)


def _part(detail: Detail, start_s: float, end_s: float, peak: int) -> Full | None:
    latency_s = float(np.median(detail.e2e_s[detail.fine]))
    if not (end_s > start_s and latency_s > 0):
        return None
    sent_s, ended_s = detail.start_s[detail.fine], (detail.start_s + detail.e2e_s)[detail.fine]
    inside_s = np.clip(ended_s, start_s, end_s) - np.clip(sent_s, start_s, end_s)
    span_s = end_s - start_s
    return Full(start_s, end_s, float(inside_s.sum() / span_s), peak, span_s / latency_s)


def token_drift(detail: Detail, part: Full) -> Drift:
    """Relative change of the token rate over `part`, with its 90 % interval; NaN where unknown.

    As `study.steady.token_rate_drift`: rates of successive waves, each as many tokens as the
    requests in flight have between them, and an error that is robust to their being neighbours.
    """
    nothing = Drift(math.nan, math.nan, math.nan)
    if detail.seen is None:
        return nothing
    edge_s, seen = detail.seen.edge_s, detail.seen.tokens
    at_start, at_end = np.interp([part.start_s, part.end_s], edge_s, seen)
    wave = part.mean * float(seen[-1]) / detail.fine.sum()
    waves = int((at_end - at_start) / wave + 1e-9) if wave > 0 else 0
    if not 3 <= waves <= MOST_WAVES:
        return nothing
    crossed_s = np.interp(at_start + wave * np.arange(1, waves + 1), seen, edge_s)
    times_s = np.concatenate([[part.start_s], crossed_s])
    if (np.diff(times_s) <= 0).any():
        return nothing
    rate_tok_s = wave / np.diff(times_s)
    return _drift(times_s, rate_tok_s, part)


def in_flight_drift(detail: Detail, part: Full) -> Drift:
    """Relative change of the requests in flight over `part`, with its 90 % interval; NaN where
    it is shorter than three median latencies, or empty.

    By the means of successive stretches, each at least one median latency long: where as many
    are served as arrive, what is in flight now has little to do with what was a latency ago.
    """
    stretches = int(min(part.latencies + 1e-9, len(detail)))
    if stretches < 3 or not part.mean > 0:
        return Drift(math.nan, math.nan, math.nan)
    at_s = np.linspace(0, part.duration_s, stretches + 1)
    sent_s = detail.start_s[detail.fine] - part.start_s
    once = np.ones(sent_s.size)
    ended_s = sent_s + detail.e2e_s[detail.fine]
    held_s = _ramps(sent_s, once, at_s) - _ramps(ended_s, once, at_s)  # times requests, until then
    return _drift(at_s, np.diff(held_s) / np.diff(at_s), part)


def _drift(edges_s: Floats, values: Floats, part: Full) -> Drift:
    """Relative change over `part` of what has so many values between edges, at least three."""
    slope, error = trend((edges_s[1:] + edges_s[:-1]) / 2, values)
    scale = part.duration_s / float(values.mean())
    half = float(stats.t.ppf((1 + DRIFT_CONFIDENCE) / 2, values.size - 2)) * error * scale
    return Drift(slope * scale, slope * scale - half, slope * scale + half)
