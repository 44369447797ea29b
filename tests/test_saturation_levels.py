"""Curves whose launches chose different levels: what is compared, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from test_saturation import BATCH, GQA, cap, part, row_of

from study.chapter import Part
from study.chapters import saturation, saturation_figures
from study.chapters.saturation_estimates import beyond, knees, limits
from study.sentences import Values

# What three searches on one curve may have measured; each found the same knee.
CHOSEN = {
    0: (1, 4, 32, 64, 128),
    1: (1, 4, 32, 45, 64, 91, 128),
    2: (1, 4, 32, 45, 64, 256),
}


def chosen(levels: dict[int, tuple[int, ...]] = CHOSEN, **how: Any) -> Part:
    """Windows of the levels that each block has; all but 1 and 4 were chosen by a search."""
    return only(part(cap, **how), lambda row: row.level in levels[row.block])


def only(one: Part, kept: Callable[[Any], bool]) -> Part:
    seen = one.found.windows
    seen = seen[seen.apply(kept, axis=1)]
    return replace(
        one, found=replace(one.found, windows=seen.assign(searched=~seen["level"].isin([1, 4])))
    )


def test_each_launch_has_its_knee_whatever_its_levels() -> None:
    known = knees(chosen())
    assert set(known["state"]) == {"reached"} and set(known["n"]) == {3}
    assert known["point"].between(0.95 * BATCH * 0.97, 0.95 * BATCH * 1.03).all()
    assert ((known["low"] < known["point"]) & (known["point"] < known["high"])).all()
    assert set(known["levels"]) == {8} and set(known["highest_level"]) == {256}


def test_levels_are_compared_that_most_launches_share() -> None:
    """64 is every launch's, 128 that of two; 256 is higher, and one launch's alone."""
    one = chosen()
    known, past = row_of(knees(one)), beyond(one)
    assert (known.at_level, known.top_level) == (64, 128)
    assert set(past["n"]) == {2} and set(past["dropped"]) == {1}
    rate = past[(past["arm"] == GQA) & (past["metric"] == "output_tok_s")].iloc[0]
    assert rate["point"] == pytest.approx(1, abs=0.05)
    assert set(limits(one)["limit"]) == {"batch limit"}
    text = saturation.stops(one, Values())
    assert "From 64 to 128 in flight" in text and "256" not in text


def test_a_level_at_the_knee_of_one_launch_alone_is_not_taken() -> None:
    without = {0: (1, 4, 32, 45, 91, 128), 1: (1, 4, 32, 64, 128), 2: (1, 4, 32, 45, 91, 128)}
    known = row_of(knees(chosen(without)))
    assert (known.at_level, known.top_level) == (91, 128)


def test_without_a_shared_level_beyond_the_knee_it_says_so() -> None:
    alone = {0: (1, 4, 16, 32, 64), 1: (1, 4, 32, 45, 128, 181), 2: (1, 4, 32, 91, 256)}
    one = chosen(alone)
    assert set(beyond(one)["n"]) == {0}
    assert "No launch has valid windows at both" in saturation.stops(one, Values())


def test_captions_say_that_launches_chose_their_levels() -> None:
    said = "Launches choose their levels, so n differs between points."
    assert said in saturation_figures.throughput(chosen()).caption
    assert said in saturation_figures.latency(chosen()).caption
    assert said not in saturation_figures.throughput(part(cap)).caption


def test_one_launch_gives_points_without_bars() -> None:
    drawn = saturation_figures.throughput(only(part(cap, launches=1), lambda row: row.level < 129))
    assert drawn.figure is not None and "a single launch carries no interval" in drawn.caption


def test_a_void_level_near_the_knee_is_said_beside_it() -> None:
    near = part(cap, void=lambda row: bool(row.level == 45))
    far = part(cap, void=lambda row: bool(row.level == 4))
    assert row_of(knees(near)).void_near == "45"
    assert row_of(knees(far)).void_near == row_of(knees(part(cap))).void_near == ""
    said = saturation.stops(near, Values())
    assert "near it every window of level 45 is void, so it might lie elsewhere" in said
    assert "void" not in saturation.stops(far, Values())
