"""The search for a knee: the same knee as the whole grid, for less load, whatever it meets."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import FIXED, SCENARIOS, Curve, Scenario, curves_of, noisy, replay, same_knee, seconds

from study import search
from study.knee import Knee, knee, knee_over_launches
from study.search import Search

MOST = 0.40  # of the grid's load time
MOST_SLOW = 0.47  # where throughput rises to the ceiling or levels off slowly: both need its top
RATES = st.floats(1, 1000)


def knee_of(curve: Curve) -> Knee:
    return knee(list(curve), list(curve.values()))


def one(name: str, batch: int = 64) -> Scenario:
    return next(one for one in SCENARIOS if (one.name, one.batch) == (name, batch))


# --- against the whole grid -----------------------------------------------------------------------


def test_the_grid_has_steps_of_root_two() -> None:
    levels = Search(batch=16, ceiling=64).grid
    assert levels == (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64)
    assert Search(batch=12, ceiling=48).grid[-1] == 45
    assert Search(batch=1, ceiling=4).grid == (1, 2, 3, 4)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda one: f"{one.name}, {one.batch}")
def test_without_noise_the_knee_is_that_of_the_grid_for_less(scenario: Scenario) -> None:
    (grid,) = curves_of(scenario, 0, 0)
    seen = replay(scenario.search, grid)
    assert same_knee(knee_of(seen), knee_of(grid))
    assert knee_of(grid).reached is scenario.ends
    share = seconds(scenario, seen) / seconds(scenario, grid)
    assert share <= (MOST if scenario.ends and scenario.sharp else MOST_SLOW)


@pytest.mark.parametrize("batch", [16, 64, 256])
def test_with_noise_the_knee_is_nearly_always_that_of_the_grid(batch: int) -> None:
    """3 % a window, seen by both. Of curves that level off for ever the grid itself is unsure."""
    agree, shares = {}, {}
    laws = {one.name: one for one in SCENARIOS if one.batch == batch and one.sharp}
    for name, scenario in laws.items():
        exact, *drawn = curves_of(scenario, 20, 0.03)
        seen = [replay(scenario.search, curve) for curve in drawn]
        both = zip(seen, drawn, strict=True)
        agree[name] = np.mean([same_knee(knee_of(one), knee_of(grid)) for one, grid in both])
        cost = np.mean([seconds(scenario, curve) for curve in seen])
        shares[name] = cost / seconds(scenario, exact)
    assert np.mean(list(agree.values())) >= 0.95, agree
    assert min(agree.values()) >= 0.85, agree
    ending = [share for name, share in shares.items() if laws[name].ends]
    assert max(ending) <= MOST and max(shares.values()) <= MOST_SLOW + 0.02, shares


@pytest.mark.parametrize("name", ["linear to the batch", "contention to the batch"])
@pytest.mark.parametrize("batch", [16, 64, 256])
def test_nothing_is_measured_far_beyond_a_full_batch(name: str, batch: int) -> None:
    (grid,) = curves_of(one(name, batch), 0, 0)
    assert max(replay(one(name, batch).search, grid)) == 2 * batch


def test_a_knee_far_below_the_batch_is_not_climbed_past() -> None:
    scenario = one("peak at a quarter of it", 256)
    (grid,) = curves_of(scenario, 0, 0)
    assert max(replay(scenario.search, grid)) <= 256


def test_a_peak_between_two_levels_that_are_alike_is_found() -> None:
    """Both ends of a long stride give the same; what lies between gives twice as much."""
    curve = {level: min(level, 256 / level) for level in Search(batch=64, ceiling=256).grid}
    seen = replay(Search(batch=64, ceiling=256), curve, fixed=(1, 4, 64))
    assert curve[4] == curve[64] == 4
    assert knee_of(seen).level == pytest.approx(knee_of(curve).level, rel=0.1)


# --- why it ends ----------------------------------------------------------------------------------


def why(scenario: Scenario) -> str:
    (grid,) = curves_of(scenario, 0, 0)
    return scenario.search.next(replay(scenario.search, grid)).why


def test_the_search_says_why_it_is_over() -> None:
    assert why(one("linear to the batch")) == search.BRACKETED
    assert why(one("linear")) == why(one("still rises")) == search.CEILING
    few = Search(batch=8, ceiling=2).next({1: 1.0, 2: 2.0})
    assert (few.level, few.why) == (None, search.CEILING)


def test_void_windows_above_end_the_climb() -> None:
    """A level that cannot be held: more of them would be void, and each costs more."""
    scenario = one("linear", 64)
    (grid,) = curves_of(scenario, 0, 0)
    asked: dict[int, float | None] = {level: grid[level] for level in FIXED}
    while (level := scenario.search.next(asked).level) is not None:
        asked[level] = grid[level] if level <= 32 else None
    assert [level for level, rate in asked.items() if rate is None] == [128, 91]
    assert scenario.search.next(asked).why == search.VOID


@pytest.mark.parametrize("lost", [2, 8, 11, 32, 45, 64, 91, 128])
def test_one_void_window_costs_a_neighbour_and_not_the_knee(lost: int) -> None:
    scenario = one("contention to the batch", 64)
    (grid,) = curves_of(scenario, 0, 0)
    left = {level: rate for level, rate in grid.items() if level != lost}
    assert same_knee(knee_of(replay(scenario.search, left)), knee_of(grid))


def test_without_a_valid_window_it_tries_twice() -> None:
    seen: dict[int, float | None] = {}
    while (level := Search(batch=8, ceiling=32).next(seen).level) is not None:
        seen[level] = None
    assert len(seen) == search.GIVE_UP


# --- whatever it meets ----------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.integers(1, 300),
    st.integers(1, 1024),
    st.lists(st.one_of(RATES, st.none()), min_size=21, max_size=21),
    st.sampled_from([(), (1,), (1, 4), (5, 7, 50)]),
)
def test_any_curve_ends_the_search_and_no_level_is_asked_for_twice(
    batch: int, ceiling: int, rates: list[float | None], fixed: tuple[int, ...]
) -> None:
    asked = Search(batch=batch, ceiling=ceiling)
    seen: dict[int, float | None] = dict(zip(fixed, rates, strict=False))
    for _ in range(len(asked.grid) + 1):
        step = asked.next(seen)
        assert step == asked.next(dict(reversed(seen.items())))
        if step.level is None:
            assert step.why in (search.BRACKETED, search.CEILING, search.VOID)
            return
        assert step.level in asked.grid and step.level not in seen
        seen[step.level] = rates[asked.grid.index(step.level)]
    raise AssertionError("more levels than the grid has")


@settings(max_examples=25)
@given(st.lists(RATES, min_size=16, max_size=16), st.sampled_from([0.001, 64.0]))
def test_a_search_has_no_unit(rates: list[float], factor: float) -> None:
    asked = Search(batch=64, ceiling=256)
    curve = dict(zip(asked.grid, rates, strict=True))
    scaled = {level: factor * rate for level, rate in curve.items()}
    assert list(replay(asked, curve)) == list(replay(asked, scaled))


# --- over launches --------------------------------------------------------------------------------


def launches_of(rng: np.random.Generator, scenario: Scenario, count: int) -> pd.DataFrame:
    """Each launch has a speed and a limit of its own, and searches by itself."""
    grid = np.array(scenario.search.grid, dtype=float)
    frames = []
    for launch in range(count):
        speed, shift = np.exp(rng.normal(0, 0.05, 2))
        rates = noisy(speed * scenario.law(grid / shift), rng, 0.02)
        curve = dict(zip(scenario.search.grid, map(float, rates), strict=True))
        seen = replay(scenario.search, curve)
        columns = {"launch": launch, "level": list(seen), "output_tok_s": list(seen.values())}
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def test_knees_of_launches_that_chose_other_levels_cover_the_truth() -> None:
    """A t interval over three launches, each with levels of its own, holds its 95 %."""
    scenario, rng = one("linear to 0.6 of it", 64), np.random.default_rng(14)
    truth = 0.95 * 0.6 * 64
    drawn = [launches_of(rng, scenario, 3) for _ in range(100)]
    differ = [one.groupby("level")["launch"].nunique().nunique() > 1 for one in drawn]
    assert np.mean(differ) > 0.1  # or this test would show nothing
    found = [knee_over_launches(one) for one in drawn]
    assert np.mean([one.reached == 3 for one in found]) > 0.9
    inside = [one.interval.low <= truth <= one.interval.high for one in found if one.reached == 3]
    assert np.mean(inside) > 0.88
    assert np.median([one.pooled.level for one in found]) == pytest.approx(truth, rel=0.03)
