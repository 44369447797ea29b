"""Was the engine warm: did its latency settle, and did it compile nothing in the window?"""

from __future__ import annotations

import math

from study import engine
from study.gates.evidence import WindowEvidence
from study.gates.judgement import Judgement, Verdict
from study.window import WARM_AGREEMENT, WARM_SLICES

WARM_LIMIT = (
    f"two of at most {WARM_SLICES} slices in a row within {WARM_AGREEMENT:.0%}; "
    "nothing compiled or captured in the load"
)


def warm(seen: WindowEvidence) -> Judgement:
    """The warm-up came to rest, and the engine neither compiled, captured nor tuned in the load."""

    def judge(verdict: Verdict, observed: float | str, text: str) -> Judgement:
        return Judgement("warm", "window", verdict, observed, WARM_LIMIT, text)

    said = engine.compiling(seen.log or "")
    if said:
        more = f", and {len(said) - 1} more such lines" if said[1:] else ""
        text = f"In the load the engine wrote: {said[0]!r}{more}."
        return judge("fail", f"{len(said)} lines of its log", text)
    if not seen.warmed:
        text = "No warm-up was wanted: it would have changed what the cache holds."
        return judge("cannot judge", math.nan, text)
    slices_s = list(seen.warm_latencies_s or ())
    if len(slices_s) < 2:
        return judge("cannot judge", math.nan, f"{len(slices_s)} slices of warm-up are on record.")
    apart = abs(slices_s[-1] / slices_s[-2] - 1)
    text = f"The last two of {len(slices_s)} slices of warm-up differ by {apart:.1%}"
    if apart > WARM_AGREEMENT:
        return judge("fail", apart, f"{text}: it did not come to rest.")
    if seen.log is None:
        return judge("cannot judge", apart, f"{text}, but the engine's log is not there to see.")
    return judge("pass", apart, f"{text}; the log speaks of no compilation or capture in the load.")
