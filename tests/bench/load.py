"""The load: connections that ask again as soon as they are answered, and streams that are read.

Callbacks only, for the same reason as in the mock. Every answer must be a whole 200, or the benchmark
ends: a system that fails fast must not look fast.
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field

from tests.bench import wire

LONGEST_S = 120.0
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class BadAnswerError(Exception):
    """The system under test did not answer as it should."""


@dataclass
class Figures:
    """What one load measured; `latencies_s` are those of its requests."""

    seconds: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    events: int = 0
    longest_gap_s: float = 0.0  # between two pieces of one stream

    def percentile_ms(self, share: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


async def ask(port: int, *, connections: int, requests: int) -> Figures:
    """Send this many non-streamed requests over so many connections, each asking one at a time."""
    share = requests // connections
    done, clients = await _connect(port, connections, lambda: Asker(wire.request(port), share))
    begin = time.perf_counter()
    for client in clients:
        client.send()
    figures = await _finish(done, clients)
    figures.seconds = time.perf_counter() - begin
    return figures


async def ask_paced(port: int, *, connections: int, requests: int, rate: float) -> Figures:
    """Send this many non-streamed requests at so many per second over all connections together.

    Both systems then do the same work in the same time. Flat out, the faster one keeps its peers so busy
    that none of them has to be woken, which spares it the price of that.
    """
    share, gap_s = requests // connections, connections / rate
    done, clients = await _connect(port, connections, lambda: Pacer(wire.request(port), share, gap_s))
    loop = asyncio.get_running_loop()
    for number, client in enumerate(clients):
        loop.call_later(gap_s * number / connections, client.send)
    return await _finish(done, clients)


async def read_streams(port: int, *, streams: int, events: int, gap_ms: int) -> Figures:
    """Open streams spread over one gap, and read each to its end."""
    data = wire.request(port, events=events, gap_ms=gap_ms)
    done, clients = await _connect(port, streams, lambda: Reader(data, events))
    begin = time.perf_counter()
    for client in clients:
        client.send()
        await asyncio.sleep(gap_ms / 1000 / streams)
    figures = await _finish(done, clients)
    figures.seconds = time.perf_counter() - begin
    return figures


async def open_streams(port: int, *, streams: int) -> list[Client]:
    """Open streams that say something each second, and return when each has begun; close them."""
    data = wire.request(port, events=3600, gap_ms=1000)
    _, clients = await _connect(port, streams, lambda: Reader(data, 3600))
    for client in clients:
        client.send()
        await asyncio.sleep(0.001)
    async with asyncio.timeout(LONGEST_S):
        while not all(client.figures.events for client in clients):
            await asyncio.sleep(0.05)
    return clients


async def _connect(port, count, make):
    loop = asyncio.get_running_loop()
    done = [loop.create_future() for _ in range(count)]
    clients = []
    for future in done:
        _, client = await loop.create_connection(make, "127.0.0.1", port)
        client.done = future
        clients.append(client)
    return done, clients


async def _finish(done, clients) -> Figures:
    try:
        async with asyncio.timeout(LONGEST_S):
            await asyncio.gather(*done)
    finally:
        for client in clients:
            client.transport.abort()
    total = Figures()
    for client in clients:
        total.latencies_s += client.figures.latencies_s
        total.events += client.figures.events
        total.longest_gap_s = max(total.longest_gap_s, client.figures.longest_gap_s)
    return total


class Client(asyncio.Protocol):
    """One connection to the system under test."""

    done: asyncio.Future[None]

    def __init__(self, request: bytes) -> None:
        self.request, self.buffer, self.figures, self.heard = request, b"", Figures(), 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(BadAnswerError(f"the connection ended: {error}: {self.buffer[:500]!r}"))
            self.done.exception()  # seen, also where nobody waits for it any more

    def send(self) -> None:
        self.begin = time.perf_counter()
        self.transport.write(self.request)

    def fail(self) -> None:
        if not self.done.done():
            self.done.set_exception(BadAnswerError(repr(self.buffer[:500])))


class Asker(Client):
    """Asks a number of times, one request after another."""

    def __init__(self, request: bytes, times: int) -> None:
        super().__init__(request)
        self.left = times

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        end = self.buffer.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = LENGTH.search(self.buffer, 0, end)
        if not self.buffer.startswith(b"HTTP/1.1 200") or length is None:
            self.fail()
        elif len(self.buffer) >= end + int(length[1]):
            self.buffer = b""
            self.figures.latencies_s.append(time.perf_counter() - self.begin)
            self.left -= 1
            if self.left > 0:
                self.send()
            elif not self.done.done():
                self.done.set_result(None)


class Pacer(Asker):
    """Asks once in `gap_s`, or at once if the last answer took longer."""

    def __init__(self, request: bytes, times: int, gap_s: float) -> None:
        super().__init__(request, times)
        self.gap_s, self.due = gap_s, 0.0

    def send(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self.due:
            loop.call_at(self.due, super().send)
        else:
            super().send()
        self.due = max(self.due, loop.time()) + self.gap_s


class Reader(Client):
    """Asks for one stream and counts its events."""

    def __init__(self, request: bytes, events: int) -> None:
        super().__init__(request)
        self.expected = events - 1  # the last one carries no text

    def data_received(self, data: bytes) -> None:
        if not self.buffer and not data.startswith(b"HTTP/1.1 200"):
            self.buffer = data
            self.fail()
            return
        now = time.perf_counter()
        if self.figures.events:
            self.figures.longest_gap_s = max(self.figures.longest_gap_s, now - self.heard)
        self.heard = now
        seen = self.buffer + data
        self.figures.events += seen.count(wire.CONTENT)
        if b"[DONE]" in seen:
            # A chunk's border may hide a mark, so all but one in a hundred will do.
            if self.figures.events < self.expected * 0.99:
                self.buffer = b"events were lost: %d of %d came" % (self.figures.events, self.expected)
                self.fail()
            elif not self.done.done():
                self.done.set_result(None)
        keep = len(wire.CONTENT) - 1
        self.buffer = seen[-keep:]  # an event may be cut in two; less than one is counted only once
