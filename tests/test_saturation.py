"""The chapter on saturation, on planted curves: what is known beforehand must come out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import stub
from telling import digits_typed, rendered, run_notebook, text_of, untold

from study import style
from study.chapter import Part, Text
from study.chapters import (
    saturation,
    saturation_estimates,
    saturation_figures,
    saturation_panels,
    saturation_tables,
)
from study.chapters.saturation_estimates import beyond, fitted, knees, limits
from study.experiments import Saturation
from study.sentences import Values

Curve = Callable[[Any], Any]

LEVELS = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256)
BATCH = 64
NOISE = 0.005  # of a window, on the log scale; and twice that of a launch


def cap(level: Any) -> Any:
    """In proportion to the level up to the batch limit, flat beyond."""
    return 50.0 * np.minimum(level, BATCH)


def linear(level: Any) -> Any:
    return 50.0 * level


def peak(level: Any) -> Any:
    """Gunther's law with sigma 0.05 and kappa 0.001: its maximum lies at sqrt(950), about 31."""
    return 50.0 * level / (1 + 0.05 * (level - 1) + 0.001 * level * (level - 1))


def part(
    curve: Curve = cap,
    *,
    launches: int = 3,
    levels: Sequence[int] = LEVELS,
    void: Callable[[Any], bool] = lambda row: False,
    **parameters: object,
) -> Part:
    """Windows on a planted curve: at most BATCH run, the rest waits, TTFT is that of the queue."""
    given: dict[str, object] = {
        "launches": launches,
        "depths": [4],
        "levels": list(levels),
        "max_num_seqs": BATCH,
    }
    asked = Saturation.of({**given, **parameters})
    known = stub.frames(asked)
    seen, drawn = known.windows, np.random.default_rng(1)
    of_launch = {block: drawn.normal(0, 2 * NOISE) for block in range(launches)}
    noise = drawn.normal(0, NOISE, len(seen)) + seen["block"].map(of_launch)
    rate = curve(seen["level"]) * np.exp(noise)
    is_void = seen.apply(void, axis=1)
    seen = seen.assign(
        output_tok_s=rate,
        tpot_p50_s=np.minimum(seen["level"], BATCH) / rate,
        ttft_p50_s=0.05 + np.maximum(seen["level"] - BATCH, 0) * 64 / rate,
        verdict=np.where(is_void, "void", "valid"),
        reasons=np.where(is_void, "The level was not reached.", ""),
    )
    return stub.part(asked, replace(known, windows=seen))


def with_gauges(one: Part, **gauges: float) -> Part:
    """The same with other gauges in every window."""
    found = replace(one.found, windows=one.found.windows.assign(**gauges))
    return replace(one, found=found)


def not_there(**how: Any) -> Part:
    asked = Saturation.of({"launches": 2, "depths": [4]})
    return stub.part(asked, stub.frames(asked, **how))


GQA, MLA = "gqa-dense-4", "mla-dense-4"
PARTS = {
    "cap": part(cap),
    "linear": with_gauges(part(linear), running_mean=50.0, waiting_mean=131.0),
    "peak": part(peak),
    "one launch": part(cap, launches=1),
    "few levels": part(cap, launches=2, levels=(1, 8, 32, 64, 128, 256)),
    "two levels": part(cap, levels=(1, 64)),
    "all void": part(cap, launches=1, levels=LEVELS[::3], void=lambda row: True),
    "ends at the knee": part(peak, levels=(1, 2, 4, 8, 12, 80)),
    "partly": part(cap, void=lambda row: row.block == 0 and row.level > 45),
    "apart": part(cap, void=lambda row: (row.level > 64) != (row.block == 0)),
    "no gauges": with_gauges(part(cap), running_mean=np.nan, kv_use_max=np.nan),
    "rejected": not_there(rejected={MLA: "ValueError: no `MLA` in 0.1"}),
    "not measured": not_there(not_measured=[GQA, MLA]),
    "nothing found": stub.part(Saturation.of({"depths": [4]}), stub.NOTHING),
}


