"""One running server: started, proven to be ours, watched, read, and stopped without a trace."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from study import children, engine
from study.engine import Command
from study.errors import StudyError

POLL_S = 0.25
STOP_S = 20.0  # vLLM stops by itself within 0.3 to 8 s; then it is killed
DYING_S = 8.0  # between an engine's last answer and the end of its process


@dataclass(frozen=True)
class Limits:
    """How long a start may take, in seconds."""

    load_s: float = 600.0  # until the first sign of compilation
    compile_s: float = 1800.0  # from there (an AITER module alone can take 225 s)
    stall_s: float = 240.0  # without a new line in the log


class ServerError(StudyError):
    """A server that did not start, or died. `refused`: the engine said no, as opposed to broke."""

    def __init__(self, what: str, reason: engine.Reason, command: Command, log: Path) -> None:
        self.reason = reason.text
        self.refused = reason.refused
        super().__init__(
            f"{what}: {reason.text}\n  its log: {log}\n  to run it by hand: {command.as_shell()}"
        )


def free_port(but: int | None = None) -> int:
    """A loopback port that nobody listens on; not `but`, on which somebody is about to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        return port if port != but else free_port(but)  # this one is held until that is found


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass
class _Watch:
    """What a starting server has shown of itself so far; times as CLOCK_MONOTONIC seconds."""

    began: float
    grown: float  # when its log last grew
    log_bytes: int = 0
    building: bool = False
    compiling_since: float | None = None


