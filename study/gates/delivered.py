"""Was what was asked for delivered: every request, at its length, by the engine as it was set?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from study.gates.judgement import Judgement, Verdict
from study.steady import completed

# Above this the window says how reliable the server is, not how fast.
ERROR_SHARE_LIMIT = 0.01


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
    failed = requests[~completed(requests)]
    counts = failed["error"].replace("", "no last token").value_counts(sort=True)
    kinds = {str(kind): int(count) for kind, count in counts.items()}
    return failures(len(failed), len(requests), kinds)


def failures(
    failed: float, made: float, kinds: Mapping[str, int], how: str = "failed"
) -> Judgement:
    """The same, by counts of requests; `how` says what is known of those that failed."""
    limit = f"at most {ERROR_SHARE_LIMIT:.0%}"
    share = failed / made if made > 0 else math.nan
    if math.isnan(share):
        text = "It is not known how many requests were made, or how many failed."
        return Judgement("errors", "window", "cannot judge", math.nan, limit, text)
    named = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    text = f"{failed:,.0f} of {made:,.0f} requests {how} ({share:.2%})"
    text += f": {named}." if named else "."
    verdict: Verdict = "fail" if share > ERROR_SHARE_LIMIT else "pass"
    return Judgement("errors", "window", verdict, share, limit, text)
