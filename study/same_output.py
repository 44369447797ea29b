"""`same_output`: do two arms that should compute the same give the same greedy tokens?

The fixed prompts (study.outputs) are compared prompt by prompt inside a block, where weights are
the same, up to and with the first token that differs: after it the contexts are not the same.
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
from study.plan import Launch
from study.standing import standings
from study.store import Store
from study.validity import Judgement, Verdict

# Logits of bfloat16 have a relative precision of 2^-8, and theirs are of the order of one: two
# ways to add the same numbers differ by about 0.01 in a log-probability.
LOGPROB_TOLERANCE = 0.05
COLUMNS = ("launch", "block", "arm", "number", "prompt", "kind", "tokens", "logprobs", "error")
HITS = ("prefix_hits_tokens", "external_hits_tokens")


@dataclass(frozen=True)
class Agreement:
    """What two sides made of the same prompts, over all blocks that have both.

    prompts: compared; tokens: compared (up to the first difference); differing: prompts with a
    difference; ties: those of them where both sides gave their token nearly the same probability,
    so that rounding decides; logprob_change: the largest change of a log-probability; control:
    the median change between a prompt and its twin, which begins otherwise, on the baseline.
    """

    treatment: str
    baseline: str
    blocks: int
    prompts: int
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
            return "cannot judge", f"{pair}: no block has outputs of both."
        said = (
            f"{pair}: {self.differing} of {self.prompts} prompts give other tokens ({self.ties} at "
            f"a tie); log-probabilities change by at most {self.logprob_change:.2g}, those of a "
            f"prompt that begins otherwise by {self.control:.2g}"
        )
        if self.differing > self.ties or self.logprob_change > LOGPROB_TOLERANCE:
            return "fail", f"{said}: not the same computation."
        if not self.control > 2 * LOGPROB_TOLERANCE:
            return "cannot judge", f"{said}: the output hardly depends on the prompt."
        return "pass", f"{said}."

    def as_row(self) -> dict[str, Any]:
        """The facts, with verdict and text."""
        judged = self.judgement
        return {**asdict(self), "verdict": judged.verdict, "text": judged.text}


def read(launches: Sequence[Launch], store: Store | None = None) -> pd.DataFrame:
    """A row per fixed prompt and pass of every launch that has outputs on disk.

    Columns: launch, block, arm, number (of the pass), prompt, kind (`prompt` or `twin`), tokens
    and logprobs (lists), error, and the cache hits of the whole pass in tokens.
    """
    rows = []
    for one in standings(launches, store or Store()):
        path = one.attempt.folder / "outputs.json" if one.attempt else None
        if path is None or not path.exists():
            continue
        keys = {"launch": one.launch.id, "block": one.launch.block, "arm": one.launch.arm.name}
        for number, taken in enumerate(orjson.loads(path.read_bytes())["passes"]):
            hits = {name: taken["counters"].get(name, np.nan) for name in HITS}
            rows += [
                {**keys, "number": number, "prompt": place // 2, **output, **hits}
                for place, output in enumerate(taken["outputs"])
            ]
    return pd.DataFrame(rows, columns=[*COLUMNS, *HITS])


def compare(
    outputs: pd.DataFrame, treatment: str, baseline: str, passes: tuple[int, int] = (0, 0)
) -> Agreement:
    """Compare two arms (or two passes of one arm) inside blocks. `passes`: treatment, baseline."""
    sides = [
        _side(outputs, arm, number)
        for arm, number in zip((treatment, baseline), passes, strict=True)
    ]
    common = sides[0].keys() & sides[1].keys()
    pairs = [(sides[0][key], sides[1][key]) for key in sorted(common) if key[2] == "prompt"]
    found = [_differences(*pair) for pair in pairs]
    twins = [
        _change(row, sides[1][block, prompt, "twin"])
        for (block, prompt, kind), row in sides[1].items()
        if kind == "prompt" and (block, prompt, "twin") in sides[1]
    ]
    names = [
        arm if passes == (0, 0) else f"{arm}, pass {number + 1}"
        for arm, number in zip((treatment, baseline), passes, strict=True)
    ]
    return Agreement(
        treatment=names[0],
        baseline=names[1],
        blocks=len({key[0] for key in common}),
        prompts=len(found),
        tokens=sum(one.tokens for one in found),
        differing=sum(one.differs for one in found),
        ties=sum(one.tie for one in found),
        logprob_change=max((one.change for one in found), default=np.nan),
        control=float(np.median(twins)) if twins else np.nan,
    )


Key = tuple[int, int, str]  # block, prompt, kind


def _side(outputs: pd.DataFrame, arm: str, number: int) -> dict[Key, Any]:
    of = outputs[(outputs["arm"] == arm) & (outputs["number"] == number) & (outputs["error"] == "")]
    return {(row.block, row.prompt, row.kind): row for row in rows_of(of)}


@dataclass(frozen=True)
class _Difference:
    tokens: int
    differs: bool
    tie: bool
    change: float


def _differences(one: Any, other: Any) -> _Difference:
    length = min(len(one.tokens), len(other.tokens))
    same = len(list(takewhile(lambda i: one.tokens[i] == other.tokens[i], range(length))))
    seen = slice(0, min(same + 1, length))
    changes = np.abs(np.subtract(one.logprobs[seen], other.logprobs[seen]))
    differs = same < length
    tie = differs and changes[same] <= LOGPROB_TOLERANCE
    return _Difference(len(changes), differs, bool(tie), float(changes.max(initial=0.0)))


def _change(one: Any, twin: Any) -> float:
    """The median change of a log-probability between two outputs, position by position."""
    length = min(len(one.logprobs), len(twin.logprobs))
    changes = np.abs(np.subtract(one.logprobs[:length], twin.logprobs[:length]))
    return float(np.median(changes)) if length else np.nan
