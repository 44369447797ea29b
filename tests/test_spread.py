"""Spreads against theory by hand, planted truths, and how often the intervals hold."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from study.errors import StudyError
from study.spread import spread, spread_ratio

# Whole numbers: values that differ, differ by enough for their spread not to be rounding.
LAUNCHES = st.lists(st.integers(1, 10_000).map(float), min_size=2, max_size=8).filter(
    lambda values: len(set(values)) > 1
)


def launches(rng: np.random.Generator, s: float, *shape: int) -> np.ndarray:
    """Launches of about 100 tokens/s whose log values have the standard deviation `s`."""
    return np.asarray(100 * np.exp(rng.normal(0, s, shape)))


def test_the_interval_of_two_values_is_known_by_hand() -> None:
    """Logs 0 and 0.02: s = 0.02/sqrt(2); chi2(1) has quantiles 0.000982 and 5.0239."""
    found = spread(np.exp([0.0, 0.02]))
    s = 0.02 / np.sqrt(2)
    assert found.point == pytest.approx(s, rel=1e-3)
    assert found.low == pytest.approx(s / np.sqrt(5.0239), rel=1e-3)
    assert found.high == pytest.approx(np.sqrt(np.expm1(s**2 / 0.000982069)), rel=1e-3)
    assert found.label() == "95 % chi-square interval on the log scale, n = 2 launches"


def test_the_ratio_of_threes_is_known_by_hand() -> None:
    """F(2, 2) has the quantiles 1/39 and 39."""
    found = spread_ratio(np.exp([0.0, 0.1, 0.2]), np.exp([0.0, 0.05, 0.1]))
    assert found.point == pytest.approx(2)
    assert (found.low, found.high) == pytest.approx((2 / np.sqrt(39), 2 * np.sqrt(39)))


def test_the_label_names_both_counts() -> None:
    found = spread_ratio([1, 2, 3, 4, 5], [1, 2, 3])
    assert found.n == 3
    assert found.label() == (
        "95 % F interval on the log scale, 5 against 3 launches, n = 3 launches"
    )


def test_the_coefficient_is_that_of_log_normal_values() -> None:
    values = launches(np.random.default_rng(1), 0.5, 200_000)
    assert spread(values).point == pytest.approx(values.std() / values.mean(), rel=0.02)


@pytest.mark.parametrize("n", [2, 5])
def test_the_interval_of_a_spread_covers_as_often_as_it_says(n: int) -> None:
    truth = np.sqrt(np.expm1(0.03**2))
    found = [spread(row) for row in launches(np.random.default_rng(n), 0.03, 2000, n)]
    assert binomially(np.mean([one.low <= truth <= one.high for one in found]), 2000)


@pytest.mark.parametrize("n", [(5, 5), (3, 8)])
def test_the_interval_of_a_ratio_covers_as_often_as_it_says(n: tuple[int, int]) -> None:
    rng = np.random.default_rng(n)
    pairs = zip(launches(rng, 0.06, 2000, n[0]), launches(rng, 0.02, 2000, n[1]), strict=True)
    found = [spread_ratio(*pair) for pair in pairs]
    assert binomially(np.mean([one.low <= 3 <= one.high for one in found]), 2000)
    # Small samples of unequal size have no middle at the truth: F's own median is the factor.
    middle = 3 * np.sqrt(scipy.stats.f.median(n[0] - 1, n[1] - 1))
    assert np.median([one.point for one in found]) == pytest.approx(middle, rel=0.1)


def binomially(share: np.floating, trials: int, nominal: float = 0.95) -> bool:
    """Whether a coverage agrees with the nominal one within three binomial standard errors."""
    return bool(abs(share - nominal) < 3 * np.sqrt(nominal * (1 - nominal) / trials))


def test_a_planted_ratio_is_found_and_no_ratio_is_not() -> None:
    rng = np.random.default_rng(7)
    wide, narrow, again = (launches(rng, s, 20) for s in (0.06, 0.02, 0.02))
    found = spread_ratio(wide, narrow)
    assert 1 < found.low < 3 < found.high
    same = spread_ratio(again, narrow)
    assert same.low < 1 < same.high


@given(LAUNCHES, LAUNCHES)
def test_exchanging_the_arms_inverts_everything(some: list[float], others: list[float]) -> None:
    there, back = spread_ratio(some, others), spread_ratio(others, some)
    assert there.point * back.point == pytest.approx(1)
    assert (there.low * back.high, there.high * back.low) == pytest.approx((1, 1))
    assert there.low < there.point < there.high


@given(LAUNCHES, LAUNCHES, st.floats(0.001, 1000))
def test_a_change_of_unit_changes_nothing(
    some: list[float], others: list[float], factor: float
) -> None:
    once, scaled = spread_ratio(some, others), spread_ratio(np.multiply(some, factor), others)
    alone, alone_scaled = spread(some), spread(np.multiply(some, factor))
    for name in ("point", "low", "high"):
        assert getattr(scaled, name) == pytest.approx(getattr(once, name), rel=1e-6)
    # The highest limit goes through an exponential, which makes rounding visible.
    assert alone_scaled.point == pytest.approx(alone.point, rel=1e-6)
    assert alone_scaled.low == pytest.approx(alone.low, rel=1e-6)


@given(LAUNCHES)
def test_the_point_lies_in_its_interval_and_confidence_widens_it(values: list[float]) -> None:
    narrow, sure = spread(values, 0.9), spread(values, 0.99)
    assert sure.low < narrow.low < narrow.high <= sure.high
    assert narrow.low <= narrow.point <= narrow.high


def test_below_two_values_there_is_no_interval() -> None:
    one = spread([7.0])
    assert one.n == 1
    for found in (one, spread([]), spread_ratio([7.0], [1.0, 2.0]), spread_ratio([1.0, 2.0], [])):
        assert np.isnan([found.point, found.low, found.high]).all()


def test_equal_values_have_no_spread_and_no_interval() -> None:
    equal, other = [7.1] * 3, [1.0, 2.0]
    assert [spread(equal).point, spread_ratio(equal, other).point] == [0, 0]
    assert spread_ratio(other, equal).point == np.inf
    assert np.isnan(spread_ratio(equal, equal).point)
    for found in (spread(equal), spread_ratio(equal, other), spread_ratio(other, equal)):
        assert np.isnan([found.low, found.high]).all()


def test_nan_is_left_out_and_not_counted() -> None:
    assert spread([1.0, np.nan, 3.0]) == spread([1.0, 3.0])
    assert spread_ratio([1.0, np.nan, 3.0], [2, 3, 4]) == spread_ratio([1.0, 3.0], [2, 3, 4])


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf])
def test_values_that_are_not_positive_and_finite_are_refused(bad: float) -> None:
    with pytest.raises(StudyError, match="must be positive and finite"):
        spread([1.0, bad])
    with pytest.raises(StudyError, match="must be positive and finite"):
        spread_ratio([1.0, 2.0], [bad, 1.0])


def test_a_confidence_is_a_probability() -> None:
    with pytest.raises(StudyError, match="confidence must lie between 0 and 1"):
        spread([1.0, 2.0], 95)
    with pytest.raises(StudyError, match="confidence must lie between 0 and 1"):
        spread_ratio([1.0], [2.0], 95)
