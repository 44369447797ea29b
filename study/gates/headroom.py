"""The gate `client_headroom`: would the client itself show in this window's numbers?

Pure functions of a window and of the calibration of its client (study.calibration): the loads
against a null server on the same cores. What the client added at a load at least as hard bounds
what it adds here from above, and at an easier one from below: too much below is a failure, little
enough above is a pass, and what lies between cannot be judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from study.calibration import Calibration
from study.finite import median
from study.gates.judgement import Judgement, Verdict
from study.steady import Steady, chunk_gaps_s, completed, floats

GATE = "client_headroom"
# What the client may add to a median: a share that is the size of the effects that are studied,
# and for short times the least that two processes on one machine can tell apart.
SHARE_LIMIT, FLOOR_S = 0.05, 0.3e-3
# A queue at half of its capacity is short; near it, every disturbance lasts.
RATE_FACTOR = 2.0
# The client's loop looks at its own clock every 10 ms. Where 1 look in 100 is late by a whole
# turn, the client stood still while answers came.
LAG_LIMIT_S = 0.010
LIMIT = (
    f"client's part of TTFT and ITL below max({SHARE_LIMIT:.0%}, {FLOOR_S * 1e3:g} ms), chunk rate "
    f"below 1/{RATE_FACTOR:g} of what client and null server kept, loop lag p99 below "
    f"{LAG_LIMIT_S * 1e3:g} ms"
)

Finding = tuple[Verdict, str]


@dataclass(frozen=True)
class Demand:
    """What a window asks of the client: chunks_per_s and medians over its steady part, and the
    lateness of the client's loop in it (99th percentile)."""

    level: int
    chunks_per_s: float
    ttft_s: float
    itl_s: float
    loop_lag_p99_s: float


def demand(
    requests: pd.DataFrame, chunks: pd.DataFrame, steady: Steady, info: Mapping[str, Any]
) -> Demand:
    """The demand of a recorded window; `info` is its recording's."""
    done = requests[completed(requests)]
    stream = chunks.sort_values(["request", "time_s"])
    first_s = floats(done, "first_s")
    ttft_s = (first_s - floats(done, "due_s"))[steady.holds(first_s)]
    inside = int(steady.holds(floats(chunks, "time_s")).sum())
    return Demand(
        level=steady.level,
        chunks_per_s=inside / steady.duration_s,
        ttft_s=median(ttft_s),
        itl_s=median(chunk_gaps_s(stream, steady)),
        loop_lag_p99_s=float(info.get("loop_lag_p99_s", math.nan)),
    )


def client_headroom(asked: Demand | None, calibration: Calibration | None) -> Judgement:
    """Whether the client had room: fails where it is shown to have had none.

    Its loop's lag is the window's own. The rest is the calibration's: without one, or where
    nothing so hard was calibrated, that part cannot be judged.
    """
    if asked is None:
        return Judgement(GATE, "window", "cannot judge", np.nan, LIMIT, "There is no steady part.")
    findings = [_lag(asked), *_calibrated(asked, calibration)]
    verdict: Verdict = "pass"
    for worse in ("cannot judge", "fail"):
        verdict = worse if any(one == worse for one, _ in findings) else verdict
    said = "; ".join(text for one, text in findings if one == verdict)
    load = f"At level {asked.level} and {asked.chunks_per_s:,.0f} chunks/s"
    return Judgement(GATE, "window", verdict, said, LIMIT, f"{load}: {said}.")


def beyond(asked: Demand | None, calibration: Calibration | None) -> bool:
    """Whether the client lacks room by its calibration alone, not by a late loop."""
    if asked is None:
        return False
    return any(verdict == "fail" for verdict, _ in _calibrated(asked, calibration))


def _lag(asked: Demand) -> Finding:
    text = f"the client's loop was late by {asked.loop_lag_p99_s * 1e3:.3g} ms (99th percentile)"
    if math.isnan(asked.loop_lag_p99_s):
        return "cannot judge", "the lag of the client's loop was not recorded"
    return ("pass" if asked.loop_lag_p99_s < LAG_LIMIT_S else "fail"), text


def _calibrated(asked: Demand, calibration: Calibration | None) -> Iterator[Finding]:
    if calibration is None:
        yield "cannot judge", "the client was not calibrated on this machine and these cores"
        return
    yield _rate(asked, calibration)
    harder = calibration.harder(asked.level, asked.chunks_per_s)
    easier = calibration.easier(asked.level, asked.chunks_per_s)
    if easier is not None and not easier["held"]:
        yield "fail", f"client and null server did not keep the pace {_place(easier)}"
    for name, column, time_s in (
        ("TTFT", "ttft_added_median_ms", asked.ttft_s),
        ("ITL", "itl_error_median_ms", asked.itl_s),
    ):
        yield _part(name, column, time_s, harder, easier)


def _rate(asked: Demand, calibration: Calibration) -> Finding:
    safe = calibration.safe_per_s
    if math.isnan(safe):
        return "cannot judge", "no chunk rate of the ramp was kept"
    text = f"{asked.chunks_per_s:,.0f} of {safe:,.0f} chunks/s that client and null server kept"
    return ("pass" if asked.chunks_per_s * RATE_FACTOR < safe else "fail"), text


def _part(
    name: str, column: str, time_s: float, harder: pd.Series | None, easier: pd.Series | None
) -> Finding:
    """Too much at an easier load is too much here; little at a harder one is little here."""
    limit_s = max(SHARE_LIMIT * time_s, FLOOR_S)
    if math.isnan(time_s):
        return "cannot judge", f"no {name} to set the client's part against"
    if easier is not None and easier[column] / 1e3 >= limit_s:
        return "fail", _said(name, easier, column, time_s)
    if harder is None:
        return "cannot judge", "no load so hard was calibrated"
    fine = harder["held"] and harder[column] / 1e3 < limit_s
    return ("pass" if fine else "cannot judge"), _said(name, harder, column, time_s)


def _said(name: str, point: pd.Series, column: str, time_s: float) -> str:
    added, whole = f"{point[column]:.2g} ms", f"{time_s * 1e3:.3g} ms"
    return f"the client added {added} to {name} {_place(point)}, which is {whole} here"


def _place(point: pd.Series) -> str:
    return f"at level {point['level']} and {point['chunks_per_s']:,.0f} chunks/s"
