"""The report of a whole profile: every section, with every experiment and analysis in it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import stub
from telling import rendered, text_of

from study import paths, profiles, report
from study.chapter import Part, Text
from study.experiment import Experiment
from study.experiments import EXPERIMENTS
from study.frames import Frames

SECTIONS = (
    report.summary,
    report.setting,
    report.a_window,
    report.believed,
    report.measured,
    report.results,
    report.physics,
    report.published,
    report.confounds,
    report.void_windows,
    report.appendix,
    report.rerun,
)


GPU = "AMD Instinct MI325X"
SETUPS = {
    "cpu": stub.SETUP,
    "rocm": {
        **stub.SETUP,
        "engine": {"package": "vllm", "version": "0.0-stub", "kind": "rocm"},
        "machine": {**stub.SETUP["machine"], "gpus": [GPU]},
    },
}


def searched(found: Frames) -> Frames:
    """The same, with levels that a search has chosen besides."""
    if found.windows.empty:
        return found
    top = found.windows.groupby("launch", as_index=False).tail(1)
    more = top.assign(level=4 * top["level"], searched=True)
    return replace(found, windows=pd.concat([found.windows, more], ignore_index=True))


def part(asked: Experiment) -> Part:
    """With a search only where the experiment has one."""
    found = stub.frames(asked) if asked.arms() else stub.NOTHING
    searches = any(arm.search for arm in asked.arms())
    return stub.part(asked, searched(found) if searches else found)


@pytest.mark.parametrize(
    ("kind", "choice"),
    [
        ("cpu", profiles.Choice("smoke")),
        ("rocm", profiles.Choice("gpu", models=("gqa-dense-1b", "mla-dense-1b"), launches=2)),
    ],
    ids=lambda one: one if isinstance(one, str) else one.profile,
)
def test_every_section_of_a_whole_profile_can_be_shown(
    kind: str, choice: profiles.Choice, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also that a key of the values means one number, wherever it is said.

    One launch an arm, and several; on ROCm every arm of the study can be had.
    """
    monkeypatch.setattr(stub, "SETUP", SETUPS[kind])
    profile = profiles.load(choice)
    parts = tuple(part(one) for one in profile.experiments.values())
    study = report.Study(profile.name, profile.description, parts, profile.analyses)
    shown = {section.__name__: section(study) for section in SECTIONS}
    for section, content in shown.items():
        assert content and all(rendered(one).strip() for one in content), section
    told = [one for one in shown["results"] if not isinstance(one, Text)]
    captions = [one.caption for one in told if one.caption.startswith("Not measured")]
    assert all(one != after for one, after in pairwise(captions))
    said = text_of(shown["summary"])
    assert "What the published numbers really say" in said
    assert said.startswith(f"> Profile `{choice.profile}`: ")
    assert ("choose no server by them" in said) == (kind == "cpu")
    assert (f"Run on {GPU}." in said) == (kind == "rocm")
    assert (kept / "derived" / "90_report-others-tables.csv").exists()
    report.write_values(study)
    assert (paths.REPORT / "values.json").stat().st_size > 1000


@pytest.mark.parametrize("kind", EXPERIMENTS.values(), ids=lambda kind: kind.name)
def test_every_experiment_has_a_short_title(kind: type[Experiment]) -> None:
    assert 0 < len(kind.title) < 40
