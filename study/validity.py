"""Gates: is a number what it claims to be?

Each gate is a pure function that returns one `Judgement`: pass, fail or cannot judge, with what
was observed, the limit, and one sentence. A failed gate of scope *window* voids the window;
"cannot judge" voids nothing but stays visible.

A new window gate is one function and one line in `WINDOW_GATES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from study.steady import (
    Floats,
    Steady,
    completed,
    floats,
    in_flight_when_sent,
    steady_part,
    token_rate_drift,
)

Scope = Literal["window", "metric", "claim"]
Verdict = Literal["pass", "fail", "cannot judge"]

NO_COUNTERS: Mapping[str, float] = {}

# A level missed by 5 % moves throughput by up to 5 %, the size of the effects that are studied.
LEVEL_TOLERANCE = 0.05
# Fewer batches than 10 give no usable standard error (its own error is then above 25 %).
LEVEL_BATCHES = 10
# A slot idle 5 % of the time is seen idle at least once in 59 looks with 95 % certainty
# (0.95**59 < 0.05). One sample looks at `level` slots, so level 1 needs 59 samples.
LEVEL_LOOKS = 59
# What sampling error can explain: two standard errors, about 95 %.
LEVEL_STANDARD_ERRORS = 2.0
# Five latencies are five waves of slots in lock-step: the fewest through which a line says much.
STEADY_LATENCIES = 5.0
# A rate that moves by 5 % over the window is not one rate.
DRIFT_LIMIT = 0.05
# Above this the window says how reliable the server is, not how fast.
ERROR_SHARE_LIMIT = 0.01
# The client reads the token after the engine sent it, so its TTFT cannot be the smaller one.
# The allowance is for two clocks: 1 ms of resolution, and a wall clock slewed by 500 ppm.
TTFT_BELOW_S, TTFT_BELOW_SHARE = 0.001, 0.001
# Between the engine's first token and the client's stand HTTP and two event loops: a few
# milliseconds when idle, up to a tenth of TTFT when many streams begin at once.
TTFT_ABOVE_S, TTFT_ABOVE_SHARE = 0.010, 0.10


@dataclass(frozen=True)
class Judgement:
    """What one gate says. `text` is one sentence with the numbers a reader needs."""

    gate: str
    scope: Scope
    verdict: Verdict
    observed: float | str
    limit: float | str
    text: str


@dataclass(frozen=True)
class WindowEvidence:
    """All that the window gates look at. `input_tokens` and `output_tokens` are what was asked
    per request (or the lengths of the prompts, used in turn); `before` and `after` are the
    engine's counters around the whole load."""

    level: int
    input_tokens: int | Sequence[int]
    output_tokens: int
    requests: pd.DataFrame
    chunks: pd.DataFrame
    samples: pd.DataFrame
    before: Mapping[str, float]
    after: Mapping[str, float]
    asked: Mapping[str, str]
    in_force: Mapping[str, str | None]

    @cached_property
    def steady(self) -> Steady | None:
        return steady_part(self.requests, self.level)


def level_reached(
    requests: pd.DataFrame,
    samples: pd.DataFrame,
    steady: Steady | None,
    level: int,
    before: Mapping[str, float] = NO_COUNTERS,
    after: Mapping[str, float] = NO_COUNTERS,
) -> Judgement:
    """The level was full, and the engine itself held it: within 5 % of it.

    The client's own count in the steady part is full by construction, so it proves nothing. The
    engine has two accounts of its own. Its gauges, running + waiting, are sampled; but they are
    refreshed once a step and do not know a request before its first step is over, so where a
    prefill takes long they read too low, and where samples are few they say nothing. Its clock of
    every request, from arrival to end, has neither fault: `held_by_durations`. The level counts as
    reached when either account holds it, as missed when none does.
    """
    limit = f"within {LEVEL_TOLERANCE:.0%} of {level}"

    def judge(verdict: Verdict, observed: float, text: str) -> Judgement:
        return Judgement("level_reached", "window", verdict, observed, limit, text)

    _, in_flight = in_flight_when_sent(requests)
    peak = int(in_flight.max(initial=0))
    if peak < level:
        return judge("fail", peak, f"At most {peak} of {level} requests were in flight at once.")
    if steady is None:
        return judge("cannot judge", np.nan, "There is no steady part to look at.")

    verdict, mean, text = _by_gauges(samples, steady, level)
    timed = held_by_durations(requests, level, before, after)
    if verdict == "pass" or math.isnan(timed):
        return judge(verdict, mean, text)
    text = f"By its own clock of every request the engine held {timed:.4g}; {text}"
    return judge("pass" if abs(timed - level) <= LEVEL_TOLERANCE * level else "fail", timed, text)


