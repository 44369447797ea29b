"""Statements over several levels, on planted curves and on the tables of a cookbook."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from audit_results import Item, items, said
from hypothesis import given
from hypothesis import strategies as st

from study.audit.claims import (
    Judged,
    claims,
    curve_name,
    curves_of,
    fit_tokens,
    load_curve,
)
from study.audit.formats import Window
from study.audit.gates import FileVerdict
from study.audit.loads import loads
from study.audit.published import tables


def levels(rates: dict[float, float], verdict: FileVerdict = "valid") -> list[Judged]:
    """A curve of closed loops that are full: E2E = level / rate."""
    found = []
    for level, rate in rates.items():
        times_s = {"e2e": {"p50": level / rate, "p99": level / rate}}
        window = Window(f"level {level:g}", level=level, rates={"request_s": rate}, times_s=times_s)
        found.append(Judged(window.name, window, verdict))
    return found


FLAT = {1.0: 1.0, 2.0: 1.98, 4.0: 3.9, 8.0: 7.4, 16.0: 8.0, 32.0: 8.05, 64.0: 8.02}
RISING = {1.0: 1.0, 2.0: 1.98, 4.0: 3.9, 8.0: 7.4, 16.0: 13.0}


def of(judged: list[Judged], gate: str) -> Any:
    (found,) = (one for one in claims(judged) if one.gate == gate)
    return found


def test_saturation_needs_a_knee_and_valid_levels() -> None:
    supported = of(levels(FLAT), "saturation")
    assert supported.verdict == "pass" and 8 < supported.observed < 20
    assert of(levels(RISING), "saturation").verdict == "fail"
    undecided = of(levels(FLAT, "undecided"), "saturation")
    assert undecided.verdict == "cannot judge" and "nothing confirms" in undecided.text
    assert of(levels({1.0: 1.0, 2.0: 1.9}), "saturation").verdict == "cannot judge"
    assert claims(levels({4.0: 1.0})) == ()


def test_void_levels_carry_no_saturation() -> None:
    mixed = [*levels(RISING), *levels({32.0: 13.1, 64.0: 13.0}, "void")]
    found = of(mixed, "saturation")
    assert found.verdict == "fail" and "left out: 32 and 64" in found.text


def test_saturated_levels_are_distinct_as_their_latency_grows() -> None:
    assert of(levels(FLAT), "distinct_levels").verdict == "pass"


@given(st.floats(1.3, 50), st.floats(-0.02, 0.02), st.floats(-0.02, 0.02))
def test_the_same_load_at_another_level_is_found(
    factor: float, rate_off: float, e2e_off: float
) -> None:
    def window(level: float, rate: float, e2e_s: float) -> Window:
        return Window("", level=level, rates={"request_s": rate}, times_s={"e2e": {"p50": e2e_s}})

    first = window(8, 4, 2)
    same = window(8 * factor, 4 * (1 + rate_off), 2 * (1 + e2e_off))
    full = window(8 * factor, 4 * (1 + rate_off), 2 * factor * (1 + e2e_off))
    assert len(loads([first, same])) == 1
    assert len(loads([first, full])) == 2


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({"request_s": 4.1, "total_tok_s": 900.0}, "4 to 4.1 requests/s, E2E"),
        ({"total_tok_s": 820.0}, "800 to 820 total tokens/s, E2E"),
        ({"output_tok_s": 410.0}, "400 to 410 output tokens/s, E2E"),
    ],
)
def test_the_rate_of_one_load_is_of_one_kind_and_has_its_unit(
    second: dict[str, float], told: str
) -> None:
    first = {"request_s": 4.0, "total_tok_s": 800.0, "output_tok_s": 400.0}
    alike = [
        Judged("", Window("", level=level, rates=rates, times_s={"e2e": {"p50": 2.0}}), "valid")
        for level, rates in ((8, first), (64, second))
    ]
    said = of(alike, "distinct_levels")
    assert said.verdict == "fail" and told in said.text


@pytest.mark.parametrize(
    ("stems", "together"),
    [
        (("tep8_isl1024_conc4", "tep8_isl1024_conc8"), True),
        (("tep8_isl1024_conc4", "dep8_isl1024_conc8"), False),
        (("vllm-infqps-concurrency4-M-20260101-101010",
          "vllm-infqps-concurrency8-M-20260202-202020"), True),
        (("BENCH-max_concurrency=4/run=0", "BENCH-max_concurrency=8/run=0"), True),
        (("4", "8"), True),
        (("a4_4", "a4_8"), True),
        (("a_c4", "b_c8"), False),
    ],
)  # fmt: skip
def test_what_is_one_curve(stems: tuple[str, str], together: bool) -> None:
    windows = Window("", level=4), Window("", level=8)
    names = {curve_name(stem, window) for stem, window in zip(stems, windows, strict=True)}
    assert (len(names) == 1) == together


def test_other_models_and_lengths_are_other_curves() -> None:
    base: dict[str, Any] = {"level": 4, "completed": 10, "input_tokens": 100, "model": "m"}
    windows = [
        Window("", **(base | change))
        for change in ({}, {"model": "n"}, {"input_tokens": 200}, {"completed": 5})
    ]
    assert set(joined(windows)) == {"a_c*, m, 10 in", "a_c*, m, 20 in", "a_c*, n, 10 in"}


def joined(windows: list[Window]) -> dict[str, set[float]]:
    """The levels of each curve, by its name."""
    found = curves_of((f"a_c{one.level:g}", Judged("", one, "valid")) for one in windows)
    return {name: {one.window.level for one in curve} for name, curve in found.items()}


def test_mean_lengths_that_differ_by_chance_are_one_curve() -> None:
    outputs = {1: 126.3, 2: 125.9, 8: 131.0, 16: 133.0, 4: 119.0}
    windows = [
        Window("", level=level, completed=10, input_tokens=2200, output_tokens=10 * tokens)
        for level, tokens in outputs.items()
    ]
    assert joined(windows) == {
        "a_c*, 220 in, 119 out": {4},
        "a_c*, 220 in, 125.9 to 131 out": {1, 2, 8},
        "a_c*, 220 in, 133 out": {16},
    }


def test_a_curve_is_of_one_rate_which_its_text_names() -> None:
    """A blank cell does not put another rate in its place."""

    def stating(blank: set[str]) -> list[Judged]:
        found = []
        for judged in levels(FLAT):
            rate = judged.window.request_s
            rates = {"request_s": rate, "output_tok_s": 100 * rate, "total_tok_s": 900 * rate}
            if judged.window.level == 8:
                rates = {name: value for name, value in rates.items() if name not in blank}
            found.append(replace(judged, window=replace(judged.window, rates=rates)))
        return found

    knees = set()
    for blank, unit in (
        (set[str](), "output tokens/s"),
        ({"output_tok_s"}, "total tokens/s"),
        ({"output_tok_s", "total_tok_s"}, "requests/s"),
        ({"output_tok_s", "total_tok_s", "request_s"}, "output tokens/s"),  # one level has none
    ):
        said = of(stating(blank), "saturation")
        assert said.verdict == "pass" and f" {unit}," in said.text
        assert unit in load_curve(stating(blank))[0]
        knees.add(round(said.observed, 2))
    assert len(knees) <= 2  # the same levels give the same knee, whatever the rate


# ----------------------------------------------------------------------------------- tables


@given(st.floats(10, 5000), st.integers(1, 50), st.floats(0.1, 30), st.floats(1.5, 8))
def test_fitted_tokens_give_the_cap_that_was_there(
    tokens: float, lowest: int, e2e_s: float, factor: float
) -> None:
    """Throughput is tokens x in flight / E2E, with four times the lowest level let through."""
    held = {lowest: lowest, 2 * lowest: 2 * lowest, 4 * lowest: 4 * lowest}
    held[round(4 * lowest * factor) + 1] = 4 * lowest
    windows = []
    for i, (level, in_flight) in enumerate(held.items()):
        e2e = e2e_s * (1 + i) ** 0.5
        rates = {"total_tok_s": tokens * in_flight / e2e}
        windows.append(Window("", level=level, rates=rates, times_s={"e2e": {"p99": e2e}}))
    fit = fit_tokens(windows)
    assert fit is not None and not fit.refuted
    assert fit.tokens == pytest.approx(tokens)


def audit_table(table: pd.DataFrame, folder: Path, capsys: pytest.CaptureFixture[str]) -> Item:
    path = folder / "table.csv"
    table.to_csv(path, index=False)
    (item,) = items(capsys, path)
    return item


def levels_that(item: Item, verdict: str) -> dict[float, float]:
    """Levels whose gate `level_reached` said so, with what it observed."""
    return {
        float(reason["text"].split(":")[0].removeprefix("level ")): reason["observed"]
        for reason in item["reasons"]
        if reason["gate"] == "level_reached" and reason["verdict"] == verdict
    }


COOKBOOK = tables()
MODELS = ("Llama-3.1-405B", "Qwen3-VL-235B")


@pytest.mark.parametrize("model", MODELS)
def test_cookbook_stress_saturation_is_one_load_from_500_on(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = audit_table(COOKBOOK[f"stress saturation, {model}"], tmp_path, capsys)
    refuted = levels_that(item, "fail")
    assert set(refuted) == {750, 1000}
    # 444 in flight at 500, 750 and 1,000, if the p99 is the same share of the mean everywhere; at
    # most 500 where the limit is that, and 5 % of noise in rate and in latency elsewhere.
    assert list(refuted.values()) == pytest.approx([551.25, 551.25])
    assert "those of level 500" in said(item, "level_reached", "level 750:")["text"]
    undecided = levels_that(item, "cannot judge")
    assert set(undecided) == {150, 200, 300, 500}  # neither counted nor of known length
    assert undecided[500] == pytest.approx(2 * 440, rel=0.015)
    assert "fitted on level 150" in said(item, "level_reached", "level 500:")["text"]
    assumed = said(item, "one_length")
    assert assumed["verdict"] == "pass" and assumed["text"].startswith("Assumed: every request")
    assert "500, 750 and 1000 are one and the same load" in said(item, "distinct_levels")["text"]
    assert said(item, "saturation")["verdict"] != "pass" and item["verdict"] == "void"


@pytest.mark.parametrize(("model", "held"), [*zip(MODELS, (180, 176), strict=True)])
def test_cookbook_stress_scaling_is_not_refuted_by_a_fit(
    model: str, held: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = audit_table(COOKBOOK[f"stress scaling, {model}"], tmp_path, capsys)
    undecided = levels_that(item, "cannot judge")
    assert undecided[200] == pytest.approx(2 * held, abs=1)
    assert "fitted on level 5" in said(item, "level_reached", "level 200:")["text"]


@pytest.mark.parametrize("model", ["Qwen3-VL-235B", "Llama-3.1-405B", "Kimi-K2.5"])
def test_cookbook_multi_run_is_one_load_from_100_on(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = audit_table(COOKBOOK[f"multi-run, {model}"], tmp_path, capsys)
    distinct = said(item, "distinct_levels")
    assert distinct["verdict"] == "fail"
    assert "Levels 100, 200, 500, 750 and 1000 are one and the same load" in distinct["text"]
    assert set(levels_that(item, "fail")) == {200, 500, 750, 1000}  # of 100 requests each
    assert said(item, "one_length")["verdict"] == "pass"
    # At level 10 even a full level would need requests shorter than the 2,560 tokens asked.
    assert said(item, "lengths_delivered", "level 10:")["verdict"] == "fail"


def test_no_fixed_length_explains_deepseeks_multi_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item = audit_table(COOKBOOK["multi-run, DeepSeek-V3.2"], tmp_path, capsys)
    length = said(item, "one_length")
    assert length["verdict"] == "fail" and "No fixed length explains the table" in length["text"]
    assert set(levels_that(item, "cannot judge")) == {10, 50, 100}
    assert "50, 100, 200, 500, 750 and 1000" in said(item, "distinct_levels")["text"]


def test_cookbook_tables_are_all_there_and_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, table in enumerate(COOKBOOK.values()):
        table.to_csv(tmp_path / f"{i:02}.csv", index=False)
    found = items(capsys, tmp_path)
    assert len(found) == 19
    assert Counter(item["verdict"] for item in found) == {"void": 13, "undecided": 6}
    # Undecided: the later sweep, of which each model has one level, and levels up to 200 that are
    # loads of their own. Void: too few requests were made, or a load goes on to twice its level.
    undecided = {name.split(",")[0] for name, item in zip(COOKBOOK, found, strict=True)
                 if item["verdict"] == "undecided"}  # fmt: skip
    assert undecided == {"saturation-analysis (later sweep)", "stress scaling"}


def test_known_tokens_need_no_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame(
        {"level": [8, 64], "total_tok_s": [800, 900], "e2e_p99_s": [1.05, 1.05],
         "tokens_per_request": [100, 100], "requests": [800, 800]}
    )  # fmt: skip
    item = audit_table(table, tmp_path, capsys)
    assert set(levels_that(item, "fail")) == {64}
    assert not [reason for reason in item["reasons"] if reason["gate"] == "one_length"]


def test_asked_and_delivered_lengths_of_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = {"level": [8], "request_s": [8.0], "total_tok_s": [800.0], "input_tokens": [80]}
    fine = audit_table(pd.DataFrame(columns | {"output_tokens": [20]}), tmp_path, capsys)
    short = audit_table(pd.DataFrame(columns | {"output_tokens": [120]}), tmp_path, capsys)
    assert said(fine, "lengths_delivered")["verdict"] == "pass"
    assert said(short, "lengths_delivered")["verdict"] == "fail"
