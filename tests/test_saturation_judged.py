"""What noise can feign: a rise where the batch was full, a knee that windows do not lie on."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from test_saturation import GQA, NOISE, PARTS, linear, part, with_gauges

from study.chapters import (
    saturation,
    saturation_estimates,
    saturation_figures,
    saturation_tables,
)
from study.chapters.saturation_estimates import beyond, knees, limits
from study.sentences import Values

FULL = part(linear)  # in proportion to the level, although no more can run


def test_a_rise_while_the_batch_was_full_already_is_not_the_loads_doing() -> None:
    known = knees(FULL)
    assert set(known["state"]) == {"cannot judge"} and known["point"].isna().all()
    assert known["text"].str.startswith("as many ran at 64 in flight already").all()
    some_wait = with_gauges(FULL, running_mean=61.0, waiting_mean=120.0)
    assert set(knees(some_wait)["state"]) == {"cannot judge"}
    room = with_gauges(FULL, running_mean=50.0, waiting_mean=131.0)
    assert set(knees(room)["state"]) == {"not reached"}
    unknown = with_gauges(FULL, running_mean=np.nan)
    assert set(knees(unknown)["state"]) == {"not reached"}


def test_windows_that_lie_off_their_curve_make_a_rough_knee() -> None:
    quiet = PARTS["few levels"]
    assert (knees(quiet)["misfit"] < 2 * NOISE).all()
    assert "off that curve" not in saturation.stops(quiet, Values())
    windows = quiet.found.windows
    up_and_down = np.where(np.arange(len(windows)) % 2, 1.1, 1 / 1.1)
    shaken = windows.assign(output_tok_s=windows["output_tok_s"] * up_and_down)
    loud = replace(quiet, found=replace(quiet.found, windows=shaken))
    assert (knees(loud)["misfit"] > 0.05).all()
    assert "off that curve, 3 % would be quiet, so it is rough" in saturation.stops(loud, Values())


FASTER = part(lambda level: 50 * np.minimum(level, 110), levels=(1, 8, 32, 64, 128, 256))


def test_a_knee_well_above_a_batch_that_was_full_is_the_machines() -> None:
    """Of 64 that can run, 64 ran at 64 in flight; from there to 128 throughput rose by half."""
    known = knees(FASTER)
    assert set(known["state"]) == {"cannot judge"} and known["point"].isna().all()
    assert known["text"].str.startswith("as many ran at 64 in flight already").all()
    room = with_gauges(FASTER, running_mean=50.0, waiting_mean=14.0)
    assert set(knees(room)["state"]) == {"reached"}


def test_a_knee_that_is_not_judged_leaves_no_interval() -> None:
    """Each launch has one, but it is none of the load's."""
    known = knees(FASTER)
    assert set(known["n"]) == {3} and known[["low", "high"]].isna().all(axis=None)
    assert saturation.method(FASTER, Values()).startswith("No knee has an interval")
    shown = saturation_tables.knee_table(FASTER).shown
    assert set(shown["knee (in flight)"]) == {"cannot judge"}
    assert set(shown["launches at their knee"]) == {"n/a"}


@pytest.mark.parametrize(
    ("state", "knee", "top", "said"),
    [
        ("reached", 5.5, 16, ""),
        ("reached", 5.636, 16, "granted up to 5.66, a step above it, and a knee at 5.64 is too"),
        ("reached", 5.7, 16, "granted up to 5.66, a step above it, and a knee at 5.7 is too"),
        ("reached", 5.72, 16, "what rises from there on is no fuller batch"),
        ("not reached", np.nan, 5, ""),  # a level is known, so it may be the very step
        ("not reached", np.nan, 6, "what rises from there on is no fuller batch"),
    ],
)
def test_a_knee_too_near_to_the_step_that_is_granted_is_not_judged(
    state: str, knee: float, top: int, said: str
) -> None:
    """Four ran at 4 in flight and at 6, and throughput was a quarter higher at 6."""
    valid = pd.DataFrame({"level": [1, 4, top], "running_mean": 3.9})
    valid["waiting_mean"] = (valid["level"] - 4).clip(lower=0)
    told = saturation_estimates._rose_when_full(state, knee, valid, 4)
    assert said in told and bool(told) == bool(said)
    assert not told or told.startswith("as many ran at 4 in flight already")


