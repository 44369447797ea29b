"""One keep-alive connection inside the window.

A socket read costs one reading of the clock and one append; a request costs one write. To find the
end of an answer, its last bytes are looked at; everything else can wait (study.wire).
Memory: about 0.4 kB a chunk are held until the window is over.
"""

from __future__ import annotations

import asyncio
import socket
from time import monotonic
from typing import Any, Protocol, cast

from study.wire import BODY_END, Exchange, WireError, read_head


class Owner(Protocol):
    """Who is told what became of a connection and of its requests."""

    direct: bool

    def ended(self, exchange: Exchange, connection: Connection, now: float, well: bool) -> None: ...

    def failed(self, exchange: Exchange, kind: str, text: str) -> None: ...

    def forget(self, connection: Connection) -> None: ...


class Connection(asyncio.Protocol):
    """One keep-alive connection; it carries one exchange at a time."""

    def __init__(self, owner: Owner, slot: int) -> None:
        self.owner, self.slot = owner, slot
        self.exchange: Exchange | None = None
        self.reads: list[tuple[float, bytes]] = []
        self.chunked = self.closes = self.refused = False
        self.idle_since_s = monotonic()
        self.transport: asyncio.Transport
        self.socket: socket.socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    @property
    def usable(self) -> bool:
        return self.exchange is None and not self.transport.is_closing()

    def send(self, exchange: Exchange, request: bytes) -> None:
        """Write one request; `sent_s` is the moment of the system call, not of its queueing."""
        self.exchange, self.reads, self.chunked = exchange, exchange.reads, False
        exchange.sent_s = monotonic()
        try:
            written = self.socket.send(request) if self.owner.direct else 0
        except BlockingIOError:
            written = 0
        except OSError as error:
            self._fail("reset", str(error))
            return
        if written < len(request):
            self.transport.write(request[written:])

    def data_received(self, data: bytes) -> None:
        now = monotonic()
        self.reads.append((now, data))
        if self.chunked and len(data) >= len(BODY_END):
            if data.endswith(BODY_END):
                self._end(now)
        else:
            self._look_closely(now)

    def _look_closely(self, now: float) -> None:
        """The rarer reads: the first of an answer, one too short to judge, one without chunks."""
        if self.exchange is None:
            self.transport.abort()  # bytes nobody asked for
            return
        if self.chunked:
            if b"".join([data for _, data in self.reads[-len(BODY_END) :]]).endswith(BODY_END):
                self._end(now)
            return
        raw = b"".join([data for _, data in self.reads])
        try:
            head = read_head(raw)
        except WireError as error:
            self._fail("sse", str(error))
            return
        if head is None:
            return
        self.chunked, self.closes, self.refused = head.chunked, head.closes, head.status != 200
        if head.chunked:
            if raw.endswith(BODY_END):
                self._end(now)
        elif head.length is not None and len(raw) >= head.size + head.length:
            self._end(now)

    def _end(self, now: float) -> None:
        exchange, self.exchange = self.exchange, None
        assert exchange is not None
        # A guess, good enough to decide on a pause; decoding finds the truth.
        latest = b"".join([data for _, data in exchange.reads[-2:]])
        well = not self.refused and b'"error"' not in latest and b"[DONE]" in latest
        self.reads = []
        self.chunked = self.refused = False
        self.idle_since_s = now
        if self.closes:
            self.transport.close()
        self.owner.ended(exchange, self, now, well)

    def _fail(self, kind: str, text: str) -> None:
        exchange, self.exchange = self.exchange, None
        self.reads = []
        self.transport.abort()
        assert exchange is not None
        self.owner.failed(exchange, kind, text)

    def time_out(self, limit_s: float) -> None:
        """Give the request up, and the connection with it."""
        self._fail("timeout", f"no complete answer within {limit_s} s")

    def connection_lost(self, exc: Exception | None) -> None:
        self.owner.forget(self)
        if self.exchange is None:
            return
        if exc is not None:
            self._fail("reset", str(exc))
        elif not self.reads:
            self._fail("reset", "the server closed the connection before it answered")
        else:  # the end of a body without a length, or a cut: decoding tells which
            self._end(monotonic())


def reachable(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """The first address of `host` that answers, or else the first: looked up once, beforehand."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return socket.AF_INET, (host, port)  # each request then records that it is unknown
    for family, _, _, _, address in found if len(found) > 1 else ():
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.settimeout(2.0)
            if probe.connect_ex(address) == 0:
                return family, address
    return found[0][0], found[0][4]
