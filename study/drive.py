"""Inside the window: slots, arrivals, time-outs and the stop rule. Nothing that could wait.

What the bytes mean is found out afterwards (study.wire). Nothing is retried: a failure is a result.
"""

from __future__ import annotations

import asyncio
import gc
import math
import socket
import ssl
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from study.connection import Connection, reachable
from study.prompts import requests_of
from study.wire import Exchange

if TYPE_CHECKING:
    from study.client import Load

TICK_S = 0.010  # how often the loop's own lateness is measured
SWEEP_TICKS = 10  # time-outs and the stop rule are looked at every so many ticks
BACK_OFF_S = 0.050  # a slot whose request failed waits so long before the next one
GONE_AFTER_REFUSALS = 20
IDLE_S = 2.0  # vLLM closes a connection that was idle for 5 s
SPARE_CONNECTIONS = 4  # open loop: kept open, so that an arrival need not wait for a handshake
MEDIAN_OF = 512  # latest latencies that the stop rule looks at
OPENING_AT_ONCE = 64


def drive(load: Load) -> tuple[list[Exchange], dict[str, Any]]:
    """Run one load to its end; returns every request made, and the facts of the window."""
    kind = ClosedLoop if load.concurrency is not None else OpenLoop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        window = kind(load, runner.get_loop())
        runner.run(window.run())
    return window.exchanges, window.info()


def arrivals_s(load: Load) -> NDArray[np.float64]:
    """Open loop: when each request is due, in seconds after the start (Poisson, by seed and salt).

    Exponential gaps with mean 1/rate; `requests` of them, or as many as fall before `max_s`.
    """
    assert load.rate_per_s is not None
    random = np.random.default_rng([load.seed, load.salt, 1])
    if load.requests is not None:
        due = np.cumsum(random.exponential(1 / load.rate_per_s, load.requests))
        return due if load.max_s is None else due[due < load.max_s]
    assert load.max_s is not None
    mean = load.rate_per_s * load.max_s
    count = int(mean + 10 * math.sqrt(mean) + 20)  # ten deviations: enough in every case
    due = np.cumsum(random.exponential(1 / load.rate_per_s, count))
    return due[due < load.max_s]


