"""Claims about the study's own results: levels that are one load, arms that compute alike."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import test_same_output as planted

from study import statements
from study.same_output import compare


def curve(rates: list[float], latencies_s: list[float], verdict: str = "valid") -> pd.DataFrame:
    """Levels 100, 200, ... of one arm on two launches that differ by 1 %."""
    rows = [
        {"arm": "a", "workload": "short", "level": 100 * place, "verdict": verdict}
        | {"requests_s": rate * factor, "e2e_p50_s": latency_s / factor}
        for place, (rate, latency_s) in enumerate(zip(rates, latencies_s, strict=True), start=1)
        for factor in (0.995, 1.005)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("rates", "latencies_s", "verdict"),
    [
        ([50, 51, 50], [2.0, 2.04, 1.97], "fail"),  # a cap of 100 under every level
        ([50, 51, 50], [2.0, 3.9, 6.0], "pass"),  # saturated: each level waits longer
        ([50, 90, 120], [2.0, 2.05, 2.1], "pass"),
    ],
)
def test_levels_that_are_one_load_are_found(
    rates: list[float], latencies_s: list[float], verdict: str
) -> None:
    found = statements.judged(curve(rates, latencies_s))
    assert list(found["of"]) == ["a, short"]
    assert (found["gate"][0], found["scope"][0]) == ("distinct_levels", "claim")
    assert found["verdict"][0] == verdict
    assert ("one and the same load" in found["text"][0]) == (verdict == "fail")


def test_void_windows_and_single_levels_say_nothing() -> None:
    assert statements.judged(curve([50, 51], [2.0, 2.0], verdict="void")).empty
    assert statements.judged(curve([50], [2.0])).empty
    assert statements.judged(pd.DataFrame()).empty


def test_a_window_without_a_latency_cannot_be_judged() -> None:
    found = statements.judged(curve([50, 51], [np.nan, np.nan]))
    assert list(found["verdict"]) == ["cannot judge"]


def test_outputs_that_differ_are_a_failed_claim_beside_the_levels() -> None:
    frame = planted.changed(planted.outputs(), token=True, by=planted.FAR)
    agreed = [compare(frame, "b", "a"), compare(planted.outputs(), "b", "a")]
    found = statements.judged(curve([50, 90], [2.0, 2.0]), agreed)
    assert list(found["gate"]) == ["distinct_levels", "same_output", "same_output"]
    assert list(found["verdict"]) == ["pass", "fail", "pass"]
    assert set(found["scope"]) == {"claim"} and (found["text"].str.endswith(".")).all()