def held_by_durations(
    requests: pd.DataFrame, level: int, before: Mapping[str, float], after: Mapping[str, float]
) -> float:
    """Requests in the engine while all slots were at work, by its own clock; NaN if unknown.

    The sum of the engine's request durations is the time integral of what it held. Set against
    the time that the client's slots were at work (pauses between requests and queues in front
    of the engine included), it is the share of the level that reached the engine. Only where
    client and engine mean the same requests: none failed, and the counts agree.
    """
    if not completed(requests).all() or _delta(before, after, "e2e_count") != len(requests):
        return math.nan
    slots = requests.groupby("slot").agg(first=("sent_s", "min"), last=("ended_s", "max"))
    at_work_s = float((slots["last"] - slots["first"]).sum())
    return level * _delta(before, after, "e2e_sum_s") / at_work_s if at_work_s > 0 else math.nan


def _by_gauges(samples: pd.DataFrame, steady: Steady, level: int) -> tuple[Verdict, float, str]:
    """What the sampled gauges say. They are an autocorrelated series, hence the standard error
    over batch means: a mean outside the limits fails only when it lies outside by more than two
    standard errors, otherwise nothing can be said."""
    inside = samples[steady.holds(floats(samples, "time_s"))].sort_values("time_s")
    held = inside[["running", "waiting"]].dropna().sum(axis=1).to_numpy(dtype=np.float64)
    needed = max(LEVEL_BATCHES, math.ceil(LEVEL_LOOKS / level))
    if held.size < needed:
        text = f"{held.size} samples of the engine's gauges in the steady part; {needed} needed."
        return "cannot judge", math.nan, text

    mean, error = float(held.mean()), _batch_means_error(held)
    beyond = abs(mean - level) - LEVEL_TOLERANCE * level
    text = (
        f"by its gauges the engine held {mean:.4g} requests on average (standard error "
        f"{error:.2g}, {held.size} samples, {float(inside['running'].mean()):.4g} of them running) "
        f"at level {level}"
    )
    if beyond <= 0:
        return "pass", mean, f"{text}."
    if beyond <= LEVEL_STANDARD_ERRORS * error:
        return "cannot judge", mean, f"{text}: sampling error alone could explain it."
    return "fail", mean, f"{text}: {'below' if mean < level else 'above'} the limit."


def _batch_means_error(values: Floats) -> float:
    """Standard error of the mean of an autocorrelated series, from the means of 10 batches."""
    means = np.array([batch.mean() for batch in np.array_split(values, LEVEL_BATCHES)])
    return float(means.std(ddof=1) / np.sqrt(LEVEL_BATCHES))


