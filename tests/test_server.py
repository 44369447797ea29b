"""The server's life: ready only when it is ours, its own words on failure, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from study.engine import Command
from study.errors import StudyError
from study.server import Limits, Server, ServerError, free_port, port_is_free

FAKE = str(Path(__file__).with_name("fake_engine.py"))


def fake_server(folder: Path, fault: str = "", limits: Limits | None = None) -> Server:
    port = free_port()
    argv = (sys.executable, FAKE, "--port", str(port), "--served-model-name", "ours")
    return Server(Command(argv, {"FAKE_FAULT": fault}), "ours", port, folder / "log", limits)


def descendants() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture(autouse=True)
def nothing_is_left() -> object:
    before = descendants()
    yield None
    assert descendants() <= before


def test_it_starts_answers_and_leaves_nothing(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        assert server.ready_s < 10
        assert "vllm:num_requests_running" in server.metrics()
        assert not port_is_free(server.port)
    assert port_is_free(server.port)
    assert "Resolved architecture" in server.log_text()


def test_what_an_engine_leaves_in_its_folder_of_sockets_goes_with_it(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        assert server.pid is not None
        folder = Path(psutil.Process(server.pid).environ()["VLLM_RPC_BASE_PATH"])
        assert len(str(folder / str(uuid.uuid4()))) < 100  # or it is no name for a socket
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(folder / "left"))
    assert not folder.exists()


def test_the_key_is_in_no_command_and_no_log(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        assert server.api_key not in server.command.as_shell()
        assert server.api_key not in server.log_text()


@pytest.mark.parametrize(
    ("fault", "words", "refused"),
    [
        ("refuse", "No common block size for 1", True),
        ("crash", "out of registers", False),
        ("exit0", "bye", False),
    ],
)
def test_a_server_that_ends_says_why(tmp_path: Path, fault: str, words: str, refused: bool) -> None:
    with pytest.raises(ServerError, match=words) as caught, fake_server(tmp_path, fault):
        pytest.fail("it must not become ready")
    assert caught.value.refused is refused
    assert "to run it by hand: FAKE_FAULT" in str(caught.value)


def test_a_start_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    limits = Limits(load_s=0.6, stall_s=30)
    with (
        pytest.raises(ServerError, match="it may take 1 s to load"),
        fake_server(tmp_path, "hang", limits),
    ):
        pytest.fail("it must not become ready")


def test_a_log_that_does_not_grow_is_a_stall(tmp_path: Path) -> None:
    limits = Limits(load_s=30, stall_s=0.6)
    with (
        pytest.raises(ServerError, match="line to its log"),
        fake_server(tmp_path, "silent", limits),
    ):
        pytest.fail("it must not become ready")


def test_a_port_in_use_is_refused_before_anything_starts(tmp_path: Path) -> None:
    server = fake_server(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        with pytest.raises(StudyError, match=f"listens on {server.port}"), server:
            pytest.fail("it must not start")


def test_another_server_on_the_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    with fake_server(tmp_path) as stranger:
        ours = fake_server(tmp_path)
        ours.port = stranger.port
        assert not ours._answers()


def test_an_exception_inside_the_block_stops_it(tmp_path: Path) -> None:
    server = fake_server(tmp_path)
    with pytest.raises(KeyboardInterrupt), server:
        raise KeyboardInterrupt
    assert port_is_free(server.port)


def test_the_death_of_a_ready_server_is_noticed(tmp_path: Path) -> None:
    with fake_server(tmp_path) as server:
        assert server._process is not None
        guarded = psutil.Process(server._process.pid).children()[0]
        guarded.kill()
        guarded.wait(5)
        with server.log.open("a") as log:
            log.write("AssertionError: a refusal by its kind, but the server had been ready\n")
        deadline = time.monotonic() + 5
        with pytest.raises(ServerError, match="the server died") as caught:
            while time.monotonic() < deadline:
                server.check_alive("the server died")
        assert not caught.value.refused


STUBBORN = 'trap "" TERM; exec sleep 60'


def test_what_outlives_its_parents_is_stopped_with_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when guard and API server were killed for want of memory, and the engine hangs."""
    monkeypatch.setattr("study.server.STOP_S", 0.2)
    with fake_server(tmp_path) as server:
        assert server.pid is not None
        started = subprocess.run(
            ["sh", "-c", f"({STUBBORN}) >/dev/null & echo $!"],
            stdout=subprocess.PIPE,
            check=True,
            process_group=server.pid,
        )
        orphan = psutil.Process(int(started.stdout))
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
        for one in family:
            one.kill()
        psutil.wait_procs(family, timeout=5)
    assert not psutil.wait_procs([orphan], timeout=5)[1]


GUARD = "import sys; from study import guard; guard.GRACE_S = 0.3; guard.main(sys.argv[1:])"


def test_a_guard_without_its_parent_stops_what_outlives_its_command() -> None:
    command = ["sh", "-c", f"({STUBBORN}) & wait"]
    guard = subprocess.Popen(
        [sys.executable, "-c", GUARD, *command], stdin=subprocess.PIPE, process_group=0
    )
    assert guard.stdin is not None
    deadline = time.monotonic() + 10
    family: list[psutil.Process] = []
    while "sleep" not in [one.name() for one in family] and time.monotonic() < deadline:
        time.sleep(0.02)
        family = psutil.Process(guard.pid).children(recursive=True)
    assert len(family) == 2  # the command and what it started
    guard.stdin.close()
    guard.wait(10)
    _, alive = psutil.wait_procs(family, timeout=2)
    assert not alive


@pytest.mark.parametrize(
    ("fault", "words"), [("mute", "must answer GET /server_info"), ("dies", "out of registers")]
)
def test_a_page_that_does_not_come_is_the_servers_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    """And none of the study, which goes on; a dying server is given time to say why."""
    monkeypatch.setattr("study.server.DYING_S", 0.1 if fault == "mute" else 5.0)
    with fake_server(tmp_path, fault) as server:
        with pytest.raises(ServerError, match=words) as caught:
            server.require("GET", "/server_info")
        assert not caught.value.refused


def test_a_killed_parent_takes_its_server_along(tmp_path: Path) -> None:
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(FAKE).parent)!r})
from pathlib import Path
from test_server import fake_server
with fake_server(Path({str(tmp_path)!r})) as server:
    print(server._process.pid, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    guard = psutil.Process(int(parent.stdout.readline()))
    family = [guard, *guard.children(recursive=True)]
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
