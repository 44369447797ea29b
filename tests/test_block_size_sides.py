"""Absolute values beside ratios of block sizes: those of the windows, and they divide to these."""

from __future__ import annotations

import math

import pytest
from test_block_size import ASKED, CASES, found, summary

from study.chapters import block_size_estimates as sizes


def test_both_sides_divide_to_the_ratio_where_a_window_is_void() -> None:
    void = [("gqa-dense-block64", "short", 4, 2)]
    frame = sizes.ratios(found(ASKED, void=void, noise=0.05), "output_tok_s")
    assert set(frame["n"]) == {2, 3}
    sides = (frame["treatment_point"] / frame["baseline_point"]).to_numpy()
    assert sides == pytest.approx(frame["point"].to_numpy())


def test_absolute_values_are_those_of_windows_where_a_size_shares_no_block() -> None:
    void = [(f"gqa-dense-block{size}", "short", 4, at) for size in (32, 64) for at in (1, 2)]
    void += [("gqa-dense-block128", "short", 4, 0)]
    frames = found(ASKED, void=void, noise=0.05)
    ratios = sizes.ratios(frames, "output_tok_s").query("workload == 'short'")
    assert dict(zip(ratios["size"], ratios["n"], strict=True)) == {64: 1, 128: 0}
    valid = frames.windows.query("workload == 'short' and verdict == 'valid'")
    seen = valid.set_index("arm")["output_tok_s"]
    told = ratios[ratios["size"] == 64].iloc[0]
    assert told["baseline_point"] == pytest.approx(seen["gqa-dense-block32"])
    assert told["treatment_point"] == pytest.approx(seen["gqa-dense-block64"])


def test_one_block_gives_a_ratio_and_both_absolute_values_before_its_caution() -> None:
    text, values = summary("one block")
    of = "block_size.difference.gqa-dense.not reported"
    ratio = values.known[f"{of}.ratio"]["point"]
    treated, base = (values.known[f"{of}.{side}"] for side in ("treatment", "baseline"))
    assert ratio == pytest.approx(treated["value"] / base["value"])
    every = sizes.ratios(CASES["one block"][1], "output_tok_s")["point"]
    assert ratio == max(every, key=lambda one: abs(math.log(one)))
    assert "32, 64 and 128: the ratio furthest from one is on `" in text
    caution = "no difference is shown, since one block carries no interval."
    assert f"({treated['text']} against {base['text']} tok/s); {caution}" in text