def row_of(frame: pd.DataFrame, arm: str = GQA, workload: str = "short") -> Any:
    return frame[(frame["arm"] == arm) & (frame["workload"] == workload)].iloc[0]


# --- the knee -------------------------------------------------------------------------------------


def test_a_hard_cap_has_its_knee_below_the_cap() -> None:
    known = knees(PARTS["cap"])
    assert len(known) == 4 and set(known["state"]) == {"reached"}
    assert known["point"].between(0.95 * BATCH * 0.97, 0.95 * BATCH * 1.03).all()
    assert ((known["low"] < known["point"]) & (known["point"] < known["high"])).all()
    assert set(known["n"]) == {3} and set(known["model_of_fit"]) == {"capped law"}
    assert set(known["at_level"]) == {64} and set(known["highest_level"]) == {256}
    assert np.allclose(known["maximum_tok_s"], 50 * BATCH, rtol=0.03)
    assert np.allclose(known["knee_tok_s"], 0.95 * known["maximum_tok_s"], rtol=0.02)


def test_a_linear_law_has_no_knee_and_nothing_beyond_it() -> None:
    one = PARTS["linear"]
    known = knees(one)
    assert set(known["state"]) == {"not reached"} and known["point"].isna().all()
    assert set(known["not_reached"]) == {3} and set(known["n"]) == {0}
    assert limits(one).empty and beyond(one).empty
    assert "still rises at 256 in flight" in saturation.stops(one, Values())
    caption = saturation_figures.throughput(one).caption
    assert "GQA · dense on short (not reached: still rising at 256)" in caption


def test_a_peak_gives_the_knee_and_the_law_that_was_planted() -> None:
    known = row_of(knees(PARTS["peak"]))
    level = np.geomspace(1, 256, 10_000)
    planted = level[peak(level) >= 0.95 * peak(level).max()][0]
    assert known.point == pytest.approx(planted, rel=0.03)
    assert known.model_of_fit == "Gunther's law"
    assert known.sigma_point == pytest.approx(0.05, rel=0.1)
    assert known.kappa_point == pytest.approx(0.001, rel=0.1)
    assert known.at_level == min(at for at in LEVELS if at >= known.point)
    rate = beyond(PARTS["peak"]).query("metric == 'output_tok_s'")
    assert (rate["high"] < 1).all()
    assert "lower, by this interval" in saturation.stops(PARTS["peak"], Values())


def test_one_launch_has_a_knee_without_interval() -> None:
    known = knees(PARTS["one launch"])
    assert set(known["state"]) == {"reached"} and set(known["n"]) == {1}
    assert known["point"].between(59, 63).all() and known["low"].isna().all()
    assert "one launch carries no interval" in saturation.stops(PARTS["one launch"], Values())


def test_two_levels_are_too_few_to_judge() -> None:
    known = knees(PARTS["two levels"])
    assert set(known["state"]) == {"cannot judge"} and known["maximum_tok_s"].isna().all()
    assert fitted(PARTS["two levels"]).empty
    assert known["text"].str.contains("4 distinct levels").all()
    text = saturation.stops(PARTS["two levels"], Values())
    assert text.count("cannot judge (a knee needs 4 distinct levels") == 4
    drawn = saturation_figures.throughput(PARTS["two levels"])
    assert drawn.figure is not None and "4 distinct levels" in drawn.caption
    above = {text.get_text() for axis in drawn.figure.axes for text in axis.texts}
    assert above == {"GQA · dense: cannot judge", "MLA · dense: cannot judge"}  # there is no room


def test_void_windows_do_not_make_a_knee() -> None:
    """Levels that were not reached look flat, like a cap; they must not enter."""
    known = knees(part(cap, void=lambda row: row.level > BATCH))
    assert set(known["state"]) == {"not reached"} and set(known["highest_level"]) == {BATCH}