def steady_part_found(chunks: pd.DataFrame, steady: Steady | None) -> Judgement:
    """There is a steady part, it is long enough, and the token rate does not drift over it.

    "Drift below 5 %" is a claim of no difference, so it passes only when the whole 90 % interval
    lies within 5 % (the two one-sided tests of equivalence), and fails only when the whole
    interval lies beyond it: drift is shown. In between the window is too short or too noisy to
    tell, and the gate says so.
    """

    def judge(verdict: Verdict, observed: float | str, limit: float | str, text: str) -> Judgement:
        return Judgement("steady_part", "window", verdict, observed, limit, text)

    shortest = f"at least {STEADY_LATENCIES:g} median latencies"
    if steady is None:
        text = "No steady part: the level was never full, or a slot ran dry before it was."
        return judge("fail", 0.0, shortest, text)
    length = f"The steady part lasts {steady.latencies:.1f} median latencies"
    if steady.latencies < STEADY_LATENCIES:
        return judge("fail", steady.latencies, shortest, f"{length}; it needs {shortest}.")

    drift = token_rate_drift(chunks, steady)
    limit = f"drift within {DRIFT_LIMIT:.0%}"
    if math.isnan(drift.point):
        return judge("cannot judge", np.nan, limit, f"{length}, but no token was seen in it.")
    observed = f"{drift.point:+.1%} ({drift.low:+.1%} to {drift.high:+.1%})"
    text = (
        f"{length}; over it the token rate changes by {drift.point:+.1%} "
        f"(90 % interval {drift.low:+.1%} to {drift.high:+.1%})"
    )
    if drift.low > -DRIFT_LIMIT and drift.high < DRIFT_LIMIT:
        return judge("pass", observed, limit, f"{text}.")
    if drift.low > DRIFT_LIMIT or drift.high < -DRIFT_LIMIT:
        return judge("fail", observed, limit, f"{text}: it drifts.")
    return judge(
        "cannot judge", observed, limit, f"{text}: a longer window is needed to rule out drift."
    )


def lengths_delivered(
    requests: pd.DataFrame, input_tokens: int | Sequence[int], output_tokens: int
) -> Judgement:
    """Every completed request had as many tokens as asked, by the engine's own usage."""
    lengths = np.atleast_1d(np.asarray(input_tokens))
    spread = f"{lengths.min()}" + (f" to {lengths.max()}" if len(set(lengths)) > 1 else "")
    limit = f"{spread} in, {output_tokens} out"

    def judge(verdict: Verdict, observed: float | str, text: str) -> Judgement:
        return Judgement("lengths_delivered", "window", verdict, observed, limit, text)

    done = requests[completed(requests)]
    usage = done[["input_tokens", "output_tokens"]].astype("float64")
    if done.empty:
        return judge("cannot judge", np.nan, "No request completed, so no length was delivered.")
    asked = lengths[done["request"].to_numpy() % len(lengths)]
    missing = usage.isna().any(axis=1)
    differs = usage["input_tokens"].ne(asked) | usage["output_tokens"].ne(output_tokens)
    wrong = differs & ~missing
    if wrong.any():
        first = usage[wrong].iloc[0]
        text = (
            f"{wrong.sum()} of {len(done)} requests had other lengths than asked ({limit}); "
            f"request {done.loc[wrong, 'request'].iloc[0]} had "
            f"{first['input_tokens']:g} in, {first['output_tokens']:g} out."
        )
        return judge("fail", f"{wrong.sum()} of {len(done)} differ", text)
    if missing.any():
        text = f"{missing.sum()} of {len(done)} completed requests reported no usage."
        return judge("cannot judge", f"{missing.sum()} of {len(done)} unreported", text)
    return judge("pass", limit, f"All {len(done)} completed requests had {limit}, as asked.")


def treatment_in_force(asked: Mapping[str, str], in_force: Mapping[str, str | None]) -> Judgement:
    """What was asked for is what the engine itself says it runs."""
    limit = _settings(asked) or "nothing asked"
    unknown = [key for key in asked if in_force.get(key) is None]
    other = [key for key in asked if key not in unknown and in_force[key] != asked[key]]
    observed = _settings({key: in_force.get(key) or "not reported" for key in asked})

    def judge(verdict: Verdict, text: str) -> Judgement:
        return Judgement("treatment_in_force", "window", verdict, observed, limit, text)

    if other:
        said = "; ".join(f"{key}={asked[key]} asked, {in_force[key]} in force" for key in other)
        return judge("fail", f"The engine runs something else: {said}.")
    if unknown:
        return judge("cannot judge", f"The engine does not report {', '.join(unknown)}.")
    if not asked:
        return judge("pass", "No setting was asked for, so none can be missing.")
    return judge("pass", f"The engine reports what was asked for: {limit}.")


