"""The server of a launch, from its command to its end; where that pays, started before its turn.

Where two servers start together (see plan.start_together), both are asked at the same time what
they run, for their answers take seconds. Then one is measured while the other waits: ready,
holding its memory, and idle, for whatever it did would count as foreign load.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from study import engine, outputs, paths
from study.errors import StudyError
from study.experiment import STORAGE, Arm
from study.plan import Launch
from study.server import POLL_S, Server, free_port
from study.store import WAITING, Store, write_json

STORED = "kv-"  # how the folders begin in which an engine keeps KV cache
SERVER_INFO_S = 120.0  # the engine asks the whole machine for its versions before it answers


class Start:
    """A try at a launch: its record is on disk; its server begins to start.

    What goes wrong with the server is raised when it is asked for, not before.
    """

    def __init__(self, launch: Launch, store: Store, order: str) -> None:
        self.launch = launch
        self.writer = store.begin(launch)
        self.writer.update(order=order)
        self.storage: Path | None = None
        # Until it was ready and asked; of two that start together, half of it.
        self.took_s = float("nan")
        self.in_force: dict[str, str | None] = {}  # by the engine's own account
        self.begun = False
        self._server: Server | None = None
        self._failure: StudyError | None = None
        self._open = ExitStack()

    def close(self) -> None:
        """Stop its server, if one runs, and remove what it stored."""
        self._open.close()

    def begin(self, but: int | None = None) -> None:
        """Start its server, on another port than `but`."""
        self.begun = True
        try:
            self._start(free_port(but))
        except StudyError as error:
            self._fail(error)

    def over(self, start_s: float, beside: Start | None) -> None:
        """Its start is over, which took so long; `beside` it another server started."""
        ready_s = self._server.ready_s if self._server and self._failure is None else None
        self.writer.update(
            start_s=start_s, started_beside=beside.launch.id if beside else None, ready_s=ready_s
        )

    def ask(self, pool: Executor) -> Callable[[], None]:
        """Begin to ask a ready server what is in force, and for its answers to the fixed prompts.

        Gives what waits for both and puts them on record. Nothing is asked where none is ready.
        """
        server, arm = self._server, self.launch.arm
        if server is None or self._failure is not None:
            return lambda: None
        longest = int(arm.flags["max_model_len"])
        info = pool.submit(server.require, "GET", "/server_info", SERVER_INFO_S)
        said = pool.submit(outputs.capture, server, arm.model, longest, arm.output_passes)

        def note() -> None:
            try:
                write_json(self.writer.folder / "outputs.json", said.result())
                told, log = info.result()[1], server.log_text()
                self.in_force = engine.in_force(server.metrics(), told, log)
            except StudyError as error:
                self._fail(error)
            else:
                self.writer.update(in_force=self.in_force)

        return note

    def _fail(self, error: StudyError) -> None:
        """Whatever is left of its server would disturb those that are measured before its turn."""
        self._failure = error
        self._open.close()

    def is_over(self) -> bool:
        """Whether the server is ready, or never will be."""
        if self._server is not None and self._failure is None:
            try:
                return self._server.is_ready()
            except StudyError as error:
                self._fail(error)
        return True

    def server(self) -> Server:
        """What serves. Raises: StudyError, with the engine's own reason, where nothing does."""
        if self._failure is not None:
            raise self._failure
        assert self._server is not None, "begin comes first"
        self._server.check_alive("the server ended before its turn")
        return self._server

    @property
    def pid(self) -> int | None:
        """Of the first process of its server, if one runs."""
        return self._server.pid if self._server else None

    @property
    def port(self) -> int | None:
        """Where its server listens, or will."""
        return self._server.port if self._server else None

    def _start(self, port: int) -> None:
        launch, arm = self.launch, self.launch.arm
        # The weights are made up from the seed of the block: launches of a block share them.
        seed = launch.seed + launch.block
        folder = engine.model_folder(arm.model, seed, compared=arm.output_passes > 0)
        self.storage = self._open.enter_context(_storage(arm))
        name, storage = f"study-{launch.id}", str(self.storage)
        command = engine.command(arm, sys.executable, folder, name, port, seed, storage)
        self.writer.update(command=command.as_shell(), compile_cache=engine.compile_cache())
        self._server = Server(command, name, port, self.writer.log)
        self._open.callback(self._server.stop)
        self._server.start()


class Starts:
    """The starts of one launch after the other; `close` them in the end.

    `order` is how blocks were ordered, for the record.
    """

    def __init__(self, store: Store, order: str) -> None:
        self._store, self._order = store, order
        self._ahead: Start | None = None
        for left in paths.CACHE.glob(f"{STORED}*"):  # by a run that was killed; no other one runs
            shutil.rmtree(left, ignore_errors=True)

    @property
    def waiting(self) -> Start | None:
        """The start whose server waits for its turn, if one does."""
        return self._ahead

    def waits(self, launch: Launch) -> bool:
        """Whether the server of this launch does."""
        return self._ahead is not None and self._ahead.launch.id == launch.id

    def of(self, launch: Launch) -> Start:
        """A try at this launch, whose server may be ready already."""
        if self._ahead is None or not self.waits(launch):
            return Start(launch, self._store, self._order)
        ahead, self._ahead = self._ahead, None
        ahead.writer.update(status="started")
        return ahead

    def bring_up(self, start: Start, following: Launch | None = None) -> None:
        """Begin a start, wait until it is over, ask; if there is a `following` one, both."""
        if start.begun:
            return
        began, together = time.monotonic(), [start]
        if following is not None and self._ahead is None:
            self._ahead = Start(following, self._store, self._order)
            self._ahead.writer.update(status=WAITING)  # not a try until its turn comes
            together.append(self._ahead)
        start.begin()
        for other in together[1:]:
            other.begin(but=start.port)
        waiting = together
        while waiting := [one for one in waiting if not one.is_over()]:
            time.sleep(POLL_S)
        start_s = (time.monotonic() - began) / len(together)
        for one, other in zip(together, reversed(together), strict=True):
            one.over(start_s, beside=None if other is one else other)
        _ask(together)
        for one in together:
            one.took_s = (time.monotonic() - began) / len(together)

    def close(self) -> None:
        """What waits is not needed now: its server goes, and its record too."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.close()
            ahead.writer.discard()


def _ask(starts: list[Start]) -> None:
    pool = ThreadPoolExecutor()
    notes = [one.ask(pool) for one in starts]
    pool.shutdown(wait=False)  # who interrupts this does not wait for the answers
    for note in notes:
        note()


@contextmanager
def _storage(arm: Arm) -> Iterator[Path | None]:
    """A folder for as long as the server lasts, if a flag of the arm wants one."""
    if not any(STORAGE in str(value) for value in arm.flags.values()):
        yield None
        return
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=STORED, dir=paths.CACHE) as folder:
        yield Path(folder)
