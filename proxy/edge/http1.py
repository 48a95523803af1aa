"""The endpoint's HTTP/1.1 server: an asyncio protocol per client, one request at a time.

                 part of a head            head                  body complete
        IDLE ------------------> HEAD -----------> BODY ------------------------> ANSWERING
          ^                                                                           |
          |  the next may follow                                                      |
          +---------------------------------------------------------------------------+
                                                              answered, kept not |
        any, on what is malformed, late, or answered too early -------------> CLOSING

Rule 1: a handler runs from the end of the head on, in the connection's one task. It is cancelled when
        the client leaves: `asyncio.CancelledError` in a handler means that nobody waits for the answer.
Rule 2: what a client sends ahead waits unread in its order, so that reading goes on and its leaving is
        noticed. Beyond `Limits.ahead_bytes` reading pauses, and its leaving is found when it resumes.
Rule 3: whatever cannot be read for certain ends the connection, but answers to what came before it,
        and the refusal itself, reach the client: we stop sending, and read on for a moment (RFC 9112, 9.6).
Rule 4: each phase has its deadline, on one alarm. While a handler runs the deadlines are its own.

A change of protocol is refused. To serve WebSockets, hand over here: `_begin` knows the head's bytes,
and an aiohttp protocol takes a transport by `set_protocol`, `connection_made` and `data_received`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from proxy.dialects.openai import WireError
from proxy.edge.body import ChunkedBody, SizedBody, too_slow
from proxy.edge.client import ClientSink, WritingHalf
from proxy.edge.head import HEAD_END, Head, check_beginning
from proxy.transport.connection.alarm import Alarm
from proxy.transport.sink import ClientGoneError


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a client may take for what, in seconds, and how much it may send unasked, in bytes."""

    head_s: float = 10.0  # from a head's first byte to its last; HAProxy's `http-request`
    idle_s: float = 75.0  # between requests; longer than the 60 s of common load balancers
    body_idle_s: float = 15.0  # the longest silence in a body
    body_total_s: float = 300.0  # a whole body: 64 MiB at 1.7 Mbit/s
    unread_s: float = 60.0  # until a finished answer has been read; nginx's send_timeout
    linger_s: float = 2.0  # nginx's lingering_timeout is 5 s
    linger_bytes: int = 1024 * 1024
    ahead_bytes: int = 64 * 1024  # sent before the answer to the last request, or before a body is asked for


class Phase(Enum):
    """What a connection is doing."""

    IDLE = "idle"  # nothing of the next request has come
    HEAD = "head"  # part of its head has
    BODY = "body"  # its handler runs, its body is not complete
    ANSWERING = "answering"  # its handler runs, all of it is here
    CLOSING = "closing"  # all is written; what still comes is thrown away


IDLE, HEAD, BODY, ANSWERING, CLOSING = Phase  # a member's look-up through its class costs 0.1 us


class Request(Head):
    """One request, as soon as its head is complete; its answer goes to `sink`."""

    __slots__ = ("_connection", "body", "sink")

    def __init__(self, data: bytes, connection: ClientConnection) -> None:
        super().__init__(data)
        self._connection = connection
        self.body: bytes | None = None
        self.sink = ClientSink(connection, self.keep_alive, self.http_1_0, self.method == "HEAD")

    @property
    def body_complete(self) -> bool:
        """Tell whether all of the body has arrived."""
        return self.body is not None

    def whole_body(self) -> bytes | None:
        """Return the body if all of it has arrived."""
        return self.body

    async def read_body(self) -> bytes:
        """Return the body, waiting for it; only now a client that asked first is told to send it.

        Raises:
            WireError: too large (413), too slow (408), or badly framed (400).
        """
        return self.body if self.body is not None else await self._connection.receive_body(self)


class Http1Server:
    """Makes connections, for `loop.create_server`, and holds them.

    `max_connections` and `max_body` (bytes) are asked when they matter, so a reload changes them.
    """

    def __init__(
        self,
        handle: Callable[[Request], Awaitable[None]],
        *,
        max_connections: Callable[[], int],
        max_body: Callable[[], int],
        limits: Limits | None = None,
    ) -> None:
        self.handle = handle
        self.max_connections = max_connections
        self.max_body = max_body
        self.limits = limits or Limits()
        self.connections: set[ClientConnection] = set()
        self.draining = False

    def __call__(self) -> ClientConnection:
        """Return the protocol of a new connection."""
        return ClientConnection(self, asyncio.get_running_loop())

    def close_idle(self) -> None:
        """Close the connections on which nothing is asked; the others close after their answer."""
        for connection in tuple(self.connections):
            if connection.phase is IDLE:
                connection.close()

    def close_all(self) -> None:
        """Close every connection; what has been written is still sent, handlers are cancelled."""
        for connection in tuple(self.connections):
            connection.close()


