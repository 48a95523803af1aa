"""Upstream bytes to the client, from the commit point on.

A stream is forwarded event by event, byte for byte: events are looked at, never rebuilt, and only
malformed ones are left out. The relay does not decide what happens after a break; it says how the
stream ended and the forwarder chooses the ending.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.outcome import OK, Kind, Outcome
from proxy.dialects.sse import EventTooLarge
from proxy.dialects.streams import Sight
from proxy.transport.connection.http1 import BadAnswer, Connection, ConnectionLost, ReadTimeout
from proxy.transport.sink import ClientGoneError, Sink
from proxy.transport.upstream import Attempt

DONE_EVENT = b"data: [DONE]\n\n"
ENDS_WITH_DONE = frozenset({"chat", "completions"})
KEEPALIVE = b": keep-alive\n\n"
COMMENT_PATIENCE = 2.0  # pings alone count as life for this many times `stall`


@dataclass(slots=True)
class StreamRelay:
    """One committed stream on its way to one client.

    `keepalive_s` is the longest silence before a comment is sent.
    """

    attempt: Attempt
    sink: Sink
    keepalive_s: float
    clock: Callable[[], float]
    progress_at: float = 0.0

    async def run(self) -> Outcome:
        """Forward until the stream ends; return how it did. A good end has been written."""
        self.progress_at = self.clock()
        attempt = self.attempt
        self._write(attempt.held)
        try:
            done = attempt.ended or self._forward(attempt.later)
            while not done:
                data = await self._next_data()
                if not data:
                    return self._end_of_bytes()
                assert attempt.splitter is not None
                done = self._forward(attempt.splitter.feed(data))
                if self.sink.congested:
                    await self.sink.drain(attempt.timeouts.stall_s)
        except BrokenStream as broken:
            return broken.outcome
        except ClientGoneError:
            return Outcome(Kind.CLIENT_GONE, code="not_reading")
        except ConnectionLost:
            return self._end_of_bytes(code="cut")
        except (BadAnswer, EventTooLarge):
            return self._end_of_bytes(code="framing")
        self.sink.finish()
        return OK

    def _forward(self, events: list[bytes]) -> bool:
        """Look at events and send the good ones in one write; tell whether the end was among them."""
        reader = self.attempt.reader
        assert reader is not None
        good: list[bytes] = []
        for event in events:
            sight = reader.look(event)
            if sight is Sight.ERROR:
                self._write(good)
                code = reader.error.code if reader.error is not None else None
                raise BrokenStream(Outcome(Kind.INTERRUPTED, status=200, code=code or "error_event"))
            if sight is Sight.MALFORMED or sight is Sight.PING:
                self.attempt.dropped += sight is Sight.MALFORMED
                continue
            if sight is Sight.DONE and not reader.finished:
                self._write(good)
                raise BrokenStream(Outcome(Kind.INTERRUPTED, status=200, code="no_finish"))
            good.append(event)
            if sight is Sight.DONE:
                self._write(good)
                return True
            if sight is not Sight.COMMENT:
                self.progress_at = self.clock()
        self._write(good)
        return False

    def _write(self, events: list[bytes]) -> None:
        if events:
            self.sink.write(events[0] if len(events) == 1 else b"".join(events))

    async def _next_data(self) -> bytes:
        """Wait for data, sending keep-alive comments; raise `BrokenStream` when it stalls."""
        connection = self.attempt.connection
        assert connection is not None
        stall_s = self.attempt.timeouts.stall_s
        silent_since = self.clock()
        while True:
            now = self.clock()
            left = min(silent_since + stall_s, self.progress_at + COMMENT_PATIENCE * stall_s) - now
            if left <= 0:
                raise BrokenStream(Outcome(Kind.STALLED, status=200, code="silence"))
            try:
                return await connection.read_some(min(left, self.keepalive_s))
            except ReadTimeout:
                if self._may_comment and self.clock() - silent_since < stall_s:
                    self.sink.write(KEEPALIVE)

    @property
    def _may_comment(self) -> bool:
        """Tell whether a comment is harmless: after an event with an `id:` openai-python crashes on it."""
        return self.attempt.reader is not None and not self.attempt.reader.saw_id

    def _end_of_bytes(self, code: str = "no_finish") -> Outcome:
        """Complete a finished stream that lacks its end, however it broke off; else it was cut short."""
        reader = self.attempt.reader
        assert reader is not None
        if not reader.finished:
            return Outcome(Kind.INTERRUPTED, status=200, code=code)
        if self.attempt.permit.operation in ENDS_WITH_DONE:
            self.sink.write(DONE_EVENT)
        self.sink.finish()
        return OK


class BrokenStream(Exception):
    """A committed stream has failed; `outcome` says how."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.kind.value)
        self.outcome = outcome


async def relay_body(
    connection: Connection, first: bytes, length: int | None, sink: Sink, stall_s: float
) -> Outcome:
    """Copy the rest of a body that was too large to hold; return how it ended."""
    sink.write(first)
    sent = len(first)
    try:
        while data := await connection.read_some(stall_s):
            sink.write(data)
            sent += len(data)
            if sink.congested:
                await sink.drain(stall_s)
    except ReadTimeout:
        return Outcome(Kind.STALLED, code="silence")
    except ClientGoneError:
        return Outcome(Kind.CLIENT_GONE, code="not_reading")
    except (ConnectionLost, BadAnswer):
        return Outcome(Kind.INTERRUPTED, code="cut")
    if length is not None and sent != length:
        return Outcome(Kind.INTERRUPTED, code="length")
    sink.finish()
    return OK
