"""Knees of planted laws, with and without noise, and where there is none."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import GRID, LEVELS, STEP, hard_cap, law, noisy, true_knee

from study.curves import Gunther, TwoLines, gunther, two_lines
from study.errors import StudyError
from study.finite import Floats
from study.knee import knee, knee_over_launches
from study.stats import mean_interval_log

SIGMAS, KAPPAS = st.floats(0.0, 0.5), st.floats(0.0, 0.01)
RATES = st.floats(1, 1000)


# the knee of one curve


def test_a_linear_law_never_reaches_its_knee() -> None:
    for sd in (0.0, 0.03):
        found = knee(LEVELS, noisy(50 * LEVELS, np.random.default_rng(4), sd))
        assert found.reached is False
        assert np.isnan(found.level)
        assert found.text.startswith("not reached: at the last level, 128, throughput still rises")
    exact = knee(LEVELS, 50 * LEVELS)
    assert exact.maximum == pytest.approx(50 * 128)
    assert "rises 1 times as fast as the level (limit 0.05)" in exact.text


@pytest.mark.parametrize(("sigma", "kappa"), [(0.02, 4e-4), (0.0, 1e-3), (0.1, 1e-3)])
def test_a_law_with_its_peak_inside_reaches_its_knee(sigma: float, kappa: float) -> None:
    expected = true_knee(sigma, kappa)
    for sd in (0.0, 0.01):
        tok_s = noisy(law(LEVELS, 50, sigma, kappa), np.random.default_rng(5), sd)
        found = knee(LEVELS, tok_s)
        assert (found.reached, found.model) == (True, "Gunther's law")
        assert found.level == pytest.approx(expected, rel=0.01 + 5 * sd)
    assert found.text.startswith(f"reached at level {found.level:.3g}: 95 % of ")
    assert isinstance(found.fit, Gunther)


@pytest.mark.parametrize("cap", [300.0, 1000.0, 1850.0, 4000.0])
@pytest.mark.parametrize("sd", [0.0, 0.01])
def test_a_hard_cap_is_found_within_one_step(cap: float, sd: float) -> None:
    found = knee(LEVELS, noisy(hard_cap(LEVELS, cap), np.random.default_rng(6), sd))
    expected = 0.95 * cap / 50
    assert found.reached and found.model in ("capped law", "two lines")
    assert expected / STEP < found.level < expected * STEP
    assert found.maximum == pytest.approx(cap, rel=0.03)


@pytest.mark.parametrize("levels", [[1, 4, 16, 64, 256], [2, 4, 8, 16, 32, 64]])
def test_a_hard_cap_is_told_from_a_law_with_few_levels_too(levels: list[float]) -> None:
    """Gunther's law alone would put the knee 1.5 to 3 times too high."""
    tested = np.array(levels, dtype=float)
    found = knee(tested, noisy(hard_cap(tested), np.random.default_rng(7)))
    assert found.model == "capped law"
    assert found.level == pytest.approx(19, rel=0.25)
    assert knee(tested, hard_cap(tested), model="Gunther's law").level > 1.5 * 19
    assert knee(tested, noisy(law(tested), np.random.default_rng(7))).model == "Gunther's law"


@pytest.mark.parametrize(("last_share", "reached"), [(0.90, False), (0.94, False), (0.97, True)])
def test_reached_means_that_the_last_level_gives_nearly_all(
    last_share: float, reached: bool
) -> None:
    """A law that levels off: what the last level gives of the throughput that no level exceeds."""
    sigma = last_share / (last_share + 128 * (1 - last_share))
    assert law(LEVELS, 1, sigma, 0)[-1] * sigma == pytest.approx(last_share, abs=0.01)
    assert knee(LEVELS, law(LEVELS, 50, sigma, 0)).reached is reached


def test_a_cap_in_the_last_step_is_not_believed() -> None:
    """One window on the plateau: it may as well be a bad window."""
    assert knee(LEVELS, hard_cap(LEVELS, 50 * 100)).reached is False
    assert knee(LEVELS[:-1], hard_cap(LEVELS[:-1], 50 * 100)).reached is False