def test_a_launch_that_ends_before_its_knee_leaves_no_interval() -> None:
    known = knees(PARTS["partly"])
    assert set(known["state"]) == {"reached"} and set(known["n"]) == {2}
    assert set(known["not_reached"]) == {1} and known["low"].isna().all()
    text = saturation.stops(PARTS["partly"], Values())
    assert "of 3 launches 2 reached their knee, so it has no interval" in text


def test_a_knee_that_no_launch_has_by_itself_is_not_judged() -> None:
    """One launch saw only the flat part, the others only the rise: together they look like one."""
    known = knees(PARTS["apart"])
    assert set(known["state"]) == {"cannot judge"} and known["point"].isna().all()
    assert limits(PARTS["apart"]).empty and beyond(PARTS["apart"]).empty
    assert "no launch has one by itself" in saturation.stops(PARTS["apart"], Values())


@pytest.mark.parametrize(
    ("case", "states"),
    [
        ("all void", {"no valid window"}),
        ("not measured", {"not measured"}),
        ("nothing found", {"not measured"}),
    ],
)
def test_what_was_not_measured_keeps_its_row_and_its_words(case: str, states: set[str]) -> None:
    known = knees(PARTS[case])
    assert len(known) == 4 and set(known["state"]) == states
    assert set(known["levels"]) == {0} and set(known["launches"]) == {0}


def test_a_rejected_arm_is_told_in_the_engines_words() -> None:
    known = knees(PARTS["rejected"])
    assert set(known.loc[known["arm"] == MLA, "state"]) == {"rejected"}
    assert "rejected (ValueError: no `MLA` in 0.1)" in saturation.stops(PARTS["rejected"], Values())
    shown = saturation_tables.knee_table(PARTS["rejected"]).shown
    assert "rejected" in set(shown["knee (in flight)"])


# --- beyond the knee, and why ---------------------------------------------------------------------


def test_beyond_a_cap_ttft_grows_and_throughput_does_not() -> None:
    past = beyond(PARTS["cap"])
    assert len(past) == 4 * 3 and set(past["n"]) == {3} and set(past["at_level"]) == {64}
    rate, ttft = (past[past["metric"] == name] for name in ("output_tok_s", "ttft_p50_s"))
    assert ((rate["low"] < 1) & (rate["high"] > 1)).all()
    planted = (0.05 + (256 - BATCH) * 64 / cap(256)) / 0.05
    assert np.allclose(ttft["point"], planted, rtol=0.05) and (ttft["low"] > 1).all()
    assert past["method"].str.contains("over 4 comparisons").all()
    ratio = past["treatment_point"] / past["baseline_point"]
    assert np.allclose(ratio, past["point"])


def test_a_knee_at_the_highest_level_has_nothing_beyond() -> None:
    one = PARTS["ends at the knee"]
    known = knees(one)
    assert set(known["state"]) == {"reached"}
    assert set(known["at_level"]) == set(known["highest_level"]) == {80}
    assert beyond(one).empty and saturation_tables.cost_table(one).shown.empty
    assert "No higher level has a valid window" in saturation.stops(one, Values())


@pytest.mark.parametrize(
    ("gauges", "limit"),
    [
        ({}, "batch limit"),
        ({"running_mean": 50.0}, "batch limit"),  # nobody waits: the gauge reads low
        ({"running_mean": 60.0, "waiting_mean": 4.0}, "compute"),
        ({"running_mean": 61.0, "waiting_mean": 3.0}, "batch limit"),
        ({"running_mean": 40.0, "waiting_mean": 20.0, "kv_use_max": 0.96}, "KV cache"),
        ({"running_mean": 40.0, "waiting_mean": 20.0, "preemptions": 1.0}, "KV cache"),
        ({"running_mean": 40.0, "waiting_mean": 20.0, "kv_use_max": 0.9}, "admission"),
        ({"kv_use_max": 0.99}, "KV cache and batch limit"),
        ({"kv_use_max": np.nan}, "cannot judge"),
        ({"running_mean": 0.0}, "cannot judge"),
    ],
)
def test_what_ends_the_rise_follows_the_rule(gauges: dict[str, float], limit: str) -> None:
    one = with_gauges(PARTS["cap"], **gauges)  # the knee is read at the level of the cap
    assert set(limits(one)["limit"]) == {limit}
    assert f"**{limit}**" in saturation.reasons(one, Values())


