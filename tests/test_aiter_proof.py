"""That AITER runs must be proven by the engine's log: of what is not, nothing is claimed."""

from __future__ import annotations

from pathlib import Path

import pytest
import stub
from telling import text_of, untold
from test_aiter import HEADLINE, SHORT, Setup, asked_for, engine, measured, page, part_of, scratch

from study import profiles
from study.chapters import aiter, aiter_estimates, aiter_sentences
from study.experiments import Aiter
from study.plan import launches
from study.profiles import Choice
from study.same_output import Agreement
from study.sentences import Values

__all__ = ["engine", "scratch"]  # fixtures


def test_of_an_arm_that_names_no_kernel_of_aiter_nothing_is_claimed(
    engine: Setup, scratch: Path
) -> None:
    engine("rocm")
    asked = asked_for(**SHORT)
    silent = {
        arm: {name: None if value == "used" else value for name, value in said.items()}
        for arm, said in page(asked).items()
    }
    part, values = part_of(asked, stub.frames(asked, in_force=silent)), Values()
    known = aiter_estimates.arms(part.found).set_index("arm")["outcome"]
    assert known["gqa-dense-aiter-on"] == aiter_estimates.NOT_SHOWN
    assert known["gqa-dense-aiter-off"] == "measured"
    frame = aiter_estimates.ratios(part.found, part.launches, HEADLINE)
    assert frame.loc[frame["switch"] == "aiter", "point"].isna().all()
    assert frame.loc[frame["switch"] == "compile", "point"].notna().all()
    spreads = aiter_estimates.spreads(part.found, part.launches)
    assert spreads.loc[spreads["switch"] == "aiter", "point"].isna().all()
    assert "aiter" not in aiter_sentences.start(part, Values())
    assert not any("aiter-on" in one.treatment for one in aiter_estimates.agreements(part))
    text = text_of([*aiter.summary(part, values), *aiter.results(part, values)])
    assert "Of 8 AITER arms asked for, 1 were measured" in text
    assert "names no kernel of AITER" in text and untold(text, values) == []


def test_one_launch_an_arm_says_how_many_a_ratio_of_spreads_needs(engine: Setup) -> None:
    engine("cpu")
    asked = asked_for(launches=1, switches=["compile"])
    said = aiter_sentences.variability(part_of(asked, measured(asked)), Values())
    assert said.startswith("No ratio of spreads can be given: it needs several valid launches")
    assert "with fewer than 5 of each it carries next to nothing" in said


def test_a_part_that_takes_the_last_kernel_away_keeps_its_ratio(engine: Setup) -> None:
    engine("rocm")
    asked = asked_for(**SHORT)
    said: dict[str, dict[str, str | None]] = {arm: {**of} for arm, of in page(asked).items()}
    said["gqa-dense-aiter-without-mha"]["aiter"] = None
    part = part_of(asked, stub.frames(asked, in_force=said))
    lines = aiter_sentences.ablation(part, Values()).splitlines()
    (line,) = [line for line in lines if "aiter-without-mha" in line]
    assert "output throughput **" in line and aiter_sentences.SAME_KERNELS not in line


def test_a_part_that_changes_no_kernel_is_told_as_that(engine: Setup) -> None:
    engine("rocm")
    asked = asked_for(**SHORT)
    said = page(asked)
    said["gqa-dense-aiter-without-rmsnorm"]["rms_norm"] = "native"
    part = part_of(asked, stub.frames(asked, in_force=said))
    lines = aiter_sentences.ablation(part, Values()).splitlines()
    alike = {line.split("`")[1] for line in lines if aiter_sentences.SAME_KERNELS in line}
    assert len(lines) == 6 and "aiter-without-rmsnorm" not in alike and len(alike) == 5


def test_compiled_and_aiter_off_are_one_server_where_the_latter_is_compiled(engine: Setup) -> None:
    engine("rocm")
    twins = aiter_estimates.twins(measured(asked_for(eager=False)))
    assert list(zip(twins["setting"], twins["baseline_setting"], strict=True)) == [
        ("aiter-off", "compiled")
    ]


@pytest.mark.parametrize("tie", [False, True])
def test_tokens_that_differ_at_a_tie_are_told_of_pairs_that_pass(
    engine: Setup, tie: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine("cpu")
    asked = asked_for(switches=["compile"])
    one = Agreement("compiled", "eager", 1, 6, 0, 100, int(tie), int(tie), 0.01, 2.0)
    monkeypatch.setattr(aiter_estimates, "agreements", lambda _: [one])
    values = Values()
    said = aiter_sentences.outputs(part_of(asked, measured(asked)), values)
    assert "1 pass" in said and untold(said, values) == []
    assert ("1 of 6 prompts give another token, each first at a tie" in said) == tie
    assert ("no token differs in 6 prompts" in said) != tie


def test_the_command_for_a_rocm_node_is_one_that_the_study_takes() -> None:
    words = dict(word.split("=") for word in aiter_sentences.COMMAND.split()[2:])
    profile = profiles.load(Choice(profile=words["PROFILE"], only=(words["ONLY"],)))
    (asked,) = profile.experiments.values()
    assert isinstance(asked, Aiter) and "aiter" in asked.switches and asked.launches == 5
    setup = {**stub.SETUP, "engine": {**stub.SETUP["engine"], "kind": "rocm"}}
    assert not any(one.not_applicable for one in launches(asked, setup))
    # What AITER has a kernel for must be there: normalisation with graphs, a mixture, MLA.
    assert not asked.eager and {"mla-moe-1b"} <= set(asked.models)
