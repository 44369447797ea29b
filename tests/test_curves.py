"""Models of a load curve and their fits, against planted laws, with and without noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEVELS, hard_cap, law, noisy
from scipy.optimize import minimize

from study.curves import Capped, TwoLines, capped, gunther, two_lines
from study.finite import Floats
from study.knee import knee

SIGMAS, KAPPAS = st.floats(0.0, 0.5), st.floats(0.0, 0.01)
RATES = st.floats(1, 1000)


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
    of_lines = two_lines(levels, noisy(hard_cap(levels), rng, 0.03))
    assert [of_law.residual_sd, of_lines.residual_sd] == pytest.approx([0.03, 0.03], rel=0.1)


def test_as_many_points_as_parameters_leave_no_residual() -> None:
    assert np.isnan(gunther(LEVELS[:3], law(LEVELS[:3])).residual_sd)
    assert np.isnan(two_lines(LEVELS[:4], law(LEVELS[:4])).residual_sd)


# a law up to a limit


@given(RATES, st.floats(0, 0.5), st.floats(2, 91))
def test_a_capped_law_is_found_as_it_was_planted(lam: float, sigma: float, limit: float) -> None:
    planted = Capped(lam, sigma, limit, 0.0)
    found = capped(LEVELS, planted.predict(LEVELS))
    assert found.predict(LEVELS) == pytest.approx(planted.predict(LEVELS), rel=0.005)
    assert found.residual_sd < 0.005
    fitted = knee(LEVELS, planted.predict(LEVELS), model="capped law")
    assert fitted.reached is True
    least = 0.95 * planted.predict(limit)
    assert planted.predict(fitted.level) == pytest.approx(least, rel=0.01) or fitted.level == 1


def test_the_limit_is_the_best_of_all() -> None:
    """Any other limit, with the law fitted by other means to what runs, leaves at least as much."""
    rng = np.random.default_rng(12)
    tok_s = noisy(Capped(50, 0.02, 40, 0.0).predict(LEVELS), rng, 0.05)

    def left(theta: Floats, limit: float) -> float:
        law = Capped(np.exp(theta[0]), np.exp(theta[1]), limit, 0.0)
        return float((np.log(tok_s / law.predict(LEVELS)) ** 2).sum())

    others = [
        minimize(left, np.log([50, 0.02]), (limit,), method="Nelder-Mead").fun
        for limit in np.geomspace(2, 91, 60)
    ]
    ours = float((np.log(tok_s / capped(LEVELS, tok_s).predict(LEVELS)) ** 2).sum())
    assert ours < min(others) * 1.01


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