@given(SIGMAS, KAPPAS, st.floats(0.5, 0.99))
def test_a_knee_lies_in_the_range_and_keeps_its_promise(
    sigma: float, kappa: float, share: float
) -> None:
    found = knee(LEVELS, law(LEVELS, 50, sigma, kappa), share)
    if not found.reached:
        assert np.isnan(found.level)
        return
    assert 1 <= found.level <= 128
    assert law(np.array(found.level), 50, sigma, kappa) >= share * found.maximum * (1 - 1e-6)
    assert found.level == pytest.approx(true_knee(sigma, kappa, share), rel=0.01)


@given(st.lists(RATES, min_size=4, max_size=len(LEVELS)), st.sampled_from([0.001, 64.0, 1000.0]))
def test_a_knee_has_no_unit(rates: list[float], factor: float) -> None:
    levels, tok_s = LEVELS[: len(rates)], np.array(rates)
    once, scaled = (knee(levels, x, model="two lines") for x in (tok_s, factor * tok_s))
    assert once.reached is scaled.reached
    assert scaled.level == pytest.approx(once.level, rel=0.01, nan_ok=True)
    assert scaled.maximum == pytest.approx(factor * once.maximum, rel=1e-6)


def test_below_four_levels_nothing_is_judged() -> None:
    found = knee([1, 2, 4, 4, 4], [1, 2, 3, 3, 3])
    assert found.reached is None
    assert (found.model, found.fit) == ("", None)
    assert np.isnan([found.level, found.maximum]).all()
    assert found.text == "cannot judge: a knee needs 4 distinct levels; there were 3"


def test_a_curve_that_is_flat_throughout_has_its_knee_at_level_1_or_unknown() -> None:
    flat = knee(LEVELS, np.full(LEVELS.size, 100.0))
    assert (flat.level, flat.reached) == (1, True)
    above = knee(LEVELS[3:], np.full(LEVELS.size - 3, 100.0))
    assert above.reached is None
    assert np.isnan(above.level)
    assert "already flat at the lowest level, 4; the knee lies there or below" in above.text


def test_a_window_without_throughput_is_left_out() -> None:
    tok_s = law(LEVELS)
    tok_s[5] = np.nan
    kept = np.delete(np.arange(LEVELS.size), 5)
    assert knee(LEVELS, tok_s) == knee(LEVELS[kept], tok_s[kept])


def test_bad_input_is_refused() -> None:
    with pytest.raises(StudyError, match="2 levels and 1 throughputs"):
        knee([1, 2], [1])
    with pytest.raises(StudyError, match="levels must be at least 1 request in flight"):
        knee([0.5, 1, 2, 4], [1, 2, 3, 4])
    for bad in (0.0, -1.0, np.inf):
        with pytest.raises(StudyError, match="throughputs must be positive and finite"):
            knee([1, 2, 3, 4], [1, 2, bad, 4])
    with pytest.raises(StudyError, match="share must lie between 0 and 1"):
        knee(LEVELS, law(LEVELS), 95)
    with pytest.raises(StudyError, match="one of Gunther's law, capped law, two lines"):
        knee(LEVELS, law(LEVELS), model="three lines")
    with pytest.raises(StudyError, match="Gunther's law needs at least 3 distinct levels"):
        gunther([1, 2, 2], [1, 2, 2])
    with pytest.raises(StudyError, match="two lines needs at least 4 distinct levels"):
        two_lines([1, 2, 3, 3], [1, 2, 3, 3])


def test_a_fit_is_quick() -> None:
    tok_s = noisy(law(LEVELS), np.random.default_rng(9))
    took_s = []
    for _ in range(10):
        start_s = time.perf_counter()
        knee(LEVELS, tok_s)
        took_s.append(time.perf_counter() - start_s)
    assert min(took_s) < 0.02


