"""Fits and knees against planted laws, with and without noise, and where there is no knee."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from study.errors import StudyError
from study.knee import Gunther, TwoLines, gunther, knee, knee_over_launches, two_lines
from study.stats import Floats, mean_interval_log

LEVELS = np.array([1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128.0])  # steps of sqrt(2)
STEP = np.sqrt(2)
GRID = np.geomspace(LEVELS[0], LEVELS[-1], 20_000)
SIGMAS, KAPPAS = st.floats(0.0, 0.5), st.floats(0.0, 0.01)
RATES = st.floats(1, 1000)


def law(levels: Floats, lam: float = 50.0, sigma: float = 0.02, kappa: float = 4e-4) -> Floats:
    return np.asarray(
        lam * levels / (1 + sigma * (levels - 1) + kappa * levels * (levels - 1)), dtype=np.float64
    )


def capped(levels: Floats, cap: float = 1000.0) -> Floats:
    """50 tokens/s for each request in flight until the cap, which level 20 meets."""
    return np.minimum(50 * levels, cap)


def noisy(tok_s: Floats, rng: np.random.Generator, sd: float = 0.01) -> Floats:
    return np.asarray(tok_s * np.exp(rng.normal(0, sd, tok_s.shape)))


def true_knee(sigma: float, kappa: float, share: float = 0.95) -> float:
    fitted = law(GRID, 1.0, sigma, kappa)
    return float(GRID[np.argmax(fitted >= share * fitted.max())])


# Gunther's law


@given(RATES, SIGMAS, KAPPAS)
def test_gunther_finds_the_law_that_was_planted(lam: float, sigma: float, kappa: float) -> None:
    found = gunther(LEVELS, law(LEVELS, lam, sigma, kappa))
    assert found.lam == pytest.approx(lam, rel=1e-6)
    assert found.sigma == pytest.approx(sigma, abs=1e-6)
    assert found.kappa == pytest.approx(kappa, abs=1e-7)
    assert found.predict(LEVELS) == pytest.approx(law(LEVELS, lam, sigma, kappa), rel=1e-6)
    assert found.residual_sd < 1e-6


def test_gunther_is_the_least_squares_fit_of_the_logs() -> None:
    """Another optimiser, from the truth, finds nothing better."""
    tok_s = noisy(law(LEVELS), np.random.default_rng(1), 0.1)

    def squares(theta: Floats) -> float:
        return float((np.log(tok_s / law(LEVELS, *np.exp(theta))) ** 2).sum())

    theirs = minimize(squares, np.log([50, 0.02, 4e-4]), method="Nelder-Mead", tol=1e-10)
    ours = gunther(LEVELS, tok_s)
    assert [ours.lam, ours.sigma, ours.kappa] == pytest.approx(np.exp(theirs.x), rel=1e-4)
    assert ours.residual_sd == pytest.approx(np.sqrt(theirs.fun / (LEVELS.size - 3)), rel=1e-6)


@given(st.lists(RATES, min_size=4, max_size=len(LEVELS)), st.floats(0.001, 1000))
def test_any_curve_has_lawful_fits_and_no_unit(rates: list[float], factor: float) -> None:
    levels, tok_s = LEVELS[: len(rates)], np.array(rates)
    law_of, lines_of = gunther(levels, tok_s), two_lines(levels, tok_s)
    assert law_of.lam > 0
    assert min(law_of.sigma, law_of.kappa) >= 0
    scaled = two_lines(levels, factor * tok_s).predict(levels)
    assert scaled == pytest.approx(factor * lines_of.predict(levels), rel=1e-6)
    # How well the law fits, not where: far from any law several fits are about as good.
    scaled_sd = gunther(levels, factor * tok_s).residual_sd
    assert scaled_sd == pytest.approx(law_of.residual_sd, rel=0.05, abs=1e-6)


def test_the_noise_is_found_on_the_log_scale() -> None:
    rng = np.random.default_rng(2)
    levels = np.tile(LEVELS, 200)
    of_law = gunther(levels, noisy(law(levels), rng, 0.03))
    of_lines = two_lines(levels, noisy(capped(levels), rng, 0.03))
    assert [of_law.residual_sd, of_lines.residual_sd] == pytest.approx([0.03, 0.03], rel=0.1)


def test_as_many_points_as_parameters_leave_no_residual() -> None:
    assert np.isnan(gunther(LEVELS[:3], law(LEVELS[:3])).residual_sd)
    assert np.isnan(two_lines(LEVELS[:4], law(LEVELS[:4])).residual_sd)


# two lines


@given(st.floats(2, 91), RATES, st.floats(0.5, 1), st.floats(-0.5, 0.2))
def test_two_lines_find_the_lines_that_were_planted(
    at: float, height: float, before: float, after: float
) -> None:
    planted = TwoLines(at, height, before, after, 0.0)
    found = two_lines(LEVELS, planted.predict(LEVELS))
    assert found.breakpoint == pytest.approx(at, rel=0.01)
    assert found.predict(LEVELS) == pytest.approx(planted.predict(LEVELS), rel=0.02)
    assert found.slope_before == pytest.approx(before, abs=0.02)
    assert found.slope_after == pytest.approx(after, abs=0.02)


def test_the_breakpoint_is_the_best_of_all() -> None:
    """Every other breakpoint, fitted by ordinary means, leaves at least as much."""
    tok_s = noisy(law(LEVELS), np.random.default_rng(3), 0.05)
    x, y = np.log(LEVELS), np.log(tok_s)
    left = [
        np.linalg.lstsq(np.column_stack([np.ones_like(x), x, np.maximum(x - at, 0)]), y)[1][0]
        for at in np.log(np.geomspace(2, 91, 300))
    ]
    found = two_lines(LEVELS, tok_s)
    ours = float((np.log(tok_s / found.predict(LEVELS)) ** 2).sum())
    assert min(left) * 0.99 < ours < min(left) * 1.0001


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
    found = knee(LEVELS, noisy(capped(LEVELS, cap), np.random.default_rng(6), sd))
    expected = 0.95 * cap / 50
    assert (found.reached, found.model) == (True, "two lines")
    assert expected / STEP < found.level < expected * STEP
    assert found.maximum == pytest.approx(cap, rel=0.03)


@pytest.mark.parametrize("levels", [[1, 4, 16, 64, 256], [2, 4, 8, 16, 32, 64]])
def test_a_hard_cap_is_told_from_a_law_with_few_levels_too(levels: list[float]) -> None:
    """Too few windows for AICc. Gunther's law alone would put the knee 1.5 to 3 times too high."""
    tested = np.array(levels, dtype=float)
    found = knee(tested, noisy(capped(tested), np.random.default_rng(7)))
    assert found.model == "two lines"
    assert found.level == pytest.approx(19, rel=0.25)
    assert knee(tested, capped(tested), model="Gunther's law").level > 1.5 * 19
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
    assert knee(LEVELS, capped(LEVELS, 50 * 100)).reached is False
    assert knee(LEVELS[:-1], capped(LEVELS[:-1], 50 * 100)).reached is False


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
    with pytest.raises(StudyError, match="model must be one of Gunther's law, two lines"):
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
        noisy(speed * capped(LEVELS, cap), rng) for speed, cap in zip(speeds, caps, strict=True)
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
        of_first["level"], of_first["output_tok_s"], model="two lines"
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
    curve = capped(levels, 1000)
    found = knee_over_launches(
        windows_of(curve, curve, curve, np.full(levels.size, 1000.0), levels=levels)
    )
    assert (found.reached, found.not_reached, found.not_judged) == (3, 0, 1)
    assert np.isnan(found.interval.low)


def test_a_level_that_only_a_fast_launch_reached_is_no_rise() -> None:
    """The slow launch lost its last windows: pooled as they stand, the curve would jump."""
    frame = windows_of(capped(LEVELS), 0.5 * capped(LEVELS))
    frame = frame[(frame["launch"] == "launch 0") | (frame["level"] < 60)]
    found = knee_over_launches(frame)
    assert found.pooled.reached
    assert found.pooled.level == pytest.approx(19, rel=0.02)
    assert found.pooled.maximum == pytest.approx(1000 * np.sqrt(0.5), rel=0.01)
    assert knee(frame["level"], frame["output_tok_s"]).level > 2 * 19


def test_launches_without_a_common_level_are_pooled_as_they_stand() -> None:
    low = pd.DataFrame({"launch": "a", "level": LEVELS[:7], "output_tok_s": capped(LEVELS[:7])})
    high = pd.DataFrame({"launch": "b", "level": LEVELS[7:], "output_tok_s": capped(LEVELS[7:])})
    found = knee_over_launches(pd.concat([low, high]))
    assert found.pooled == knee(LEVELS, capped(LEVELS))


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
