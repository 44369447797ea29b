"""Was the machine the study's own, and as fast as it can be, while the window lasted?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from study.gates.evidence import WindowEvidence
from study.gates.judgement import Judgement, Verdict

# Work of others takes at most its own share from the study. 5 % of the machine is the size of the
# effects that are studied; and a whole core is a tenant, however many cores there are.
FOREIGN_SHARE, FOREIGN_CORES = 0.05, 1.0
# Time taken by a container's CPU limit: 1 % moves throughput by less than any effect shown.
QUOTA_SHARE = 0.01
TOLD_CORES = 0.01  # as much as is printed
NEEDED = ("busy_s", "own_s", "cores")
UNSEEN = "a change of the cores' clock could not be seen here"


def machine_quiet(seen: WindowEvidence) -> Judgement:
    """Nobody else worked on this machine in the window, and nothing of it was throttled."""
    looks = seen.telemetry
    if looks is None or len(looks) < 2 or looks.reindex(columns=NEEDED).isna().any(axis=None):
        text = "The machine's CPU time is not on record."
        return Judgement("machine_quiet", "window", "cannot judge", math.nan, "quiet", text)
    span_s = float(looks["time_s"].iloc[-1] - looks["time_s"].iloc[0])
    stolen = grown(looks, "steal_s") / span_s
    # A stolen core is never the study's, but a guest may count that time to its processes too.
    foreign = max(0.0, (grown(looks, "busy_s") - grown(looks, "own_s")) / span_s, stolen)
    most = min(FOREIGN_SHARE * float(looks["cores"].iloc[0]), FOREIGN_CORES)
    said = f"others kept {_shown(foreign, most)} of {looks['cores'].iloc[0]:g} cores busy"
    if stolen >= TOLD_CORES:
        said += f" ({_shown(stolen, most)} by other virtual machines on this host)"
    wrong, unknown = _throttled(looks, span_s), _unknown(looks)
    beside = [*([] if wrong else _unthrottled(looks)), *unknown, *_unseen(looks)]
    beside += _waits(looks, span_s)
    if foreign > most:
        wrong = [f"{said}; at most {most:.2g} may be", *wrong]
    else:
        beside = [said, *beside]
    verdict: Verdict = "fail" if wrong else "cannot judge" if unknown else "pass"
    limit = f"at most {most:.2g} cores busy for others, nothing throttled"
    return Judgement("machine_quiet", "window", verdict, foreign, limit, _told(wrong, beside))


def _told(wrong: Sequence[str], beside: Sequence[str]) -> str:
    """What voids the window comes first, alone; what was seen besides does not."""
    said = ["; ".join(beside)] if beside else []
    if wrong:
        said = ["; ".join(wrong), *(f"beside that, {text}" for text in said)]
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in said)


def _shown(value: float, limit: float, digits: int = 2) -> str:
    """With so many decimals, or as many more as show on which side of its limit it lies."""
    for more in range(6):
        text = f"{value:.{digits + more}f}"
        if (float(text) > limit) == (value > limit):
            break
    return text


def grown(looks: pd.DataFrame, column: str) -> float:
    """How much a sum grew from the first look to the last; NaN where it is not known."""
    return float(looks[column].iloc[-1] - looks[column].iloc[0])


def _throttled(looks: pd.DataFrame, span_s: float) -> list[str]:
    quota = grown(looks, "quota_throttled_s") / span_s
    taken = _shown(100 * quota, 100 * QUOTA_SHARE, 1)
    held = f"a CPU limit of the container took {taken}% of the time; {QUOTA_SHARE:.0%} may be"
    checks = (
        (grown(looks, "heat_throttles") > 0, "cores were throttled for their heat"),
        (quota > QUOTA_SHARE, held),
        (looks["gpu_throttled"].max() > 0, "a GPU was throttled"),
    )
    return [text for wrong, text in checks if wrong]


def _unthrottled(looks: pd.DataFrame) -> list[str]:
    """What was looked at and found free; where a machine does not say, that is said."""
    known = {
        "cores": grown(looks, "heat_throttles"),
        "container": grown(looks, "quota_throttled_s"),
        "GPUs": looks["gpu_throttled"].max(),
    }
    free = [name for name, value in known.items() if not math.isnan(value)]
    return [f"not throttled: {', '.join(free)}" if free else "throttling is not reported here"]


def _unseen(looks: pd.DataFrame) -> list[str]:
    """That the cores may have changed their speed unseen, where neither clock nor heat is told."""
    told = looks.reindex(columns=["clock_mhz", "heat_throttles"])
    blind = bool(told.isna().all(axis=None))
    return [UNSEEN] if blind else []


def _unknown(looks: pd.DataFrame) -> list[str]:
    """That GPUs are here of which it is not known; older records do not say how many there are."""
    count = looks.reindex(columns=["gpus"])["gpus"].max()
    if count > 0 and math.isnan(looks["gpu_throttled"].max()):
        return [f"whether a GPU of {count:g} was throttled is not reported"]
    return []


def _waits(looks: pd.DataFrame, span_s: float) -> list[str]:
    """How long main threads were ready to run but had no core. No limit: on few cores client and
    server wait for each other, which is the budget that was chosen, and no stranger's doing."""
    shares = {
        "the client's main thread": grown(looks, "client_wait_s") / span_s,
        "those of the server's processes together": grown(looks, "server_wait_s") / span_s,
    }
    said = [f"{who} {share:.1%}" for who, share in shares.items() if not math.isnan(share)]
    return [f"of the time, waiting for a core took {', '.join(said)}"] if said else []
