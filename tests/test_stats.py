"""Estimators against theory, planted truths and the errors of naive use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from study.errors import StudyError
from study.stats import (
    Interval,
    contrast,
    mean_interval,
    mean_interval_log,
    paired_ratio,
)

POSITIVE = st.lists(st.floats(0.01, 1e6), min_size=2, max_size=12)


def seeded(name: str) -> np.random.Generator:
    return np.random.default_rng(sum(map(ord, name)))


def blocks_of(
    rng: np.random.Generator,
    blocks: int,
    effects: dict[str, float],
    spread: float = 0.02,
    between: float = 0.5,
) -> pd.DataFrame:
    """One launch of every arm in each block: block effect x arm effect x launch noise."""
    rows = []
    for block in range(blocks):
        day = np.exp(rng.normal(0, between))
        for arm, effect in effects.items():
            rows.append((block, arm, 100 * day * effect * np.exp(rng.normal(0, spread))))
    return pd.DataFrame(rows, columns=["block", "arm", "output_tok_s"])


# one sample


def test_mean_interval_is_students() -> None:
    values = [4.1, 5.0, 4.4, 4.7]
    theirs = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    ours = mean_interval(values)
    assert ours.point == pytest.approx(np.mean(values))
    assert ours.n == 4
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_the_interval_of_two_values_is_known_by_hand() -> None:
    """t(0.975, 1) = 12.706 and the standard error of 1 and 3 is 1."""
    interval = mean_interval([1.0, 3.0])
    assert interval.low == pytest.approx(2 - 12.706, abs=1e-3)
    assert interval.high == pytest.approx(2 + 12.706, abs=1e-3)


def test_log_interval_is_students_of_the_logs() -> None:
    values = np.array([90.0, 100.0, 120.0])
    theirs = scipy.stats.ttest_1samp(np.log(values), 0).confidence_interval(0.9)
    ours = mean_interval_log(values, 0.9)
    assert ours.point == pytest.approx(scipy.stats.gmean(values))
    assert (ours.low, ours.high) == pytest.approx((np.exp(theirs.low), np.exp(theirs.high)))
    assert ours.statistic == "geometric mean"


@pytest.mark.parametrize("estimate", [mean_interval, mean_interval_log])
def test_one_value_has_no_interval_and_none_has_no_point(estimate: object) -> None:
    assert callable(estimate)
    one, none = estimate([7.0]), estimate([])
    assert one.point == pytest.approx(7)
    assert (one.n, none.n) == (1, 0)
    assert np.isnan([one.low, one.high, one.half_width_relative]).all()
    assert np.isnan([none.point, none.low, none.high]).all()


def test_nan_is_left_out_and_not_counted() -> None:
    assert mean_interval([1.0, np.nan, 3.0]) == mean_interval([1.0, 3.0])


def test_label_says_all_that_a_caption_needs() -> None:
    assert mean_interval_log([1, 2, 3]).label() == (
        "95 % t interval on the log scale, n = 3 launches"
    )


def test_half_width_is_relative_to_the_point() -> None:
    interval = Interval("mean", 10.0, 9.0, 11.0, 0.95, "t interval", 3)
    assert interval.half_width_relative == pytest.approx(0.1)
    assert np.isnan(replace(interval, point=0.0).half_width_relative)


def test_bad_input_is_refused() -> None:
    with pytest.raises(StudyError, match="must be positive; the smallest was 0"):
        mean_interval_log([1.0, 0.0])
    with pytest.raises(StudyError, match="must be finite"):
        mean_interval([1.0, np.inf])
    with pytest.raises(StudyError, match="confidence must lie between 0 and 1"):
        mean_interval([1.0, 2.0], confidence=95)
    with pytest.raises(StudyError, match="comparisons must be at least 1"):
        mean_interval([1.0, 2.0], comparisons=0)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int) -> None:
    rng = seeded(f"coverage {n}")
    launches = 100 * np.exp(rng.normal(0, 0.05, (4000, n)))
    found = [mean_interval_log(row) for row in launches]
    assert 0.93 < np.mean([one.low <= 100 <= one.high for one in found]) < 0.97


@given(POSITIVE)
def test_the_point_lies_in_its_interval(values: list[float]) -> None:
    for interval in (mean_interval(values), mean_interval_log(values)):
        assert interval.low <= interval.point <= interval.high


@given(POSITIVE, st.floats(0.001, 1000))
def test_a_change_of_unit_changes_nothing_else(values: list[float], factor: float) -> None:
    for estimate in (mean_interval, mean_interval_log):
        once, scaled = estimate(values), estimate(np.multiply(values, factor))
        # The limits of a plain interval may lie near 0, hence an error relative to its width.
        room = 1e-9 * factor * (abs(once.point) + once.high - once.low)
        for name in ("point", "low", "high"):
            expected = factor * getattr(once, name)
            assert getattr(scaled, name) == pytest.approx(expected, rel=1e-6, abs=room)


@given(POSITIVE)
def test_more_confidence_and_more_comparisons_only_widen(values: list[float]) -> None:
    narrow, sure, many = (
        mean_interval_log(values),
        mean_interval_log(values, confidence=0.99),
        mean_interval_log(values, comparisons=3),
    )
    for wide in (sure, many):
        assert wide.low <= narrow.low
        assert narrow.high <= wide.high
    assert "Bonferroni over 3 comparisons" in many.label()


# inside blocks


def test_paired_ratio_is_the_paired_t_test_of_logs() -> None:
    frame = blocks_of(seeded("scipy"), 4, {"a": 1.0, "b": 1.1})
    table = frame.pivot(index="block", columns="arm", values="output_tok_s")
    theirs = scipy.stats.ttest_rel(np.log(table["b"]), np.log(table["a"]))
    limits = theirs.confidence_interval(0.95)
    ours = paired_ratio(frame, "output_tok_s", "arm", "b", "a")
    assert ours.p_value == pytest.approx(theirs.pvalue)
    assert (ours.ratio.low, ours.ratio.high) == pytest.approx(
        (np.exp(limits.low), np.exp(limits.high))
    )
    assert ours.ratio.label() == "95 % paired t interval on the log scale, n = 4 blocks"


def test_a_planted_ratio_is_found_through_large_block_effects() -> None:
    frame = blocks_of(seeded("planted"), 6, {"a": 1.0, "b": 1.1}, spread=0.01, between=1.0)
    found = paired_ratio(frame, "output_tok_s", "arm", "b", "a")
    assert found.ratio.low < 1.1 < found.ratio.high
    assert found.ratio.half_width_relative < 0.03
    assert found.p_value < 0.001
    assert found.blocks == 6


def test_block_effects_cancel_altogether() -> None:
    frame = blocks_of(seeded("cancel"), 5, {"a": 1.0, "b": 1.1})
    shifted = frame.assign(output_tok_s=frame["output_tok_s"] * 10.0 ** frame["block"])
    once, again = (paired_ratio(x, "output_tok_s", "arm", "b", "a") for x in (frame, shifted))
    assert again.ratio.point == pytest.approx(once.ratio.point)
    assert again.ratio.low == pytest.approx(once.ratio.low)
    assert again.p_value == pytest.approx(once.p_value)
    assert again.baseline.point > 10 * once.baseline.point


def test_absolute_values_stand_beside_the_ratio_and_agree_with_it() -> None:
    frame = blocks_of(seeded("absolute"), 4, {"a": 1.0, "b": 1.1})
    found = paired_ratio(frame.drop(index=0), "output_tok_s", "arm", "b", "a")
    assert (found.blocks, found.dropped) == (3, 1)
    assert found.ratio.point == pytest.approx(found.treatment.point / found.baseline.point)
    assert (found.baseline.n, found.treatment.n) == (3, 3)


@given(st.lists(st.tuples(st.floats(1, 100), st.floats(1, 100)), min_size=2, max_size=8))
def test_exchanging_the_arms_inverts_the_ratio(pairs: list[tuple[float, float]]) -> None:
    rows = [(block, arm, pair[arm == "b"]) for block, pair in enumerate(pairs) for arm in "ab"]
    frame = pd.DataFrame(rows, columns=["block", "arm", "e2e_s"])
    there = paired_ratio(frame, "e2e_s", "arm", "b", "a")
    back = paired_ratio(frame, "e2e_s", "arm", "a", "b")
    assert there.ratio.point * back.ratio.point == pytest.approx(1)
    # Two blocks can give limits beyond what a float holds: then 0 x inf has no answer.
    if np.isfinite([there.ratio.high, back.ratio.high]).all():
        assert there.ratio.low * back.ratio.high == pytest.approx(1, rel=1e-6)
    assert there.p_value == pytest.approx(back.p_value)


def test_same_against_same_is_called_different_in_5_percent() -> None:
    rng = seeded("A/A")
    p_values = []
    for _ in range(500):
        frame = blocks_of(rng, 3, {"a": 1.0, "again": 1.0})
        p_values.append(paired_ratio(frame, "output_tok_s", "arm", "again", "a").p_value)
    assert 0.03 < np.mean(np.array(p_values) < 0.05) < 0.075


def test_bonferroni_keeps_all_comparisons_together() -> None:
    """Three comparisons with nothing in them: at most 5 % of the families err."""
    rng = seeded("family")
    frames = [blocks_of(rng, 3, dict.fromkeys(("a", "b", "c", "d"), 1.0)) for _ in range(300)]
    least = {
        count: [
            min(
                paired_ratio(x, "output_tok_s", "arm", arm, "a", comparisons=count).p_value
                for arm in "bcd"
            )
            for x in frames
        ]
        for count in (1, 3)
    }
    assert np.mean(np.array(least[1]) < 0.05) > 0.08
    assert np.mean(np.array(least[3]) < 0.05) < 0.075


@pytest.mark.parametrize("comparisons", [1, 3])
def test_p_value_and_interval_never_contradict(comparisons: int) -> None:
    rng = seeded("contradiction")
    seen = set()
    for _ in range(150):
        frame = blocks_of(rng, 3, {"a": 1.0, "b": 1.06})
        found = paired_ratio(frame, "output_tok_s", "arm", "b", "a", comparisons=comparisons)
        excludes_one = not found.ratio.low <= 1 <= found.ratio.high
        assert excludes_one == (found.p_value < 0.05)
        seen.add(excludes_one)
    assert seen == {True, False}


def test_equal_arms_are_certainly_equal() -> None:
    frame = blocks_of(seeded("equal"), 3, {"a": 1.0, "b": 1.0}, spread=0.0)
    same = frame.assign(output_tok_s=100.0)
    found = paired_ratio(same, "output_tok_s", "arm", "b", "a")
    assert (found.ratio.low, found.ratio.point, found.ratio.high) == (1, 1, 1)
    assert found.p_value == 1


def test_one_block_gives_a_ratio_without_interval() -> None:
    frame = blocks_of(seeded("one"), 1, {"a": 1.0, "b": 2.0}, spread=0.0)
    found = paired_ratio(frame, "output_tok_s", "arm", "b", "a")
    assert found.ratio.point == pytest.approx(2)
    assert np.isnan([found.ratio.low, found.ratio.high, found.p_value]).all()


def test_pairing_never_crosses_blocks() -> None:
    frame = pd.DataFrame(
        {"block": [0, 1, 2, 3], "arm": ["a", "b", "a", "b"], "output_tok_s": [1.0, 2.0, 3.0, 4.0]}
    )
    found = paired_ratio(frame, "output_tok_s", "arm", "b", "a")
    assert (found.blocks, found.dropped) == (0, 4)
    assert np.isnan(found.ratio.point)


def test_a_block_with_nan_is_dropped_and_counted() -> None:
    frame = blocks_of(seeded("gap"), 4, {"a": 1.0, "b": 1.1})
    frame.loc[0, "output_tok_s"] = np.nan
    found = paired_ratio(frame, "output_tok_s", "arm", "b", "a")
    assert (found.blocks, found.dropped) == (3, 1)


def test_an_arm_twice_in_a_block_is_refused() -> None:
    frame = blocks_of(seeded("twice"), 3, {"a": 1.0, "b": 1.1})
    with pytest.raises(StudyError, match="block 1 holds it several times"):
        paired_ratio(pd.concat([frame, frame.iloc[[2]]]), "output_tok_s", "arm", "b", "a")


def test_a_missing_column_is_named() -> None:
    frame = blocks_of(seeded("column"), 3, {"a": 1.0, "b": 1.1})
    with pytest.raises(StudyError, match="lacks ttft_mean_s"):
        paired_ratio(frame, "ttft_mean_s", "arm", "b", "a")


FACTORIAL = {"none": 1.0, "aiter": 1.2, "fp8": 1.3, "both": 1.2 * 1.3 * 0.9}


def test_an_interaction_is_found_and_main_effects_with_it() -> None:
    frame = blocks_of(seeded("factorial"), 6, FACTORIAL, spread=0.01)
    weights = {"both": 1.0, "aiter": -1.0, "fp8": -1.0, "none": 1.0}
    found = contrast(frame, "output_tok_s", weights)
    assert found.effect.low < 0.9 < found.effect.high
    assert found.p_value < 0.01
    main = {"both": 0.5, "aiter": 0.5, "fp8": -0.5, "none": -0.5}
    expected = 1.2 * np.sqrt(0.9)
    assert contrast(frame, "output_tok_s", main).effect.point == pytest.approx(expected, rel=0.01)


def test_a_slope_between_depths_keeps_its_sign_and_unit() -> None:
    rows = [
        (block, depth, 5.0 + block + 0.1 * tokens)
        for block in range(3)
        for depth, tokens in (("shallow", 100), ("deep", 300))
    ]
    frame = pd.DataFrame(rows, columns=["block", "arm", "tpot_s"])
    found = contrast(frame, "tpot_s", {"deep": 1 / 200, "shallow": -1 / 200}, log=False)
    assert found.effect.point == pytest.approx(0.1)
    assert found.effect.statistic == "contrast"
    assert "log" not in found.effect.method


def test_a_two_arm_contrast_is_the_paired_ratio() -> None:
    frame = blocks_of(seeded("same"), 4, {"a": 1.0, "b": 1.1})
    ratio = paired_ratio(frame, "output_tok_s", "arm", "b", "a")
    assert contrast(frame, "output_tok_s", {"b": 1, "a": -1}).effect == ratio.ratio


def test_weights_must_compare() -> None:
    frame = blocks_of(seeded("weights"), 3, {"a": 1.0, "b": 1.1})
    for weights in ({"a": 1.0, "b": 1.0}, {"a": 0.0}):
        with pytest.raises(StudyError, match="weights that sum to 0"):
            contrast(frame, "output_tok_s", weights)


def test_a_ratio_of_values_that_are_not_positive_is_refused() -> None:
    frame = blocks_of(seeded("negative"), 3, {"a": 1.0, "b": 1.1})
    frame.loc[0, "output_tok_s"] = -1
    with pytest.raises(StudyError, match="must be positive for a ratio"):
        paired_ratio(frame, "output_tok_s", "arm", "b", "a")
