"""What processes that the study starts find, and who is counted to them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from study import children

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "print('here', flush=True); input()"])
child.wait()
"""


def test_a_family_is_all_that_was_started_and_its_leader_last() -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None and leader.stdin is not None
        assert leader.stdout.readline() == b"here\n"
        found = children.family(leader.pid)
        assert [process.pid for process in found][-1] == leader.pid
        assert [process.ppid() for process in found] == [leader.pid, os.getpid()]
        leader.stdin.write(b"\n")
        leader.stdin.close()
    assert leader.returncode == 0
    assert children.family(leader.pid) == []
    assert children.family(None) == []


def test_the_package_is_found_from_anywhere_and_before_what_was_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.py").write_text("")  # somebody else's, inherited
    (tmp_path / "inherited.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = "import inherited, study.children; print(study.children.__file__)"
    said = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, **children.environment()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(said.stdout.strip()) == Path(children.__file__)
