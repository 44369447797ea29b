"""The steady part of one window, and what is measured in it.

While slots are still joining, or already leaving, the server carries less than the level says.
What happens then is ramp and drain, and is kept apart: everything here looks at the *steady
part*, from when the level is first full until the first slot has nothing left.

Pure functions on two frames of one load, times in seconds on one monotonic clock:

    requests  request, slot, due_s, sent_s, first_s, last_s, ended_s (NaN where not reached),
              input_tokens, output_tokens (NaN where not reported), chunks, error ('' when fine)
    chunks    request, time_s, tokens: one row per streamed chunk
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from study.finite import Floats, mean, median, only

Mask = NDArray[np.bool_]

DRIFT_CONFIDENCE = 0.90  # two one-sided 5 % questions: "does it fall?" and "does it rise?"
PERCENTILE_CONFIDENCE = 0.95  # of the order-statistic interval that a tail percentile must have
TAILS = {"p90": 0.90, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Steady:
    """The steady part of a window. `latencies` is its length in median request latencies."""

    start_s: float
    end_s: float
    median_latency_s: float
    latencies: float
    level: int

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    def holds(self, times_s: Floats) -> Mask:
        """Which times lie in [start, end); NaN never does."""
        inside: Mask = (times_s >= self.start_s) & (times_s < self.end_s)
        return inside


@dataclass(frozen=True)
class Drift:
    """Relative change of the token rate from start to end of the steady part: 0.05 is +5 %."""

    point: float
    low: float
    high: float


@dataclass(frozen=True)
class WindowSummary:
    """What one window delivered in its steady part; NaN where there is nothing to measure.

    Times start when the request was due. A tail percentile is NaN unless its sample supports it.
    Latencies are those of completed requests; `..._or_failed_s` are quantiles in which a request
    that failed never ended (infinite where so many failed), so that failures cannot flatter them.
    """

    steady_s: float = np.nan
    requests_finished: float = np.nan
    output_tok_s: float = np.nan
    input_tok_s: float = np.nan
    total_tok_s: float = np.nan
    requests_s: float = np.nan
    ttft_mean_s: float = np.nan
    ttft_p50_s: float = np.nan
    ttft_p90_s: float = np.nan
    ttft_p95_s: float = np.nan
    ttft_p99_s: float = np.nan
    ttft_p50_or_failed_s: float = np.nan
    ttft_p99_or_failed_s: float = np.nan
    tpot_mean_s: float = np.nan
    tpot_p50_s: float = np.nan
    tpot_p90_s: float = np.nan
    tpot_p95_s: float = np.nan
    tpot_p99_s: float = np.nan
    itl_p50_s: float = np.nan
    itl_p99_s: float = np.nan
    e2e_mean_s: float = np.nan
    e2e_p50_s: float = np.nan
    e2e_p90_s: float = np.nan
    e2e_p95_s: float = np.nan
    e2e_p99_s: float = np.nan
    e2e_p50_or_failed_s: float = np.nan
    e2e_p99_or_failed_s: float = np.nan
    e2e_log_mean: float = np.nan  # of the logs of seconds, request by request
    e2e_log_sd: float = np.nan
    drift: float = np.nan
    drift_low: float = np.nan
    drift_high: float = np.nan


def floats(frame: pd.DataFrame, column: str) -> Floats:
    """A column as float64, missing values as NaN."""
    return frame[column].to_numpy(dtype=np.float64, na_value=np.nan)


def completed(requests: pd.DataFrame) -> Mask:
    """Which requests finished their work: no error, and a last token was seen."""
    fine = (requests["error"] == "").to_numpy(dtype=bool)
    done: Mask = fine & np.isfinite(floats(requests, "last_s"))
    return done


def in_flight_when_sent(requests: pd.DataFrame) -> tuple[Floats, NDArray[np.int64]]:
    """Send times in order, and how many requests are in flight at the client just after each.

    A request is in flight from `sent_s` to `ended_s`, for ever if it never ended. A slot that
    ends one and sends the next in the same instant has one in flight, not two.
    """
    sent_s = floats(requests, "sent_s")
    reached = np.isfinite(sent_s)
    ended_s = np.nan_to_num(floats(requests, "ended_s")[reached], nan=np.inf)
    sent_s = np.sort(sent_s[reached])
    ended_before = np.searchsorted(np.sort(ended_s), sent_s, side="right")
    return sent_s, np.arange(1, sent_s.size + 1) - ended_before


def steady_part(requests: pd.DataFrame, level: int) -> Steady | None:
    """From when `level` requests are first in flight until the first slot has nothing left.

    None when the level was never full, or a slot ran dry before it was.
    """
    sent_s, in_flight = in_flight_when_sent(requests)
    full = in_flight >= level
    done = completed(requests)
    if not full.any() or not done.any():
        return None
    start_s = float(sent_s[np.argmax(full)])
    end_s = _first_slot_dry_s(requests)
    latency_s = float(
        np.median(floats(requests, "ended_s")[done] - floats(requests, "sent_s")[done])
    )
    if not (start_s < end_s < np.inf and latency_s > 0):
        return None
    return Steady(start_s, end_s, latency_s, (end_s - start_s) / latency_s, level)


def _first_slot_dry_s(requests: pd.DataFrame) -> float:
    """The earliest time after which some slot never sends again."""
    sent = np.isfinite(floats(requests, "sent_s"))
    ended_s = pd.Series(np.nan_to_num(floats(requests, "ended_s")[sent], nan=np.inf))
    return float(ended_s.groupby(requests["slot"].to_numpy()[sent]).max().min())


def least_sample(q: float) -> int:
    """The fewest independent values that can carry the quantile `q`.

    The rule: the two-sided 95 % order-statistic interval of the quantile lies inside the sample.
    The number of values below the quantile is Binomial(n, q), so the largest value lies above it
    with probability 1 - q^n and the smallest below it with 1 - (1 - q)^n; both must reach
    97.5 %. Exact: p99 needs 368, p95 needs 72, the median 6. Requests of one window are
    autocorrelated, so this is the least that is needed.
    (David & Nagaraja, Order Statistics, 2003, section 7.1.)
    """
    return math.ceil(math.log((1 - PERCENTILE_CONFIDENCE) / 2) / math.log(max(q, 1 - q)))


def percentile(values: Floats, q: float) -> float:
    """The quantile `q` of the finite values; NaN when the sample cannot carry it."""
    finite = only(values)
    return float(np.quantile(finite, q)) if finite.size >= least_sample(q) else np.nan


def percentile_or_failed(values: Floats, failed: int, q: float) -> float:
    """The same, over `failed` more values that are infinite."""
    finite = only(values)
    everything = np.sort(np.append(finite, np.full(failed, np.inf)))
    if everything.size < least_sample(q):
        return np.nan
    place = q * (everything.size - 1)
    if np.isinf(everything[math.ceil(place)]):  # nothing lies between a number and infinity
        return np.inf
    return float(np.quantile(everything, q))


def measure(requests: pd.DataFrame, chunks: pd.DataFrame, steady: Steady | None) -> WindowSummary:
    """Measure the steady part; a window without one has a summary of NaN.

    Completed work only, each piece where it happened: output tokens by the time of their chunk
    (counting them when the request completes errs by up to 20 %, because equal lengths keep
    slots in lock-step), input tokens and TTFT by the first token, TPOT and E2E by the last.
    Input throughput is NaN when a request did not report its usage: a part is not the whole.
    """
    if steady is None:
        return WindowSummary()
    done = requests[completed(requests)]
    stream = _in_order(chunks[chunks["request"].isin(done["request"])])
    due_s, first_s, last_s = (floats(done, name) for name in ("due_s", "first_s", "last_s"))
    first_inside, last_inside = steady.holds(first_s), steady.holds(last_s)

    later_tokens = floats(done, "output_tokens") - 1
    tpot_s = np.full(len(done), np.nan)
    np.divide(last_s - first_s, later_tokens, out=tpot_s, where=later_tokens > 0)
    ttft_s = (first_s - due_s)[first_inside]
    tpot_s = tpot_s[last_inside]
    e2e_s = (last_s - due_s)[last_inside]
    failed = int(steady.holds(floats(requests, "ended_s")[~completed(requests)]).sum())
    itl_s = chunk_gaps_s(stream, steady)

    time_s, tokens = floats(stream, "time_s"), floats(stream, "tokens")
    output_tokens = float(tokens[steady.holds(time_s)].sum())
    input_tokens = float(floats(done, "input_tokens")[first_inside].sum())
    drift = token_rate_drift(stream, steady)
    return WindowSummary(
        steady_s=steady.duration_s,
        requests_finished=float(last_inside.sum()),
        output_tok_s=output_tokens / steady.duration_s,
        input_tok_s=input_tokens / steady.duration_s,
        total_tok_s=(output_tokens + input_tokens) / steady.duration_s,
        requests_s=float(last_inside.sum()) / steady.duration_s,
        **_times("ttft", ttft_s),
        **_times("tpot", tpot_s),
        **_times("e2e", e2e_s),
        **_or_failed("ttft", ttft_s, failed),
        **_or_failed("e2e", e2e_s, failed),
        **_logs("e2e", e2e_s),
        itl_p50_s=median(itl_s),
        itl_p99_s=percentile(itl_s, 0.99),
        drift=drift.point,
        drift_low=drift.low,
        drift_high=drift.high,
    )


def _logs(name: str, values_s: Floats) -> dict[str, float]:
    """Mean and standard deviation of logs; what variance components need of a window."""
    logs = np.log(values_s[values_s > 0])
    return {
        f"{name}_log_mean": float(logs.mean()) if logs.size else np.nan,
        f"{name}_log_sd": float(logs.std(ddof=1)) if logs.size > 1 else np.nan,
    }


def chunk_gaps_s(stream: pd.DataFrame, steady: Steady) -> Floats:
    """Gaps between successive chunks of the same request whose later chunk lies inside.

    `stream` is in order of request and time. Chunks without a token (a closing usage report)
    are no step of the engine and make no gap.
    """
    carrying = stream[stream["tokens"] > 0]
    time_s, request = floats(carrying, "time_s"), carrying["request"].to_numpy()
    same = request[1:] == request[:-1]
    gaps_s: Floats = np.diff(time_s)[same & steady.holds(time_s[1:])]
    return gaps_s


def token_rate_drift(chunks: pd.DataFrame, steady: Steady) -> Drift:
    """Relative change of the token rate over the steady part, with its 90 % interval.

    Slots of equal length run in lock-step: tokens come in waves, one per latency. Tokens counted
    in bins of fixed length then differ by what the edges happen to cut off, and a wave that
    slows slips along the bins and hides its own drift. So the bins are waves instead: the time
    taken by each successive `level` x (mean tokens of a request) tokens, which is one latency.
    A line is fitted to the rates of the waves over their middles; drift = slope x steady part /
    mean rate. Neighbours are not independent (what one wave gains at an edge the next one
    loses; a disturbance lasts over several), so the standard error is robust to that, and the
    interval is Student's t with waves - 2 degrees of freedom. NaN with fewer than 3 waves.
    """
    wave_tokens = steady.level * float(chunks["tokens"].sum()) / max(1, chunks["request"].nunique())
    inside = chunks[steady.holds(floats(chunks, "time_s"))].sort_values("time_s")
    total = np.cumsum(floats(inside, "tokens"))
    waves = int(total[-1] / wave_tokens + 1e-9) if total.size else 0
    if waves < 3:
        return Drift(np.nan, np.nan, np.nan)
    last = np.searchsorted(total, wave_tokens * np.arange(1, waves + 1) - 1e-6)
    edge_s = np.concatenate([[steady.start_s], floats(inside, "time_s")[last]])
    rate_tok_s = wave_tokens / np.diff(edge_s)
    slope, error = trend((edge_s[1:] + edge_s[:-1]) / 2, rate_tok_s)
    scale = steady.duration_s / float(rate_tok_s.mean())
    half = float(stats.t.ppf((1 + DRIFT_CONFIDENCE) / 2, waves - 2)) * error * scale
    return Drift(slope * scale, slope * scale - half, slope * scale + half)


def trend(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope of a line through `y`, in order of `x`, and its standard error; at least 3 points.

    The error is the larger of the ordinary least-squares one and the one robust to
    autocorrelation: Bartlett kernel, 4 (n/100)^(2/9) lags but at least one, n/(n - 2) correction
    (Newey & West, Econometrica 55, 1987; lags: Review of Economic Studies 61, 1994).
    """
    n = x.size
    from_middle = x - x.mean()
    spread = float(from_middle @ from_middle)
    slope = float(from_middle @ y) / spread
    residual = y - y.mean() - slope * from_middle
    ordinary = float(residual @ residual) / (n - 2) / spread
    score = from_middle * residual
    lags = min(n - 1, max(1, int(4 * (n / 100) ** (2 / 9))))
    long_run = float(score @ score) + 2 * sum(
        (1 - lag / (lags + 1)) * float(score[lag:] @ score[:-lag]) for lag in range(1, lags + 1)
    )
    robust = long_run * n / (n - 2) / spread**2
    return slope, float(np.sqrt(max(ordinary, robust)))


def _in_order(chunks: pd.DataFrame) -> pd.DataFrame:
    order = np.lexsort((chunks["time_s"].to_numpy(), chunks["request"].to_numpy()))
    ordered: pd.DataFrame = chunks.iloc[order]
    return ordered


def _times(name: str, values_s: Floats) -> dict[str, float]:
    return {
        f"{name}_mean_s": mean(values_s),
        f"{name}_p50_s": median(values_s),
        **{f"{name}_{tail}_s": percentile(values_s, q) for tail, q in TAILS.items()},
    }


def _or_failed(name: str, values_s: Floats, failed: int) -> dict[str, float]:
    return {
        f"{name}_{tail}_or_failed_s": percentile_or_failed(values_s, failed, q)
        for tail, q in (("p50", 0.50), ("p99", 0.99))
    }
