"""The report's text and its page."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import orjson
import pandas as pd
import pytest
import stub
from telling import digits_typed, rendered, text_of, untold
from test_report_whole import searched

from study import figures, paths, report, sentences
from study.equivalence import DIFFERENT, EQUIVALENT, SMALL, UNDECIDED
from study.errors import StudyError
from study.frames import Frames
from study.page import render
from study.sentences import Values

ASKED = stub.experiment(depths=[4, 8])
REFUSAL = (
    "ValueError: To serve at least one request with the model's max seq len (4096), (0.5 GiB KV "
    "cache is needed, which is larger than the available KV cache memory (0.25 GiB). Try "
    "increasing `gpu_memory_utilization`"
)
FOUND = {
    "whole": stub.frames(ASKED),
    "void": stub.frames(ASKED, void=[("mla-moe-4", "long", 16, block) for block in range(3)]),
    "rejected": stub.frames(ASKED, rejected={"mla-dense-4": REFUSAL}),
    "nothing": stub.frames(ASKED, not_measured=[arm.name for arm in ASKED.arms()]),
    "no launch": stub.NOTHING,
}


def _study(found: Frames) -> report.Study:
    return report.Study("smoke", "A stub.", (stub.part(ASKED, found),))


# --- sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FOUND)
def test_every_number_of_the_text_is_in_the_values(case: str) -> None:
    study = _study(FOUND[case])
    sections = [*report.summary(study), *report.rerun(study)]
    text = text_of(sections)
    text += sentences.refusals("architecture", FOUND[case], study.values)
    assert len(text) > 200 and untold(text, study.values) == []


def test_no_digit_is_typed_in_a_sentence() -> None:
    assert digits_typed(sentences, names=True) == []


def test_a_count_is_kept_as_it_is_written() -> None:
    values = Values()
    assert values.count("arithmetic", 49.877) == "50"
    assert values.known["arithmetic"] == {"value": 50, "text": "50"}


def test_where_no_arm_was_asked_for_none_is_said_to_be_measured() -> None:
    said = sentences.refusals("architecture", FOUND["no launch"], Values())
    assert said == "No arm was asked for."


def test_windows_are_counted_over_all_levels_and_numbers_over_sentences() -> None:
    study = _study(FOUND["whole"])
    assert "windows of all levels are valid" in text_of(report.summary(study))


def test_windows_that_a_search_added_are_counted_apart() -> None:
    """What the lead counts and what a search added are all the windows asked for."""
    study = _study(searched(FOUND["whole"]))
    text = text_of(report.summary(study))
    known = {key: one.get("value") for key, one in study.values.known.items()}
    added = known["architecture.lead.windows.searched.window"]
    assert added == len(stub.launches(ASKED))
    assert known["architecture.windows.asked"] == known["architecture.lead.windows.asked"] + added
    assert f"a chapter of its own, added {added} windows on 8 arms) are valid" in text
    assert "of all levels" not in text


def test_a_key_means_one_number() -> None:
    values = Values()
    assert values.count("windows", 3) == values.count("windows", 3) == "3"
    with pytest.raises(StudyError, match="windows must be one number"):
        values.count("windows", 4)


@pytest.mark.parametrize(
    ("low", "high", "n", "same", "said"),
    [
        (0.5, 0.9, 3, DIFFERENT, "lower, by this interval"),
        (1.1, 1.9, 3, DIFFERENT, "higher, by this interval"),
        (1.01, 1.02, 3, SMALL, "higher, by this interval, but within the margin"),
        (0.99, 1.02, 3, EQUIVALENT, "no difference larger than the margin"),
        (0.9, 1.1, 3, UNDECIDED, "no difference is shown, and none is excluded"),
        (float("nan"), float("nan"), 1, UNDECIDED, "so no difference is shown"),
        (float("nan"), float("nan"), 0, UNDECIDED, "nothing to compare"),
    ],
)
def test_a_ratio_says_no_more_than_its_tests(
    low: float, high: float, n: int, same: str, said: str
) -> None:
    row = {"point": 0.8, "low": low, "high": high, "n": n, "equivalence": same}
    text = sentences.verdict(next(pd.DataFrame([row]).itertuples()))
    assert text == said or (n < 2 and said in text)


def test_the_headline_reads_the_void_out_of_the_account() -> None:
    study = _study(FOUND["void"])
    report.summary(study)
    known = study.values.known
    windows = len(ASKED.arms()) // 2 * 3 * 2 * (3 + 2)
    assert known["architecture.windows.asked"]["value"] == windows
    assert known["architecture.windows.valid"]["value"] == windows - 3
    assert known["architecture.windows.void"]["value"] == 3
    assert "architecture.lead.short.mla_over_gqa" in known
    assert "architecture.lead.long.mla_over_gqa" not in known  # void: nothing to lead with


def test_refusals_are_in_the_engines_own_words() -> None:
    text = sentences.refusals("architecture", FOUND["rejected"], Values())
    assert f"`mla-dense-4`: rejected: `{REFUSAL.replace('`', chr(39))}`" in text
    assert sentences.refusals("architecture", FOUND["whole"], Values()) == "Every arm was measured."


def test_of_an_arm_that_was_measured_in_some_blocks_only_it_is_said_in_how_many() -> None:
    found = stub.frames(ASKED)
    rows = found.launches
    later = rows["arm"].eq("mla-dense-4") & (rows["block"] > 0)
    rows.loc[later, ["outcome", "reason"]] = "not measured", "not measured within the budget"
    total = int(rows["arm"].eq("mla-dense-4").sum())
    text = sentences.refusals("architecture", found, Values())
    assert f"- `mla-dense-4` ({total - 1} of {total} launches): not measured" in text


def test_a_reason_is_said_once_for_all_arms_and_blocks_that_share_it() -> None:
    found = stub.frames(ASKED, rejected={"mla-dense-4": REFUSAL, "mla-moe-4": REFUSAL})
    rows = found.launches
    later = (rows["outcome"] == "rejected") & (rows["block"] > 0)
    rows.loc[later, "reason"] += " (asked in block 1; not asked again)"
    text = sentences.refusals("architecture", found, Values())
    both = "`mla-dense-4`, `mla-moe-4`: rejected", "`mla-moe-4`, `mla-dense-4`: rejected"
    assert any(one in text for one in both)
    assert len(text.splitlines()) == 1 and text.count(REFUSAL.split("`")[0]) == 1
    assert "not asked again" in text


def test_the_report_defines_each_latency_that_it_uses_in_one_place() -> None:
    reader: Any = nbformat
    content = reader.read(paths.NOTEBOOKS / "90_report.ipynb", as_version=4)
    names = ("**TTFT**", "**TPOT**", "**ITL**", "**E2E**")
    defining = [cell for cell in content.cells if all(name in cell.source for name in names)]
    assert len(defining) == 1 and defining[0].cell_type == "markdown"


# --- sections -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FOUND)
def test_every_section_can_be_shown_whatever_was_measured(case: str, kept: Path) -> None:
    study = _study(FOUND[case])
    for section in (
        report.summary, report.setting, report.a_window, report.measured, report.results,
        report.confounds, report.void_windows, report.appendix, report.rerun,
    ):  # fmt: skip
        shown = section(study)
        assert shown
        for one in shown:
            assert rendered(one).strip()
    assert "of this text's sentences" in report.write_values(study).text
    written = orjson.loads((kept / "report" / "values.json").read_bytes())
    assert set(written["values"]) == set(study.values.known)
    assert "20_architecture-results.csv" in report.written("20_architecture").text


# --- the page -------------------------------------------------------------------------------------


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.sources += [found["src"]] if "src" in found else []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small executed notebook with all that a report has, rendered."""
    drawn = figures.throughput(FOUND["whole"])
    new: Any = nbformat.v4
    cells = [
        new.new_markdown_cell("# A *title* & more\n\n## First"),
        new.new_code_cell(
            "secret_code()",
            execution_count=1,
            outputs=[
                new.new_output("display_data", {"text/markdown": "### Inner\n\n> **lead**"}),
                new.new_output("display_data", {"text/html": drawn._repr_html_()}),
                new.new_output("stream", name="stdout", text="progress 1 < 2\n"),
            ],
        ),
        new.new_markdown_cell("## First\n\nTwice the same name; costs $5 and $title."),
    ]
    folder = tmp_path_factory.mktemp("page")
    executed = folder / "executed.ipynb"
    executed.write_text(new.writes(new.new_notebook(cells=cells)))
    html = render(executed, folder / "out" / "report.html")
    assert html == folder / "out" / "report.html"
    return html.read_text()


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    parsed = _Page(page)
    assert all(link.startswith("#") for link in parsed.links)
    assert parsed.sources and all(source.startswith("data:") for source in parsed.sources)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert "@import" not in page and "url(" not in page


def test_the_contents_lead_to_every_heading(page: str) -> None:
    parsed = _Page(page)
    headings = {link.removeprefix("#") for link in parsed.links}
    assert headings == {"first", "inner", "first-2"}
    assert headings <= set(parsed.ids) and len(parsed.ids) == len(set(parsed.ids))


def test_the_page_shows_results_and_no_code(page: str) -> None:
    assert "<title>A title &amp; more</title>" in page
    assert "secret_code" not in page
    assert "<strong>lead</strong>" in page and "<figcaption>" in page
    assert "progress 1 &lt; 2" in page and "costs $5 and $title." in page


def test_of_several_gpus_a_server_takes_one() -> None:
    assert report._gpu(["H100"] * 8) == "one GPU of 8 (H100)"
    assert (report._gpu(["H100"]), report._gpu([])) == ("H100", "")
