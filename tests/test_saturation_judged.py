"""What noise can feign: a rise where the batch was full, a knee that windows do not lie on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from test_saturation import NOISE, PARTS, linear, part, with_gauges

from study.chapters import saturation
from study.chapters.saturation_estimates import knees
from study.sentences import Values

FULL = part(linear)  # in proportion to the level, although no more can run


def test_a_rise_while_the_batch_was_full_already_is_not_the_loads_doing() -> None:
    known = knees(FULL)
    assert set(known["state"]) == {"cannot judge"} and known["point"].isna().all()
    assert known["text"].str.startswith("as many ran at 181 in flight already").all()
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
