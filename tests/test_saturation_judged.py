"""What noise can feign: a rise where the batch was full, a knee that windows do not lie on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from test_saturation import NOISE, PARTS, linear, part, with_gauges

from study.chapters import saturation
from study.chapters.saturation_estimates import knees, limits
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


def test_a_knee_well_above_a_batch_that_was_full_is_the_machines() -> None:
    """Of 64 that can run, 64 ran at 64 in flight; from there to 128 throughput rose by half."""
    faster = part(lambda level: 50 * np.minimum(level, 110), levels=(1, 8, 32, 64, 128, 256))
    known = knees(faster)
    assert set(known["state"]) == {"cannot judge"} and known["point"].isna().all()
    assert known["text"].str.startswith("as many ran at 64 in flight already").all()
    room = with_gauges(faster, running_mean=50.0, waiting_mean=14.0)
    assert set(knees(room)["state"]) == {"reached"}


def test_the_headline_says_when_all_rests_on_one_launch() -> None:
    words = "one launch of each carries no interval"
    assert words in saturation.lead(part(launches=1), Values())
    assert words not in saturation.lead(PARTS["cap"], Values())


def test_with_as_many_parameters_as_windows_nothing_is_said_of_the_fit() -> None:
    few = part(lambda level: 900 + 40 * np.minimum(level, 16), levels=(1, 8, 32, 64), launches=1)
    known = knees(few)
    assert set(known["model_of_fit"]) == {"two lines"} and known["misfit"].isna().all()
    assert "as many parameters as windows" in saturation.stops(few, Values())
    assert set(saturation.knee_table(few).shown["windows off it"]) == {"n/a (as few as parameters)"}


def test_whoever_does_not_wait_runs_though_the_gauge_misses_him() -> None:
    """Of 91 in flight 27 wait: the batch of 64 is full, although the gauge of it says 57."""
    ended = limits(with_gauges(PARTS["cap"], running_mean=57.0, waiting_mean=0.0))
    assert (ended["running"] == ended["at_level"].clip(upper=64)).all()
    assert (ended["running"] + ended["waiting"] == ended["at_level"]).all()