def _settings(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def errors(requests: pd.DataFrame) -> Judgement:
    """At most 1 % of the requests failed; every kind is named, none hides in an average."""
    limit = f"at most {ERROR_SHARE_LIMIT:.0%}"
    if requests.empty:
        return Judgement("errors", "window", "cannot judge", np.nan, limit, "No request was made.")
    failed = requests[~completed(requests)]
    share = len(failed) / len(requests)
    kinds = failed["error"].replace("", "no last token").value_counts(sort=True)
    named = ", ".join(f"{kind} {count}" for kind, count in kinds.items())
    text = f"{len(failed)} of {len(requests)} requests failed ({share:.2%})"
    text += f": {named}." if named else "."
    verdict: Verdict = "fail" if share > ERROR_SHARE_LIMIT else "pass"
    return Judgement("errors", "window", verdict, share, limit, text)


def reconciled(evidence: WindowEvidence) -> Judgement:
    """The client's account of the whole load against the engine's own counters.

    Idle before and after; requests and tokens equal (when requests failed, the engine may have
    done up to all of their work, so its counts are bounded); streamed tokens equal to the usage;
    mean TTFT of the client not below the engine's, and above it by no more than the way between.
    """
    findings = (
        *_idle(evidence.before, evidence.after),
        *_counts(evidence),
        *_streamed(evidence.requests, evidence.chunks),
        *_first_tokens(evidence.requests, evidence.before, evidence.after),
    )
    wrong = [text for verdict, text in findings if verdict == "fail"]
    unknown = [text for verdict, text in findings if verdict == "cannot judge"]
    fine = [text for verdict, text in findings if verdict == "pass"]
    verdict: Verdict = "fail" if wrong else "cannot judge" if unknown else "pass"
    said = "; ".join(wrong or unknown or fine)
    return Judgement(
        "reconciled",
        "window",
        verdict,
        f"{len(wrong)} of {len(findings)} accounts differ",
        "engine idle around the load, counts equal, mean TTFT "
        f"{TTFT_BELOW_S * 1e3:g} ms below to max({TTFT_ABOVE_SHARE:.0%}, "
        f"{TTFT_ABOVE_S * 1e3:g} ms) above the engine's",
        f"Client against engine: {said}.",
    )


Finding = tuple[Verdict, str]


def _idle(before: Mapping[str, float], after: Mapping[str, float]) -> list[Finding]:
    findings: list[Finding] = []
    for when, counters in (("before", before), ("after", after)):
        held = counters.get("running", np.nan) + counters.get("waiting", np.nan)
        if math.isnan(held):
            findings.append(("cannot judge", f"no gauges of the engine {when} the load"))
        else:
            verdict: Verdict = "pass" if held == 0 else "fail"
            findings.append((verdict, f"{held:g} requests in the engine {when} the load"))
    return findings


def _counts(evidence: WindowEvidence) -> list[Finding]:
    """Requests and tokens: at least the completed work, at most that and all of the failed."""
    done = evidence.requests[completed(evidence.requests)]
    sent = int(np.isfinite(floats(evidence.requests, "sent_s")).sum())
    failed = sent - len(done)
    longest = int(np.max(evidence.input_tokens))
    accounts = (
        ("requests_finished", "requests", float(len(done)), failed),
        ("output_tokens", "output tokens", _total(done, "output_tokens"), evidence.output_tokens),
        ("input_tokens", "input tokens", _total(done, "input_tokens"), longest),
    )
    findings: list[Finding] = []
    for key, name, client, each in accounts:
        most = client + (failed if key == "requests_finished" else failed * each)
        engine = _delta(evidence.before, evidence.after, key)
        verdict: Verdict = "pass" if client <= engine <= most else "fail"
        if math.isnan(client + engine):
            verdict = "cannot judge"
        spare = f" (up to {most:,.0f} with the {failed} failed)" if failed else ""
        findings.append((verdict, f"{name} {client:,.0f}{spare} against {engine:,.0f}"))
    return findings


def _streamed(requests: pd.DataFrame, chunks: pd.DataFrame) -> list[Finding]:
    """Throughput counts chunks, so their tokens must add up to the usage of each request."""
    done = requests[completed(requests)]
    usage = floats(done, "output_tokens")
    streamed = chunks.groupby("request")["tokens"].sum().reindex(done["request"], fill_value=0)
    if np.isnan(usage).any():
        return [("cannot judge", f"{np.isnan(usage).sum()} completed requests without usage")]
    differ = int((streamed.to_numpy() != usage).sum())
    text = f"tokens streamed differ from the usage in {differ} of {len(done)} requests"
    return [("fail" if differ else "pass", text)]


def _first_tokens(
    requests: pd.DataFrame, before: Mapping[str, float], after: Mapping[str, float]
) -> list[Finding]:
    """Mean TTFT over the whole load, where both sides saw the same first tokens."""
    ttft_s = floats(requests, "first_s") - floats(requests, "due_s")
    ttft_s = ttft_s[np.isfinite(ttft_s)]
    count = _delta(before, after, "ttft_count")
    total_s = _delta(before, after, "ttft_sum_s")
    if math.isnan(count + total_s) or ttft_s.size == 0:
        return [("cannot judge", "no TTFT to compare")]
    if count != ttft_s.size:
        verdict: Verdict = "fail" if completed(requests).all() else "cannot judge"
        return [(verdict, f"first tokens {ttft_s.size:,} against {count:,.0f}")]
    client_s, engine_s = float(ttft_s.mean()), total_s / count
    least_s = engine_s - max(TTFT_BELOW_S, TTFT_BELOW_SHARE * engine_s)
    most_s = engine_s + max(TTFT_ABOVE_S, TTFT_ABOVE_SHARE * engine_s)
    verdict = "pass" if least_s <= client_s <= most_s else "fail"
    return [(verdict, f"mean TTFT {client_s * 1e3:.1f} ms against {engine_s * 1e3:.1f} ms")]


def _total(requests: pd.DataFrame, column: str) -> float:
    return float(floats(requests, column).sum())


def _delta(before: Mapping[str, float], after: Mapping[str, float], key: str) -> float:
    return after.get(key, np.nan) - before.get(key, np.nan)


WINDOW_GATES: tuple[Callable[[WindowEvidence], Judgement], ...] = (
    lambda seen: level_reached(
        seen.requests, seen.samples, seen.steady, seen.level, seen.before, seen.after
    ),
    lambda seen: steady_part_found(seen.chunks, seen.steady),
    lambda seen: lengths_delivered(seen.requests, seen.input_tokens, seen.output_tokens),
    lambda seen: treatment_in_force(seen.asked, seen.in_force),
    lambda seen: errors(seen.requests),
    reconciled,
)


def judge_window(evidence: WindowEvidence) -> tuple[Judgement, ...]:
    """What every window gate says of this window, in the order of `WINDOW_GATES`."""
    return tuple(gate(evidence) for gate in WINDOW_GATES)


def verdict(judgements: Sequence[Judgement]) -> Literal["valid", "void"]:
    """Void when a gate of scope window fails; what cannot be judged voids nothing."""
    failed = any(said.scope == "window" and said.verdict == "fail" for said in judgements)
    return "void" if failed else "valid"