def new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class Window(ABC):
    """One load on its event loop; subclasses say when requests are due."""

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        self.load, self.loop = load, loop
        url = urlsplit(load.base_url)
        self.tls = ssl.create_default_context() if url.scheme == "https" else None
        self.direct = self.tls is None  # encrypted bytes go through the event loop
        self.host = url.hostname or ""
        self.address = reachable(self.host, url.port or (443 if self.tls else 80))
        self.requests = requests_of(load, url.netloc.rpartition("@")[2], url.path)
        self.exchanges: list[Exchange] = []
        self.active: dict[Exchange, Connection | None] = {}
        self.latencies_s: list[float] = []
        self.lags_s: list[float] = []
        self.refusals = 0
        self.in_flight = 0
        self.started_s = self.ended_s = math.nan
        self.full_s: float | None = None
        self.stopped_s: float | None = None
        self.stopped_because = ""
        self.cpu_s = 0.0
        self.tasks: set[asyncio.Task[None]] = set()
        self.connections: set[Connection] = set()
        self.over = asyncio.Event()

    # -- what a subclass adds

    @abstractmethod
    async def open(self) -> None:
        """Before the start: what can be connected in advance."""

    @abstractmethod
    def start(self) -> None:
        """At the start: schedule the first requests."""

    @abstractmethod
    def go_on(self, slot: int, connection: Connection | None, now: float, well: bool) -> None:
        """A request is over, `well` or not; `connection` is None when it is gone."""

    # -- the window

    async def run(self) -> None:
        await self.open()
        with _no_garbage_collection():
            cpu_s = time.process_time()
            self.started_s = monotonic()
            self._tick(self.started_s + TICK_S, 0)
            self.start()
            await self.over.wait()
            self.ended_s = monotonic()
            self.cpu_s = time.process_time() - cpu_s
        await self._close()

    async def _close(self) -> None:
        if self.tasks:  # spare connections that are just being opened
            await asyncio.wait(self.tasks, timeout=0.2)
        for task in self.tasks:
            task.cancel()
        for connection in self.connections:
            connection.transport.abort()
        await asyncio.sleep(TICK_S)  # the event loop closes them in its next rounds

    def info(self) -> dict[str, Any]:
        lag_s = np.array(self.lags_s or [math.nan])
        return {
            "started_s": self.started_s,
            "full_s": self.full_s,
            "stopped_s": self.stopped_s,
            "ended_s": self.ended_s,
            "wall_s": self.ended_s - self.started_s,
            "cpu_s": self.cpu_s,
            "loop_lag_p50_s": float(np.quantile(lag_s, 0.5)),
            "loop_lag_p99_s": float(np.quantile(lag_s, 0.99)),
            "loop_lag_max_s": float(lag_s.max()),
            "stopped_because": self.stopped_because,
            "event_loop": type(self.loop).__module__.partition(".")[0],
        }

    def issue(self, slot: int, due_s: float, connection: Connection | None) -> None:
        """One more request, over `connection` or a new one."""
        exchange = Exchange(len(self.exchanges), slot, due_s)
        self.exchanges.append(exchange)
        self.active[exchange] = connection
        if len(self.exchanges) == self.load.requests:
            self.stop("requests")
        if connection is not None:
            self._send(exchange, connection)
        else:
            self.spawn(self._connect_and_send(exchange))

    def stop(self, because: str) -> None:
        self.stopped_because = self.stopped_because or because

    def ended(self, exchange: Exchange, connection: Connection, now: float, well: bool) -> None:
        exchange.ended_s = now
        if well:
            self.latencies_s.append(now - exchange.due_s)
        self._over_with(exchange)
        self.go_on(exchange.slot, connection, now, well)
        self.finish_if_done()

    def failed(self, exchange: Exchange, kind: str, text: str) -> None:
        exchange.ended_s = now = monotonic()
        exchange.error, exchange.error_text = kind, text
        self._over_with(exchange)
        self.refusals = self.refusals + 1 if kind == "refused" else 0
        if self.refusals >= GONE_AFTER_REFUSALS:
            self.stop("server_gone")
        self.go_on(exchange.slot, None, now, False)
        self.finish_if_done()

    def forget(self, connection: Connection) -> None:
        self.connections.discard(connection)

    def finish_if_done(self) -> None:
        if self.stopped_because and not self.active:
            self.over.set()

    async def connect(self, slot: int) -> Connection:
        """A new connection; OSError when there is none to be had."""
        raw = socket.socket(self.address[0], socket.SOCK_STREAM)
        try:
            raw.setblocking(False)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self.loop.sock_connect(raw, self.address[1])
            _, connection = await self.loop.create_connection(
                lambda: Connection(self, slot),
                sock=raw,
                ssl=self.tls,
                server_hostname=self.host if self.tls else None,
            )
        except BaseException:
            raw.close()
            raise
        connection.socket = raw
        self.connections.add(connection)
        self.refusals = 0
        return connection

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _connect_and_send(self, exchange: Exchange) -> None:
        kind, text = "connect", ""
        try:
            limit_s = exchange.due_s + self.load.request_timeout_s - monotonic()
            connection = await asyncio.wait_for(self.connect(exchange.slot), limit_s)
        except ConnectionRefusedError as error:
            kind, text = "refused", str(error)
        except TimeoutError:
            text = f"no connection within {self.load.request_timeout_s} s"
        except OSError as error:
            text = str(error)
        else:
            self.active[exchange] = connection
            self._send(exchange, connection)
            return
        self.failed(exchange, kind, text)

    def _send(self, exchange: Exchange, connection: Connection) -> None:
        self.in_flight += 1
        connection.send(exchange, self.requests(exchange.number))
        if self.full_s is None and self.in_flight == self.load.concurrency:
            self.full_s = exchange.sent_s

    def _over_with(self, exchange: Exchange) -> None:
        del self.active[exchange]
        if not math.isnan(exchange.sent_s):
            self.in_flight -= 1

    # -- every 10 ms

    def _tick(self, due_s: float, count: int) -> None:
        if self.over.is_set():
            return  # what delays the loop now delays no request
        now = monotonic()
        if count:
            self.lags_s.append(max(0.0, now - due_s))
            if count % SWEEP_TICKS == 0:
                self._sweep(now)
        self.loop.call_later(TICK_S, self._tick, now + TICK_S, count + 1)

    def _sweep(self, now: float) -> None:
        latest_s = now - self.load.request_timeout_s
        for exchange, connection in list(self.active.items()):
            if connection is not None and exchange.sent_s < latest_s:
                connection.time_out(self.load.request_timeout_s)
        if not self.stopped_because and self._stop_rule(now):
            self.finish_if_done()

    def _stop_rule(self, now: float) -> bool:
        load = self.load
        if load.max_s is not None and now - self.started_s >= load.max_s:
            self.stop("max_s")
        elif load.min_s is not None and self.full_s is not None and self.latencies_s:
            assert load.min_latencies is not None
            since_full_s = now - self.full_s
            if since_full_s >= load.min_s:
                median_s = statistics.median(self.latencies_s[-MEDIAN_OF:])
                if since_full_s >= load.min_latencies * median_s:
                    self.stop("duration")
        return bool(self.stopped_because)