def test_a_batch_that_is_full_only_beyond_the_knee_ends_nothing() -> None:
    """Flat from 0.6 of the batch on; of the tested levels the next one has a full batch."""
    early = part(
        lambda level: 50 * np.minimum(level, 0.6 * BATCH), levels=(1, 4, 8, 16, 32, 64, 128)
    )
    ended = limits(early)
    assert set(ended["at_level"]) == {64} and (ended["running"] == BATCH).all()
    assert set(ended["limit"]) == {"compute"}


@pytest.mark.parametrize(
    ("low", "high", "kv_use", "limit"),
    [
        (50, 70, 0.1, "batch limit"),
        (30, 70, 0.1, "batch limit or compute"),
        (30, 70, 0.99, "KV cache"),
        (30, 40, 0.1, "compute"),
        (np.nan, np.nan, 0.1, "batch limit"),  # one launch: the point is all there is
    ],
)
def test_a_batch_limit_needs_a_knee_that_is_known_to_be_there(
    low: float, high: float, kv_use: float, limit: str
) -> None:
    row = {"point": 60.0, "low": low, "high": high, "kv_use_max": kv_use, "preemptions": 0.0}
    row |= {"running": 64.0, "waiting": 0.0, "at_level": 64, "max_num_seqs": 64}
    assert saturation_estimates._limit(row) == limit


def test_who_waits_beyond_the_batch_is_not_held_back_by_admission() -> None:
    row = {"point": 80.0, "low": 75.0, "high": 85.0, "kv_use_max": 0.1, "preemptions": 0.0}
    row |= {"at_level": 91, "max_num_seqs": 64}
    assert saturation_estimates._limit({**row, "running": 60.0, "waiting": 31.0}) == "compute"
    assert saturation_estimates._limit({**row, "running": 40.0, "waiting": 51.0}) == "admission"


def test_the_rule_looks_at_the_knee_and_not_at_the_end() -> None:
    """At the highest level the batch is full as well, but the rise ended long before."""
    ended = limits(PARTS["peak"])
    assert set(ended["limit"]) == {"compute"} and (ended["running"] < 30).all()
    seen = PARTS["peak"].found.windows
    assert (seen.loc[seen["level"] == 256, "running_mean"] == BATCH).all()


def test_the_lead_counts_curves_and_causes() -> None:
    values = Values()
    text = saturation.lead(PARTS["cap"], values)
    assert "**4 of 4** curves" in text and "batch limit on 4." in text
    assert values.known["saturation.curves.reached"]["value"] == 4
    assert "**0 of 4** curves" in saturation.lead(PARTS["linear"], Values())
    assert "no valid window on 4" in saturation.lead(PARTS["all void"], Values())


# --- sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PARTS)
def test_every_number_of_the_text_is_in_the_values(case: str) -> None:
    values = Values()
    shown = [*saturation.summary(PARTS[case], values), Text(saturation.rule(values))]
    text = text_of(shown)
    assert len(text) > 200 and untold(text, values) == []


def test_no_digit_is_typed_in_a_sentence() -> None:
    assert digits_typed(saturation, names=True) == []


# --- figures and tables ---------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["few levels", "all void", "nothing found"])
def test_everything_can_be_shown_whatever_was_measured(case: str, kept: Path) -> None:
    shown = saturation.results(PARTS[case], Values())
    for one in shown:
        assert rendered(one).strip()
    assert (kept / "derived" / "60_saturation-knees.csv").is_file()
    drawn = (kept / "figures" / "60_saturation-throughput.csv").is_file()
    assert drawn == (case != "nothing found")


