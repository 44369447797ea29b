"""Shared by the tests: a scratch study, so that no test touches what was measured."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings
from studies import empty

from study import paths, style

# The same examples every time, and no time limit an example: two busy cores are no bug.
settings.register_profile("study", deadline=None, derandomize=True)
settings.load_profile("study")


# A shell makes its background jobs deaf to Ctrl-C; what the tests start and interrupt must hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty study root, for this process and those it starts."""
    monkeypatch.setenv("STUDY_ROOT", str(empty(tmp_path)))
    places = {"RAW": "data/raw", "DERIVED": "data/derived", "FIGURES": "figures"}
    places |= {"REPORT": "report", "BUILD": "build", "CACHE": ".cache"}
    for name, place in places.items():
        monkeypatch.setattr(paths, name, tmp_path / place)
    return tmp_path


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where figures and tables are kept: coarse, and without waiting for the disk."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(style, "PNG_DPI", 30)
    monkeypatch.setattr("os.fsync", lambda _: None)
    for name in ("FIGURES", "DERIVED", "REPORT"):
        monkeypatch.setattr(paths, name, tmp_path / name.lower())
    return tmp_path
