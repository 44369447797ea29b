"""A server that only keeps time: it answers like vLLM, on schedule, and says when it really did.

The text of every token is ` <CLOCK_MONOTONIC ns>` of the moment of its write; the first token's
text begins with the moment the request was received. So the error of any client follows from the
text it got: split it, and compare with what the client claims. Writes go straight to the socket,
because an event loop's queue would make the text lie. GET /stats tells, since the last POST
/stats/reset, how many requests were in flight by this server's own clock, and how late it was.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, cast

import orjson

from study import children, descriptors
from study.drive import new_loop
from study.errors import StudyError
from study.nullstreams import FAULTS, TICK_NS, Fault, Pace, Stream, Wheel

_MAX_TOKENS = re.compile(rb'"max_tokens":\s*(\d+)')
_PROMPT = re.compile(rb'"prompt":\s*(?:\[([^\]]*)\]|"([^"]*)")')
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_FAULT = re.compile(rb"\r\nx-fault:[ \t]*([^\r]*)", re.IGNORECASE)


class Peer(asyncio.Protocol):
    """One connection of a client."""

    def __init__(self, wheel: Wheel) -> None:
        self.wheel = wheel
        self.buffer = b""
        self.stream: Stream | None = None
        self.transport: asyncio.Transport
        self.socket: socket.socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        # A duplicate is ours alone: its number cannot be given to another connection meanwhile.
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        self.socket = socket.socket(fileno=descriptor)
        self.socket.setblocking(False)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.socket.close()
        if self.stream is not None:
            self.wheel.remove(self.stream)

    def send(self, data: bytes) -> None:
        """Straight to the socket; what does not fit goes through the event loop."""
        try:
            written = 0 if self.transport.get_write_buffer_size() else self.socket.send(data)
        except BlockingIOError:
            written = 0
        except OSError:
            return  # the client is gone, and connection_lost will say so
        if written < len(data):
            self.transport.write(data[written:])

    def abort(self) -> None:
        self.transport.abort()

    def close(self) -> None:
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        head_end = self.buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return
        head = self.buffer[: head_end + 2]
        length = _LENGTH.search(head)
        end = head_end + 4 + (int(length[1]) if length else 0)
        if len(self.buffer) >= end:
            body, self.buffer = self.buffer[head_end + 4 : end], self.buffer[end:]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        method, path = head.split(b" ", 2)[:2]
        if (method, path) == (b"POST", b"/v1/completions"):
            self._complete(head, body)
        elif (method, path) == (b"POST", b"/stats/reset"):
            self.wheel.reset()
            self._reply(200, {})
        elif (method, path) == (b"GET", b"/stats"):
            self._reply(200, self.wheel.stats())
        elif (method, path) == (b"GET", b"/health"):
            self._reply(200, {})
        elif (method, path) == (b"GET", b"/v1/models"):
            self._reply(200, {"object": "list", "data": [{"id": "null", "object": "model"}]})
        else:
            self._reply(404, {"error": {"message": "no such path", "code": 404}})

    def _complete(self, head: bytes, body: bytes) -> None:
        wheel, limit, prompt = self.wheel, _MAX_TOKENS.search(body), _PROMPT.search(body)
        if prompt is None:
            self._reply(400, {"error": {"message": "prompt is missing", "code": 400}})
            return
        try:
            fault = self._fault(head)
        except StudyError as error:
            self._reply(400, {"error": {"message": str(error), "code": 400}})
            return
        if fault.kind == "http":
            status = fault.after or 500
            self._reply(status, {"error": {"message": "planted", "code": status}})
            return
        total = wheel.pace.output_tokens or int(limit[1] if limit else 16)
        ids, text = prompt.groups()
        tokens = ids.count(b",") + 1 if ids is not None else len(text.split())
        self.stream = Stream(self, total, tokens, fault)
        wheel.add(self.stream)

    def _fault(self, head: bytes) -> Fault:
        self.wheel.received += 1
        own = _FAULT.search(head)
        if own is not None:
            return Fault.parse(own[1].decode())
        hit = self.wheel.received % self.wheel.pace.fault_every == 0
        return self.wheel.pace.fault if hit else Fault()

    def _reply(self, status: int, fields: dict[str, Any]) -> None:
        data = orjson.dumps(fields)
        head = f"HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\n"
        self.send(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)


async def _serve_until_told(port: int, pace: Pace, asker: int | None) -> None:
    loop = asyncio.get_running_loop()
    wheel = Wheel(pace)
    server = await loop.create_server(lambda: Peer(wheel), "127.0.0.1", port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    if asker is not None:
        loop.add_reader(asker, told.set)  # nothing is ever written there: it was closed

    def turn() -> None:
        wheel.turn()
        loop.call_later(TICK_NS / 1e9, turn)

    turn()
    await told.wait()


@contextlib.contextmanager
def serve(
    ttft_ms: float = 200.0,
    itl_ms: float = 50.0,
    fault: str | None = None,
    fault_every: int = 1,
    cap: int | None = None,
    cpus: Sequence[int] | None = None,
) -> Iterator[str]:
    """A null server in a process of its own, on a free port; yields its base URL."""
    command = [sys.executable, "-m", "study.nullserver", "--port", "0"]
    command += ["--ttft-ms", str(ttft_ms), "--itl-ms", str(itl_ms)]
    command += ["--fault-every", str(fault_every)]
    command += [] if fault is None else ["--fault", fault]
    command += [] if cap is None else ["--cap", str(cap)]
    command += [] if cpus is None else ["--cpus", ",".join(map(str, cpus))]
    environment = {**os.environ, **children.environment()}
    # Its standard input is held open: when we die, however, the server ends.
    process = subprocess.Popen(
        [*command, "--held"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        port = process.stdout.readline().decode().strip()
        if not port:
            raise StudyError(f"The null server must say its port; it ended with {process.wait()}.")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def stats(base_url: str, *, reset: bool = False) -> dict[str, float]:
    """What a null server says of itself since the last reset; or reset it now."""
    path, method = ("/stats/reset", "POST") if reset else ("/stats", "GET")
    request = urllib.request.Request(base_url + path, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy to loopback
    with direct.open(request, timeout=10) as answer:
        found: dict[str, float] = orjson.loads(answer.read())
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m study.nullserver`: prints its port, then serves until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m study.nullserver", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-ms", type=float, default=200.0)
    parser.add_argument("--itl-ms", type=float, default=50.0)
    parser.add_argument("--output-tokens", type=int, help="instead of each request's max_tokens")
    parser.add_argument(
        "--fault",
        metavar="KIND[=N]",
        help="; ".join(f"{kind}: {what}" for kind, what in FAULTS.items()),
    )
    parser.add_argument("--fault-every", type=int, default=1, help="hit each so many-th request")
    parser.add_argument("--cap", type=int, help="serve so many at a time, queue the rest")
    parser.add_argument("--cpus", help="run on these cores only, as 0,1")
    parser.add_argument("--held", action="store_true", help="end when standard input does")
    asked = parser.parse_args(arguments)
    if asked.cpus:
        os.sched_setaffinity(0, map(int, asked.cpus.split(",")))
    try:
        fault = Fault.parse(asked.fault) if asked.fault else Fault()
    except StudyError as error:
        parser.error(str(error))
    descriptors.raise_limit()
    every, cap = max(asked.fault_every, 1), asked.cap
    pace = Pace(asked.ttft_ms, asked.itl_ms, asked.output_tokens, fault, every, cap)
    gc.disable()  # a pause of the collector would be a late token
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(_serve_until_told(asked.port, pace, 0 if asked.held else None))


if __name__ == "__main__":
    main()
