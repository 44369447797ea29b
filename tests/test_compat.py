"""The tables of compatibility: complete, agreeing with what was measured, and what they find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import by_import
import pandas as pd
import planted_engine as planted
import pytest

from study import paths
from study.__main__ import main
from study.chapters import compatibility as chapter
from study.compat import command as compat
from study.compat import rules as compat_rules
from study.compat.devices import DEVICES
from study.compat.offload import offload
from study.compat.rules import Case, Found, Rule
from study.compat.source import Tree, open_tree
from study.compat.stages import FAMILIES, Engine, Question
from study.errors import StudyError
from study.sentences import Values
from study.tables import count

ARTICLES = {"0.14.1", "0.15.0", "0.16.0", "0.18.0"}
CPU = next(device for device in DEVICES if device.name == "CPU")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return compat.read()


@pytest.fixture(scope="module")
def single(table: pd.DataFrame) -> pd.DataFrame:
    return chapter.by_device_and_heads(table)


def rows(frame: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    for column, value in wanted.items():
        frame = frame[frame[column].eq(value)]
    return frame


def only(frame: pd.DataFrame, **wanted: Any) -> Any:
    found = rows(frame, **wanted)
    assert len(found) == 1, found
    return found.iloc[0]


# --- the committed tables -------------------------------------------------------------------------


def test_every_version_asks_every_question_once(single: pd.DataFrame) -> None:
    assert set(single["version"]) > ARTICLES
    keys = ["version", *chapter.KEY]
    assert not single.duplicated(keys).any()
    asked = single.groupby(["version", "device", "aiter"])["family"].agg(set)
    assert len(asked) == single["version"].nunique() * len(DEVICES)
    assert all(families == set(FAMILIES) for families in asked)
    each = single.groupby([*keys[:4], "asked_backend", "kv_dtype"]).size()
    assert set(each) == {len(compat.BLOCK_SIZES) * len(compat.HEADS)}


def test_every_answer_has_its_evidence_or_its_reason(table: pd.DataFrame) -> None:
    assert list(table.columns) == list(compat.COLUMNS)
    assert set(table["outcome"]) <= {"allowed", "overridden", "refused", "unknown"}
    known = table[table["outcome"].ne("unknown")]
    assert known["evidence"].str.fullmatch(r"vllm/[\w/]+\.py:\d+( [\w.<>]+)?").all()
    assert table.loc[table["outcome"].isin(["refused", "unknown"]), "words"].ne("").all()
    runs = table[table["outcome"].isin(["allowed", "overridden"])]
    assert runs[["block_size", "kernel_block"]].notna().all(axis=None)
    assert (runs["block_size"] % runs["kernel_block"]).eq(0).all()
    allowed = runs[runs["outcome"].eq("allowed") & runs["asked_block"].ne(0)]
    assert allowed["block_size"].eq(allowed["asked_block"]).all()


def test_the_table_finds_that_a_block_size_of_1_selected_aiters_mla(single: pd.DataFrame) -> None:
    """In 0.14.1 on ROCm, AITER off, no back end named; Triton's refused 1."""
    kimi = {"version": "0.14.1", "device": "MI325X", "aiter": "off", "family": "mla",
            "kv_dtype": "auto", "heads": 16}  # fmt: skip
    flag = only(single, asked_backend="", asked_block=1, **kimi)
    assert (flag["outcome"], flag["backend"], flag["switched"]) == (
        "allowed", "ROCM_AITER_MLA", True,
    )  # fmt: skip
    assert only(single, asked_backend="", asked_block=0, **kimi)["backend"] == "TRITON_MLA"
    triton = only(single, asked_backend="TRITON_MLA", asked_block=1, **kimi)
    assert triton["outcome"] == "refused"
    assert triton["words"].endswith("TRITON_MLA,does not support block size 1.")
    later = only(single, asked_backend="", asked_block=1, **kimi | {"version": "0.18.0"})
    assert (later["outcome"], later["switched"]) == ("refused", False)


@pytest.mark.parametrize(
    ("version", "taken"),
    [
        ("0.14.1", {16, 128}),
        ("0.16.0", {16, 128}),
        ("0.18.0", {4, 8, 16, 32, 64, 128}),
        ("0.22.1", {4, 8, 16, 32, 64, 128}),
        ("0.32.0", set(compat.HEADS)),
    ],
)
def test_the_heads_that_aiters_mla_takes(
    version: str, taken: set[int], single: pd.DataFrame
) -> None:
    asked = rows(single, version=version, device="MI355X", aiter="on", asked_block=0,
                 asked_backend="ROCM_AITER_MLA", kv_dtype="auto")  # fmt: skip
    assert set(rows(asked, outcome="allowed")["heads"]) == taken
    assert set(rows(asked, outcome="refused")["heads"]) == set(compat.HEADS) - taken