def test_four_windows_may_lie_off_two_lines_and_then_it_is_told_how_far() -> None:
    """As once measured: the corner lies at a tested level, and no line meets two of the others."""
    found = knee([1, 2, 4, 8], [148.8, 212.2, 452.5, 335.7])
    assert (found.model, found.spare) == ("two lines", 0)
    assert found.fit is not None
    off = np.log(np.array([148.8, 212.2, 452.5, 335.7]) / found.fit.predict([1, 2, 4, 8]))
    assert found.misfit == pytest.approx(np.sqrt(np.mean(off**2))) and found.misfit > 0.07
    for corner in (2.1, 2.9, 3.7):  # met by a line through each pair: nothing tells
        met = knee([1, 2, 4, 8], TwoLines(corner, 500, 1.3, -0.5, 0.0).predict([1, 2, 4, 8]))
        assert (met.model, met.spare) == ("two lines", 0) and np.isnan(met.misfit)
    spare = knee([1, 2, 4, 8, 8], [148.8, 212.2, 452.5, 335.7, 335.7])
    assert spare.spare == 5 - 4 and spare.misfit > 0.05


def test_few_windows_take_more_parameters_only_for_more_than_noise() -> None:
    """Six windows: a plateau that seems to fall is one; a line that really goes on is not."""
    levels = np.array([1, 4, 16, 32, 64, 128.0])
    rng = np.random.default_rng(13)
    flat = [knee(levels, noisy(hard_cap(levels, 800), rng, 0.03)) for _ in range(100)]
    assert np.mean([one.reached is True for one in flat]) > 0.9
    assert np.mean([one.model == "two lines" for one in flat]) < 0.1
    rising = TwoLines(16, 800, 1, 0.3, 0.0).predict(levels)
    steep = [knee(levels, noisy(rising, rng, 0.03)) for _ in range(100)]
    assert np.mean([one.reached is False for one in steep]) > 0.95


# over launches


def windows_of(*curves: Floats, levels: Floats = LEVELS) -> pd.DataFrame:
    """One launch for each curve."""
    rows = [
        pd.DataFrame({"launch": f"launch {index}", "level": levels, "output_tok_s": curve})
        for index, curve in enumerate(curves)
    ]
    return pd.concat(rows, ignore_index=True)


def launches_of(rng: np.random.Generator, count: int, between: float = 0.05) -> pd.DataFrame:
    """Launches differ in speed, and in where their cap lies."""
    caps = 1000 * np.exp(rng.normal(0, between, count))
    speeds = np.exp(rng.normal(0, between, count))
    curves = [
        noisy(speed * hard_cap(LEVELS, cap), rng) for speed, cap in zip(speeds, caps, strict=True)
    ]
    return windows_of(*curves)


def test_the_interval_is_over_the_knees_of_the_launches() -> None:
    frame = launches_of(np.random.default_rng(10), 5)
    found = knee_over_launches(frame)
    assert (found.reached, found.not_reached, found.not_judged) == (5, 0, 0)
    knees = [one.level for one in found.launches.values()]
    theirs = mean_interval_log(knees)
    assert (found.interval.point, found.interval.low) == (theirs.point, theirs.low)
    assert found.interval.label() == "95 % t interval on the log scale, n = 5 launches"
    assert found.interval.low < 19 < found.interval.high
    assert found.pooled.level == pytest.approx(19, rel=0.1)
    assert found.text == "5 of 5 launches reached their knee"
    of_first = frame[frame["launch"] == "launch 0"]
    assert found.launches["launch 0"] == knee(
        of_first["level"], of_first["output_tok_s"], model="capped law"
    )


def test_intervals_over_launches_cover_the_knee() -> None:
    rng = np.random.default_rng(11)
    found = [knee_over_launches(launches_of(rng, 3)) for _ in range(120)]
    whole = [one.interval for one in found if one.not_reached == 0]
    assert len(whole) > 110
    assert np.mean([one.low <= 19 <= one.high for one in whole]) > 0.89


def test_one_launch_has_a_knee_without_interval() -> None:
    found = knee_over_launches(windows_of(law(LEVELS)))
    assert found.interval.point == pytest.approx(true_knee(0.02, 4e-4), rel=0.01)
    assert np.isnan([found.interval.low, found.interval.high]).all()
    assert found.pooled == found.launches["launch 0"]


def test_launches_that_did_not_reach_it_leave_no_interval() -> None:
    found = knee_over_launches(windows_of(law(LEVELS), law(LEVELS), 50 * LEVELS))
    assert (found.reached, found.not_reached, found.not_judged) == (2, 1, 0)
    assert found.interval.n == 2
    assert np.isnan([found.interval.low, found.interval.high]).all()
    assert found.text == (
        "2 of 3 launches reached their knee, 1 still rose at the last level; "
        "no interval, for it would hold only the knees in range"
    )


