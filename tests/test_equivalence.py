"""Two one-sided tests against statsmodels, planted truths and their size at the margin."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.weightstats import ttost_paired

from study.equivalence import DIFFERENT, EQUIVALENT, SMALL, UNDECIDED, Equivalence, equivalent
from study.errors import StudyError
from study.stats import Comparison, contrast, of_blocks, paired_ratio

RATIOS = st.lists(st.floats(0.5, 2), min_size=2, max_size=8)


def comparison(ratios: Iterable[float], comparisons: int = 1) -> Comparison:
    """Arm b is so many times arm a, a block each."""
    rows = [(block, arm, 100 * (ratio if arm == "b" else 1))
            for block, ratio in enumerate(ratios) for arm in "ab"]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["block", "arm", "tok_s"])
    return paired_ratio(frame, "tok_s", "arm", "b", "a", comparisons=comparisons)


def judged(ratios: Iterable[float], comparisons: int = 1) -> Equivalence:
    return equivalent(comparison(ratios, comparisons))


def test_it_is_statsmodels_test_of_the_logs() -> None:
    ratios = np.array([1.01, 0.98, 1.03, 1.0])
    limit = np.log(1.05)
    theirs = ttost_paired(np.log(ratios), np.zeros(4), -limit, limit)
    ours = judged(ratios)
    assert ours.p_value == pytest.approx(theirs[0])
    assert ours.within.label() == (
        "90 % interval on the log scale of two one-sided t tests, n = 4 blocks"
    )


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([1.001, 0.999, 1.0, 1.002], EQUIVALENT),
        ([1.30, 1.31, 1.29, 1.30], DIFFERENT),
        ([1.020, 1.021, 1.019, 1.020], SMALL),
        ([1.3, 0.8, 1.1, 0.95], UNDECIDED),
        ([1.0], UNDECIDED),
        ([], UNDECIDED),
        ([1.0, 1.0], EQUIVALENT),
        ([1.25, 1.25], DIFFERENT),
    ],
)
def test_each_verdict(ratios: list[float], verdict: str) -> None:
    assert judged(ratios).verdict == verdict


@given(RATIOS, st.integers(1, 5))
def test_interval_and_p_value_never_contradict(ratios: list[float], comparisons: int) -> None:
    found = judged(ratios, comparisons)
    inside = found.lowest < found.within.low and found.within.high < found.highest
    on_the_edge = abs(found.p_value - 0.05) < 1e-9
    assert on_the_edge or inside == (found.p_value < 0.05)


@given(RATIOS)
def test_exchanging_the_arms_changes_nothing(ratios: list[float]) -> None:
    there, back = judged(ratios), judged([1 / ratio for ratio in ratios])
    assert there.p_value == pytest.approx(back.p_value, abs=1e-9)
    assert there.verdict == back.verdict or abs(there.p_value - 0.05) < 1e-9


@given(RATIOS)
def test_more_comparisons_only_make_it_harder(ratios: list[float]) -> None:
    assert judged(ratios, 4).p_value >= judged(ratios).p_value


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("truth", [1.05, 1 / 1.05])
def test_at_the_margin_it_errs_in_5_percent(n: int, truth: float) -> None:
    """At 1 % spread the other limit is far: the size is then that of one test, not below."""
    rng, runs = np.random.default_rng(n), 2000
    logs = np.log(truth) + rng.normal(0, 0.01, (runs, n))
    called = np.mean([equivalent(of_blocks(row)).p_value < 0.05 for row in logs])
    assert abs(called - 0.05) < 3 * np.sqrt(0.05 * 0.95 / runs)


def test_wide_noise_is_never_taken_for_equality() -> None:
    logs = np.random.default_rng(1).normal(0, 0.3, (500, 3))
    assert np.mean([equivalent(of_blocks(row)).verdict == EQUIVALENT for row in logs]) < 0.01


def test_a_margin_is_positive_and_of_a_ratio() -> None:
    with pytest.raises(StudyError, match="margin must be a positive share"):
        equivalent(comparison([1.0, 1.0]), margin=0)
    frame = pd.DataFrame(
        {"block": [0, 0, 1, 1], "arm": ["a", "b"] * 2, "tok_s": [1.0, 2.0, 3.0, 4.0]}
    )
    with pytest.raises(StudyError, match="asked of a ratio"):
        equivalent(contrast(frame, "tok_s", {"b": 1, "a": -1}, log=False))
