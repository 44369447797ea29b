"""What a gate says, in the same form whether the numbers are the study's own or somebody else's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from study.steady import Mask

Scope = Literal["window", "metric", "claim"]
Verdict = Literal["pass", "fail", "cannot judge"]
Finding = tuple[bool, str]  # right or wrong, and the sentence where it is wrong


@dataclass(frozen=True)
class Judgement:
    """What one gate says. `text` is one sentence with the numbers a reader needs."""

    gate: str
    scope: Scope
    verdict: Verdict
    observed: float | str
    limit: float | str
    text: str


def of_findings(gate: str, findings: Sequence[Finding], limit: str, fine: str) -> Judgement:
    """The judgement of a window gate that consists of several checks, all of which must hold."""
    wrong = [text for right, text in findings if not right]
    observed = f"{len(wrong)} of {len(findings)} wrong"
    if wrong:
        return Judgement(gate, "window", "fail", observed, limit, f"{'; '.join(wrong)}.")
    text = f"All {len(findings)} {fine}."
    return Judgement(gate, "window", "pass", observed, limit, text)


def none_of(wrong: Mask, what: str, of: str = "requests") -> Finding:
    """The finding that not one of them is wrong."""
    count = int(wrong.sum())
    return count == 0, f"{count:,} {of} {what}"