@pytest.mark.parametrize(
    ("at", "low", "high", "limit"),
    [
        (1.0002, np.nan, np.nan, "batch limit or compute"),  # as once measured, and said for sure
        (0.991, np.nan, np.nan, "batch limit or compute"),
        (1.011, np.nan, np.nan, "batch limit"),
        (0.989, np.nan, np.nan, "compute"),
        (1.2, 1.009, 1.4, "batch limit or compute"),
        (0.9, 0.8, 0.991, "batch limit or compute"),
        (1.2, 1.011, 1.4, "batch limit"),
    ],
)
def test_a_knee_is_known_no_finer_than_the_grid_of_its_fit(
    at: float, low: float, high: float, limit: str
) -> None:
    """All as shares of the limit between batch limit and compute: a step below a batch of 4."""
    row = {"point": at, "low": low, "high": high}
    row = {name: share * 4 / np.sqrt(2) for name, share in row.items()}
    row |= {"kv_use_max": 0.1, "preemptions": 0.0, "running": 4.0, "waiting": 0.0}
    assert saturation_estimates._limit({**row, "at_level": 4, "max_num_seqs": 4}) == limit


def test_knee_and_limit_are_printed_where_they_are_too_near_to_tell() -> None:
    row = {"limit": "batch limit or compute", "point": 2.829, "low": np.nan, "max_num_seqs": 4}
    (one,) = pd.DataFrame([row]).itertuples()
    assert saturation._meaning("a", one, Values()) == (
        "The knee, 2.83, is too near to 2.83, a step below the batch, to tell: above it the rule "
        "says batch limit, below it compute."
    )
    (one,) = pd.DataFrame([{**row, "low": 2.5, "high": 3.5}]).itertuples()
    assert "interval, 2.50 to 3.50, is not clearly on one side of 2.83" in saturation._meaning(
        "a", one, Values()
    )


def test_without_an_interval_a_limit_is_only_consistent() -> None:
    alone, sure = PARTS["one launch"], PARTS["cap"]
    assert saturation.reasons(alone, Values()).count(": consistent with **batch limit**.") == 4
    assert "only consistent with: batch limit on 4." in saturation.lead(alone, Values())
    shown = saturation_tables.limit_table(alone).shown
    assert set(shown["ends the rise"]) == {"consistent with batch limit"}
    said = saturation.reasons(sure, Values()) + saturation.lead(sure, Values())
    assert "consistent" not in said
    unknown = with_gauges(alone, kv_use_max=np.nan)
    assert ": **cannot judge**." in saturation.reasons(unknown, Values())


def test_a_batch_that_is_full_by_construction_is_not_given_as_evidence() -> None:
    """Nobody waits at 64 in flight, so 64 of 64 run, whatever the gauge of them says."""
    one = with_gauges(PARTS["cap"], running_mean=46.0, waiting_mean=0.0)
    told = saturation.reasons(one, Values())
    assert "Of 64 in flight 0 wait, by the engine's gauge; the level minus these" in told
    assert "at most the batch of 64, is 64.0 (the gauge of those that run" in told
    assert told.count("only the place of the knee speaks for the limit.") == 4
    above = part(levels=(1, 4, 8, 16, 32, 91, 128, 256))
    assert set(limits(above)["at_level"]) == {91}
    assert saturation.reasons(above, Values()).count("every further request waits.") == 4
    shown = saturation_tables.limit_table(one).shown
    assert "running" not in shown and set(shown["level minus waiting, at most the batch"]) == {
        "64.0"
    }


def test_a_curve_and_a_limit_that_cannot_be_judged_are_counted_apart() -> None:
    """MLA has too few levels, and of GQA's two workloads one lacks the gauges."""
    one = PARTS["cap"]
    seen = one.found.windows
    seen = seen[(seen["arm"] == GQA) | seen["level"].isin([1, 64])]
    unknown = (seen["arm"] == GQA) & (seen["workload"] == "short")
    seen = seen.assign(running_mean=seen["running_mean"].mask(unknown))
    told = saturation.lead(replace(one, found=replace(one.found, windows=seen)), Values())
    assert "otherwise: cannot judge on 2." in told
    assert "cannot judge on 1" in told and "batch limit on 1" in told


