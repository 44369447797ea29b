"""The report's appendix on results of others: what it says follows from the files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from study import paths
from study.audit.command import Audited
from study.chapter import Shown
from study.chapters import others
from study.sentences import Values
from study.validity import Judgement, Verdict


def says(gate: str, verdict: Verdict, observed: float = 1.0, text: str = "So.") -> Judgement:
    return Judgement(gate, "window", verdict, observed, 0.0, text)


def of(file: str, *reasons: Judgement) -> Audited:
    return Audited(file, "a format", "undecided", reasons)


def test_a_gate_counts_once_a_file_with_the_worst_it_says() -> None:
    found = [
        of("a", says("errors", "pass"), says("errors", "fail"), says("times", "cannot judge")),
        of("b", says("errors", "pass"), says("times", "pass"), says("times", "cannot judge")),
    ]
    counted = others.by_gate(found).data.set_index("gate")
    assert counted.loc["errors"].to_dict() == {"pass": 1, "fail": 1, "cannot judge": 0}
    assert counted.loc["times"].to_dict() == {"pass": 0, "fail": 0, "cannot judge": 2}


def test_nothing_found_is_an_empty_table() -> None:
    assert others.by_gate([]).data.empty
    assert others.by_table([]).data.empty


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Shown], Values]:
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "DERIVED", tmp_path)
    values = Values()
    return others.appendix(values), values


def test_the_appendix_has_every_file_and_the_published_findings(
    shown: tuple[list[Shown], Values], tmp_path: Path
) -> None:
    _, values = shown
    known = {key: entry["value"] for key, entry in values.known.items()}
    assert known["others.files.all"] == known["others.files.undecided"] == 117
    assert known["others.tables.all"] == known["others.tables.void"] + 6 == 19

    table = pd.read_csv(tmp_path / f"{others.BOOK}-tables.csv").set_index("table")
    stress = table.loc["stress-saturation, Llama-3.1-405B"]
    assert stress["refuted"] == "750 (551), 1000 (551)"
    assert "500, 750 and 1000 are one and the same load" in stress["distinct"]
    assert str(table.loc["multi-run, Kimi-K2.5", "refuted"]).startswith("200 (100), 500 (100)")
    assert table.loc["multi-run, DeepSeek-V3.2", "tokens"] == "no one length"
    assert (table["saturation"] != "supported").all()


def test_the_tables_can_be_audited_from_disk(
    shown: tuple[list[Shown], Values], tmp_path: Path
) -> None:
    assert len(list((tmp_path / others.BOOK).glob("*.csv"))) == 19
