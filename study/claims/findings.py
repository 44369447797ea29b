"""Published numbers, derived again: every claim and every table of others with its class.

A class follows from comparing what is computed with what is stated (`study.claims.evidence`),
under the rounding of the printed digits (`study.claims.printed`). The derivations are in modules
named after their sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from study.claims import inferencex, metrum, mi325x, spark, wafer
from study.claims.evidence import CLASSES, Class, Derivation, Evidence, classify
from study.claims.printed import stated
from study.claims.published import Claim, Published
from study.errors import unknown_name

DERIVATIONS: Mapping[str, Mapping[str, Derivation]] = {
    metrum.SOURCE: metrum.DERIVATIONS,
    inferencex.SOURCE: inferencex.DERIVATIONS,
    mi325x.PAPER: mi325x.PAPER_DERIVATIONS,
    mi325x.COOKBOOK: mi325x.COOKBOOK_DERIVATIONS,
    wafer.SOURCE: wafer.DERIVATIONS,
    spark.SOURCE: spark.DERIVATIONS,
}


@dataclass(frozen=True)
class Finding:
    """A claim, what was computed beside it, and the class that follows."""

    claim: Claim
    evidence: Evidence
    found: Class


def findings(rows: Sequence[Claim], published: Published) -> tuple[Finding, ...]:
    """Every claim with its class, in the order given."""
    return tuple(_finding(claim, published) for claim in rows)


def _finding(claim: Claim, published: Published) -> Finding:
    known = DERIVATIONS.get(claim.source, {})
    if claim.claim not in known:
        raise unknown_name(f"a claim of {claim.source} with a derivation", claim.claim, known)
    evidence = known[claim.claim](claim, published)
    return Finding(claim, evidence, classify(stated(claim.stated), evidence))


def counts(found: Sequence[Finding]) -> dict[Class, int]:
    """How many claims are in each class, in the order of the classes."""
    return {one: sum(finding.found == one for finding in found) for one in CLASSES}


def frame(found: Sequence[Finding]) -> pd.DataFrame:
    """A row per claim: what is stated, what was computed with its limits, class and reason."""
    return pd.DataFrame([_row(one) for one in found])


def _row(one: Finding) -> dict[str, object]:
    claim, evidence = one.claim, one.evidence
    numbers = evidence.computed
    return {
        "source": claim.source,
        "claim": claim.claim,
        "statement": claim.statement,
        "stated": claim.stated or _listed([n.value for n in evidence.stated]),
        "unit": claim.unit,
        "computed": _listed([n.value for n in numbers]),
        "computed_low": _listed([n.low for n in numbers]),
        "computed_high": _listed([n.high for n in numbers]),
        "computed_unit": evidence.unit,
        "class": one.found,
        "why": evidence.why,
        "missing": evidence.missing if one.found == "not derivable" else "",
        "tolerance": "rounding of the printed digits",
    }


def _listed(values: Sequence[float]) -> str:
    return " | ".join(f"{value:.6g}" for value in values)