def test_no_launch_reached_it() -> None:
    found = knee_over_launches(windows_of(50 * LEVELS, 51 * LEVELS))
    assert (found.reached, found.not_reached) == (0, 2)
    assert np.isnan(found.interval.point)
    assert found.pooled.reached is False
    assert found.text == "0 of 2 launches reached their knee, 2 still rose at the last level"


def test_a_launch_with_few_levels_is_counted_and_leaves_the_interval() -> None:
    frame = windows_of(*(noisy(law(LEVELS), np.random.default_rng(seed)) for seed in range(3)))
    few = frame[(frame["launch"] != "launch 2") | (frame["level"] <= 3)]
    found = knee_over_launches(few)
    assert (found.reached, found.not_judged, found.interval.n) == (2, 1, 2)
    assert found.interval.low < found.interval.high
    lost = frame.assign(output_tok_s=frame["output_tok_s"].where(frame["launch"] != "launch 2"))
    assert knee_over_launches(lost).not_judged == 1


def test_a_launch_flat_from_the_start_leaves_no_interval() -> None:
    """Its knee lies below its levels, so those of the others are the high end."""
    levels = LEVELS[3:]
    curve = hard_cap(levels, 1000)
    found = knee_over_launches(
        windows_of(curve, curve, curve, np.full(levels.size, 1000.0), levels=levels)
    )
    assert (found.reached, found.not_reached, found.not_judged) == (3, 0, 1)
    assert np.isnan(found.interval.low)


def test_a_level_that_only_a_fast_launch_reached_is_no_rise() -> None:
    """The slow launch lost its last windows: pooled as they stand, the curve would jump."""
    frame = windows_of(hard_cap(LEVELS), 0.5 * hard_cap(LEVELS))
    frame = frame[(frame["launch"] == "launch 0") | (frame["level"] < 60)]
    found = knee_over_launches(frame)
    assert found.pooled.reached
    assert found.pooled.level == pytest.approx(19, rel=0.02)
    assert found.pooled.maximum == pytest.approx(1000 * np.sqrt(0.5), rel=0.01)
    assert knee(frame["level"], frame["output_tok_s"]).level > 2 * 19


def test_launches_without_a_common_level_are_pooled_as_they_stand() -> None:
    low = pd.DataFrame({"launch": "a", "level": LEVELS[:7], "output_tok_s": hard_cap(LEVELS[:7])})
    high = pd.DataFrame({"launch": "b", "level": LEVELS[7:], "output_tok_s": hard_cap(LEVELS[7:])})
    found = knee_over_launches(pd.concat([low, high]))
    assert found.pooled == knee(LEVELS, hard_cap(LEVELS))


@settings(max_examples=20)
@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=5))
def test_the_speed_of_launches_does_not_move_the_pooled_knee(speeds: list[float]) -> None:
    found = knee_over_launches(windows_of(*(speed * law(LEVELS) for speed in speeds)))
    assert found.pooled.level == pytest.approx(true_knee(0.02, 4e-4), rel=0.01)
    mean_speed = np.exp(np.mean(np.log(speeds)))
    assert found.pooled.maximum == pytest.approx(mean_speed * law(GRID).max(), rel=1e-3)


def test_a_frame_without_windows_has_no_knee() -> None:
    empty = windows_of(law(LEVELS)).iloc[:0]
    found = knee_over_launches(empty)
    assert (found.reached, found.interval.n, found.pooled.reached) == (0, 0, None)


def test_one_curve_is_asked_for() -> None:
    frame = windows_of(law(LEVELS), law(LEVELS))
    with pytest.raises(StudyError, match="it lacks total_tok_s"):
        knee_over_launches(frame, "total_tok_s")
    for name in ("arm", "workload"):
        with pytest.raises(StudyError, match=f"column {name} held launch 0, launch 1"):
            knee_over_launches(frame.assign(**{name: frame["launch"]}))
    with pytest.raises(StudyError, match="column verdict held void"):
        knee_over_launches(frame.assign(verdict="void"))
    assert knee_over_launches(frame.assign(verdict="valid", arm="a")).reached == 2
