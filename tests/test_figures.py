"""Figures, pictures, tables and estimates, on made-up frames in the real schema."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import stub
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from study import estimates, families, figures, ledgers, paths, pictures, sentences, stats, tables
from study.frames import Frames
from study.plan import Launch
from study.style import HOLLOW_FACE, Drawn, as_html, spelled
from study.tables import Table

TWO_DEPTHS = stub.experiment(depths=[4, 8], levels=[1, 4, 16])
VOID = [("mla-moe-4", "long", 4, block) for block in range(3)] + [("gqa-dense-4", "short", 1, 0)]

Drawing = Callable[[Frames, tuple[Launch, ...]], Drawn]
DRAWINGS: dict[str, Drawing] = {
    "throughput": lambda found, _: figures.throughput(found),
    "latency": lambda found, _: figures.latency(found),
    "ratios": lambda found, _: figures.attention_ratio(found),
    "layer-cost": lambda found, _: figures.layer_cost(found),
    "kv-cache": figures.kv_cache,
    "overview": lambda found, _: pictures.overview(found),
}
TABLES: dict[str, Callable[[Frames, tuple[Launch, ...]], Table]] = {
    "arms": tables.arms,
    "models": lambda _, launches: tables.models(launches),
    "results": tables.results,
    "comparisons": lambda found, _: tables.comparisons(found),
    "effects": lambda found, _: tables.effects(found),
    "layer-costs": lambda found, _: tables.layer_costs(found),
    "verdicts": lambda found, _: ledgers.verdicts(found),
    "void-windows": lambda found, _: ledgers.void_windows(found),
    "windows": lambda found, _: ledgers.all_windows(found),
    "confounds": ledgers.confounds,
    "setup": lambda _, launches: ledgers.setup(TWO_DEPTHS, launches, []),
}


@pytest.fixture(scope="module")
def whole() -> Frames:
    return stub.frames(TWO_DEPTHS, void=VOID)


@pytest.fixture(scope="module")
def launches() -> tuple[Launch, ...]:
    return stub.launches(TWO_DEPTHS)


def _with_void_values(found: Frames, value: float) -> Frames:
    """The same frames, but the void windows measured something else."""
    windows = found.windows.copy()
    columns = [name for name in windows.columns if name.endswith(("_s", "_tok_s"))]
    windows.loc[windows["verdict"] == "void", columns] = value
    return dataclasses.replace(found, windows=windows)


# --- every figure ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_kept_with_the_frame_it_drew(
    name: str, whole: Frames, launches: tuple[Launch, ...]
) -> None:
    drawn = DRAWINGS[name](whole, launches).keep(name)
    assert drawn.figure is not None
    assert {path.suffix for path in paths.FIGURES.iterdir()} == {".svg", ".png", ".csv"}
    twin = (paths.FIGURES / f"{name}.csv").read_text()
    assert twin == drawn.frame.to_csv(index=False)
    assert len(pd.read_csv(io.StringIO(twin))) == len(drawn.frame) > 0


def test_a_png_is_made_anew_only_where_the_figure_differs(
    kept: Path, whole: Frames, launches: tuple[Launch, ...]
) -> None:
    name = next(iter(DRAWINGS))
    png, svg = (kept / "figures" / f"{name}.{suffix}" for suffix in ("png", "svg"))

    def keep() -> bytes:
        DRAWINGS[name](whole, launches).keep(name)
        return png.read_bytes()

    drawn = keep()
    png.write_bytes(b"as it was left")
    assert keep() == b"as it was left"  # the same figure: another drawing is saved
    svg.write_bytes(b"of other data")
    assert keep() == drawn
    png.unlink()
    assert keep() == drawn


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_data_give_the_same_bytes(
    name: str, whole: Frames, launches: tuple[Launch, ...]
) -> None:
    first, second = (DRAWINGS[name](whole, launches)._repr_html_() for _ in range(2))
    assert first == second


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_without_data_says_so_and_leaves_no_stale_file(name: str) -> None:
    paths.FIGURES.mkdir()
    stale = paths.FIGURES / f"{name}.svg"
    stale.write_text("from an earlier run")
    drawn = DRAWINGS[name](stub.NOTHING, ()).keep(name)
    assert drawn.figure is None and drawn.caption
    assert drawn.caption in drawn._repr_html_()
    assert not stale.exists()


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_shows_what_there_is(name: str, launches: tuple[Launch, ...]) -> None:
    half = ["gqa-dense-4", "gqa-moe-4", "gqa-dense-8"]
    drawn = DRAWINGS[name](stub.frames(TWO_DEPTHS, not_measured=half), launches)
    assert drawn.caption
    assert drawn._repr_html_().startswith(("<figure>", '<p class="missing">'))


# --- void windows and intervals -------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [1e9, np.nan])
def test_a_void_window_never_enters_an_estimate(wrong: float, whole: Frames) -> None:
    other = _with_void_values(whole, wrong)
    for metric in estimates.METRICS:
        for estimate in (
            families.attention_ratios,
            families.factorial_effects,
            families.layer_costs,
        ):
            pd.testing.assert_frame_equal(estimate(whole, metric), estimate(other, metric))
        levels, others = (estimates.by_level(found, [metric]) for found in (whole, other))
        pd.testing.assert_frame_equal(levels, others)


def test_void_windows_are_drawn_hollow_and_no_line_passes_their_level(whole: Frames) -> None:
    figure = figures.throughput(whole).figure
    assert figure is not None
    long = next(axis for axis in figure.axes if axis.get_title(loc="left").startswith("long"))
    hollow = [line for line in long.lines if line.get_markerfacecolor() == HOLLOW_FACE]
    assert sum(_y(line).size for line in hollow) == 3
    assert {line.get_linestyle() for line in hollow} == {"None"}
    of_levels = [_y(line) for line in long.lines if _y(line).size == 3]
    broken = [y for y in of_levels if np.isnan(y[1])]
    assert len(broken) == 1  # MLA with a mixture: NaN between its neighbours breaks the line


def _y(line: Line2D) -> NDArray[np.float64]:
    return np.asarray(line.get_ydata(), dtype=np.float64)


def test_the_caption_counts_void_windows(whole: Frames) -> None:
    drawn = figures.latency(whole)
    assert "void windows (4)" in drawn.caption
    hollow = drawn.frame[drawn.frame["kind"] == "void window"]
    assert len(hollow) == 2 * 4  # two metrics


def test_a_second_try_takes_the_place_of_a_void_window_and_both_are_counted(
    whole: Frames, launches: tuple[Launch, ...]
) -> None:
    void = whole.windows["verdict"] == "void"
    later = whole.windows[void].assign(again=True, verdict=["valid", "void", "void", "void"])
    found = dataclasses.replace(whole, windows=pd.concat([whole.windows, later]))
    arm, workload, level, block = later[["arm", "workload", "level", "block"]].iloc[0]
    table = ledgers.void_windows(found).data
    assert len(estimates.first_tries(found)) == len(whole.windows)
    assert sorted(table["once_more"]) == [ledgers.SECOND_TRY] * 3 + ["valid"] + ["void"] * 3
    assert table.set_index("once_more").loc["valid", "arm"] == arm
    said = sentences.outcomes("x", found, launches, sentences.Values())
    asked = len(estimates.planned(launches))
    assert f"asked for: {asked}; measured: {asked + 4} (4 of them once more)" in said
    values = estimates.launch_values(found, "output_tok_s").set_index(
        ["arm", "workload", "level", "block"]
    )
    assert values.loc[(arm, workload, level, block), "value"] > 0
    assert "void windows (7)" in figures.latency(found).caption


def test_one_launch_has_points_but_no_interval_and_the_caption_says_so() -> None:
    drawn = figures.throughput(stub.frames(stub.experiment(launches=1)))
    assert drawn.frame["point"].notna().all() and drawn.frame["low"].isna().all()
    assert "n = 1" in drawn.caption and "none" in drawn.caption


def test_the_caption_names_method_confidence_and_n(whole: Frames) -> None:
    drawn = figures.attention_ratio(whole)
    rows = drawn.frame[drawn.frame["n"] == 3]
    row = rows.iloc[0]
    label = stats.Interval(
        "ratio", row["point"], row["low"], row["high"], row["confidence"], row["method"], 3,
        "blocks",
    ).label()  # fmt: skip
    assert label.replace("n = 3", "n = 2 to 3") in drawn.caption
    assert "Not drawn: 3 cells" in drawn.caption  # one void cell, three metrics


# --- estimates against what was put in ------------------------------------------------------------


def test_ratios_come_back_as_they_were_put_in() -> None:
    found = stub.frames(stub.experiment(), noise=1e-9)
    windows = found.windows.set_index(["arm", "workload", "level", "block"])["tpot_p50_s"]
    frame = families.attention_ratios(found, "tpot_p50_s")
    assert len(frame) == 2 * 2 * 3
    for row in estimates.rows_of(frame):
        cell = (row.workload, row.level, 0)
        wanted = windows[(row.treatment, *cell)] / windows[(row.baseline, *cell)]
        assert row.point == pytest.approx(wanted, rel=1e-6)
        assert row.treatment_point / row.baseline_point == pytest.approx(row.point)


def test_the_slope_between_depths_is_the_cost_of_a_layer() -> None:
    found = stub.frames(TWO_DEPTHS, noise=1e-9)
    frame = families.layer_costs(found, "tpot_p50_s").set_index(["model", "workload", "level"])
    for family in ("gqa", "mla"):
        wanted_s = stub.STEP_S[family] + 16 * stub.STREAM_S[family]
        assert frame.loc[(f"{family}-dense", "short", 16), "point"] == pytest.approx(wanted_s)
    several = families.layer_costs(stub.frames(TWO_DEPTHS), "tpot_p50_s")
    assert several["method"].str.contains(f"over {len(several)} comparisons").all()


def test_independent_factors_have_no_interaction() -> None:
    found = stub.frames(stub.experiment(), noise=1e-9)
    windows = found.windows.copy()
    factor = windows["attention"].map({"gqa": 1.0, "mla": 2.0})
    factor = factor * windows["feed_forward"].map({"dense": 1.0, "moe": 3.0})
    found = dataclasses.replace(found, windows=windows.assign(tpot_p50_s=factor))
    frame = families.factorial_effects(found, "tpot_p50_s")
    points = frame.groupby("effect")["point"].agg(["min", "max"])
    for effect, wanted in zip(families.EFFECTS, (2.0, 3.0, 1.0), strict=True):
        assert points.loc[effect].to_numpy() == pytest.approx([wanted, wanted])


def test_pairing_never_crosses_blocks(whole: Frames) -> None:
    frame = families.attention_ratios(whole, "output_tok_s")
    cell = frame[(frame["treatment"] == "mla-dense-4") & (frame["workload"] == "short")]
    one_void = cell[cell["level"] == 1].iloc[0]
    assert (one_void["n"], one_void["dropped"]) == (2, 1)


def test_one_depth_has_no_slope_and_the_figure_says_so() -> None:
    drawn = figures.layer_cost(stub.frames(stub.experiment()))
    assert drawn.figure is None and "Not measured in this profile" in drawn.caption


def test_the_family_of_intervals_holds_void_cells_too(whole: Frames) -> None:
    frame = families.attention_ratios(whole, "output_tok_s")
    assert frame["method"].str.contains(f"over {len(frame)} comparisons").all()


def test_a_launch_without_outcome_is_unaccounted(launches: tuple[Launch, ...]) -> None:
    found = stub.frames(TWO_DEPTHS, rejected={"mla-moe-8": "ValueError: no"})
    assert estimates.unaccounted(found, launches) == []
    short = dataclasses.replace(found, launches=found.launches.iloc[1:])
    assert estimates.unaccounted(short, launches) == [found.launches["launch"].iloc[0]]
    rejected = found.launches["outcome"] == "rejected"
    silent = found.launches.assign(reason=found.launches["reason"].mask(rejected, ""))
    assert len(estimates.unaccounted(dataclasses.replace(found, launches=silent), launches)) == 3


# --- tables ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_kept_with_its_numbers(
    name: str, whole: Frames, launches: tuple[Launch, ...]
) -> None:
    table = TABLES[name](whole, launches).keep(name)
    assert (paths.DERIVED / f"{name}.csv").read_text() == table.data.to_csv(index=False)
    assert len(table.shown) > 0 and table.caption
    assert not table.shown.isna().any().any()  # a cell never stays empty without a word


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_nothing_says_so(name: str) -> None:
    table = TABLES[name](stub.NOTHING, ())
    assert table.caption
    assert table.caption in table._repr_html_()


def test_of_an_arm_without_a_server_nothing_is_said_to_be_in_force() -> None:
    asked = stub.experiment()
    refused = stub.frames(asked, rejected={"mla-moe-4": "no common block size"})
    told = tables.arms(refused, stub.launches(asked)).shown.set_index("arm")
    said = told.drop(columns=["outcome", "launches asked for"])
    assert set(said.loc["mla-moe-4"]) == {"–"}
    assert not (said.drop("mla-moe-4") == "–").any().any()


def test_results_say_void_rejected_or_not_measured() -> None:
    asked = stub.experiment()
    found = stub.frames(
        asked,
        rejected={"mla-dense-4": "ValueError: no"},
        not_measured=["gqa-moe-4"],
        void=[("mla-moe-4", "long", 16, block) for block in range(3)],
    )
    shown = tables.results(found, stub.launches(asked)).shown.set_index(
        ["arm", "workload", "level"]
    )
    column = "Output throughput (tok/s)"
    assert shown.loc[("mla-moe-4", "long", 16), column] == "void"
    assert shown.loc[("mla-dense-4", "long", 16), column] == "rejected"
    assert shown.loc[("gqa-moe-4", "long", 16), column] == "not measured"
    assert "[" in str(shown.loc[("gqa-dense-4", "long", 16), column])
    assert len(shown) == 4 * 2 * 3


def test_where_nothing_can_be_compared_a_sentence_stands_for_the_table() -> None:
    asked = stub.experiment(levels=[1])
    of_mla = [arm.name for arm in asked.arms() if arm.factors["attention"] == "mla"]
    lost = [(arm, workload.name, 1, block) for arm in of_mla for block in range(asked.launches)
            for workload in asked.workloads]  # fmt: skip
    table = tables.comparisons(stub.frames(asked, void=lost))
    assert table.shown.empty and len(table.data) == len(lost) // asked.launches * 3  # metrics
    assert f"none of {len(table.data)} ratios is known" in table.caption
    one_left = tables.comparisons(stub.frames(asked, void=lost[1:]))
    assert len(one_left.shown) == len(table.data)


def test_no_ratio_stands_without_its_base(whole: Frames) -> None:
    shown = tables.comparisons(whole).shown
    compared = shown[shown["blocks"] > 0]
    assert compared[["GQA", "MLA"]].apply(lambda column: column.str.match(r"\d")).all().all()


def test_the_engines_words_reach_the_table_escaped() -> None:
    found = stub.frames(TWO_DEPTHS, rejected={"mla-moe-8": "ValueError: <bad> & worse"})
    told = estimates.outcomes(found)
    html = tables.Table(told, told, "What became of each arm.")._repr_html_()
    assert "ValueError: &lt;bad&gt; &amp; worse" in html and "<bad>" not in html
    said = as_html("*a b* and `x * y * z <b>`, 2 * 3 * 4")
    assert said == "<em>a b</em> and <code>x * y * z &lt;b&gt;</code>, 2 * 3 * 4"
    assert "<em>no</em>" in tables.Table(told, told, "*no*")._repr_html_()


def test_confounds_come_from_what_the_engine_reports(
    whole: Frames, launches: tuple[Launch, ...]
) -> None:
    known = ledgers.confounds(whole, launches).data.set_index("confound")["what was so"]
    assert known["KV block size"] == "GQA: 128; MLA: 16"
    assert {"FFN width", "engine build", "made-up weights", "tiny models"} <= set(known.index)
    same = dataclasses.replace(whole, launches=whole.launches.assign(block_size="16"))
    assert "KV block size" not in set(ledgers.confounds(same, launches).data["confound"])


@pytest.mark.usefixtures("kept")
def test_the_setup_shows_no_folder_of_this_machine(launches: tuple[Launch, ...]) -> None:
    record = {"command": f"A=1 python --model {paths.ROOT}/.cache/x", "source": {"commit": "abc"}}
    shown = ledgers.setup(TWO_DEPTHS, launches, [record]).shown
    assert "A=1 python --model .cache/x" in set(shown["value"])
    assert "abc" in set(shown["value"])


@given(st.floats(min_value=1e-6, max_value=1e9), st.sampled_from([-1, 1]))
def test_three_digits_are_right_to_half_a_unit_of_the_third(size: float, sign: int) -> None:
    value = sign * size
    text = tables.number(value)
    assert "e" not in text
    assert float(text.replace(tables.THIN, "")) == pytest.approx(value, rel=5.1e-3)


def test_numbers_as_text() -> None:
    assert tables.number(9.996) == "10.0"
    assert tables.number(float("nan")) == "n/a"
    assert tables.number(0.0) == "0"
    assert tables.interval(0.8, 4e-22, 1.5e21) == "0.800 [< 0.000800, > 800]"
    assert tables.interval(1.5, -118, 121) == "1.50 [-118, 121]"
    assert tables.interval(1.5, float("nan"), float("nan")) == "1.50"
    assert tables.interval(1234.0, 1000.0, 2000.0) == "1 230 [1 000, 2 000]".replace(
        "1 ", f"1{tables.THIN}"
    ).replace("2 ", f"2{tables.THIN}")
    assert spelled("mla-moe-1b") == "MLA · MoE · 1b"


# --- one window -----------------------------------------------------------------------------------


def test_the_timeline_draws_the_steady_part_of_the_real_rule() -> None:
    window = pictures.Window(title="a window", **stub.window_evidence(level=4))
    drawn = pictures.timeline(window)
    assert drawn.figure is not None and window.steady is not None
    assert f"{window.steady.duration_s:.1f} s" in drawn.caption
    assert "where such samples suffice; elsewhere the engine's clock" in drawn.caption
    client = drawn.frame[drawn.frame["series"] == "in flight, client"]
    assert client["value"].max() == 4 and client["value"].iloc[-1] == 0
    tokens = drawn.frame[drawn.frame["series"] == "output tokens"]
    width_s = client["time_s"].max() / pictures.RATE_BINS
    assert tokens["value"].sum() * width_s == pytest.approx(window.chunks["tokens"].sum())


def test_no_window_no_timeline() -> None:
    assert pictures.timeline(None).figure is None
    assert pictures.example(stub.NOTHING) is None
