"""The look at a core's speed: a slow clock is a slow machine."""

from __future__ import annotations

import itertools

import pytest

from study import speed


@pytest.mark.parametrize("slowness", [0.5, 1.0, 3.0])
def test_what_a_piece_of_work_takes_by_the_clock_is_found(slowness: float) -> None:
    clock = itertools.count(7.0, slowness * speed.PIECE_S)  # one piece between two looks
    assert speed.piece_s(clock.__next__) / speed.PIECE_S == pytest.approx(slowness, rel=0.06)


def test_a_core_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = speed.slowness()
    monkeypatch.setattr(speed, "piece_s", lambda clock: pytest.fail("looked twice"))
    assert 0 < found == speed.slowness()