class ClosedLoop(Window):
    """`concurrency` slots; each sends its next request when its last one is over."""

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(load, loop)
        assert load.concurrency is not None
        self.slots: list[Connection | None] = [None] * load.concurrency

    async def open(self) -> None:
        # What cannot be connected now is tried, and then recorded, when its slot is due.
        for first in range(0, len(self.slots), OPENING_AT_ONCE):
            batch = range(first, min(first + OPENING_AT_ONCE, len(self.slots)))
            opened = await asyncio.gather(*map(self.connect, batch), return_exceptions=True)
            for slot, connection in zip(batch, opened, strict=True):
                self.slots[slot] = connection if isinstance(connection, Connection) else None

    def start(self) -> None:
        for slot in range(len(self.slots)):
            due_s = self.started_s + slot / len(self.slots) * self.load.ramp_s
            if due_s <= self.started_s:
                self._next(slot, due_s)
            else:
                self.loop.call_later(due_s - monotonic(), self._next, slot, due_s)

    def go_on(self, slot: int, connection: Connection | None, now: float, well: bool) -> None:
        self.slots[slot] = connection
        if well or self.stopped_because:
            self._next(slot, now)
        else:
            self.loop.call_later(BACK_OFF_S, self._next, slot, now + BACK_OFF_S)

    def _next(self, slot: int, due_s: float) -> None:
        if self.stopped_because:
            self.stopped_s = self.stopped_s or due_s
            return
        connection = self.slots[slot]
        self.issue(slot, due_s, connection if connection and connection.usable else None)


class OpenLoop(Window):
    """Requests are due at times drawn beforehand, whatever the server does."""

    def __init__(self, load: Load, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(load, loop)
        self.idle: list[Connection] = []
        self.opened = 0
        self.due_s: list[float] = []

    async def open(self) -> None:
        await asyncio.gather(*[self._open_spare() for _ in range(SPARE_CONNECTIONS)])

    def start(self) -> None:
        self.due_s = (self.started_s + arrivals_s(self.load)).tolist()
        if not self.due_s:
            self.stop("max_s")
        self._pump()

    def go_on(self, slot: int, connection: Connection | None, now: float, well: bool) -> None:
        del slot
        if connection is not None:
            self.idle.append(connection)
        if self.full_s is None and well:  # one latency after the start it is as full as it gets
            self.full_s = now

    def stop(self, because: str) -> None:
        super().stop(because)
        self.stopped_s = self.stopped_s or monotonic()

    def forget(self, connection: Connection) -> None:
        super().forget(connection)
        if connection in self.idle:
            self.idle.remove(connection)

    def _pump(self) -> None:
        while not self.stopped_because and self._due_s() <= monotonic():
            connection = self._take()
            slot = self.opened if connection is None else connection.slot
            self.opened += connection is None
            self.issue(slot, self._due_s(), connection)
            if len(self.exchanges) == len(self.due_s):
                self.stop("max_s")  # unless it stopped by its count of requests
        if not self.stopped_because:
            self.loop.call_later(max(self._due_s() - monotonic(), 0.0), self._pump)
        self.finish_if_done()

    def _due_s(self) -> float:
        return self.due_s[len(self.exchanges)]

    def _take(self) -> Connection | None:
        fresh_s = monotonic() - IDLE_S
        while self.idle:
            connection = self.idle.pop()
            if connection.usable and connection.idle_since_s >= fresh_s:
                if len(self.idle) < SPARE_CONNECTIONS:
                    self.spawn(self._open_spare())
                return connection
            connection.transport.close()
        self.spawn(self._open_spare())
        return None

    async def _open_spare(self) -> None:
        slot, self.opened = self.opened, self.opened + 1
        try:
            connection = await self.connect(slot)
        except OSError:
            return  # the arrival that needs a connection records why there is none
        self.idle.append(connection)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
