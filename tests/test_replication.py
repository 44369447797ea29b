"""Stein's rule by hand, and that interval and width keep what they promise; the bootstrap."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from study.bootstrap import bca_mean
from study.errors import StudyError
from study.finite import Floats
from study.replication import PILOT, needed, needed_by_cell, two_stage_interval
from study.stats import mean_interval, mean_interval_log, over_launches

PILOTS = st.lists(st.floats(50, 200), min_size=2, max_size=8)


def launches(rng: np.random.Generator, sd: float, *shape: int) -> Floats:
    """Launches of a server of 100 tokens/s."""
    return np.asarray(100 * np.exp(rng.normal(0, sd, shape)))


def binomially(share: float, runs: int, nominal: float = 0.95) -> bool:
    return bool(abs(share - nominal) < 3 * np.sqrt(nominal * (1 - nominal) / runs))


def test_the_launches_needed_are_known_by_hand() -> None:
    """Logs 0 and 0.1: s = 0.0707, t(0.975, 1) = 12.706; 5 % is 0.0488: (18.41)^2 = 339.1."""
    found = needed(np.exp([0.0, 0.1]))
    assert (found.total, found.more, found.pilot) == (340, 338, 2)
    assert found.spread == pytest.approx(0.0707, abs=1e-4)


def test_a_quiet_pilot_is_enough() -> None:
    found = needed([100.0, 100.1, 99.9, 100.0, 100.05])
    assert (found.total, found.more) == (5, 0)
    assert needed([7.0, 7.0]).total == 2


@given(PILOTS, st.floats(0.01, 0.2))
def test_narrower_or_surer_never_takes_fewer(pilot: list[float], half_width: float) -> None:
    total = needed(pilot, half_width).total
    assert total >= len(pilot)
    assert needed(pilot, half_width / 2).total >= total
    assert needed(pilot, half_width, confidence=0.99).total >= total
    assert needed(pilot, half_width, comparisons=3).total >= total


def test_a_pilot_alone_has_students_interval() -> None:
    values = [90.0, 100.0, 120.0]
    ours, plain = two_stage_interval(values, pilot=3), mean_interval_log(values)
    assert (ours.low, ours.high) == pytest.approx((plain.low, plain.high))
    assert ours.label() == (
        "95 % two-stage t interval on the log scale (pilot of 3), n = 3 launches"
    )


@pytest.mark.parametrize("sd", [0.02, 0.05, 0.1])
def test_after_the_rule_the_interval_is_as_narrow_as_stated_and_holds(sd: float) -> None:
    rng, runs, inside = np.random.default_rng(5), 2000, 0
    for _ in range(runs):
        pilot = launches(rng, sd, PILOT)
        values = np.append(pilot, launches(rng, sd, needed(pilot).more))
        found = two_stage_interval(values)
        assert found.high / found.point <= 1.05 + 1e-9
        inside += found.low <= 100 <= found.high
    assert binomially(inside / runs, runs)


def test_to_look_until_it_is_narrow_enough_does_not_hold() -> None:
    """What the rule is there for: three launches, then one more as long as it is too wide."""
    rng, runs, inside = np.random.default_rng(6), 800, 0
    for _ in range(runs):
        values = launches(rng, 0.05, 3)
        while (found := mean_interval_log(values)).high / found.point > 1.05:
            values = np.append(values, launches(rng, 0.05, 1))
        inside += found.low <= 100 <= found.high
    assert inside / runs < 0.93


def test_each_arm_and_level_has_its_own_need() -> None:
    rows = [
        (arm, "chat", level, block, 100 * level * (1 + share * block))
        for arm, share in (("quiet", 0.001), ("noisy", 0.05))
        for level in (1, 8)
        for block in range(3)
    ]
    frame = pd.DataFrame(rows, columns=["arm", "workload", "level", "block", "value"])
    frame.loc[frame["level"] == 8, "value"] = [np.nan, np.nan, 1, 1, 2, 3]
    found = needed_by_cell(frame).set_index(["arm", "level"])
    assert list(found.index) == [("quiet", 1), ("noisy", 1), ("noisy", 8)]
    assert found.loc[("quiet", 1), "more"] == 0
    noisy = needed([100.0, 105.0, 110.0])
    assert found.loc[("noisy", 1), "total"] == noisy.total > 3
    assert found["low"].isna().all() and list(found["n"]) == [3, 3, 3]
    assert needed_by_cell(frame.iloc[:0]).empty


def test_launches_after_the_pilot_do_not_change_what_it_asked_for() -> None:
    tok_s = [100.0, 105.0, 110.0, 103.0, 99.0, 250.0, 20.0]
    rows = [("a", "chat", 1, block, value) for block, value in enumerate(tok_s)]
    frame = pd.DataFrame(rows, columns=["arm", "workload", "level", "block", "value"])
    row = needed_by_cell(frame.sample(frac=1, random_state=1)).iloc[0]
    assert (row["total"], row["pilot"]) == (needed(tok_s[:PILOT]).total, PILOT)
    whole = two_stage_interval(tok_s)
    assert (row["point"], row["low"], row["high"]) == (whole.point, whole.low, whole.high)


def test_bad_pilots_are_refused() -> None:
    with pytest.raises(StudyError, match="at least 2 launches; there were 1"):
        needed([7.0])
    with pytest.raises(StudyError, match="half_width must be a positive share"):
        needed([7.0, 8.0], half_width=0)
    with pytest.raises(StudyError, match="must be positive"):
        needed([7.0, -8.0])
    with pytest.raises(StudyError, match="must be 2 to 3 launches"):
        two_stage_interval([1.0, 2.0, 3.0])


# the bootstrap, and which interval for which n


@pytest.mark.parametrize("skew", [False, True])
def test_ten_launches_are_covered_with_the_expansion(skew: bool) -> None:
    rng, runs = np.random.default_rng(7), 600
    values = rng.gamma(4, 0.5, (runs, 10)) - 2 if skew else rng.normal(0, 1, (runs, 10))
    found = [bca_mean(row) for row in values]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert abs(covered - 0.95) < 0.02 + 3 * np.sqrt(0.95 * 0.05 / runs)
    plain = [
        scipy.stats.bootstrap((row,), np.mean, n_resamples=999, rng=rng).confidence_interval
        for row in values
    ]
    naive = np.mean([one.low <= 0 <= one.high for one in plain])
    assert naive < covered


def test_many_launches_give_students_interval_again() -> None:
    values = np.random.default_rng(8).normal(5, 1, 200)
    boot, t = bca_mean(values), mean_interval(values)
    assert (boot.low, boot.high) == pytest.approx((t.low, t.high), rel=0.005)
    assert bca_mean(values) == boot
    assert boot.label() == "95 % BCa bootstrap interval, n = 200 launches"


def test_the_number_of_launches_picks_the_method() -> None:
    values = launches(np.random.default_rng(9), 0.05, 12)
    assert over_launches(values[:9]) == mean_interval_log(values[:9])
    assert over_launches(values[:9], log=False) == mean_interval(values[:9])
    many = over_launches(np.append(values, np.nan))
    assert many.method == "BCa bootstrap interval on the log scale"
    assert many.point == pytest.approx(scipy.stats.gmean(values))
    assert many.low < many.point < many.high
    assert over_launches(values, log=False).method == "BCa bootstrap interval"


def test_equal_launches_have_no_width_and_few_no_bootstrap() -> None:
    assert over_launches([7.0] * 12).high == pytest.approx(7.0)
    with pytest.raises(StudyError, match="needs at least 10; there were 9"):
        bca_mean([1.0] * 9)