class Server:
    """A context manager around one server process and everything it starts.

    Ready means that *this* process answers: under a name and with a key that no other server has.
    Leaving the block stops the whole process group and waits until the port is free.
    """

    def __init__(
        self, command: Command, name: str, port: int, log: Path, limits: Limits | None = None
    ) -> None:
        self.command, self.name, self.port, self.log = command, name, port, log
        self.limits = limits or Limits()
        self.api_key = secrets.token_urlsafe(24)
        self.base_url = f"http://127.0.0.1:{port}"
        self.ready_s = float("nan")
        self._process: subprocess.Popen[bytes] | None = None
        self._watch = _Watch(math.nan, math.nan)
        # Engines leave their sockets behind, four a launch, in the folder for temporary files.
        self._sockets = tempfile.TemporaryDirectory(prefix="study-", ignore_cleanup_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
            while not self.is_ready():
                time.sleep(POLL_S)
        except BaseException:
            self.stop()
            raise
        return self

    def start(self) -> None:
        """Start the process; `is_ready` tells when it serves. Who calls this calls `stop` too."""
        if not port_is_free(self.port):
            raise StudyError(
                f"the server's port must be free; something listens on {self.port}. "
                "Stop it, or let the study choose a port."
            )
        now = time.monotonic()
        self._watch = _Watch(now, now)
        self._start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self) -> None:
        guarded = [sys.executable, "-m", "study.guard", "--", *self.command.argv]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                guarded,
                stdin=subprocess.PIPE,  # held open: when we die, the guard stops the server
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.command.environment, **self._own_environment()},
                # A group of its own, to be stopped whole, but not a session: sessions are scheduled
                # as one (autogroup), and the client's was seen to wait 100 ms for the server's.
                process_group=0,
            )

    def _own_environment(self) -> dict[str, str]:
        return {"VLLM_API_KEY": self.api_key, "VLLM_RPC_BASE_PATH": self._sockets.name}

    def is_ready(self) -> bool:
        """Whether a started server serves by now; one look.

        Raises: ServerError if it ended, or takes longer than its limits.
        """
        if not math.isnan(self.ready_s):
            return True
        if self._answers():
            self.ready_s = time.monotonic() - self._watch.began
            return True
        self.check_alive("the server ended before it was ready")
        self._look_at_log(time.monotonic())
        return False

    def _look_at_log(self, now: float) -> None:
        watch = self._watch
        if (log_bytes := self.log.stat().st_size) > watch.log_bytes:
            watch.log_bytes, watch.grown = log_bytes, now
            log = self.log_text()
            watch.building = engine.building(log)
            if watch.compiling_since is None and engine.compiling(log):
                watch.compiling_since = now
        self._check_limits(now, watch)

    def _check_limits(self, now: float, watch: _Watch) -> None:
        compiling_since = watch.compiling_since
        if compiling_since is None and now - watch.began > self.limits.load_s:
            raise self._late("load", now - watch.began, self.limits.load_s)
        if compiling_since is not None and now - compiling_since > self.limits.compile_s:
            raise self._late("compile", now - compiling_since, self.limits.compile_s)
        if not watch.building and now - watch.grown > self.limits.stall_s:
            raise self._late("write a line to its log", now - watch.grown, self.limits.stall_s)

    def _late(self, doing: str, took_s: float, limit_s: float) -> ServerError:
        words = engine.Reason(
            f"it may take {limit_s:.0f} s to {doing}, it took {took_s:.0f} s", False
        )
        return ServerError("the server was too slow to start", words, self.command, self.log)

    def check_alive(self, what: str) -> None:
        """Raise a ServerError with the engine's own reason if the server has ended."""
        if self._process is not None and self._process.poll() is None:
            return
        words = engine.reason(self.log_text())
        if not math.isnan(self.ready_s):  # it had accepted what it was asked: this is no refusal
            words = engine.Reason(words.text, refused=False)
        raise ServerError(what, words, self.command, self.log)

    def _answers(self) -> bool:
        """Whether a server answers here to our key and under our name: no other one would."""
        try:
            status, body = self.get("/v1/models", timeout_s=2.0)
        except (OSError, http.client.HTTPException):
            return False
        return status == 200 and f'"{self.name}"' in body

    def get(self, path: str, timeout_s: float = 30.0) -> tuple[int, str]:
        """GET a page of the server: status and text."""
        return self._ask("GET", path, None, timeout_s)

    def post(self, path: str, body: object = None, timeout_s: float = 60.0) -> tuple[int, str]:
        """POST to the server, with a body of JSON if one is given: status and text."""
        return self._ask("POST", path, body, timeout_s)

    def _ask(self, method: str, path: str, body: object, timeout_s: float) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        content = None if body is None else json.dumps(body)
        try:
            connection.request(method, path, content, self._headers())
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def _headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self.api_key}", "Content-Type": "application/json"}

    @property
    def pid(self) -> int | None:
        """Of the process that started all others of the server; None when it is stopped."""
        return None if self._process is None else self._process.pid

    def require(self, method: str, path: str, timeout_s: float = 30.0) -> tuple[int, str]:
        """Status and text of an answer that a launch cannot do without.

        Raises: ServerError where there is none, with the engine's own reason if it died.
        """
        try:
            return self._ask(method, path, None, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            deadline = time.monotonic() + DYING_S
            while time.monotonic() < deadline:
                self.check_alive("the server died")
                time.sleep(POLL_S)
            said = f"it must answer {method} {path} within {timeout_s:g} s, and did not ({error!r})"
            words = engine.Reason(said, refused=False)
            raise ServerError("no answer", words, self.command, self.log) from error

    def metrics(self) -> str:
        """The text of `/metrics`; a ServerError if there is no answer."""
        return self.require("GET", "/metrics")[1]

    def log_text(self) -> str:
        """The log so far, without colours: a notebook's kernel asks every program for them."""
        return engine.plain(self.log.read_text(errors="replace")) if self.log.exists() else ""

    def log_bytes(self) -> int:
        """How long the log is by now: what is read from there on was written later."""
        return self.log.stat().st_size if self.log.exists() else 0

    def stop(self) -> None:
        """Stop the process group; return when nothing of it is left and the port is free."""
        process, self._process = self._process, None
        if process is None:
            return
        family, deadline = children.family(process.pid), time.monotonic() + STOP_S
        _signal_group(process.pid, signal.SIGTERM)
        _, alive = psutil.wait_procs(family, timeout=STOP_S)
        process.poll()  # until it is reaped, it is still in its group
        # Whose parents ended before are in no family any more, but in the group they are.
        if not _group_ends(process.pid, deadline) or alive:
            _signal_group(process.pid, signal.SIGKILL)
            for one in alive:
                _kill(one)
            psutil.wait_procs(alive, timeout=5.0)
            _group_ends(process.pid, time.monotonic() + 5.0)
        process.wait()
        if process.stdin:
            process.stdin.close()
        deadline = time.monotonic() + 5.0
        while not port_is_free(self.port) and time.monotonic() < deadline:
            time.sleep(0.05)
        self._sockets.cleanup()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _group_ends(group: int, deadline: float) -> bool:
    """Whether nobody is left of the process group before this moment (CLOCK_MONOTONIC seconds)."""
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
