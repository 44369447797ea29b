"""What a reader sees in a picture: labels on every axis, no point hidden, no line unnamed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import stub
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from study import figures, pictures
from study.chapters import aiter_figures, block_size_figures
from study.experiments import Aiter, BlockSize
from study.style import HOLLOW_FACE, log_axis

ONE = {"launches": 1, "workloads": ["short:128/64"], "levels": [4]}


def labelled(low: float, high: float) -> list[float]:
    """The labels that can be read on a log axis over this range."""
    axis = Figure().subplots()
    log_axis(axis, low, high, along="x")
    least, most = low * (1 - 1e-9), high * (1 + 1e-9)
    return [float(tick) for tick in axis.get_xticks() if least <= tick <= most]


def test_an_axis_around_one_has_a_scale() -> None:
    """It had the single label 1."""
    assert labelled(0.88, 1.13) == pytest.approx([0.9, 0.95, 1, 1.05, 1.1])


@given(st.floats(1e-4, 1e6), st.floats(1.05, 1000))
def test_every_log_axis_has_labels_enough_to_read_it_by(low: float, span: float) -> None:
    assert 2 <= len(labelled(low, low * span)) <= 8


def test_a_void_window_hides_no_valid_one_of_the_same_value() -> None:
    asked = Aiter.of({**ONE, "models": ["gqa-dense"], "switches": ["compile"]})
    found = stub.frames(asked)
    later = found.windows.assign(again=True)
    first = found.windows.assign(verdict="void")
    both = pd.concat([first, later], ignore_index=True)
    drawn = aiter_figures.by_setting(replace(found, windows=both), "ttft_p50_s")
    assert drawn.figure is not None
    dots = [line for line in drawn.figure.axes[0].lines if line.get_marker() == "o"]
    for void, valid in zip(dots[::2], dots[1::2], strict=True):
        assert np.array_equal(np.asarray(void.get_xydata()), np.asarray(valid.get_xydata()))
        assert (void.get_markerfacecolor(), valid.get_markeredgewidth()) == (HOLLOW_FACE, 0)
        assert void.get_zorder() <= valid.get_zorder()  # equal: in the order of drawing
        assert void.get_markersize() > valid.get_markersize()  # its ring is seen around the other


@pytest.mark.parametrize("models", [["gqa-dense"], ["gqa-dense", "mla-dense"]])
def test_points_beside_their_place_are_said_to_be(models: list[str]) -> None:
    words = "Points at one place of the axis are moved apart a little."
    levels = stub.frames(stub.experiment(launches=2, models=models, depths=[4, 8]))
    sizes = stub.frames(BlockSize.of({**ONE, "models": models, "block_sizes": [32, 64]}))
    captions = [figures.throughput(levels).caption, figures.latency(levels).caption]
    captions += [figures.layer_cost(levels).caption, block_size_figures.ratios(sizes).caption]
    captions += [block_size_figures.throughput(sizes).caption]
    assert [words in one for one in captions] == [len(models) > 1] * len(captions)


@pytest.mark.parametrize(
    ("void", "level", "median_s"),
    [
        ((), 8, 3.0),
        ((8,), 4, 2.75),
        ((2, 4, 8, 16), 1, 3.0),  # none of several requests is valid
        ((1, 2, 4, 8, 16), 2, np.nan),
    ],
)
def test_the_window_that_is_shown_is_one_as_most_are(
    void: tuple[int, ...], level: int, median_s: float
) -> None:
    """The longest of all was shown, under words that every number came from such a one."""
    seen = pd.DataFrame({"level": [1, 2, 4, 8, 16], "steady_s": [3.0, 2.4, 2.5, 3.1, 12.5]})
    seen["verdict"] = seen["level"].isin(void).map({True: "void", False: "valid"})
    chosen, median = pictures._most_usual(seen)
    assert chosen["level"] == level
    assert median == pytest.approx(median_s, nan_ok=True)


def test_a_timeline_says_how_usual_its_length_is() -> None:
    said = "(median of all valid windows here: 2.7 s)"
    plain = pictures.Window(title="a window", **stub.window_evidence(level=4))
    assert said in pictures.timeline(replace(plain, median_s=2.7)).caption
    assert "median of all" not in pictures.timeline(plain).caption
