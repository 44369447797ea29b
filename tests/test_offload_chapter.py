"""The chapter on KV offload: its text, figures, tables and notebook, whatever was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from offload_parts import CASES, NATIVES, case
from telling import digits_typed, rendered, run_notebook, text_of, untold

from study import style
from study.chapters import offload, offload_figures, offload_tables
from study.sentences import Values

# --- text, figures and tables ---------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_everything_can_be_shown_and_every_number_is_in_the_values(
    name: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "_bytes", lambda *_: b"")  # the notebook's test draws whole
    values, found = Values(), case(name)
    shown = [*offload.summary(found, values), *offload.results(found, values)]
    assert all(rendered(one).strip() for one in shown)
    text = text_of(shown)
    assert untold(text, values) == []
    assert "nan" not in text.lower()


def test_the_summary_leads_with_what_came_back() -> None:
    values = Values()
    said = offload.lead(case("whole"), values)
    assert "GQA · dense with `file` has **0.300 [0.300, 0.300]** times the TTFT" in said
    assert "restored by offload" in said
    assert values.known["offload.windows.valid"]["value"] == 3 * 4 * 3
    void = offload.lead(case("void"), Values())
    assert "No launch compares restored with cold for GQA · dense with `file`" in void
    assert "MLA · dense with `file` has" in void


def test_the_engines_own_words_stand_in_the_summary() -> None:
    text = text_of(offload.summary(case("whole"), Values()))
    assert "- `gqa-dense-native`, `mla-dense-native`: rejected: `Exception: CPU Offloading" in text


def test_one_block_says_that_it_carries_no_interval() -> None:
    values, found = Values(), case("one block")
    assert "one block carries no interval" in offload.ttft(found, values)
    assert "one block carries no interval" in offload.lead(found, values)
    assert "no interval" not in offload.lead(case("whole"), Values())
    assert offload.method(found, values).startswith("No ratio has an interval")
    assert "no interval (n = 1)" in offload_figures.ttft(found).caption
    assert "Bonferroni over 8 comparisons, n = 3 blocks" in offload.method(case("whole"), values)


@pytest.mark.parametrize(("name", "control"), [("whole", True), ("no off", False)])
def test_off_is_called_a_control_only_where_it_was_measured(name: str, control: bool) -> None:
    assert ("measured without treatment" in offload.limits(case(name))) == control


def test_the_arithmetic_of_files_leaves_out_what_cannot_be_reused() -> None:
    caption = offload_tables.bytes_moved(case("whole")).caption
    assert "never the one of its last token" in caption


def test_unequal_cores_of_a_cpu_engine_are_a_confound() -> None:
    found = case("whole")
    for environment, warned in (({"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}, False), ({}, True)):
        launches = tuple(
            replace(one, arm=one.arm.model_copy(update={"environment": environment}))
            for one in found.launches
        )
        assert bool(offload.cores(replace(found, launches=launches))) == warned


def test_the_figures_draw_void_windows_hollow_and_skip_what_was_not_measured() -> None:
    drawn = offload_figures.ttft(case("void"))
    assert drawn.figure is not None
    hollow = drawn.frame[drawn.frame["kind"] == "void window"]
    assert len(hollow) == 3 and "void windows (3)" in drawn.caption
    assert not drawn.frame["arm"].isin(NATIVES).any()
    bars = offload_figures.where_from(case("void"))
    assert "all windows are void (1 bars)" in bars.caption
    for name in ("nothing", "everything rejected", "no launch"):
        assert offload_figures.ttft(case(name)).figure is None
        assert offload_figures.where_from(case(name)).figure is None


def test_no_digit_is_typed_in_a_sentence() -> None:
    assert digits_typed(offload) == []


# --- the notebook ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["void", "nothing"])
def test_the_notebook_runs_whatever_was_measured(
    name: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(run_notebook(case(name), monkeypatch)) > 10
