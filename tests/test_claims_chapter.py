"""The chapter on published numbers: its sentences, tables and figures, and its notebook."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest

from study import paths, style
from study.chapter import Shown, Text
from study.chapters import claims as chapter
from study.chapters import claims_figures as figures
from study.claims import published
from study.sentences import Values
from study.style import Drawn
from study.tables import Table

DATA = published.read()
DRAWINGS: dict[str, Callable[[], Drawn]] = {
    "throughput-errors": lambda: figures.throughput_and_errors(DATA),
    "interactivity": lambda: figures.interactivity(DATA),
    "tokens-per-watt": lambda: figures.tokens_per_watt(DATA),
    "in-flight": figures.in_flight,
    "aiter": lambda: figures.aiter(DATA),
}


@pytest.fixture(autouse=True)
def quick(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ROOT", scratch)
    monkeypatch.setattr(style, "PNG_DPI", 40)


def test_every_number_of_the_text_is_in_the_values() -> None:
    values = Values()
    text = "\n".join(one.text for one in chapter.summary(values) if isinstance(one, Text))
    assert len(text) > 2000
    for number in sorted((str(one["text"]) for one in values.known.values()), key=len)[::-1]:
        text = text.replace(number, "")
    assert re.findall(r"\d[\d.,]*", text) == []


def test_the_headline_counts_every_claim() -> None:
    values = Values()
    chapter.headline(chapter.found(), values)
    known = {key: one["value"] for key, one in values.known.items()}
    classes = [n for key, n in known.items() if key.startswith("claims.class.")]
    assert known["claims.all"] == sum(classes) == 67 and known["claims.sources"] == 6


@pytest.mark.parametrize("section", [chapter.summary, chapter.results, chapter.appendix])
def test_every_section_can_be_shown(section: Callable[[Values], list[Shown]]) -> None:
    for one in section(Values()):
        said = one._repr_markdown_() if isinstance(one, Text) else one._repr_html_()
        assert said.strip()


def test_what_is_kept() -> None:
    for section in (chapter.summary, chapter.results, chapter.appendix):
        section(Values())
    tables = {path.stem.removeprefix("00_claims-") for path in paths.DERIVED.glob("00_claims-*")}
    assert tables == {"sources", "classes", "against", "claims", "tables"}
    claims = pd.read_csv(paths.DERIVED / "00_claims-claims.csv")
    assert {"stated", "computed", "class", "why", "missing"} <= set(claims.columns)
    drawn = {path.stem.removeprefix("00_claims-") for path in paths.FIGURES.glob("*.csv")}
    assert drawn == set(DRAWINGS)


def test_every_source_is_identified_before_its_claims() -> None:
    known = pd.read_csv(chapter.SOURCES, dtype=str, keep_default_na=False)
    assert list(known["source"]) == list(dict.fromkeys(one.source for one in published.claims()))
    assert (known[["called", "who", "title"]] != "").all().all()
    assert known["link"].str.match(r"https://\S+$|$").all()
    table = chapter.sources(chapter.found())
    assert list(table.data["source"]) == list(known["source"])
    assert ((table.data == "") == (known == "")).all().all()
    assert (table.shown == "not known").sum().sum() == (known == "").sum().sum()
    assert table.shown["Source"][2] == "georgiou-2026 (the paper)"
    shown = chapter.summary(Values())
    first = next(at for at, one in enumerate(shown) if isinstance(one, Text) and "\n- " in one.text)
    assert any(isinstance(one, Table) for one in shown[:first])


def test_a_claim_in_words_is_not_given_a_number_that_its_source_does_not_state() -> None:
    rows = chapter.table(chapter.found()).shown.set_index("Claim")["Stated"]
    for name in ("AITER is a hardware block", "AITER MLA in this configuration", "linear scaling"):
        assert rows[name] == "in words"
    assert rows["heads per rank"] == "16 | 8" and rows["192 GB needs two nodes"] == "16"
    assert rows["later sweep"] == "in words"  # what it states are peaks, its evidence are ratios
    assert (rows != "").all()


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_drawn_from_its_frame_and_is_the_same_each_time(name: str) -> None:
    first, second = DRAWINGS[name](), DRAWINGS[name]()
    assert first.figure is not None and len(first.frame) > 3 and len(first.caption) > 100
    assert first._repr_html_() == second._repr_html_()


def test_refuted_levels_are_hollow() -> None:
    drawn = figures.in_flight()
    assert drawn.figure is not None
    hollow = [
        np.size(line.get_xdata())
        for axis in drawn.figure.axes
        for line in axis.lines
        if line.get_markerfacecolor() == style.HOLLOW_FACE
    ]
    assert sum(hollow) == (drawn.frame["verdict"] == "fail").sum() > 20


def test_the_notebook_runs_and_its_account_is_complete() -> None:
    reader: Any = nbformat
    content = reader.read(paths.NOTEBOOKS / "00_claims.ipynb", as_version=4)
    shown: list[object] = []
    namespace: dict[str, Any] = {}
    for cell in content.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, "cell", "exec"), namespace)
            namespace["display"] = lambda *items: shown.extend(items)
    assert len(shown) == 4 and len(namespace["found"]) == 67
