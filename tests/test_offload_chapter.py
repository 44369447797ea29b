"""The chapter on KV offload: its text, figures, tables and notebook, whatever was measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from offload_parts import CASES, NATIVES, case
from telling import digits_typed, rendered, run_notebook, text_of, untold

from study import style
from study.chapter import Part
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


def with_other_outputs(found: Part, number: int, memory_tokens: float) -> Part:
    """The log-probabilities of one arm's pass are others; so many hits in the second of `off`."""
    outputs = found.outputs.copy()
    prompts = outputs["number"].eq(number) & outputs["kind"].eq("prompt")
    other = prompts & outputs["arm"].eq("gqa-dense-file")
    outputs["logprobs"] = [
        [value - 0.2 for value in said] if changed else said
        for said, changed in zip(outputs["logprobs"], other, strict=True)
    ]
    again = outputs["number"].eq(1) & outputs["arm"].eq("gqa-dense-off")
    outputs.loc[again, "prefix_hits_tokens"] = memory_tokens
    return replace(found, outputs=outputs)


@pytest.mark.parametrize(
    ("number", "memory_tokens", "failing", "without", "only_such"),
    [
        (1, 0.0, 1, True, True),  # the pass that restores is another, and nothing else
        (1, 512.0, 1, False, False),  # and what a prefix in memory changes is known
        (0, 0.0, 2, True, False),  # so is the mode beside `off`, where neither restores
    ],
)
def test_a_restored_pass_that_differs_is_not_offloads_doing_while_reuse_has_no_control(
    number: int, memory_tokens: float, failing: int, without: bool, only_such: bool
) -> None:
    found = with_other_outputs(case("whole"), number, memory_tokens)
    lead = offload.lead(found, Values())
    assert f"same output: {failing} of 6 comparisons fail" in lead
    assert (offload.NOT_ITS_DOING in lead) == only_such
    for text in (offload.limits(found), offload.outputs(found, Values())):
        assert (offload.REUSE in text) == without
    assert offload.REUSE not in offload.limits(case("whole"))


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
