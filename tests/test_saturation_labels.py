"""Where the figures of the chapter on saturation put points and labels, and what they say of it."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from test_saturation import GQA, MLA, PARTS, part

from study.chapter import Part
from study.chapters import saturation_figures
from study.estimates import rows_of

# As once measured: tok/s and TPOT in ms by level. Near the top points of both families meet.
SEEN = {
    GQA: {1: (207, 4.62), 2: (444, 3.88), 4: (621, 6.18), 6: (656, 5.83), 11: (641, 6.56)},
    MLA: {1: (164, 5.83), 4: (481, 7.95), 6: (604, 6.47), 8: (576, 6.92), 16: (491, 7.93)},
}

POINT_PX = 3.5  # half a point, and not quite half a diamond


def crowded() -> Part:
    one = part(launches=1, levels=(1, 2, 4, 6, 8, 11, 16), max_num_seqs=4)
    seen = one.found.windows
    seen = seen[[row.level in SEEN[row.arm] for row in rows_of(seen)]]
    told = np.array([SEEN[row.arm][row.level] for row in rows_of(seen)])
    seen = seen.assign(output_tok_s=told[:, 0], tpot_p50_s=told[:, 1] / 1e3)
    return replace(one, found=replace(one.found, windows=seen))


@pytest.mark.parametrize("one", [crowded(), PARTS["cap"], PARTS["peak"]], ids=["", "cap", "peak"])
def test_labels_of_levels_cover_no_point_no_line_and_not_each_other(one: Part) -> None:
    drawn = saturation_figures.trade_off(one)
    assert drawn.figure is not None
    drawn.figure.draw_without_rendering()
    for axis in drawn.figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        assert {"1"} <= {text.get_text() for text in axis.texts}
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        for line in axis.get_lines():
            drawn_at = line.get_path().transformed(axis.transData)
            assert not [box for box in boxes if drawn_at.intersects_bbox(box, filled=False)]
            near = [box.padded(POINT_PX) for box in boxes]
            points = np.asarray(drawn_at.vertices)
            assert not [at for at in points for box in near if box.contains(at[0], at[1])]
        assert all(axis.bbox.containsx(x) for box in boxes for x in box.intervalx)
        assert all(axis.bbox.containsy(y) for box in boxes for y in box.intervaly)


def test_first_last_and_knee_have_a_label_each() -> None:
    drawn = saturation_figures.trade_off(crowded())
    assert drawn.figure is not None
    said = [text.get_text() for text in drawn.figure.axes[0].texts]
    assert sorted(said, key=int) == ["1", "1", "4", "11", "16"]  # MLA has no knee


def test_captions_say_what_stands_at_the_true_level() -> None:
    both = PARTS["cap"]
    words = "stand at the true level, beside points that are moved apart."
    caption = saturation_figures.throughput(both).caption
    assert re.search(rf"\. Fitted lines(, knees and bounds| and knees) {words}", caption), caption
    assert f". Knees {words}" in saturation_figures.latency(both).caption
    assert f". Knees {words}" in saturation_figures.engine(both).caption
    assert words not in saturation_figures.latency(PARTS["linear"]).caption
    seen = both.found.windows
    alone = replace(both, found=replace(both.found, windows=seen[seen["arm"] == GQA]))
    assert words not in saturation_figures.throughput(alone).caption
    assert words not in saturation_figures.trade_off(both).caption
