"""The chapter on block_size, on made-up frames with planted answers and differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import stub
from telling import rendered, run_notebook, text_of, untold

from study import paths, style
from study.chapter import Text
from study.chapters import block_size as chapter
from study.chapters import block_size_estimates as sizes
from study.chapters import block_size_figures as figures
from study.chapters import block_size_tables as tables
from study.experiments import BlockSize
from study.frames import Frames
from study.sentences import Values
from study.standing import NOT_APPLICABLE
from study.stats import mean_interval_log
from study.style import Drawn

NO = "ValueError: No common block size for {} (CPU_ATTN: [MultipleOf(32)])."
Said = Mapping[str, Mapping[str, str]]


def experiment(**parameters: object) -> BlockSize:
    return BlockSize.of({"launches": 3, **parameters})


def found(asked: BlockSize, said: Said | None = None, noise: float = 0.02, **more: Any) -> Frames:
    """As on a CPU: GQA takes multiples of 32 and refuses the rest, MLA runs 16 whatever is asked.

    `said` overrides what the engine says of an arm.
    """
    arms = {arm.name: arm for arm in asked.arms()}
    size = {name: int(arm.factors["block_size_asked"]) for name, arm in arms.items()}
    mla = {name: arm.model.attention == "mla" for name, arm in arms.items()}
    rejected = {name: NO.format(size[name]) for name in arms if not mla[name] and size[name] % 32}
    in_force = {name: {"block_size": "16"} if mla[name] else {} for name in arms}
    in_force = {name: {**in_force[name], **(said or {}).get(name, {})} for name in arms}
    more = {"rejected": rejected, **more}
    return stub.frames(asked, in_force=in_force, noise=noise, **more)


def planted(frames: Frames, arm: str, factor: float) -> Frames:
    """The same with the output throughput of one arm times a factor."""
    of_arm = frames.windows["arm"] == arm
    value = frames.windows["output_tok_s"].where(~of_arm, frames.windows["output_tok_s"] * factor)
    return Frames(frames.launches, frames.windows.assign(output_tok_s=value), frames.judgements)


def settled(frames: Frames) -> Frames:
    """As it is on disk: what the engine refused or overrode, it was asked in one block only."""
    later = frames.launches["block"] > 0
    answered = frames.launches["outcome"].isin(["rejected", "overridden"]) & later
    asked_before = frames.launches["reason"] + " (asked in block 1; not asked again)"
    rows = frames.launches.assign(reason=frames.launches["reason"].mask(answered, asked_before))
    rows.loc[answered, "windows"] = 0
    rows.loc[answered, ["block_size", "kv_cache_tokens", "attention_backend"]] = None
    gone = frames.windows["launch"].isin(rows.loc[answered, "launch"])
    return Frames(rows, frames.windows[~gone], frames.judgements)


ASKED = experiment()
WHOLE = settled(found(ASKED))
ONCE = experiment(launches=1)
EVERY_ARM = [arm.name for arm in ASKED.arms()]
# Per size another back end, as where a size selects one.
TWO_BACKENDS = {
    f"gqa-dense-block{size}": {"attention_backend": f"BACKEND_{size > 32}"}
    for size in (32, 64, 128)
}
CASES: dict[str, tuple[BlockSize, Frames]] = {
    "whole": (ASKED, WHOLE),
    "a difference": (ASKED, planted(found(ASKED, noise=0.003), "gqa-dense-block128", 1.5)),
    "one block": (ONCE, found(ONCE)),
    "two back ends": (ASKED, found(ASKED, TWO_BACKENDS)),
    "rejected": (ASKED, found(ASKED, rejected=dict.fromkeys(EVERY_ARM, "ValueError: `no`"))),
    "not measured": (ASKED, found(ASKED, rejected={}, not_measured=EVERY_ARM)),
    "all void": (
        ASKED,
        found(ASKED, void=list(product(EVERY_ARM, ("short", "long"), (4,), range(3)))),
    ),
    "several levels": (experiment(levels=[1, 16]), found(experiment(levels=[1, 16]))),
    "no launch": (ASKED, stub.NOTHING),
}


@cache
def summary(case: str) -> tuple[str, Values]:
    values = Values()
    return text_of(chapter.summary(stub.part(*CASES[case]), values)), values


# --- what the engine answered ---------------------------------------------------------------------


def test_the_answer_is_the_size_in_force_and_not_the_flag() -> None:
    told = sizes.answers(WHOLE).set_index("arm")
    assert list(told.loc[[f"gqa-dense-block{n}" for n in (32, 64, 128)], "in_force"]) == [
        32,
        64,
        128,
    ]
    mla = told[told["model"] == "mla-dense"]
    assert list(mla["asked"]) == [1, 16, 32, 64, 128] and set(mla["in_force"]) == {16}
    assert mla["outcome"].value_counts().to_dict() == {"overridden": 4, "measured": 1}
    assert told.loc["gqa-dense-block1", "outcome"] == "rejected"
    assert math.isnan(told["in_force"]["gqa-dense-block1"])


def test_a_settled_arm_keeps_the_words_of_the_block_that_was_asked() -> None:
    told = sizes.answers(WHOLE).set_index("arm")
    assert told.loc["gqa-dense-block1", "reason"] == NO.format(1)
    assert told.loc["mla-dense-block64", "reason"] == "block_size was to be 64, the engine ran 16"
    assert (told["launches"] == 3).all() and (told["of"] == 3).all()


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (("measured", "failed", "not measured"), "measured"),
        (("measured", "rejected", "rejected"), "rejected"),
        (("failed", "not measured", "not measured"), "failed"),
        ((NOT_APPLICABLE,) * 3, NOT_APPLICABLE),
    ],
)
def test_launches_that_ended_differently_give_the_telling_outcome(
    outcomes: tuple[str, ...], said: str
) -> None:
    rows = WHOLE.launches.sort_values("block")
    rows.loc[rows["arm"] == "gqa-dense-block32", "outcome"] = list(outcomes)
    told = sizes.answers(Frames(rows, WHOLE.windows, WHOLE.judgements)).set_index("arm")
    assert told.loc["gqa-dense-block32", "outcome"] == said
    assert told.loc["gqa-dense-block32", "launches"] == outcomes.count(said)


def test_an_engine_that_does_not_say_its_size_has_accepted_none() -> None:
    frames = found(ASKED)
    silent = Frames(frames.launches.drop(columns="block_size"), frames.windows, frames.judgements)
    assert sizes.accepted(silent).empty and sizes.families(silent) == ()
    text = chapter.answers("block_size", silent, Values())
    assert "did not report what it ran for 32, 64 and 128" in text and "accepted" not in text


def test_every_answer_is_in_the_matrix_and_in_the_table() -> None:
    drawn = figures.answers(WHOLE)
    assert drawn.figure is not None
    texts = [text.get_text() for text in drawn.figure.axes[0].texts]
    assert sorted(texts) == sorted(
        ["rejected"] * 2 + ["runs 32", "runs 64", "runs 128"] + ["runs 16"] * 5
    )
    shown = tables.answers(WHOLE).shown
    assert list(shown["in force"]) == ["rejected", "rejected", "32", "64", "128"] + ["16"] * 5
    nothing = figures.answers(CASES["not measured"][1]).figure
    assert nothing is not None
    assert {text.get_text() for text in nothing.axes[0].texts} == {"not measured"}


# --- the flag, and what ran -----------------------------------------------------------------------


def test_the_flag_figure_shows_the_same_windows_twice() -> None:
    drawn = figures.flag_and_engine(WHOLE)
    assert drawn.figure is not None
    frame = drawn.frame
    assert set(frame["model"]) == {"mla-dense"} and set(frame["in_force"]) == {16}
    assert len(frame) == 2 * (4 + 3)  # workloads x (overridden in one block, accepted in three)
    assert (frame["verdict"] == "void").sum() == 8
    flag, engine = (
        [float(np.asarray(line.get_xdata(), dtype=float)[0]) for line in axis.lines]
        for axis in drawn.figure.axes[:2]
    )
    assert set(flag) == {1, 16, 32, 64, 128}
    assert all(12 < place < 21 for place in engine)


def test_without_an_override_there_is_nothing_to_learn() -> None:
    asked = experiment(models=["gqa-dense"])
    drawn = figures.flag_and_engine(found(asked))
    assert drawn.figure is None and "overrode" in drawn.caption


# --- against the size in force --------------------------------------------------------------------


def test_only_accepted_sizes_have_estimates_and_void_windows_stay_hollow() -> None:
    frame = sizes.by_size(WHOLE, ("output_tok_s",))
    known = frame[frame["kind"] == "estimate"]
    assert set(known["arm"]) == set(sizes.accepted(WHOLE)["arm"])
    assert (known["in_force"] == known["asked"]).all() and (known["n"] == 3).all()
    hollow = frame[frame["kind"] == "void window"]
    assert len(hollow) == 8 and set(hollow["in_force"]) == {16}
    seen = WHOLE.windows.query("arm == 'gqa-dense-block64' and workload == 'short'")
    point = known.query("arm == 'gqa-dense-block64' and workload == 'short'")["point"].iloc[0]
    assert point == pytest.approx(mean_interval_log(seen["output_tok_s"]).point)


def test_a_planted_ratio_is_found_against_the_smallest_accepted_size() -> None:
    frame = sizes.ratios(CASES["a difference"][1], "output_tok_s")
    assert set(frame["baseline"]) == {"gqa-dense-block32"} and set(frame["base_size"]) == {32}
    assert set(zip(frame["size"], frame["workload"], strict=True)) == {
        (size, workload) for size in (64, 128) for workload in ("short", "long")
    }
    assert frame["method"].str.contains("Dunnett interval").all()
    assert frame["method"].str.contains("Bonferroni over 2 families").all()
    assert (frame["n"] == 3).all()
    doubled = frame[frame["size"] == 128]
    assert doubled["point"].to_numpy() == pytest.approx(1.5, rel=0.02)
    assert (doubled["low"] > 1).all()
    assert (doubled["treatment_point"] / doubled["baseline_point"]).to_numpy() == pytest.approx(
        doubled["point"].to_numpy()
    )
    assert (frame.loc[frame["size"] == 64, ["low"]] < 1).all(axis=None)


def test_sizes_of_two_back_ends_are_never_compared() -> None:
    frames = CASES["two back ends"][1]
    frame = sizes.ratios(frames, "output_tok_s")
    assert set(frame["attention_backend"]) == {"BACKEND_True"}
    assert set(frame["treatment"]) == {"gqa-dense-block128"}
    assert set(frame["baseline"]) == {"gqa-dense-block64"}
    alone = [(one.attention_backend, one.sizes) for one in sizes.alone(frames)]
    assert alone == [("BACKEND_False", (32,)), ("CPU_MLA", (16,))]


def test_a_family_with_one_size_in_force_has_no_pair() -> None:
    assert [one.model for one in sizes.alone(WHOLE)] == ["mla-dense"]
    assert "No pair for MLA · dense: only 16 was accepted." in tables.comparisons(WHOLE).caption
    rejected = CASES["rejected"][1]
    assert [(one.model, one.sizes) for one in sizes.alone(rejected)] == [
        ("gqa-dense", ()),
        ("mla-dense", ()),
    ]


def test_the_comparisons_show_absolute_values_and_gaps() -> None:
    void = [("gqa-dense-block64", "short", 4, block) for block in range(3)]
    table = tables.comparisons(found(ASKED, void=void))
    cell = table.shown["sizes"].eq("64 / 32") & table.shown["workload"].eq("short")
    assert set(table.shown.loc[cell, "ratio"]) == {"no block to compare"}
    assert set(table.shown.loc[cell, "size"]) == {"not in a common block"}
    assert table.shown.loc[~cell, "baseline"].str.contains(r"\[.+, .+\]").all()
    assert set(table.data["n"]) == {0, 3} and "the engine names no back end" in table.caption


# --- the cache, and the output --------------------------------------------------------------------


def test_capacity_counts_whole_blocks() -> None:
    frame = sizes.capacity(WHOLE, stub.launches(ASKED))
    assert len(frame) == (3 + 1) * 2  # sizes in force x workloads
    short = frame[frame["workload"] == "short"].set_index("in_force")
    assert set(short["request_tokens"]) == {128 + 64}
    assert short["taken_tokens"].to_dict() == {16: 192, 32: 192, 64: 192, 128: 256}
    assert short["requests"][128] == short["tokens"][128] // 256
    text = chapter.capacity(stub.part(ASKED, WHOLE), Values())
    assert "a request of `short` (192 tokens) fills 256 at 128" in text


def test_a_capacity_that_differs_is_said_per_size() -> None:
    said = {"gqa-dense-block128": {"kv_cache_tokens": "400000"}}
    values = Values()
    text = chapter.capacity(stub.part(ASKED, found(ASKED, said)), values)
    assert "400\u202f000 tokens at 128" in text
    assert values.known["block_size.capacity.gqa-dense.tokens.2"]["value"] == 400000


def test_memory_that_is_the_same_to_the_eye_is_said_once() -> None:
    """Whole blocks of one family and of the other end some bytes apart."""
    said = {f"mla-dense-block{size}": {"kv_cache_bytes": str(2**31 - 9216)} for size in (1, 16)}
    data = found(ASKED, said)
    assert data.launches["kv_cache_bytes"].nunique() == 2
    caption = tables.capacity(data, stub.launches(ASKED)).caption
    assert caption.startswith("KV cache of 2 GiB. ")


def outputs(odd: str = "") -> pd.DataFrame:
    """Of two blocks; the same for all arms of a block but the odd one."""

    def answer(launch: Any, number: int, prompt: int, kind: str) -> Mapping[str, Any]:
        random = np.random.default_rng([launch.block, prompt, kind == "twin"])
        tokens, logprobs = random.integers(0, 512, 8), -3.5 + random.normal(0, 0.5, 8)
        return {"tokens": tokens.tolist(), "logprobs": (logprobs + (launch.arm == odd)).tolist()}

    made = stub.outputs(WHOLE, answer)
    return made[made["block"] < 2]


def test_outputs_are_compared_between_accepted_sizes_and_with_overridden_arms() -> None:
    agreed = sizes.agreements(WHOLE, outputs(odd="mla-dense-block64"))
    pairs = {(one.treatment, one.baseline): one.judgement.verdict for one in agreed}
    gqa = {(f"gqa-dense-block{n}", "gqa-dense-block32"): "pass" for n in (64, 128)}
    mla = {(f"mla-dense-block{n}", "mla-dense-block16"): "pass" for n in (1, 32, 128)}
    assert pairs == {**gqa, **mla, ("mla-dense-block64", "mla-dense-block16"): "fail"}
    text = chapter.outputs(stub.part(ASKED, WHOLE, outputs(odd="mla-dense-block64")), Values())
    assert text.startswith("- 5 of 6 pairs of arms give the same output: no token differs in 30")
    assert text.count("\n- ") == 1 and "- *fail*: mla-dense-block64 against" in text


def test_without_the_size_that_ran_an_overridden_arm_has_nobody_to_agree_with() -> None:
    asked = experiment(block_sizes=[1, 32, 64])
    agreed = sizes.agreements(found(asked), stub.NO_OUTPUTS)
    assert [(one.treatment, one.baseline) for one in agreed] == [
        ("gqa-dense-block64", "gqa-dense-block32")
    ]


# --- sentences and sections -----------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_every_number_of_the_text_is_in_the_values(case: str) -> None:
    text, values = summary(case)
    assert len(text) > 100
    assert untold(text, values) == []


@pytest.mark.parametrize("case", CASES)
def test_there_is_a_figure_or_the_reason_why_not(
    case: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style.Drawn, "keep", lambda drawn, _: drawn)  # drawn below
    shown = chapter.results(stub.part(*CASES[case]), Values())
    drawn = [one for one in shown if isinstance(one, Drawn)]
    nothing = {"no launch": 5, "rejected": 4, "not measured": 4, "all void": 1}
    assert sum(one.figure is None for one in drawn) == nothing.get(case, 0)
    for one in shown:
        text = one.text if isinstance(one, Text) else one.caption
        assert len(text) > 20 and "nan" not in text


@pytest.mark.parametrize("case", ["one block", "not measured"])
def test_what_is_shown_is_kept(case: str, kept: Path) -> None:
    for one in chapter.results(stub.part(*CASES[case]), Values()):
        assert rendered(one).strip()
    tables_of = {path.stem for path in (kept / "derived").iterdir()}
    assert tables_of == {
        f"30_block_size-{name}"
        for name in ("answers", "results", "comparisons", "capacity", "same-output")
    }
    drawn = {path.name for path in (kept / "figures").iterdir()}
    assert "30_block_size-answers.svg" in drawn
    assert ("30_block_size-ratios.csv" in drawn) == (case != "not measured")


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("whole", "runs **4** as asked, refuses **2**, and in **4** runs another size"),
        ("whole", "GQA · dense: accepted 32, 64 and 128; refused 1 and 16 (`ValueError: No common"),
        ("whole", "ran **16** in place of 1, 32, 64 and 128, without refusing (`block_size was"),
        ("whole", "32, 64 and 128: no difference is shown; over 3 blocks"),
        ("whole", "MLA · dense (back end CPU_MLA): no pair to compare, 16 is the only size"),
        ("a difference", "the largest difference shown is on `"),
        ("a difference", "Output throughput at 128 is **1.5"),
        ("a difference", "times that at 32"),
        ("one block", "no difference is shown, since one block carries no interval"),
        ("all void", "no block could be compared"),
        ("rejected", "GQA · dense: no pair to compare, no size was accepted"),
        ("rejected", "refused 1, 16, 32, 64 and 128 (`ValueError: 'no'`)"),
        ("not measured", "MLA · dense: not measured: 1, 16, 32, 64 and 128."),
        ("two back ends", "GQA · dense (back end BACKEND_False): no pair to compare, 32 is"),
    ],
)
def test_the_summary_says_what_was_found(case: str, said: str) -> None:
    assert said in summary(case)[0]


def test_the_largest_of_several_differences_is_the_one_that_is_told() -> None:
    frames = planted(CASES["a difference"][1], "gqa-dense-block64", 0.5)
    text = chapter.differences("block_size", frames, Values())
    assert "Output throughput at 64 is **0.5" in text and "lower, by this interval" in text


def test_an_interval_that_excludes_one_is_needed_for_a_difference() -> None:
    assert "largest difference" not in summary("whole")[0]
    assert "largest difference" not in summary("one block")[0]
    values = summary("a difference")[1]
    ratio = values.known["block_size.difference.gqa-dense.not reported.ratio"]
    assert 1 < ratio["low"] < ratio["point"] < ratio["high"]


def test_results_stand_in_the_order_of_sizes() -> None:
    launches = sizes.in_order(stub.launches(ASKED))
    asked = [launch.arm.factors["block_size_asked"] for launch in launches]
    assert asked == sorted(asked) and len(asked) == len(stub.launches(ASKED))


@pytest.mark.parametrize("case", ["whole", "not measured"])
def test_the_notebook_runs_whatever_was_measured(
    case: str, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of its cells, on stub frames in place of a measurement."""
    assert len(run_notebook(stub.part(*CASES[case]), monkeypatch)) > 10
    assert {path.suffix for path in paths.FIGURES.iterdir()} == {".svg", ".png", ".csv"}
