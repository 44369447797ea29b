"""The study's load generator: what to send, what happened, and a process of its own to do it.

The common clients distort what they measure (see benchmarks/client.py), so this one does nothing
in the window but send, read and note the time (study.drive), and decodes afterwards (study.wire).
All times are CLOCK_MONOTONIC seconds, comparable between the processes of one host.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import orjson

from study import children, descriptors
from study.drive import drive
from study.errors import StudyError
from study.prompts import FIRST_TOKEN_ID, unique_tokens
from study.wire import tables

if TYPE_CHECKING:
    import pandas as pd

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nothing can be written: the user's to mend


@dataclass(frozen=True)
class Load:
    """What is sent to a `/v1/completions` endpoint in one window.

    Level: either `concurrency` (closed loop: so many slots, each sends its next request when its
    last one is over; slot i starts at i/concurrency x `ramp_s`) or `rate_per_s` (open loop: Poisson
    arrivals drawn from the seed; a request starts when it was *due*, and being sent late is
    recorded, not hidden).

    Stop rule: either `requests` (a count) or `min_s` with `min_latencies` (go on until the level
    has been full for max(min_s, min_latencies x median of the latest 512 latencies)), which needs
    `max_s`. `max_s` counts from the start and bounds both; what is in flight is still awaited.

    Prompts: `input_tokens` random ids in [3, vocabulary), no two alike in any window of another
    `salt`; or the user's own `prompts`, used in turn. `keep_text` keeps the generated text in the
    recording (column `text`); the window itself is the same.
    """

    base_url: str
    model: str
    input_tokens: int
    output_tokens: int
    vocabulary: int
    seed: int = 0
    salt: int = 0
    api_key: str | None = None
    concurrency: int | None = None
    rate_per_s: float | None = None
    requests: int | None = None
    min_s: float | None = None
    min_latencies: float | None = None
    max_s: float | None = None
    ramp_s: float = 0.0
    request_timeout_s: float = 600.0
    prompts: tuple[tuple[int, ...], ...] | None = None
    temperature: float = 0.0
    keep_text: bool = False

    def __post_init__(self) -> None:
        url = urlsplit(self.base_url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise _must("base_url", "http://host:port or https://host:port", self.base_url)
        for name in ("input_tokens", "output_tokens"):
            _require_whole(name, getattr(self, name), 1)
        _require_whole("seed", self.seed, 0)
        _require_whole("salt", self.salt, 0, below=1 << 20)
        _require_whole("vocabulary", self.vocabulary, FIRST_TOKEN_ID + 2)
        _require_number("request_timeout_s", self.request_timeout_s, above=0)
        _require_number("ramp_s", self.ramp_s)
        _require_number("temperature", self.temperature)
        self._check_level()
        self._check_stop_rule()
        self._check_prompts()

    def _check_level(self) -> None:
        _exactly_one(concurrency=self.concurrency, rate_per_s=self.rate_per_s)
        if self.concurrency is not None:
            _require_whole("concurrency", self.concurrency, 1)
        else:
            _require_number("rate_per_s", self.rate_per_s, above=0)
            if self.ramp_s:
                raise _must("ramp_s", "0 in an open loop, whose arrivals are drawn", self.ramp_s)

    def _check_stop_rule(self) -> None:
        _exactly_one(requests=self.requests, min_s=self.min_s)
        if self.max_s is not None:
            _require_number("max_s", self.max_s, above=0)
        if self.requests is not None:
            _require_whole("requests", self.requests, 1, below=1 << 24)
            return
        _require_number("min_s", self.min_s)
        _require_number("min_latencies", self.min_latencies)
        if self.max_s is None or self.max_s < (self.min_s or 0):
            raise _must("max_s", f"given with min_s, and at least {self.min_s}", self.max_s)

    def _check_prompts(self) -> None:
        if self.prompts is None:
            need = unique_tokens(self.vocabulary)
            if self.input_tokens < need:
                limit = (
                    f"at least {need} with a vocabulary of {self.vocabulary}, else prompts repeat"
                )
                raise _must("input_tokens", limit, self.input_tokens)
        elif not self.prompts or not all(self.prompts):
            raise _must(
                "prompts", "None or at least one prompt of at least one token", self.prompts
            )
        for prompt in self.prompts or ():
            for token in prompt:
                _require_whole("prompts", token, 0, below=self.vocabulary)


@dataclass(frozen=True)
class Recording:
    """What happened in one window. Times are CLOCK_MONOTONIC seconds.

    `requests`, a row per request: request, slot, due_s, sent_s (NaN: never sent), first_s, last_s
    (first and last token-carrying event; NaN if none), ended_s, input_tokens, output_tokens (the
    engine's usage; NaN when not reported), chunks, error ('' when fine), error_text; with
    `keep_text`, text.
    Kinds of error: connect, refused, reset, timeout, http_4xx, http_5xx, sse, incomplete,
    engine_error.

    `chunks`, a row per token-carrying event: request (int32), time_s, tokens (int32). `tokens` is
    exact when the engine sends one token a chunk; otherwise the total of the request is spread as
    evenly as possible, and one a chunk is assumed where no usage came.

    `info`: started_s; full_s (when the level was first full, None if never; open loop: when the
    first request was over); stopped_s (when a slot first had nothing left to send, the end of the
    steady part; open loop: when issuing ended); ended_s; wall_s; cpu_s (of the client, in the
    window); loop_lag_p50_s, _p99_s, _max_s (lateness of a 10 ms tick); stopped_because
    (`requests`, `duration`, `max_s` or `server_gone`); decode_s; event_loop.
    """

    requests: pd.DataFrame
    chunks: pd.DataFrame
    info: dict[str, Any]

    def save(self, into: Path) -> None:
        """Write requests.parquet, chunks.parquet and info.json into a new folder, all at once."""
        partial = Path(tempfile.mkdtemp(prefix=f".{into.name}.", dir=into.parent))
        try:
            self.requests.to_parquet(partial / "requests.parquet", index=False)
            self.chunks.to_parquet(partial / "chunks.parquet", index=False)
            (partial / "info.json").write_bytes(orjson.dumps(self.info))
            partial.chmod(0o755)
            partial.rename(into)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    @classmethod
    def load(cls, folder: Path) -> Recording:
        """Read what `save` wrote."""
        import pandas as pd

        return cls(
            requests=pd.read_parquet(folder / "requests.parquet"),
            chunks=pd.read_parquet(folder / "chunks.parquet"),
            info=orjson.loads((folder / "info.json").read_bytes()),
        )


def run_inline(load: Load) -> Recording:
    """Run a load in this process; for tests and the shell. Windows that count use a Client."""
    descriptors.require(load.concurrency or 0)
    exchanges, info = drive(load)
    began_s = time.perf_counter()
    requests, chunks = tables(exchanges, load.keep_text)
    return Recording(requests, chunks, {**info, "decode_s": time.perf_counter() - began_s})


class Client:
    """A long-lived load generator in a process of its own, on cores of its own (`cpus`).

    Orders and answers are lines of JSON over its stdin and stdout; recordings are folders. It ends
    when its stdin does, so it cannot outlive the parent. It leads its own process group, so Ctrl-C
    reaches only the parent, whose `with` block then ends it, load and all.
    """

    def __init__(self, cpus: Sequence[int] | None = None) -> None:
        self.cpus = list(cpus) if cpus is not None else None
        self._pending: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Client:
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "study.client", *map(str, self.cpus or ())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env={**os.environ, **children.environment()},
            process_group=0,  # not a session: the scheduler would let it wait for the server's
        )
        self._answer()  # ready
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        process = self._worker()
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # an order it did not live to read
                    stream.close()
        self._stderr.close()
        self._process = None

    def run(self, load: Load, into: Path) -> Recording:
        """Run one load; its recording is written to the new folder `into` and returned."""
        self.start(load, into)
        return self.result()

    def start(self, load: Load, into: Path) -> None:
        """Start a load and return at once; `result` waits for its end."""
        if self._pending is not None:
            raise StudyError("One load at a time: take the result of the last before a new start.")
        into = into.absolute()
        if into.exists() and (not into.is_dir() or any(into.iterdir())):
            raise StudyError(f"A recording needs a new or empty folder; {into} holds something.")
        into.parent.mkdir(parents=True, exist_ok=True)
        self._send({"load": asdict(load), "into": str(into)})
        self._pending = into

    def result(self) -> Recording:
        """Wait for the load that was started, and return its recording."""
        if self._pending is None:
            raise StudyError("There is no load to wait for: call start first.")
        into, self._pending = self._pending, None
        answer = self._answer()
        if "failed" in answer:
            if answer["errno"] in FULL:
                raise OSError(answer["errno"], answer["failed"])
            raise StudyError(f"The load could not be run: {answer['failed']}")
        return Recording.load(into)

    @property
    def pid(self) -> int:
        """Of the process that sends and reads."""
        return self._worker().pid

    def _worker(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise StudyError("The client is not running: use it as `with Client() as client:`.")
        return self._process

    def _send(self, order: dict[str, Any]) -> None:
        process = self._worker()
        assert process.stdin is not None
        try:
            process.stdin.write(orjson.dumps(order) + b"\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def _answer(self) -> dict[str, Any]:
        process = self._worker()
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = orjson.loads(line)
        return answer

    def _death(self) -> StudyError:
        code = self._worker().wait()
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()[-2000:]
        return StudyError(f"The client process must live, but ended with code {code}: {said}")


def main(cpus: Sequence[str]) -> None:
    """The worker: obey orders from stdin until it ends."""
    if cpus:
        os.sched_setaffinity(0, map(int, cpus))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # a stray print must not be taken for an answer
    orders: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    answers.write(b'{"ready": true}\n')
    while True:
        order = orjson.loads(orders.get())
        answers.write(orjson.dumps(_obey(order)) + b"\n")


def _listen(orders: queue.Queue[bytes]) -> None:
    with open(0, "rb", closefd=False) as lines:
        for line in lines:
            orders.put(line)
    os.kill(os.getpid(), signal.SIGKILL)  # the parent is gone; nobody wants this load


def _obey(order: dict[str, Any]) -> dict[str, Any]:
    try:
        fields = order["load"]
        if fields["prompts"] is not None:
            fields["prompts"] = tuple(map(tuple, fields["prompts"]))
        run_inline(Load(**fields)).save(Path(order["into"]))
    except (StudyError, OSError) as error:
        return {
            "failed": f"{type(error).__name__}: {error}",
            "errno": getattr(error, "errno", None),
        }
    return {"done": True}


def _must(name: str, what: str, was: object) -> StudyError:
    return StudyError(f"{name} must be {what}; it was {was!r}.")


def _require_whole(name: str, value: object, least: int, below: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not (whole and least <= value and (below is None or value < below)):  # type: ignore[operator]
        limit = "" if below is None else f" and below {below}"
        raise _must(name, f"a whole number of at least {least}{limit}", value)


def _require_number(name: str, value: object, above: float | None = None) -> None:
    """A finite number >= 0, or > `above`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    low = 0.0 if above is None else above
    if not (number and math.isfinite(value) and (value > low if above is not None else value >= 0)):  # type: ignore[arg-type,operator]
        raise _must(
            name,
            f"a finite number {'above' if above is not None else 'of at least'} {low:g}",
            value,
        )


def _exactly_one(**choices: object) -> None:
    given = [name for name, value in choices.items() if value is not None]
    if len(given) != 1:
        names = " and ".join(choices)
        raise StudyError(f"Exactly one of {names} must be given; given were {given or 'none'}.")


if __name__ == "__main__":
    main(sys.argv[1:])
