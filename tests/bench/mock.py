"""The mock upstream: `python -m tests.bench.mock PORT PORT` answers at once, or streams at a pace.

A protocol without coroutines, so that it takes little of the core that it shares with the load. How
many events a stream has and how far apart stands in the request's own `max_tokens` and `seed`.
"""

from __future__ import annotations

import asyncio
import re
import sys

import uvloop

from tests.bench import wire

ANSWER = wire.answer()
EVENT, LAST_EVENT = wire.event(), wire.event(last=True)
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
EVENTS = re.compile(rb'"max_tokens": ?(\d+)')
GAP_MS = re.compile(rb'"seed": ?(\d+)')


class Mock(asyncio.Protocol):
    """One connection of the proxy's."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.buffer = b""
        self.timer: asyncio.TimerHandle | None = None

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n") + 4) > 3:
            length = LENGTH.search(self.buffer, 0, end)
            whole = end + int(length[1]) if length else end
            if len(self.buffer) < whole:
                return
            body, self.buffer = self.buffer[end:whole], self.buffer[whole:]
            self.answer(body)

    def answer(self, body: bytes) -> None:
        if b'"stream":true' not in body:
            self.transport.write(ANSWER)
            return
        self.transport.write(wire.STREAM_HEAD + EVENT)
        self.left = int(EVENTS.search(body)[1]) - 1
        self.gap_s = int(GAP_MS.search(body)[1]) / 1000
        self.due = asyncio.get_running_loop().time()
        self.next()

    def next(self) -> None:
        """Send one event each time it is due, by the schedule and not by when the last one went."""
        self.due += self.gap_s
        self.timer = asyncio.get_running_loop().call_at(self.due, self.send)

    def send(self) -> None:
        self.left -= 1
        if self.left > 0:
            self.transport.write(EVENT)
            self.next()
        else:
            self.timer = None
            self.transport.write(LAST_EVENT + wire.STREAM_END)


async def serve(ports: list[int]) -> None:
    loop = asyncio.get_running_loop()
    for port in ports:
        await loop.create_server(Mock, "127.0.0.1", port, backlog=2048)
    await loop.run_in_executor(None, sys.stdin.read)  # until the benchmark is over, however it ends


if __name__ == "__main__":
    uvloop.run(serve([int(port) for port in sys.argv[1:]]))