def test_dense_mla_never_needed_block_size_1_with_aiter(single: pd.DataFrame) -> None:
    asked = rows(single, version="0.14.1", device="MI325X", aiter="on", family="mla",
                 asked_backend="", kv_dtype="auto", heads=16)  # fmt: skip
    assert set(asked["outcome"]) == {"allowed"}
    assert set(asked["kernel_block"]) == {1}  # its kernel reads single tokens of any block
    sparse = rows(single, version="0.14.1", device="MI325X", aiter="on", family="mla-sparse",
                  asked_backend="", kv_dtype="auto", heads=16)  # fmt: skip
    assert set(rows(sparse, outcome="allowed")["asked_block"]) == {1}


def test_offload_failed_for_the_sparse_indexer_not_for_mla() -> None:
    found = compat.read(offloading=True)
    then = rows(found, version="0.14.1", device="MI325X, MI355X", aiter="on")
    assert only(then, family="mla")["outcome"] == "allowed"
    sparse = only(then, family="mla-sparse")
    assert sparse["outcome"] == "refused"
    assert sparse["words"] == "KeyError: 'model.layers.0.self_attn.indexer.k_cache'"
    later = rows(found, version="0.18.0", device="MI325X, MI355X", aiter="on")
    assert only(later, family="mla-sparse")["outcome"] == "allowed"
    cpu = rows(found, aiter="")
    cpu = cpu[cpu["device"].str.contains("CPU")]
    assert set(cpu["outcome"]) == {"refused"}


# --- the installed engine -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed() -> Tree:
    try:
        return open_tree("installed")
    except StudyError as error:
        pytest.skip(str(error))


def test_reading_agrees_with_what_was_measured_on_the_cpu(installed: Tree) -> None:
    """MLA runs 16 whatever is asked; GQA refuses 1 and 16, and takes 32, 64, 128 (the default)."""
    engine = Engine(installed, CPU)
    for block in compat.BLOCK_SIZES:
        mla = engine.answer(Question(FAMILIES["mla"], "", block, "auto", 8))
        assert (mla.block_size, mla.backend) == (16, "CPU_MLA")
        assert mla.outcome == ("allowed" if block in (None, 16) else "overridden")
        gqa = engine.answer(Question(FAMILIES["gqa"], "", block, "auto", 8))
        assert gqa.block_size == {None: 128, 1: None, 16: None}.get(block, block)
        assert gqa.outcome == ("refused" if block in (1, 16) else "allowed")
    refused = engine.answer(Question(FAMILIES["gqa"], "", 1, "auto", 8))
    assert refused.words == "No common block size for 1 (CPU_ATTN: [MultipleOf(32)])."
    assert offload(installed, CPU, FAMILIES["gqa"]).words.startswith("CPU Offloading is currently")


def test_the_installed_engine_gives_the_committed_table(
    installed: Tree, table: pd.DataFrame
) -> None:
    if installed.version not in set(table["version"]):
        pytest.skip(f"no table is committed for {installed.version}")
    said = chapter.live(table, values := Values())
    assert values.known["compatibility.same"]["value"] == len(
        chapter.by_device_and_heads(compat.derive(installed, [CPU, DEVICES[-1]]))
    )
    assert installed.version in said


@pytest.mark.engine
def test_importing_the_back_ends_and_reading_them_agree(installed: Tree) -> None:
    both = by_import.beside(installed)
    assert len(both) > 15
    assert both["agree"].all(), both[~both["agree"]]
    assert {"CPU_ATTN", "CPU_MLA", "ROCM_AITER_MLA", "FLASHMLA"} <= set(both["backend"])


# --- the rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "now", "kind"),
    [
        ([True, True], [True], "still true"),
        ([True], [True, False], "no longer true"),
        ([True], [None], "true then"),
        ([True, False], [True], "a matter of the back end"),
        ([False], [True], "not true then"),
        ([True, None], [True], "unknown"),
        ([], [True], "unknown"),
    ],
)
def test_the_class_of_a_rule_follows_from_its_cases(
    then: list[bool | None], now: list[bool | None], kind: str
) -> None:
    rule = Rule("somebody", "something", "1.0", lambda _: [])
    cases = [tuple(Case("here", one, "") for one in held) for held in (then, now)]
    assert Found(rule, cases[0], cases[1], "2.0").kind == kind


