"""Comments to a client that hears nothing, so that nobody between us takes its connection for dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.transport.connection.alarm import Alarm
from proxy.transport.headers import header_text
from proxy.transport.sink import Sink

KEEPALIVE = b": keep-alive\n\n"


class Heartbeat:
    """Writes a comment after each `every_s` in which nothing was written.

    Whoever writes to the client sets `quiet_since` (loop time). Only whole events are ever written, so a
    comment always falls between two. It stays off where `every_s` is 0.
    """

    __slots__ = ("_alarm", "_every_s", "_first", "_loop", "_silenced", "_sink", "quiet_since")

    def __init__(self, sink: Sink, loop: asyncio.AbstractEventLoop) -> None:
        self.quiet_since = loop.time()
        self._sink = sink
        self._loop = loop
        self._alarm = Alarm(loop, self._beat)
        self._every_s = 0.0
        self._first: Callable[[], None] | None = None
        self._silenced = False

    def start(self, every_s: float, first: Callable[[], None] | None = None) -> None:
        """Beat at this pace from now on; *first* is called before the first comment, to send the head."""
        self._every_s = every_s
        self._first = first
        self.quiet_since = self._loop.time()
        if every_s > 0 and not self._silenced:
            self._alarm.set(self.quiet_since + every_s)

    def silence(self) -> None:
        """Write no comment any more: after an event with an `id:` openai-python crashes on one."""
        self._silenced = True
        self._alarm.cancel()

    def as_comment(self, text: str) -> bytes:
        """Return *text* as an event that SDKs pass over, or nothing where it would do harm."""
        return b"" if self._silenced else b": %b\n\n" % header_text(text)

    def stop(self) -> None:
        """Leave no timer behind."""
        self._alarm.cancel()

    def _beat(self) -> None:
        now = self._loop.time()
        if now >= self.quiet_since + self._every_s - 0.01:
            if self._first is not None:
                first, self._first = self._first, None
                first()
            if not self._sink.congested:
                self._sink.write(KEEPALIVE)
            self.quiet_since = now
        self._alarm.set(self.quiet_since + self._every_s)
