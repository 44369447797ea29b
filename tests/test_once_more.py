"""A window that is void for a passing reason is measured once more; no other is, and none twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_run import PASSING, fake, nothing_is_left, run  # noqa: F401  (fixtures)

from study import validity

pytestmark = pytest.mark.quiet


@pytest.fixture
def once_more(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The stand-in engine, with what its other tests do without."""
    monkeypatch.setattr(validity, "PASSING", PASSING)


def test_a_window_void_for_the_moment_is_measured_once_more(
    once_more: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The warm-up of level 1 takes at most 141 requests; a load of 5 s reaches 150 at half the pace.
    monkeypatch.setenv("FAKE_FAULT", "compile-at=150")
    store, found, said = run(levels=[1], steady_s=5.0)
    assert list(found.windows["again"]) == list(found.judgements["again"].unique()) == [False, True]
    assert ["JIT" in reasons for reasons in found.windows["reasons"]] == [True, False]
    assert [folder.name for folder in store.attempts()[0].windows] == ["00-short-1", "01-short-1"]
    assert "level 1 once more, for the first was void · 1/2 windows" in said
    assert len(found.asked().windows) == 2


def test_a_window_is_measured_twice_at_most(
    once_more: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "compile-after=0")
    _, found, _ = run(levels=[1])
    assert list(found.windows["verdict"]) == ["void", "void"]


def test_what_the_engine_did_to_requests_is_its_answer(
    once_more: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_FAULT", "hits=8")
    _, found, _ = run(levels=[1])
    assert list(found.windows["verdict"]) == ["void"]
