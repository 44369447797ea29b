"""log value ~ arm + block against statsmodels, and Dunnett's method against scipy and his table."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import statsmodels.formula.api as smf

from study.additive import additive, fit
from study.dunnett import Largest, against
from study.equivalence import EQUIVALENT, equivalent
from study.errors import StudyError
from study.stats import mean_interval_log, paired_ratio

ARMS = ("a", "b", "c", "d")
WHOLE = (1.0, 1.1, 0.95, 1.0)
compared = partial(against, value="tok_s", baseline="a")


def launches(
    seed: int,
    blocks: int = 3,
    sd: float = 0.02,
    between: float = 0.1,
    truth: tuple[float, ...] = WHOLE,
) -> pd.DataFrame:
    """One launch of every arm in each block."""
    rng = np.random.default_rng(seed)
    day = np.exp(rng.normal(0, between, blocks))
    rows = [
        (block, arm, 100 * day[block] * effect * np.exp(rng.normal(0, sd)))
        for block in range(blocks)
        for arm, effect in zip(ARMS, truth, strict=True)
    ]
    return pd.DataFrame(rows, columns=["block", "arm", "tok_s"])


@pytest.mark.parametrize("gaps", [[], [1, 7], [0]])
def test_differences_are_those_of_ordinary_least_squares(gaps: list[int]) -> None:
    frame = launches(1).drop(index=gaps)
    theirs = smf.ols("np.log(tok_s) ~ C(arm) + C(block)", frame).fit()
    model = additive(frame, "tok_s")
    assert model.degrees == theirs.df_resid
    for arm in "bcd":
        ours = model.difference(arm, "a")
        assert ours.value == pytest.approx(theirs.params[f"C(arm)[T.{arm}]"])
        assert ours.error == pytest.approx(theirs.bse[f"C(arm)[T.{arm}]"])


def test_two_arms_are_a_paired_t_test() -> None:
    frame = launches(2).query("arm in ('a', 'b')")
    paired = paired_ratio(frame, "tok_s", "arm", "b", "a")
    ours = compared(frame, treatments=["b"])["b"]
    assert ours.p_value == pytest.approx(paired.p_value)
    assert (ours.effect.low, ours.effect.high) == pytest.approx(
        (paired.ratio.low, paired.ratio.high)
    )


def test_arms_that_share_a_variance_need_fewer_blocks() -> None:
    """Three blocks, seven arms: about a third of the width of intervals with their own variance."""
    widths = []
    for seed in range(50):
        frame = launches(seed)
        pooled = compared(frame, treatments=list("bcd"))["b"].effect
        own = paired_ratio(frame, "tok_s", "arm", "b", "a", comparisons=3).ratio
        widths.append(pooled.half_width_relative / own.half_width_relative)
    assert np.median(widths) < 0.5


def test_a_block_that_lacks_an_arm_tells_about_the_others() -> None:
    frame = launches(3, blocks=4)
    gaps = frame.drop(index=[1])
    found = compared(gaps, treatments=list("bcd"))
    assert {arm: (one.blocks, one.dropped) for arm, one in found.items()} == {
        "b": (3, 1),
        "c": (4, 0),
        "d": (4, 0),
    }
    assert additive(gaps, "tok_s").degrees == 8


def test_arms_that_no_block_connects_are_not_compared() -> None:
    frame = launches(4, blocks=4)
    apart = frame[(frame["block"] < 2) == frame["arm"].isin(["a", "b"])]
    found = compared(apart, treatments=["b", "c"])
    assert not additive(apart, "tok_s").connected
    assert np.isnan(found["c"].effect.point)
    assert (found["c"].blocks, found["b"].blocks) == (0, 2)
    assert found["b"].effect.low < found["b"].effect.point


def test_where_blocks_do_not_connect_all_arms_no_arm_has_a_mean_of_its_own() -> None:
    """The solution of least norm would share each mean out over arms and blocks."""
    frame = launches(4, blocks=4)
    apart = frame[(frame["block"] < 2) == frame["arm"].isin(["a", "b"])]
    fitted = additive(apart, "tok_s")
    assert fitted.connected_with("a") == ("a", "b")
    assert fitted.connected_with("d") == ("c", "d")
    assert all(np.isnan(fitted.arm_interval(arm).point) for arm in ARMS)
    near = additive(apart[apart["arm"].isin(fitted.connected_with("a"))], "tok_s")
    own = mean_interval_log(apart.loc[apart["arm"] == "a", "tok_s"])
    assert near.arm_interval("a").point == pytest.approx(own.point)


def test_a_comparison_by_way_of_a_third_arm_alone_is_none() -> None:
    frame = launches(6).query("arm in ('a', 'b', 'c')")
    apart = frame.query("not (arm == 'a' and block == 2) and not (arm == 'c' and block < 2)")
    assert additive(apart, "tok_s").connected
    found = compared(apart, treatments=["b", "c"])
    assert found["c"].blocks == 0 and np.isnan([found["c"].effect.point, found["c"].p_value]).all()
    assert found["b"].effect.low < found["b"].effect.point


def test_without_values_or_with_one_block_there_is_no_interval() -> None:
    frame = launches(5, blocks=1)
    one = compared(frame, treatments=["b", "c"])["b"]
    assert one.blocks == 1
    assert one.effect.point == pytest.approx(frame["tok_s"][1] / frame["tok_s"][0])
    for none in (frame.iloc[:0], frame.assign(tok_s=np.nan), frame.iloc[:1]):
        effect = compared(none, treatments=["b"])["b"].effect
        assert np.isnan([effect.point, effect.low, effect.high]).all()
    assert np.isnan([one.effect.low, one.p_value]).all()


def test_an_arm_twice_in_a_block_is_refused() -> None:
    frame = launches(6)
    with pytest.raises(StudyError, match="block 0 holds it several times"):
        additive(pd.concat([frame, frame.iloc[[1]]]), "tok_s")


# arms by themselves


def test_one_arm_by_itself_has_students_interval() -> None:
    frame = launches(7).query("arm == 'a'")
    ours, plain = additive(frame, "tok_s").arm_interval("a"), mean_interval_log(frame["tok_s"])
    assert (ours.low, ours.high, ours.n) == pytest.approx((plain.low, plain.high, plain.n))


def test_intervals_of_arms_hold_for_blocks_to_come() -> None:
    """Three blocks that differ by 3 %, launches in them by 5 %: the truth is that of all blocks."""
    runs, inside, narrower = 800, 0, 0
    for seed in range(runs):
        frame = launches(seed, sd=0.05, between=0.03)
        found = additive(frame, "tok_s").arm_interval("a")
        own = mean_interval_log(frame.loc[frame["arm"] == "a", "tok_s"])
        inside += found.low <= 100 <= found.high
        narrower += found.half_width_relative < own.half_width_relative
    assert abs(inside / runs - 0.95) < 0.01 + 3 * np.sqrt(0.95 * 0.05 / runs)
    assert narrower / runs > 0.7


def test_block_effects_are_found_and_sum_to_0() -> None:
    y = np.log([1.0, 2.0, 4.0, 8.0])
    model = fit(y, np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), ("a", "b"), 2)
    assert model.block_effects() == pytest.approx([-np.log(2), np.log(2)])
    assert model.residual == pytest.approx(0)


# Dunnett


def halves(count: int) -> tuple[tuple[float, ...], ...]:
    matrix = np.full((count, count), 0.5) + 0.5 * np.eye(count)
    return tuple(map(tuple, matrix.tolist()))


@pytest.mark.parametrize(
    ("count", "degrees", "table"), [(2, 10, 2.57), (3, 10, 2.76), (3, 20, 2.54), (9, 60, 2.77)]
)
def test_the_quantiles_are_those_of_his_table(count: int, degrees: int, table: float) -> None:
    """Dunnett, Biometrics 20, 1964, two-sided 5 %."""
    largest = Largest(degrees, halves(count))
    assert largest.quantile(0.95) == pytest.approx(table, abs=0.005)
    assert largest.beyond(largest.quantile(0.95)) == pytest.approx(0.05, abs=1e-5)


def test_without_blocks_p_values_are_scipys() -> None:
    """Every value its own arm's, all in one block: a one-way layout."""
    rng = np.random.default_rng(8)
    groups = [rng.normal(mean, 1, 6) for mean in (0, 0.5, 1.5)]
    theirs = scipy.stats.dunnett(*groups[1:], control=groups[0], rng=rng)
    arm = np.repeat([0, 1, 2], 6)
    model = fit(np.concatenate(groups), arm, np.zeros(18, dtype=int), ("a", "b", "c"), 1)
    largest = Largest(model.degrees, halves(2))
    for place, name in enumerate("bc"):
        said = model.difference(name, "a")
        p = largest.beyond(said.value / said.error)
        assert p == pytest.approx(theirs.pvalue[place], abs=1e-3)


@pytest.mark.parametrize("families", [1, 4])
def test_p_value_and_interval_never_contradict(families: int) -> None:
    seen = set()
    for seed in range(40):
        for one in compared(launches(seed), treatments=list("bcd"), families=families).values():
            excludes = not one.effect.low <= 1 <= one.effect.high
            assert excludes == (one.p_value < 0.05)
            seen.add(excludes)
    assert seen == {True, False}


def test_families_without_a_difference_err_in_5_percent() -> None:
    runs, found = 400, 0
    for seed in range(runs):
        alike = compared(launches(seed, truth=(1, 1, 1, 1)), treatments=list("bcd"))
        found += any(not one.effect.low <= 1 <= one.effect.high for one in alike.values())
    assert abs(found / runs - 0.05) < 3 * np.sqrt(0.05 * 0.95 / runs)


def test_equal_arms_are_certainly_equal_and_equivalent() -> None:
    frame = launches(9, sd=0.0, between=0.0, truth=(1, 1, 1, 1))
    found = compared(frame, treatments=["b", "c"])["b"]
    assert found.effect.low == pytest.approx(1, abs=1e-6)
    assert found.effect.high == pytest.approx(1, abs=1e-6)
    assert equivalent(found).verdict == EQUIVALENT