def test_the_headline_says_when_all_rests_on_one_launch() -> None:
    words = "one launch of each carries no interval"
    assert words in saturation.lead(part(launches=1), Values())
    assert words not in saturation.lead(PARTS["cap"], Values())


def test_a_curve_that_meets_as_many_windows_as_it_has_parameters_says_nothing() -> None:
    """Two lines with their corner between two levels: four windows, four parameters."""
    few = part(lambda level: 50 * np.minimum(level, 16) ** 1.3, levels=(1, 8, 32, 64), launches=1)
    known = knees(few)
    assert set(known["model_of_fit"]) == {"two lines"} and known["misfit"].isna().all()
    assert "exactly as many parameters as windows, so nothing" in saturation.stops(few, Values())
    shown = set(saturation_tables.knee_table(few).shown["windows off it"])
    assert shown == {"n/a (exactly as many as parameters)"}


def test_a_curve_that_misses_as_many_windows_as_it_has_parameters_says_so() -> None:
    """The corner of two lines lies between levels, so four windows need not lie on them."""
    few = part(lambda level: 900 + 40 * np.minimum(level, 16), levels=(1, 8, 32, 64), launches=1)
    known = knees(few)
    assert set(known["model_of_fit"]) == {"two lines"} and set(known["spare"]) == {0}
    assert known["misfit"].between(0.005, 0.03).all()
    told = saturation.stops(few, Values())
    assert told.count("as many parameters as windows, that curve still misses them by at") == 4
    assert "nothing tells" not in told and "so it is rough" not in told
    shown = saturation_tables.knee_table(few).shown["windows off it"]
    assert shown.str.fullmatch(r"at least \d\.\d+ %").all()
    rate = {1: 149, 8: 212, 32: 452, 64: 336}
    loud = part(lambda level: level.map(rate), levels=(1, 8, 32, 64), launches=1)
    assert "would be quiet, so it is rough" in saturation.stops(loud, Values())


def test_whoever_does_not_wait_runs_though_the_gauge_misses_him() -> None:
    """Of 91 in flight 27 wait: the batch of 64 is full, although the gauge of it says 57."""
    ended = limits(with_gauges(PARTS["cap"], running_mean=57.0, waiting_mean=0.0))
    assert (ended["running"] == ended["at_level"].clip(upper=64)).all()
    assert (ended["running"] + ended["waiting"] == ended["at_level"]).all()


def test_what_lies_beyond_a_knee_is_what_the_definition_allows_and_what_was_seen() -> None:
    """The law with a peak loses half of its throughput, the cap none: one sentence serves both."""
    for case, pattern in (
        ("peak", r"was 0\.\d+ to 0\.\d+ times"),
        ("cap", r"was (0\.9\d+|1\.0\d+)( to (0\.9\d+|1\.0\d+))? times"),
    ):
        values = Values()
        told = saturation.past_knee(PARTS[case], values)
        assert "gains at most 5 % of its fitted maximum, within the tested levels" in told
        assert re.search(pattern, told), told
        rates = beyond(PARTS[case]).query("metric == 'output_tok_s'")["point"]
        assert values.known["saturation.beyond.least"]["value"] == rates.min()
        assert values.known["saturation.beyond.most"]["value"] == rates.max()
    for case in ("linear", "all void"):
        told = saturation.past_knee(PARTS[case], Values())
        assert told == "No curve has a knee, so none shows what lies beyond one."
    told = saturation.past_knee(PARTS["ends at the knee"], Values())
    assert told.endswith("wait longer or run slower.")
    assert "answers no more requests a second" not in saturation.CAUTION


def test_the_trade_off_promises_no_turn() -> None:
    caption = saturation_figures.trade_off(PARTS["cap"]).caption
    assert "beyond it the line should turn right" in caption and "Noise may hide that" in caption
