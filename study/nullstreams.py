"""The null server's streams: on schedule, each token stamped at the moment of its write.

One wheel of 1 ms ticks serves all of them. What a faulty server could do wrong is done here too.
"""

from __future__ import annotations

import math
import socket
import struct
import time
from collections import deque
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, Protocol

import orjson

from study.errors import StudyError, unknown_name

FAULTS = {
    "drop": "reset the connection after N tokens",
    "close": "close the connection, as if all were well, after N tokens",
    "hang": "send nothing more after N tokens",
    "error": "an error object in the stream after N tokens",
    "garbage": "an event that is no JSON after N tokens",
    "early": "end the answer, and its usage, after N tokens",
    "no_usage": "leave the usage event out",
    "no_done": "leave [DONE] out",
    "extra_prompt": "report N prompt tokens more than were sent",
    "http": "answer with HTTP status N",
    "pair": "send two tokens in one event",
    "halves": "send every event in two halves, a tick apart",
}
TICK_NS = 1_000_000
_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\nserver: nullserver\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_BEFORE = (
    b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1,'
    b'"model":"null","choices":[{"index":0,"text":"'
)
_AFTER = (
    b'","logprobs":null,"finish_reason":null,"stop_reason":null,'
    b'"prompt_token_ids":null,"token_ids":null}]}\n\n'
)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Peer(Protocol):
    """The connection that a stream is written to."""

    stream: Stream | None
    socket: socket.socket

    def send(self, data: bytes) -> None: ...

    def abort(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Fault:
    """What goes wrong; `after` is the N of FAULTS."""

    kind: str = ""
    after: int = 0

    @classmethod
    def parse(cls, text: str) -> Fault:
        """From KIND or KIND=N."""
        kind, _, after = text.partition("=")
        if kind not in FAULTS:
            raise unknown_name("fault", kind, FAULTS)
        if after and not after.isdigit():
            raise StudyError(f"The N of a fault must be a whole number; it was {after!r}.")
        return cls(kind, int(after or 0))


@dataclass(frozen=True)
class Pace:
    """How the server behaves. `cap`: it serves so many at a time, and queues the rest.

    `fault` hits every `fault_every`-th request; a request may also name its own in `x-fault`.
    """

    ttft_ms: float = 200.0
    itl_ms: float = 50.0
    output_tokens: int | None = None
    fault: Fault = Fault()
    fault_every: int = 1
    cap: int | None = None


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(fields: dict[str, Any]) -> bytes:
    return _chunk(b"data: " + orjson.dumps(fields) + b"\n\n")


def _stamped(stamps: int) -> bytes:
    """A token event as a template for so many times (of one width, so that its size is known)."""
    size = len(_BEFORE) + 16 * stamps + len(_AFTER)
    return b"%x\r\n%b%b%b\r\n" % (size, _BEFORE, b" %015d" * stamps, _AFTER)


_TOKEN, _FIRST_TOKEN, _FIRST_PAIR = _stamped(1), _stamped(2), _stamped(3)


class Stream:
    """One answer on its way."""

    __slots__ = ("due_ns", "fault", "half", "peer", "prompt_tokens", "received_ns", "sent", "total")

    def __init__(self, peer: Peer, total: int, prompt_tokens: int, fault: Fault) -> None:
        self.peer, self.total, self.prompt_tokens, self.fault = peer, total, prompt_tokens, fault
        self.received_ns = monotonic_ns()
        self.due_ns = self.received_ns
        self.sent = 0
        self.half = b""


class Wheel:
    """All streams, by the tick at which each is due next; and what /stats reports."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.itl_ns, self.ttft_ns = int(pace.itl_ms * 1e6), int(pace.ttft_ms * 1e6)
        self.ticks: dict[int, list[Stream]] = {}
        self.next_tick = monotonic_ns() // TICK_NS
        self.running: set[Stream] = set()
        self.waiting: deque[Stream] = deque()
        self.received = 0
        self.reset()

    # -- statistics

    def reset(self) -> None:
        self.since_ns = self.changed_ns = monotonic_ns()
        self.in_flight_ns = 0
        self.in_flight_max = self.in_flight
        self.running_max = len(self.running)
        self.late_ns: list[int] = []
        self.chunks = self.requests = 0
        self.cpu_s = time.process_time()

    @property
    def in_flight(self) -> int:
        return len(self.running) + len(self.waiting)

    def _account(self) -> None:
        """Before each change of the number in flight."""
        now = monotonic_ns()
        self.in_flight_ns += self.in_flight * (now - self.changed_ns)
        self.changed_ns = now

    def stats(self) -> dict[str, float]:
        """In flight: received and not yet fully written, by this server's own clock."""
        self._account()
        late_ms = [late / 1e6 for late in sorted(self.late_ns)] or [math.nan]
        elapsed_ns = self.changed_ns - self.since_ns
        return {
            "elapsed_s": elapsed_ns / 1e9,
            "in_flight_mean": self.in_flight_ns / max(elapsed_ns, 1),
            "in_flight_max": self.in_flight_max,
            "running_max": self.running_max,
            "requests": self.requests,
            "chunks": self.chunks,
            "tick_late_p50_ms": late_ms[len(late_ms) // 2],
            "tick_late_p99_ms": late_ms[int(0.99 * len(late_ms))],
            "tick_late_max_ms": late_ms[-1],
            "cpu_s": time.process_time() - self.cpu_s,
        }

    # -- streams come and go

    def add(self, stream: Stream) -> None:
        self._account()
        self.requests += 1
        if self.pace.cap is not None and len(self.running) >= self.pace.cap:
            self.waiting.append(stream)
        else:
            self._admit(stream)
        self.in_flight_max = max(self.in_flight_max, self.in_flight)

    def _admit(self, stream: Stream) -> None:
        self.running.add(stream)
        self.running_max = max(self.running_max, len(self.running))
        stream.due_ns = monotonic_ns() + self.ttft_ns
        self._schedule(stream, stream.due_ns)

    def _schedule(self, stream: Stream, due_ns: int) -> None:
        tick = max(-(-due_ns // TICK_NS), self.next_tick)
        self.ticks.setdefault(tick, []).append(stream)

    def remove(self, stream: Stream) -> None:
        """Done, or its client is gone."""
        self._account()
        if stream in self.running:
            self.running.discard(stream)
            if self.waiting:
                self._admit(self.waiting.popleft())
        elif stream in self.waiting:
            self.waiting.remove(stream)

    # -- time passes

    def turn(self) -> None:
        """Serve every tick that has come."""
        while self.next_tick <= monotonic_ns() // TICK_NS:
            tick = self.next_tick
            self.next_tick += 1
            streams = self.ticks.pop(tick, ())
            if streams:
                self.late_ns.append(monotonic_ns() - tick * TICK_NS)
            for stream in streams:
                if stream in self.running:
                    self._serve(stream)

    def _serve(self, stream: Stream) -> None:
        if stream.fault.kind:
            if not self._serve_faulty(stream):
                return
        elif stream.sent:
            stream.peer.send(_TOKEN % monotonic_ns())
            stream.sent += 1
        else:
            stream.peer.send(_HEAD + _FIRST_TOKEN % (stream.received_ns, monotonic_ns()))
            stream.sent = 1
        self.chunks += 1
        if stream.sent >= stream.total:
            self.finish(stream)
        else:
            # Never early; a server that is behind does not catch up in a burst.
            stream.due_ns = max(stream.due_ns + self.itl_ns, monotonic_ns())
            self._schedule(stream, stream.due_ns)

    def _serve_faulty(self, stream: Stream) -> bool:
        """One step of a stream with a fault; False when there is nothing more to schedule."""
        kind, peer = stream.fault.kind, stream.peer
        head = b"" if stream.sent else _HEAD
        if stream.half:
            peer.send(stream.half)
            stream.half = b""
            stream.sent += 1
            return True
        if kind in _ENDINGS and stream.sent >= stream.fault.after:
            _ENDINGS[kind](self, stream, head)
            return False
        now = monotonic_ns()
        stamps = (now,) if stream.sent else (stream.received_ns, now)
        if kind == "pair" and stream.sent + 2 <= stream.total:
            template = _FIRST_TOKEN if stream.sent else _FIRST_PAIR
            peer.send(head + template % (*stamps, now))
            stream.sent += 2
            return True
        data = head + (_TOKEN if stream.sent else _FIRST_TOKEN) % stamps
        if kind == "halves":
            cut = len(data) // 2
            peer.send(data[:cut])
            stream.half = data[cut:]
            self._schedule(stream, now + TICK_NS)
            return False
        peer.send(data)
        stream.sent += 1
        return True

    def finish(self, stream: Stream) -> None:
        kind = stream.fault.kind
        extra = stream.fault.after if kind == "extra_prompt" else 0
        prompt = stream.prompt_tokens + extra
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": stream.sent,
            "total_tokens": prompt + stream.sent,
        }
        final = {"id": "cmpl-0", "object": "text_completion", "choices": [], "usage": usage}
        data = b"" if kind == "no_usage" else _event(final)
        data += b"" if kind == "no_done" else _chunk(b"data: [DONE]\n\n")
        stream.peer.send(data + b"0\r\n\r\n")
        stream.peer.stream = None
        self.remove(stream)


def _drop(wheel: Wheel, stream: Stream, head: bytes) -> None:
    del wheel, head
    stream.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    stream.peer.abort()


def _close(wheel: Wheel, stream: Stream, head: bytes) -> None:
    del wheel, head
    stream.peer.close()


def _hang(wheel: Wheel, stream: Stream, head: bytes) -> None:
    """Nothing is scheduled, so nothing comes."""


def _early(wheel: Wheel, stream: Stream, head: bytes) -> None:
    stream.peer.send(head)
    wheel.finish(stream)


def _error(wheel: Wheel, stream: Stream, head: bytes) -> None:
    error = {"message": "planted", "type": "InternalServerError", "code": 500}
    stream.peer.send(head + _event({"error": error}))
    wheel.finish(stream)


def _garbage(wheel: Wheel, stream: Stream, head: bytes) -> None:
    stream.peer.send(head + _chunk(b"data: {planted\n\n"))
    wheel.finish(stream)


_ENDINGS = {
    "drop": _drop, "close": _close, "hang": _hang,
    "early": _early, "error": _error, "garbage": _garbage,
}  # fmt: skip
