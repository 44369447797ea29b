"""The look at a core's speed: how long a new Python takes for its imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from study import speed


def test_a_new_python_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "PIECE", "import time; time.sleep(0.4)")
    assert 0.4 <= speed.piece_s() < 4.0


def test_the_plan_has_read_from_disk_what_it_is_timed_by() -> None:
    imported = "import sys, study.reproduce; before = set(sys.modules)"
    after = f"{speed.PIECE}; print(*set(sys.modules) - before)"
    ran = [sys.executable, "-c", f"{imported}; {after}"]
    assert subprocess.run(ran, capture_output=True, text=True, check=True).stdout == "\n"


def test_a_core_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = speed.slowness()
    monkeypatch.setattr(speed, "piece_s", lambda: pytest.fail("looked twice"))
    assert 0 < found == speed.slowness()
