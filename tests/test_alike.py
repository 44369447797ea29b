"""The same server in several chapters: what counts as the same, and what is said of its range."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import stub
from telling import untold

from study import report
from study.alike import alike
from study.chapter import Part
from study.chapters import instrument_sentences
from study.experiment import Experiment
from study.experiments import Aiter, Architecture, BlockSize, Instrument
from study.gates.machine import UNSEEN
from study.sentences import Values
from study.tables import Table

COMMON = {"launches": 1, "models": ["gqa-dense"], "workloads": ["short:128/64"], "levels": [4]}
INSTRUMENT = Instrument.of({**COMMON, "max_num_seqs": 8})
ARCHITECTURE = Architecture.of({**COMMON, "max_num_seqs": 4})
SWITCHES = Aiter.of({**COMMON, "switches": ["compile", "kv_split"]})
SIZES = BlockSize.of({**COMMON, "block_sizes": [32, 128]})
RATES = {
    "gqa-dense-a": 600.0, "gqa-dense-b": 606.0, "gqa-dense-2": 620.0, "gqa-dense-eager": 520.0,
    # Other servers: compiled, told how to split, told a block size.
    "gqa-dense-compiled": 950.0, "gqa-dense-kv-split": 100.0, "gqa-dense-no-kv-split": 5000.0,
    "gqa-dense-block32": 10.0, "gqa-dense-block128": 9000.0,
}  # fmt: skip


def planted(
    asked: Experiment, rates: Mapping[str, float] = RATES, void: Collection[str] = ()
) -> Part:
    """A part whose windows have the output throughput of their arm."""
    found = stub.frames(asked)
    windows = found.windows.assign(output_tok_s=found.windows["arm"].map(rates))
    windows["verdict"] = windows["arm"].isin(void).map({True: "void", False: "valid"})
    return stub.part(asked, replace(found, windows=windows))


WHOLE = tuple(planted(one) for one in (INSTRUMENT, ARCHITECTURE, SWITCHES, SIZES))


def test_only_launches_that_nothing_tells_apart_are_one_server() -> None:
    (row,) = alike(WHOLE).to_dict("records")
    assert (row["least"], row["most"]) == (520.0, 620.0)
    assert row["ratio"] == pytest.approx(620 / 520)
    assert (row["launches"], row["chapters"]) == (4, 3)
    assert row["differ"] == "`max_model_len` and `max_num_seqs`"
    assert (row["model"], row["workload"], row["level"]) == ("gqa-dense", "short", 4)


@pytest.mark.parametrize(
    "other",
    [
        {"workloads": ["short:128/32"]},  # the same name, another load
        {"layers": 4},
        {"levels": [2]},
        {"eager": False},
        {"kv_cache_gib": 0.5},
        {"max_num_seqs": 2},  # where the limit is met
        {"models": ["mla-dense"]},
    ],
)
def test_of_another_load_depth_or_setting_nothing_is_said(other: dict[str, object]) -> None:
    asked = Instrument.of({**COMMON, "second_levels": [], **other})
    parts = (planted(asked, dict.fromkeys((arm.name for arm in asked.arms()), 1.0)), WHOLE[1])
    assert alike(parts).empty
    assert alike(parts[::-1]).empty and alike(()).empty


def test_void_windows_and_a_single_chapter_are_no_yardstick() -> None:
    assert alike(WHOLE[:1]).empty and alike([*WHOLE[:1], *WHOLE[3:]]).empty
    void = planted(SWITCHES, void=["gqa-dense-eager"])
    (row,) = alike([*WHOLE[:2], void]).to_dict("records")
    assert (row["least"], row["most"], row["chapters"]) == (600.0, 620.0, 2)


def test_the_widest_range_comes_first() -> None:
    several = {**COMMON, "levels": [1, 4]}
    parts = [planted(kind.of(several)) for kind in (Instrument, Architecture)]
    windows = parts[1].found.windows
    windows.loc[windows["level"] == 4, "output_tok_s"] = 1200.0
    found = alike(parts)
    assert found["level"].tolist() == [4, 1]
    assert found["ratio"].tolist() == pytest.approx([2.0, 620 / 600])


def test_one_pair_never_stands_alone_where_other_chapters_have_the_server() -> None:
    values = Values()
    said = instrument_sentences.floor(WHOLE[0], values, WHOLE)
    assert said.startswith("Two launches of one and the same server differed by 1 %")
    assert "4 in flight, gave 520 to 620 tok/s in 4 launches of 3 chapters, 19.2 % apart" in said
    assert "their flags differ in `max_model_len` and `max_num_seqs` alone." in said
    assert "nearer to one than 19.2 %, the larger of the two, is not told from chance" in said
    assert untold(said, values) == []


def test_the_pair_counts_where_it_lies_further_apart() -> None:
    first = planted(INSTRUMENT, {"gqa-dense-a": 600.0, "gqa-dense-b": 900.0})
    elsewhere = {**COMMON, "levels": [2]}
    others = [planted(kind.of(elsewhere)) for kind in (Architecture, Aiter)]
    said = instrument_sentences.floor(first, Values(), [first, *others])
    assert "2 in flight, gave 520 to 620" in said and "nearer to one than 50 %," in said


def test_several_blocks_have_their_spread_and_other_chapters_their_range() -> None:
    first = planted(Instrument.of({**COMMON, "launches": 3}))
    said = instrument_sentences.floor(first, Values(), [first, *WHOLE[1:]])
    assert "an interval holds that, a ratio without one does not. The same model" in said
    assert "nearer to one than 19.2 %, the larger of the two, is not told" in said


def test_without_a_pair_the_other_chapters_are_the_floor() -> None:
    first = planted(INSTRUMENT, void=["gqa-dense-a"])
    said = instrument_sentences.floor(first, Values(), [first, *WHOLE[1:]])
    assert said.startswith("The same model") and "larger of the two" not in said
    assert "nearer to one than 19.2 % is not told from chance" in said


def test_summary_and_confounds_name_both(kept: Path) -> None:
    first = planted(INSTRUMENT)
    first.found.judgements.loc[0, "text"] = f"Others kept 0.00 of 2 cores busy; {UNSEEN}."
    study = report.Study("smoke", "A stub.", (first, *WHOLE[1:]))
    assert "gave 520 to 620 tok/s" in report.first(study)
    table = report.confounds(study)[1]
    assert isinstance(table, Table) and (kept / "derived").is_dir()
    meaning = str(table.data.set_index("confound").loc["speed of the cores", "what it means"])
    assert "differed by 1 % in output throughput" in meaning and "gave 520 to 620" in meaning
