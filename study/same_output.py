"""`same_output`: do two arms that should compute the same give the same greedy tokens?

The fixed prompts (study.outputs) are compared prompt by prompt inside a block, where weights are
the same, up to and with the first token that differs: after it the contexts are not the same.

A difference is forgiven only at a tie that both sides prove: each has the other's token for its
runner-up, and as good as the same log-probability for both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

import numpy as np
import orjson
import pandas as pd

from study.estimates import rows_of
from study.finite import Floats
from study.gates.judgement import Judgement, Verdict
from study.plan import Launch
from study.standing import standings
from study.store import Store
from study.tables import Table, number

# Logits of bfloat16 have a relative precision of 2^-8, and theirs are of the order of one: two
# ways to add the same numbers differ by about 0.01 in a log-probability.
LOGPROB_TOLERANCE = 0.05
NOTHING = "no block has outputs of both"
COLUMNS = ("launch", "block", "arm", "number", "prompt", "kind", "tokens", "logprobs", "runners_up",
    "error",
)  # fmt: skip
HITS = ("prefix_hits_tokens", "external_hits_tokens")


@dataclass(frozen=True)
class Agreement:
    """What two sides made of the same prompts, over all blocks that have both.

    prompts: answered by both sides and so compared; unanswered: sent by both, but not answered
    by one; tokens: compared (up to the first difference); differing: prompts with a difference;
    ties: those of them where both sides hold the same two tokens for best, and nearly equal, so
    that rounding decides; logprob_change: the largest change of a log-probability.

    What the check is worth: control, the median change of a log-probability between a prompt and
    its twin, which begins otherwise, on the baseline.
    """

    treatment: str
    baseline: str
    blocks: int
    prompts: int
    unanswered: int
    tokens: int
    differing: int
    ties: int
    logprob_change: float
    control: float

    @property
    def judgement(self) -> Judgement:
        """Pass, fail, or cannot judge, with the reason."""
        limit = f"log-probabilities within {LOGPROB_TOLERANCE:g}, other tokens only at ties"
        verdict, text = self._verdict()
        observed = f"{self.differing} of {self.prompts} prompts differ"
        return Judgement("same_output", "claim", verdict, observed, limit, text)

    def _verdict(self) -> tuple[Verdict, str]:
        pair = f"{self.treatment} against {self.baseline}"
        if not self.prompts:
            why = f"of {self.unanswered} prompts none was answered by both"
            return "cannot judge", f"{pair}: {why if self.unanswered else NOTHING}."
        said = (
            f"{pair}: {self.differing} of {self.prompts} prompts give other tokens ({self.ties} at "
            f"a tie); log-probabilities change by at most {self.logprob_change:.2g}, those of a "
            f"prompt that begins otherwise by {self.control:.2g}"
        )
        if broken := self._broken():
            return "fail", f"{said}: {' and '.join(broken)}."
        if self.unanswered:
            return "cannot judge", f"{said}; {self.unanswered} more were not answered by both."
        if not self.control > 2 * LOGPROB_TOLERANCE:
            return "cannot judge", f"{said}: the output hardly depends on the prompt."
        return "pass", f"{said}."

    def _broken(self) -> list[str]:
        """The limits that are not kept."""
        broken = []
        if self.differing > self.ties:
            broken.append("tokens differ where there is no tie")
        if self.logprob_change > LOGPROB_TOLERANCE:
            broken.append(f"a log-probability changes by more than {LOGPROB_TOLERANCE:g}")
        return broken

    def as_row(self) -> dict[str, Any]:
        """The facts, with verdict and text."""
        judged = self.judgement
        return {**asdict(self), "verdict": judged.verdict, "text": judged.text}


def read(launches: Sequence[Launch], store: Store | None = None) -> pd.DataFrame:
    """A row per fixed prompt and pass of every launch that has outputs on disk.

    Columns: launch, block, arm, number (of the pass), prompt, kind (`prompt` or `twin`), tokens,
    logprobs and runners_up (lists), error, and the cache hits of the whole pass in tokens.
    """
    rows = []
    for one in standings(launches, store or Store()):
        path = one.attempt.folder / "outputs.json" if one.attempt else None
        if path is None or not path.exists():
            continue
        keys = {"launch": one.launch.id, "block": one.launch.block, "arm": one.launch.arm.name}
        for place, taken in enumerate(orjson.loads(path.read_bytes())["passes"]):
            hits = {name: taken["counters"].get(name, np.nan) for name in HITS}
            rows += [
                {**keys, "number": place, "prompt": index // 2, **output, **hits}
                for index, output in enumerate(taken["outputs"])
            ]
    return pd.DataFrame(rows, columns=[*COLUMNS, *HITS])


def compare(
    outputs: pd.DataFrame, treatment: str, baseline: str, passes: tuple[int, int] = (0, 0)
) -> Agreement:
    """Compare two arms (or two passes of one arm) inside blocks. `passes`: treatment, baseline."""
    treated, base = (
        _side(outputs, arm, number)
        for arm, number in zip((treatment, baseline), passes, strict=True)
    )
    both = [key for key in sorted(treated.keys() & base.keys()) if key[2] == "prompt"]
    answered = [key for key in both if treated[key].answered and base[key].answered]
    found = [_differences(treated[key], base[key]) for key in answered]
    changes = _twins(base)
    names = [
        arm if passes == (0, 0) else f"{arm}, pass {number + 1}"
        for arm, number in zip((treatment, baseline), passes, strict=True)
    ]
    return Agreement(
        treatment=names[0],
        baseline=names[1],
        blocks=len({block for block, *_ in answered}),
        prompts=len(found),
        unanswered=len(both) - len(answered),
        tokens=sum(one.tokens for one in found),
        differing=sum(one.differs for one in found),
        ties=sum(one.tie for one in found),
        logprob_change=max((one.change for one in found), default=np.nan),
        control=float(np.median(changes)) if changes else np.nan,
    )


def table(agreements: Sequence[Agreement]) -> Table:
    """A row per comparison, with its verdict."""
    data = pd.DataFrame([one.as_row() for one in agreements])
    if data.empty:
        return Table(data, data, "Outputs were not compared: no two arms should give the same.")
    shown = pd.DataFrame(
        {
            "compared": data["treatment"] + " against " + data["baseline"],
            "blocks": data["blocks"],
            "prompts": data["prompts"],
            "tokens": data["tokens"],
            "prompts that differ": data["differing"],
            "of these at a tie": data["ties"],
            "largest change of a log-probability": data["logprob_change"].map(number),
            "control": data["control"].map(number),
            "verdict": data["verdict"],
            "why": data["text"].mask(data["verdict"] == "pass", "within the limits"),
        }
    )
    return Table(
        shown,
        data,
        "The same fixed prompts, decoded greedily by both arms of a pair and compared inside "
        "blocks, token by token up to the first difference. A difference is at a tie where both "
        "have the same two tokens for best, their log-probabilities equal within "
        f"{LOGPROB_TOLERANCE:g}: rounding decides there. Control: how much a log-probability "
        "changes (median) when the prompt begins otherwise; without that much the comparison could "
        "not fail. Sent to one server one by one: what batching changes is not seen.",
    )


Key = tuple[int, int, str]  # block, prompt, kind


@dataclass(frozen=True)
class _Output:
    tokens: tuple[int, ...]
    logprobs: Floats
    runners_up: tuple[tuple[int, float], ...] = ()

    @property
    def answered(self) -> bool:
        whole = 0 < len(self.tokens) == len(self.logprobs)
        return whole and bool(np.isfinite(self.logprobs).all())


def _side(outputs: pd.DataFrame, arm: str, number: int) -> dict[Key, _Output]:
    of = outputs[(outputs["arm"] == arm) & (outputs["number"] == number)]
    return {
        (row.block, row.prompt, row.kind): _Output(
            () if row.error else tuple(row.tokens),
            np.array(row.logprobs, dtype=np.float64),
            _runners_up(getattr(row, "runners_up", None)),
        )
        for row in rows_of(of)
    }


def _runners_up(said: object) -> tuple[tuple[int, float], ...]:
    """None where they were not asked for, as in the first outputs that were kept."""
    return tuple((token, value) for token, value in said) if isinstance(said, list) else ()


@dataclass(frozen=True)
class _Difference:
    tokens: int
    differs: bool
    tie: bool
    change: float


def _differences(one: _Output, other: _Output) -> _Difference:
    length = min(len(one.tokens), len(other.tokens))
    same = len(list(takewhile(lambda i: one.tokens[i] == other.tokens[i], range(length))))
    changes = _changes(one, other)[: same + 1]
    differs = same < max(len(one.tokens), len(other.tokens))  # one that stops early differs too
    near = same < length and changes[same] <= LOGPROB_TOLERANCE
    tie = bool(near) and _near(one, other, same) and _near(other, one, same)
    return _Difference(len(changes), differs, tie, float(changes.max(initial=0.0)))


def _near(one: _Output, other: _Output, at: int) -> bool:
    """Whether, to one side, the token of the other is its runner-up and as good as its own."""
    if at >= len(one.runners_up):
        return False
    token, logprob = one.runners_up[at]
    return bool(token == other.tokens[at] and one.logprobs[at] - logprob <= LOGPROB_TOLERANCE)


def _changes(one: _Output, other: _Output) -> Floats:
    """By how much log-probabilities change, position by position."""
    length = min(len(one.tokens), len(other.tokens))
    changes: Floats = np.abs(one.logprobs[:length] - other.logprobs[:length])
    return changes


def _twins(side: dict[Key, _Output]) -> list[float]:
    """The median change of each prompt's log-probabilities against its twin's."""
    medians: list[float] = []
    for (block, prompt, kind), one in side.items():
        twin = side.get((block, prompt, "twin"))
        if kind == "prompt" and twin is not None and one.answered and twin.answered:
            medians.append(float(np.median(_changes(one, twin))))
    return medians
