"""Claims about the study's own results: levels that are one load, arms that compute alike."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import test_same_output as planted
from scipy import stats

from study import statements
from study.finite import Floats
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


def paced(rng: np.random.Generator, shared: float, follows: float = -0.5) -> pd.DataFrame:
    """Four arms in three blocks, six levels a launch: pace and what else disturbs throughput have
    a part that is the launch's (this share of the variance) and one that is the window's."""
    arm, block, level = (
        axis.ravel() for axis in np.meshgrid(range(4), range(3), range(6), indexing="ij")
    )
    launch = 3 * arm + block

    def disturbed() -> Floats:
        of_launch, own = rng.normal(size=12)[launch], rng.normal(size=launch.size)
        both: Floats = np.sqrt(shared) * of_launch + np.sqrt(1 - shared) * own
        return 0.1 * both

    slower = disturbed()
    rate = np.log(100 + 50 * level) + follows * slower + disturbed()
    columns = {"experiment": "any", "workload": "short", "arm": arm, "launch": launch}
    measured = {"pace_s": 3e-4 * np.exp(slower), "output_tok_s": np.exp(rate)}
    return pd.DataFrame(columns | measured | {"level": level, "again": False})


def test_the_slope_of_the_pace_and_its_error_are_those_of_statsmodels() -> None:
    windows = paced(np.random.default_rng(1), shared=0.5)
    alone = windows.iloc[[0]].assign(level=99, launch=99, output_tok_s=9.0)  # tells nothing
    seen = statements.pace(pd.concat([windows, alone], ignore_index=True))
    logs = windows.assign(x=np.log(windows["pace_s"]), y=np.log(windows["output_tok_s"]))

    def fitted(some: pd.DataFrame) -> float:
        return float(smf.ols("y ~ x + C(arm) * C(level)", some).fit().params["x"])

    slope = fitted(logs)
    without = np.array([fitted(logs[logs["launch"] != one]) for one in range(12)])
    error = np.sqrt(11 / 12 * ((without - slope) ** 2).sum())
    assert seen is not None and (seen.slope.n, seen.slope.unit) == (12, "launches")
    assert seen.slope.point == pytest.approx(slope)
    assert seen.slope.high - slope == pytest.approx(stats.t.ppf(0.975, 11) * error)


@pytest.mark.parametrize("shared", [0.0, 0.8])
def test_its_interval_holds_the_truth_where_windows_share_their_launch(shared: float) -> None:
    """By windows as units, as it was first, 0.8 of shared variance left 62 % of intervals true."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        seen = statements.pace(paced(rng, shared))
        assert seen is not None
        held += seen.slope.low <= -0.5 <= seen.slope.high
    assert held / 300 > 0.93


def test_one_launch_alone_gives_the_slope_no_interval() -> None:
    windows = paced(np.random.default_rng(3), shared=0.5)
    seen = statements.pace(windows[windows["launch"] == 0])
    assert seen is not None and np.isnan([seen.slope.low, seen.slope.high, seen.share]).all()
