"""Idle connections by origin, the last used first, so that the surplus grows old and is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from functools import partial

from proxy.transport.connection.dial import Dialer, Origin
from proxy.transport.connection.http1 import ConnectError, Connection

IDLE_S = 55.0  # load balancers commonly close at 60 s: be first, so that no request meets their FIN
MAX_AGE_S = 300.0  # a connection outlives a DNS change at most this long
LEAVE_S = 1.0  # between a stream's last event and the last chunk of its body


class ConnectionPool:
    """Lends connections. Who acquires one must release it, whatever happened to it.

    `clock` is monotonic. An idle connection that dies, or on which a byte arrives, leaves at once.
    """

    def __init__(
        self,
        dialer: Dialer,
        clock: Callable[[], float],
        *,
        max_idle_per_origin: int = 64,
        idle_s: float = IDLE_S,
        max_age_s: float = MAX_AGE_S,
    ) -> None:
        self._dialer = dialer
        self._clock = clock
        self._max_idle = max_idle_per_origin
        self._idle_s = idle_s
        self._max_age_s = max_age_s
        self._idle: dict[Hashable, list[Connection]] = {}
        self._leaving: dict[Connection, asyncio.TimerHandle] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        """Tell how many idle connections each origin has."""
        return f"ConnectionPool({ {origin: len(stack) for origin, stack in self._idle.items() if stack} })"

    async def acquire(self, origin: Origin, *, connect_s: float, fresh: bool = False) -> Connection:
        """Return an idle connection, or a new one within `connect_s` (always new if `fresh`).

        Raises: ConnectError.
        """
        idle = None if fresh else self.take_idle(origin)
        return idle if idle is not None else await self.connect(origin, connect_s)

    def take_idle(self, origin: Origin) -> Connection | None:
        """Return the idle connection that was used last, None if there is none."""
        stack = self._idle.get(origin)
        while stack:
            connection = stack.pop()
            connection.on_lost = None
            if self._is_fit(connection):
                connection.reused = True
                return connection
            connection.abort()
        return None

    async def connect(self, origin: Origin, connect_s: float) -> Connection:
        """Return a new connection within `connect_s`.

        Raises: ConnectError.
        """
        if self._closed:
            raise ConnectError("unreachable", "the pool is closed")
        connection = await self._dialer.dial(origin, connect_s)
        connection.origin = origin
        connection.opened_at = self._clock()
        return connection

    def release(self, connection: Connection) -> None:
        """Keep a connection whose exchange has ended well; close any other at once."""
        now = self._clock()
        if self._closed or not connection.is_reusable or now - connection.opened_at >= self._max_age_s:
            connection.abort()
            return
        connection.rest()
        connection.idle_since = now
        connection.on_lost = self._forget
        stack = self._idle.setdefault(connection.origin, [])
        stack.append(connection)
        if len(stack) > self._max_idle:
            self._drop(stack[0])
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)

    def release_soon(self, connection: Connection, within_s: float = LEAVE_S) -> None:
        """Release a connection whose answer is over but for its last bytes, once these have come.

        Nothing waits for it: the next request would pay for a new TLS handshake if it were just closed.
        It is closed if they have not come within *within_s*, or if anything else comes.
        """
        if self._closed or connection.is_complete or not connection.is_open:
            self.release(connection)
            return
        loop = asyncio.get_running_loop()
        self._leaving[connection] = loop.call_later(within_s, self._leave, connection)
        connection.read_by(partial(self._watch_leaving, connection))

    def idle(self) -> int:
        """Count the idle connections."""
        return sum(map(len, self._idle.values()))

    async def close(self) -> None:
        """Close what is idle, and from now on whatever is released."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in [c for stack in self._idle.values() for c in stack]:
            self._drop(connection)
        for connection in tuple(self._leaving):
            self._leave(connection)
        await asyncio.sleep(0)  # the transports close their sockets in the loop's next turn

    def _watch_leaving(self, connection: Connection) -> None:
        if connection.is_complete or connection.error is not None or connection.take().strip():
            self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        timer = self._leaving.pop(connection, None)
        if timer is not None:
            timer.cancel()
            connection.read_by(None)
            self.release(connection)

    def _is_fit(self, connection: Connection) -> bool:
        now = self._clock()
        young = now - connection.opened_at < self._max_age_s
        return young and now - connection.idle_since < self._idle_s and connection.is_open

    def _sweep(self) -> None:
        """Close what has grown old; come again while something is idle."""
        self._sweeper = None
        for connection in [c for stack in self._idle.values() for c in stack]:
            if not self._is_fit(connection):
                self._drop(connection)
        if self.idle():
            self._sweeper = asyncio.get_running_loop().call_later(self._idle_s, self._sweep)

    def _drop(self, connection: Connection) -> None:
        self._forget(connection)
        connection.abort()

    def _forget(self, connection: Connection) -> None:
        connection.on_lost = None
        self._idle[connection.origin].remove(connection)
