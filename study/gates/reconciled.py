"""The client's account of a window against the engine's own counters."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from study.finite import only
from study.gates.evidence import WindowEvidence, delta
from study.gates.judgement import Judgement, Verdict
from study.steady import completed, floats

# The client reads the token after the engine sent it, so its TTFT cannot be the smaller one.
# The allowance is for two clocks: 1 ms of resolution, and a wall clock slewed by 500 ppm.
TTFT_BELOW_S, TTFT_BELOW_SHARE = 0.001, 0.001
# Between the engine's first token and the client's stand HTTP and two event loops: a few
# milliseconds when idle, up to a tenth of TTFT when many streams begin at once.
TTFT_ABOVE_S, TTFT_ABOVE_SHARE = 0.010, 0.10


def reconciled(evidence: WindowEvidence) -> Judgement:
    """The client's account of the whole load against the engine's own counters.

    Idle before and after; requests and tokens equal (when requests failed, the engine may have
    done up to all of their work, so its counts are bounded); mean TTFT of the client not below
    the engine's, and above it by no more than the way between.
    """
    findings = (
        *_idle(evidence.before, evidence.after),
        *_counts(evidence),
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


Account = tuple[Verdict, str]


def _idle(before: Mapping[str, float], after: Mapping[str, float]) -> list[Account]:
    findings: list[Account] = []
    for when, counters in (("before", before), ("after", after)):
        held = counters.get("running", np.nan) + counters.get("waiting", np.nan)
        if math.isnan(held):
            findings.append(("cannot judge", f"no gauges of the engine {when} the load"))
        else:
            verdict: Verdict = "pass" if held == 0 else "fail"
            findings.append((verdict, f"{held:g} requests in the engine {when} the load"))
    return findings


def _counts(evidence: WindowEvidence) -> list[Account]:
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
    findings: list[Account] = []
    for key, name, client, each in accounts:
        most = client + (failed if key == "requests_finished" else failed * each)
        engine = evidence.counted(key)
        verdict: Verdict = "pass" if client <= engine <= most else "fail"
        if math.isnan(client + engine):
            verdict = "cannot judge"
        spare = f" (up to {most:,.0f} with the {failed} failed)" if failed else ""
        findings.append((verdict, f"{name} {client:,.0f}{spare} against {engine:,.0f}"))
    return findings


def _first_tokens(
    requests: pd.DataFrame, before: Mapping[str, float], after: Mapping[str, float]
) -> list[Account]:
    """Mean TTFT over the whole load, where both sides saw the same first tokens."""
    ttft_s = only(floats(requests, "first_s") - floats(requests, "due_s"))
    count = delta(before, after, "ttft_count")
    total_s = delta(before, after, "ttft_sum_s")
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