class ClientConnection(WritingHalf):
    """One client's connection."""

    __slots__ = (
        "_alarm",
        "_asked",
        "_body",
        "_body_end",
        "_body_error",
        "_buffer",
        "_discarded",
        "_reading_paused",
        "_request",
        "_server",
        "_task",
        "_waiter",
        "phase",
    )

    def __init__(self, server: Http1Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.phase = IDLE
        self._server = server
        self._alarm = Alarm(loop, self._too_late)
        self._buffer = b""  # what has come and is not read yet
        self._reading_paused = False
        self._discarded = 0
        self._request: Request | None = None
        self._body: SizedBody | ChunkedBody | None = None
        self._body_error: WireError | None = None
        self._body_end = 0.0
        self._asked: asyncio.Future[None] | None = None  # a handler waits for the body
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None  # the task waits for a request

    @property
    def may_be_kept(self) -> bool:
        """Tell whether another request may follow the running one."""
        return self.phase is ANSWERING and not self._server.draining

    # The transport calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for a request, or turn the client away."""
        super().connection_made(transport)
        server = self._server
        full = len(server.connections) >= server.max_connections()
        server.connections.add(self)
        self._expect(IDLE, server.limits.idle_s)
        if full:
            refusal = WireError(503, "too_many_connections", "Too many open connections.")
            ClientSink(self, keep_alive=False).refuse(refusal)
            self.close()

    def data_received(self, data: bytes) -> None:
        """Read, keep or throw away what has come."""
        phase = self.phase
        if phase is IDLE or phase is HEAD:
            self._read_head(data)
        elif phase is BODY and self._body is not None:
            self._read_body(self._body, data)
        elif phase is ANSWERING:
            self._buffer += data
            self._pause_beyond(len(self._buffer))
        else:
            self._discard(len(data))

    def eof_received(self) -> None:
        """Take the end of what the client sends for its leaving, unless all it waits for is written."""
        request = self._request
        if request is not None and not request.sink.finished and self.transport is not None:
            self.transport.abort()
            self._cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything; whoever still works for this client is cancelled."""
        super().connection_lost(exc)
        self._server.connections.discard(self)
        self._alarm.cancel()
        self.phase = CLOSING
        self._cancel()

    def close(self) -> None:
        """Close after what has been written, within the time that reading it may take."""
        self._expect(CLOSING, self._server.limits.unread_s)
        if self.transport is not None:
            self.transport.close()
        self._cancel()

    # Reading.

    def _read_head(self, data: bytes) -> None:
        """Begin a request once its head is complete."""
        seen = len(self._buffer)
        if seen:
            data = self._buffer + data
            self._buffer = b""
        while data.startswith(b"\r\n"):  # some clients end a body with one (RFC 9112, 2.2)
            data = data[2:]
        end = data.find(HEAD_END, max(0, seen - 3)) + 4
        try:
            if end >= 4:
                self._begin(Request(data[:end], self), data[end:])
            else:
                self._begin_head(data, seen)
        except WireError as error:
            self._refuse(error)

    def _begin_head(self, data: bytes, seen: int) -> None:
        if not data:
            return
        check_beginning(data, seen)
        self._buffer = data
        if self.phase is IDLE:
            self._expect(HEAD, self._server.limits.head_s)

    def _begin(self, request: Request, rest: bytes) -> None:
        """Set the handler to work; *rest* is what has come behind the head."""
        self._request = request
        size = request.length
        if request.chunked or size > len(rest):
            self._begin_body(SizedBody(size) if size else ChunkedBody(self._server.max_body()), rest)
        else:
            request.body, self._buffer = (rest, b"") if size == len(rest) else (rest[:size], rest[size:])
            self.phase = ANSWERING
            self._alarm.at = None
        if self._waiter is not None:
            self._waiter.set_result(None)
            self._waiter = None
        elif self._task is None:
            self._task = self.loop.create_task(self._serve())

    def _begin_body(self, body: SizedBody | ChunkedBody, rest: bytes) -> None:
        limits = self._server.limits
        self._body = body
        self._body_error = None
        self._body_end = self.loop.time() + limits.body_total_s
        self._expect(BODY, limits.body_idle_s)
        self._read_body(body, rest)

    def _read_body(self, body: SizedBody | ChunkedBody, data: bytes) -> None:
        """Collect a body, as far as its handler has asked for it."""
        assert self._request is not None
        try:
            rest = body.feed(data)
        except WireError as error:
            self._fail_body(error)
            return
        if rest is None:
            idle_end = self.loop.time() + self._server.limits.body_idle_s
            self._alarm.at = min(idle_end, self._body_end)
            if self._asked is None:
                self._pause_beyond(len(body.data))
            return
        self._request.body = bytes(body.data)
        self._body = None
        self._buffer = rest
        self.phase = ANSWERING
        self._alarm.at = None
        self._wake_asker()

    def _fail_body(self, error: WireError) -> None:
        self._body = None
        self._body_error = error
        self._alarm.at = None
        self._wake_asker()

    def _wake_asker(self) -> None:
        if self._asked is not None and not self._asked.done():
            self._asked.set_result(None)

    async def receive_body(self, request: Request) -> bytes:
        """Return the body of the running request. See `Request.read_body`."""
        if self._body is not None:
            if "expect" in request.headers:
                request.sink.send_continue()
            self._resume_reading()
            self._asked = self.loop.create_future()
            try:
                await self._asked
            finally:
                self._asked = None
        if request.body is None:
            raise self._body_error or too_slow()
        return request.body

    def _pause_beyond(self, size: int) -> None:
        if size > self._server.limits.ahead_bytes and not self._reading_paused and self.transport is not None:
            self._reading_paused = True
            self.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self.transport is not None and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    # Answering.

    async def _serve(self) -> None:
        """Answer one request after another, until the connection ends."""
        request = self._request
        try:
            while request is not None:
                await self._server.handle(request)
                if self.writing_paused:
                    await self.until_writable(self._server.limits.unread_s)
                self._end(request)
                request = self._request
                if request is None and self.phase is not CLOSING:
                    self._waiter = self.loop.create_future()
                    await self._waiter
                    request = self._request
        except ClientGoneError:
            self._request = None
        except Exception as error:  # noqa: BLE001  the edge's last resort
            self._apologise(error)
        finally:
            if self.phase is not CLOSING:  # cancelled by neither of us
                self._abort()

    def _end(self, request: Request) -> None:
        """Keep the connection for the next request, or see it off."""
        sink = request.sink
        self._request = None
        if not sink.finished:
            sink.abort()
        if self.transport is None or self.transport.is_closing():
            self._expect(CLOSING, self._server.limits.unread_s)
        elif self.phase is BODY or (self._buffer and not sink.keep_alive):
            self._linger()
        elif not (sink.keep_alive and self.may_be_kept):
            self.close()
        else:
            self._expect(IDLE, self._server.limits.idle_s)
            self._resume_reading()
            if self._buffer:
                ahead, self._buffer = self._buffer, b""
                self._read_head(ahead)

    def _apologise(self, error: Exception) -> None:
        context = {"message": "Unhandled error in a handler", "exception": error, "protocol": self}
        self.loop.call_exception_handler(context)
        request = self._request
        if request is not None and not request.sink.started:
            request.sink.keep_alive = False
            request.sink.refuse(WireError(500, "internal_error", "The proxy failed to handle this request."))
        if request is not None:
            self._end(request)

    def _refuse(self, error: WireError) -> None:
        """Answer what is no request."""
        ClientSink(self, keep_alive=False).refuse(error)
        self._linger()

    def _linger(self) -> None:
        """Stop sending, but read on for a moment: a reset must not overtake the answer."""
        self._expect(CLOSING, self._server.limits.linger_s)
        self._buffer = b""
        self._body = None
        self._resume_reading()
        if self.transport is not None:
            self.transport.write_eof()

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > self._server.limits.linger_bytes:
            if self.phase is CLOSING:
                self.close()
            else:
                self._pause_beyond(self._discarded)

    # The end.

    def _expect(self, phase: Phase, seconds: float) -> None:
        """Enter a phase that may last so long."""
        self.phase = phase
        self._alarm.set(self.loop.time() + seconds)

    def _too_late(self) -> None:
        if self.phase is HEAD:
            self._refuse(WireError(408, "request_timeout", "The request head took too long."))
        elif self.phase is BODY:
            self._fail_body(too_slow())
        elif self.phase is IDLE or (self.transport is not None and self.transport.is_closing()):
            self._abort()
        else:
            self.close()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _cancel(self) -> None:
        """Cancel who works for this client; whoever has finished an answer may end in peace."""
        request, task = self._request, self._task
        busy = self._waiter is not None or (request is not None and not request.sink.finished)
        if busy and task is not None and not task.cancelling():
            task.cancel()