def test_the_rules_of_the_articles_and_their_classes() -> None:
    found = {one.rule.stated: one for one in compat_rules.judged()}
    kinds = {stated.split(" (")[0]: one.kind for stated, one in found.items()}
    assert kinds == {
        "MLA needs KV block size 1 on ROCm": "a matter of the back end",
        "With AITER off, MLA does not run on AITER's back end": "not true then",
        "MLA cannot use KV offload": "a matter of the back end",
        "DeepSeek V3.2 must not have FP8 KV": "no longer true",
        "GQA takes FP8 KV on ROCm": "still true",
        "AITER's MLA serves Kimi at TP=1": "not true then",
        "AITER's MLA takes 16 or 128 heads a rank, and no others": "no longer true",
        "At 8 heads a rank with AITER on, MLA falls through to Triton's back end": "not true then",
        "AITER's MLA takes 4, 8, or a multiple of 16 up to 128 heads a rank, and no others":
            "no longer true",
        "With FP8 KV, MLA falls back from Triton's back end to AITER's": "not true then",
    }  # fmt: skip
    block = found["MLA needs KV block size 1 on ROCm"]
    assert [one.where for one in block.then if one.holds] == ["ROCM_AITER_MLA_SPARSE"]


def test_a_rule_is_judged_by_the_latest_version_that_could_be_derived() -> None:
    tables = pd.DataFrame({"version": ["1.2", "1.10", "1.9"], "holds": [True, None, False]})
    rule = Rule("somebody", "something", "1.2",
                lambda table: [Case("here", table["holds"].iloc[0], "")])  # fmt: skip
    found = compat_rules.judge(rule, tables)
    assert (found.latest, found.kind) == ("1.9", "no longer true")


# --- the chapter and the command ------------------------------------------------------------------


def test_the_chapter_says_what_the_tables_say(table: pd.DataFrame) -> None:
    drawn = chapter.grid(table)
    assert drawn.figure is not None and len(drawn.figure.axes) == table["version"].nunique()
    moved = chapter.switches(table)
    assert len(moved.shown) == int(table["switched"].sum())
    assert not (moved.shown["with it"] == moved.shown["without the flag"]).any()
    changed = chapter.changes(table).shown
    step = changed[changed["versions"].eq("0.16.0 to 0.18.0") & changed["family"].eq("MLA")]
    assert step["was"].eq("allowed ROCM_AITER_MLA [1]").any()
    rules = compat_rules.judged()
    assert len(chapter.rules(rules).shown) == len(compat_rules.RULES)
    said = chapter.lead(table, rules, Values())
    assert f"{count(len(table))} rows of answers of" in said
    assert "In 0.14.1, 0.15.0, 0.16.0, on ROCm with no back end named and AITER off" in said


def test_a_head_count_that_was_not_asked_is_refused(table: pd.DataFrame) -> None:
    with pytest.raises(StudyError, match="heads must be one of 4, 8"):
        chapter.grid(table, 7)


def test_the_command_writes_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = planted.wheel(tmp_path / "vllm.whl", planted.sources())
    with pytest.raises(SystemExit):
        main(["compat", "--help"])
    assert main(["compat", "--wheel", str(tmp_path / "none"), "--out", str(tmp_path)]) == 1
    assert "is neither" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compat, "DEVICES", (CPU,))
        assert main(["compat", "--wheel", str(made), "--out", str(tmp_path)]) == 0
        assert main(["compat", "--wheel", str(made)]) == 0
        assert main(["compat", "--wheel", str(made), "--out", str(tmp_path / "new")]) == 1
    said = capsys.readouterr()
    assert "SHA-256" in said.out and "overridden" in said.out
    assert "must be a folder" in said.err
    assert set(compat.read(folder=tmp_path)["device"]) == {"CPU"}
    assert set(compat.read(tmp_path, offloading=True)["outcome"]) == {"unknown"}


def test_a_folder_without_tables_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="python -m study compat"):
        compat.read(folder=tmp_path)
    assert (paths.PACKAGE.parent / "data/compatibility/README.md").is_file()
