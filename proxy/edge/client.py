"""The client's side of one connection: limits that aiohttp lacks, and the sink of an answer.

aiohttp parses requests and keeps connections; answers are written to the transport directly, which
is measurably cheaper than `StreamResponse` (about 30 us a request) and lets one write carry head
and body. `Answered` is what the handler returns instead of a response: it tells aiohttp whether the
connection may be kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from proxy.dialects.openai import error_body
from proxy.transport.sink import ClientGoneError

HEAD_TIMEOUT_S = 10.0  # from the first byte of a request head to its end; HAProxy's `http-request`
WRITE_BUFFER = 64 * 1024  # bytes that may wait for a slow client before reading upstream pauses
STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class ClientConnection(RequestHandler):
    """One client connection, with a deadline for each request head and our own error bodies."""

    __slots__ = ("_full", "_head_deadline", "_on_closed", "_resumed")

    def __init__(
        self, manager: Any, on_closed: Callable[[ClientConnection], None], *, full: bool, **kwargs: Any
    ) -> None:
        super().__init__(manager, **kwargs)
        self._full = full
        self._head_deadline: asyncio.TimerHandle | None = None
        self._resumed: asyncio.Future[None] | None = None
        self._on_closed = on_closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the write buffer's size, beyond which `congested` is true."""
        super().connection_made(transport)
        if isinstance(transport, asyncio.WriteTransport):
            transport.set_write_buffer_limits(high=WRITE_BUFFER)
        if self._full and self.transport is not None:
            self.transport.write(_plain_error(503, "too_many_connections", "Too many open connections."))
            self.force_close()

    def data_received(self, data: bytes) -> None:
        """Pass data to the parser; start the head's clock while a head is incomplete."""
        super().data_received(data)
        waiting = self._waiter is not None and not self._messages and not self._waiter.done()
        if waiting and self._head_deadline is None and data:
            self._head_deadline = self._loop.call_later(HEAD_TIMEOUT_S, self._head_too_slow)
        elif not waiting and self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    @property
    def is_idle(self) -> bool:
        """Tell whether no request is being received or answered."""
        return self._current_request is None and not self._messages and self._head_deadline is None

    def _head_too_slow(self) -> None:
        self._head_deadline = None
        if self.transport is not None:
            self.transport.write(_plain_error(408, "request_timeout", "The request head took too long."))
        self.force_close()

    def resume_writing(self) -> None:
        """Wake who waits in `until_writable`."""
        super().resume_writing()
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release timers and waiters; aiohttp cancels the running handler."""
        if self._head_deadline is not None:
            self._head_deadline.cancel()
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        super().connection_lost(exc)
        self._on_closed(self)

    async def until_writable(self, timeout_s: float) -> None:
        """Wait until the client has read enough.

        Raises:
            ClientGoneError: it did not within *timeout_s*, or it left.
        """
        if self.transport is None:
            raise ClientGoneError
        if not self.writing_paused:
            return
        self._resumed = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, self._give_up_on_reader)
        try:
            await self._resumed
        finally:
            timer.cancel()
            self._resumed = None
        if self.transport is None:
            raise ClientGoneError

    def _give_up_on_reader(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what the parser refused: a fixed text, never the parser's words."""
        if status >= 500:
            self.log_exception("Unhandled error in a handler", exc_info=exc)
            body = error_body(status, "internal_error", "The proxy failed to handle this request.")
        else:
            status, code, text = _parse_failure(exc)
            body = error_body(status, code, text)
        response = web.Response(status=status, body=body, content_type="application/json")
        response.force_close()
        return response


def _parse_failure(exc: BaseException | None) -> tuple[int, str, str]:
    """Tell heads that are too large from those that are malformed."""
    if type(exc).__name__ == "LineTooLong":
        return 431, "headers_too_large", "The request line or a header is too large."
    return 400, "invalid_request", "The request is not valid HTTP/1.1."


def _plain_error(status: int, code: str, message: str) -> bytes:
    body = error_body(status, code, message)
    head = STATUS_LINES[status] + b"connection: close\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


class Answered:
    """Stands for a response that has been written already."""

    __slots__ = ("keep_alive",)

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive

    async def prepare(self, _request: web.BaseRequest) -> None:
        """Do nothing: the head is out."""

    async def write_eof(self) -> None:
        """Do nothing: the body is out."""


class ClientSink:
    """Writes one answer to one client connection. See `transport.sink.Sink`."""

    __slots__ = (
        "_chunked",
        "_connection",
        "_extra",
        "finished",
        "http_1_0",
        "keep_alive",
        "started",
        "status",
    )

    def __init__(self, connection: ClientConnection, keep_alive: bool, http_1_0: bool) -> None:
        self._connection = connection
        self.keep_alive = keep_alive
        self.http_1_0 = http_1_0
        self.started = False
        self.finished = False
        self.status = 0
        self._chunked = False

    @property
    def congested(self) -> bool:
        """Tell whether more than `WRITE_BUFFER` bytes wait for the client."""
        return bool(self._connection.writing_paused)

    @property
    def gone(self) -> bool:
        """Tell whether the client's connection is closed."""
        return self._connection.transport is None or self._connection.transport.is_closing()

    def send_continue(self) -> None:
        """Tell a client that asked first to send its body now."""
        self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def start(self, status: int, lines: bytes, length: int | None) -> None:
        """Send the head; a body of unknown length is chunked, or ended by close for HTTP/1.0."""
        self._write(self._head(status, lines, length))

    def answer(self, status: int, lines: bytes, body: bytes) -> None:
        """Send head and body in one write."""
        self._write(self._head(status, lines, len(body)) + body)
        self.finished = True

    def write(self, data: bytes) -> None:
        """Send a piece of the body."""
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._write(data)

    async def drain(self, timeout_s: float) -> None:
        """Wait until the client has caught up. See `Sink.drain`."""
        await self._connection.until_writable(timeout_s)

    def finish(self) -> None:
        """End the body properly."""
        if self._chunked:
            self._write(b"0\r\n\r\n")
        self.finished = True

    def abort(self) -> None:
        """Close the connection after what has been written, without the body's proper end.

        `close` sends what waits in the buffer first: the error event must reach the client. A client
        that does not read it is dropped by the transport's own abort in `until_writable`.
        """
        self.keep_alive = False
        self.finished = True
        transport = self._connection.transport
        if transport is not None:
            transport.close()

    def _head(self, status: int, lines: bytes, length: int | None) -> bytes:
        self.started = True
        self.status = status
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif self.http_1_0:
            self.keep_alive = False
            framing = b""
        else:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        if not self.keep_alive:
            framing += b"connection: close\r\n"
        elif self.http_1_0:
            framing += b"connection: keep-alive\r\n"
        first = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        return b"%b%b%b\r\n" % (first, lines, framing)

    def _write(self, data: bytes) -> None:
        transport = self._connection.transport
        if transport is not None:
            transport.write(data)
