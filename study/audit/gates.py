"""Gates for results of others: what can be judged from a file, and what it then says.

Pure functions of a `Window`, each to one `Judgement`. A gate that lacks what it needs says
"cannot judge". A window is void when a gate of scope window fails, valid when all of `NEEDED`
pass, and undecided otherwise: a summary can refute a level, only detail can confirm it.

What no result file of a client holds, nobody can judge from it: `NOT_IN_FILES`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from study.audit.arithmetic import number, ratio
from study.audit.consistency import conservation, times
from study.audit.formats import Window
from study.audit.level import Fit, bound_of, level_reached, steady_part
from study.finite import Floats, only
from study.gates.delivered import ERROR_SHARE_LIMIT, failures
from study.gates.judgement import Judgement, Verdict
from study.gates.level import LEVEL_TOLERANCE
from study.gates.percentiles import percentile_supported

FileVerdict = Literal["valid", "void", "undecided"]

NEEDED = ("level_reached", "steady_part", "errors", "conservation", "times")
NOT_IN_FILES = (
    "client_headroom", "warm", "cache_temperature", "reconciled", "treatment_in_force",
    "machine_quiet", "same_output",
)  # fmt: skip
# Where so many requests have one length, that length was asked for and the others missed it.
COMMON_LENGTH = 0.90
# vLLM's random prompts have a token or two more where text does not split as it was put together:
# so many, or that share of a long one.
PROMPT_OFF, PROMPT_OFF_SHARE = 2, 0.01
NAMED_KINDS = 3  # of failures: texts of others may all differ


def judge(window: Window, fit: Fit | None = None) -> tuple[Judgement, ...]:
    """What every gate says of one window."""
    return (
        level_reached(window, fit),
        steady_part(window),
        lengths_delivered(window),
        errors(window),
        conservation(window),
        times(window),
        *percentiles(window),
    )


def verdict(judgements: Iterable[Judgement]) -> FileVerdict:
    """Void when a gate of scope window fails; valid when all that is needed passes."""
    of_window = [said for said in judgements if said.scope == "window"]
    if any(said.verdict == "fail" for said in of_window):
        return "void"
    passed = {said.gate for said in of_window if said.verdict == "pass"}
    return "valid" if passed.issuperset(NEEDED) else "undecided"


def together(verdicts: Sequence[FileVerdict]) -> FileVerdict:
    """The verdict of a file with several windows: the worst of theirs."""
    if "void" in verdicts:
        return "void"
    return "valid" if verdicts and set(verdicts) == {"valid"} else "undecided"


# ------------------------------------------------------------- lengths, errors and percentiles


def lengths_delivered(window: Window) -> Judgement:
    """Did requests have the tokens that were asked for?

    A result file does not say what was asked. In detail, one length that nearly all requests
    share was asked for. A table that states lengths contradicts itself where even a full level
    would need shorter requests.
    """
    if window.detail is not None and np.isfinite(window.detail.output_tokens).any():
        return _lengths_seen(window)
    if math.isnan(window.asked_tokens):
        tokens = ratio(window.input_tokens + window.output_tokens, window.completed)
        said = "" if math.isnan(tokens) else f", {number(tokens)} tokens per request on average"
        return _lengths("cannot judge", tokens, math.nan, f"What was asked is not stated{said}.")
    asked, (delivered, tolerance) = window.asked_tokens, _delivered(window)
    limit = f"{number(asked)} tokens per request"
    if not math.isnan(delivered):
        text = f"{number(delivered)} tokens per request were delivered, {number(asked)} asked."
        close = abs(ratio(delivered, asked) - 1) <= tolerance
        return _lengths("pass" if close else "fail", delivered, limit, text)
    most = _most_tokens(window)
    if math.isnan(most):
        return _lengths("cannot judge", math.nan, limit, "What was delivered is not stated.")
    text = f"At a full level, its rate leaves at most {number(most)} tokens per request; "
    text += f"{number(asked)} were asked"
    if most < asked:
        return _lengths("fail", most, limit, f"{text}: the lengths or the level are not as stated.")
    return _lengths("cannot judge", most, limit, f"{text}: no contradiction, but no proof.")


def _delivered(window: Window) -> tuple[float, float]:
    """Tokens per request, as stated or by the rates, and how far they may be off, relatively."""
    if not math.isnan(window.tokens_per_request):
        return window.tokens_per_request, window.rounding
    tokens = ratio(window.rate("total_tok_s"), window.rate("request_s"))
    return tokens, window.slack("total_tok_s", "request_s")


def _most_tokens(window: Window) -> float:
    """Tokens per request above which the bound on what was in flight would refute the level."""
    unit = Fit(1.0, "total_tok_s", math.nan, spread=1.0)
    bound = bound_of(window, unit)
    if bound is None:
        return math.nan
    full = np.nanmin([window.level, window.requests])  # no more are in flight than are made
    return float(bound.mean / (full * (1 - LEVEL_TOLERANCE) * bound.share))


def _lengths_seen(window: Window) -> Judgement:
    assert window.detail is not None
    fine = window.detail.fine
    said, wrong, varied = [], [], []
    for name, lengths in (
        ("in", only(window.detail.input_tokens[fine])),
        ("out", only(window.detail.output_tokens[fine])),
    ):
        values, counts = np.unique(lengths, return_counts=True)
        if not values.size:
            continue
        common, share = values[counts.argmax()], counts.max() / lengths.size
        if values.size == 1:
            said.append(f"{common:g} {name}")
        elif name == "in" and _nearly(lengths, common, share):
            others = lengths.size - counts.max()
            said.append(f"{common:g} in but for {others} of {lengths.size}, each nearly")
        elif share >= COMMON_LENGTH:
            others = lengths.size - counts.max()
            wrong.append(f"{others} of {lengths.size} had not the {common:g} {name} of the others")
        else:
            varied.append(f"{values[0]:g} to {values[-1]:g} {name}")
    if wrong:
        return _lengths("fail", "; ".join(wrong), "one length", f"{'; '.join(wrong)}.")
    if varied:
        text = f"Lengths vary: {', '.join(varied + said)}. What was asked is not in the file."
        return _lengths("cannot judge", ", ".join(varied + said), math.nan, text)
    return _lengths("pass", ", ".join(said), "one length", f"All had {', '.join(said)}.")


def _nearly(lengths: Floats, common: float, share: float) -> bool:
    """Whether prompts were asked for at one length, and have it but for what sampling adds."""
    room = max(PROMPT_OFF, PROMPT_OFF_SHARE * common)
    return bool(share > 0.5 and np.abs(lengths - common).max() <= room)


def _lengths(verdict: Verdict, observed: float | str, limit: float | str, text: str) -> Judgement:
    return Judgement("lengths_delivered", "window", verdict, observed, limit, text)


def errors(window: Window) -> Judgement:
    """At most 1 % of the requests failed. Where failures are not counted, those asked for and not
    completed count. Where more than 1 % did neither, they may have failed uncounted, or the data
    set had fewer."""
    failed, made, how = window.failed, window.completed + window.failed, "failed"
    kinds = window.detail.kinds if window.detail is not None else {}
    if window.detail is not None:
        failed, made = float((~window.detail.fine).sum()), float(len(window.detail))
    elif math.isnan(failed):
        failed, made = window.requests - window.completed, window.requests
        how = "were asked for and not completed"
    ended = made if window.detail is not None else window.completed + window.failed
    lost = window.requests - ended
    if lost > ERROR_SHARE_LIMIT * window.requests and not failed > ERROR_SHARE_LIMIT * made:
        text = f"{number(lost)} of {number(window.requests)} requests neither completed nor failed."
        limit = f"at most {ERROR_SHARE_LIMIT:.0%}"
        return Judgement("errors", "window", "cannot judge", lost / window.requests, limit, text)
    most = dict(sorted(kinds.items(), key=lambda kind: -kind[1])[:NAMED_KINDS])
    return failures(failed, made, most, how)


def percentiles(window: Window) -> list[Judgement]:
    """For each tail percentile that is stated: can its sample carry it?"""
    stated = {
        statistic
        for metric, times_s in window.times_s.items()
        if metric != "itl"  # its sample is chunks, not requests
        for statistic, value in times_s.items()
        if statistic.startswith("p") and not math.isnan(value)
    }
    sample = window.requests if math.isnan(window.completed) else window.completed
    asked = {name: float(name[1:]) / 100 for name in sorted(stated, key=lambda n: float(n[1:]))}
    return [percentile_supported(name, sample, q) for name, q in asked.items() if 0.5 < q < 1]