def test_the_throughput_figure_draws_what_its_frame_says() -> None:
    one = part(cap, void=lambda row: row.level == 256 and row.block == 0)
    drawn = saturation_figures.throughput(one)
    frame, known = drawn.frame, knees(one)
    assert drawn.figure is not None and "Hollow: void windows (4)" in drawn.caption
    assert frame["kind"].value_counts()[["estimate", "void window", "knee"]].to_list() == [64, 4, 4]
    marks = frame[frame["kind"] == "knee"]
    assert marks["level"].to_list() == known["point"].to_list()
    assert marks["level_low"].to_list() == known["low"].to_list()
    axis = drawn.figure.axes[0]
    solid = [line for line in axis.get_lines() if line.get_linestyle() == "-"]
    assert [BATCH, BATCH] in [np.asarray(line.get_xdata()).tolist() for line in solid]
    said = [text.get_text() for text in axis.texts]
    assert any(text.startswith("GQA · dense: knee at 6") for text in said)
    assert "95 % t interval on the log scale, n = 3 launches" in drawn.caption
    assert "95%" in drawn.caption  # of the fitted maximum


def test_a_curve_without_a_knee_is_drawn_without_a_mark() -> None:
    drawn = saturation_figures.throughput(PARTS["linear"])
    assert not (drawn.frame["kind"] == "knee").any()
    assert (drawn.frame["kind"] == "fit").any()
    assert drawn.figure is not None
    legend = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert "knee" not in legend and "max_num_seqs" in legend
    assert any("still rising" in text.get_text() for text in drawn.figure.axes[0].texts)


def test_the_engine_figure_has_a_row_per_gauge() -> None:
    drawn = saturation_figures.engine(PARTS["cap"])
    assert drawn.figure is not None and len(drawn.figure.axes) == 4 * 2
    labels = [axis.get_ylabel() for axis in drawn.figure.axes[::2]]
    assert labels[0].startswith("Running") and labels[-1].startswith("Preemptions")
    waiting = drawn.frame[drawn.frame["metric"] == "waiting_mean"]
    assert waiting.loc[waiting["level"] == 256, "point"].to_list() == [192.0] * 4


def test_the_trade_off_shows_valid_windows_only() -> None:
    drawn = saturation_figures.trade_off(part(cap, void=lambda row: row.level > 64))
    assert drawn.frame["level"].max() == 64 and "diamond" not in drawn.caption
    assert saturation_figures.trade_off(PARTS["all void"]).figure is None


def test_ticks_do_not_run_into_each_other() -> None:
    drawn = saturation_figures.throughput(PARTS["cap"])
    assert drawn.figure is not None
    ticks = sorted(drawn.figure.axes[0].get_xticks())
    assert ticks[-1] == 256
    steps = np.array(ticks[1:]) / np.array(ticks[:-1])
    assert (steps >= saturation_panels.APART).all()


def test_tables_say_knees_costs_and_limits() -> None:
    knee_table = saturation_tables.knee_table(PARTS["cap"])
    assert knee_table.shown["launches at their knee"].to_list() == ["3 of 3"] * 4
    said = str(knee_table.shown["knee (in flight)"].iloc[0])
    assert re.fullmatch(r"6\d\.\d \[\d+\.\d, \d+\.\d\]", said)
    costs = saturation_tables.cost_table(PARTS["cap"])
    assert set(costs.shown["levels"]) == {"64 → 256"} and len(costs.shown) == 4 * 3
    table = saturation_tables.limit_table(PARTS["cap"])
    assert set(table.shown["ends the rise"]) == {"batch limit"}
    assert "no valid window" in set(saturation_tables.knee_table(PARTS["all void"]).shown.iloc[0])


@pytest.mark.parametrize("case", ["few levels", "not measured"])
def test_the_notebook_runs_whatever_was_measured(
    case: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its cells, on planted curves in place of a measurement."""
    monkeypatch.setattr(style, "_bytes", lambda *_: b"")  # another test renders
    assert len(run_notebook(PARTS[case], monkeypatch)) > 15
    assert (kept / "derived" / "60_saturation-setup.csv").is_file()
