"""Whole exchanges over real sockets: answers, failures, aborts, backpressure; plain and over TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from proxy.transport.connection.dial import Dialer
from proxy.transport.connection.http1 import (
    BadAnswer,
    Connection,
    ConnectionLost,
    ReadTimeout,
    ResponseHead,
)  # fmt: skip
from tests.fakes.upstream import (
    Behaviour,
    FakeUpstream,
    Garbage,
    Hang,
    HangAfterHead,
    Reply,
    Request,
    ResetAfterHead,
    ResetBeforeHead,
    Slow,
    Stream,
    Truncated,
    Wire,
    raw_head,
)  # fmt: skip
from tests.transport.connection.lab import Certificates, exchange, origin_of, read_all, request

Talk = Callable[..., AbstractAsyncContextManager[tuple[Connection, FakeUpstream]]]


@pytest.fixture(params=["plain", "tls"])
def talk(request: pytest.FixtureRequest, dialer: Dialer, certificates: Certificates) -> Talk:
    """Return a way to connect to a fake upstream."""
    trusted = certificates if request.param == "tls" else None

    @asynccontextmanager
    async def to(
        *script: Behaviour, read_body: bool = True
    ) -> AsyncIterator[tuple[Connection, FakeUpstream]]:
        tls = trusted.good if trusted else None
        async with FakeUpstream(*script, tls=tls, read_body=read_body) as fake:
            connection = await dialer.dial(origin_of(fake, trusted), 5)
            try:
                yield connection, fake
            finally:
                connection.abort()
                if read_body:  # who does not read does not see the end either
                    await fake.until(lambda f: f.open == 0)

    return to


@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        pytest.param(Reply(body=b"hello"), (200, b"hello"), id="content-length"),
        pytest.param(Reply(body=b"hello", framing="chunked"), (200, b"hello"), id="chunked"),
        pytest.param(Reply(body=b"hello", framing="close"), (200, b"hello"), id="ends with the connection"),
        pytest.param(Reply(body=b"hello", keep_alive=False), (200, b"hello"), id="close"),
        pytest.param(Reply(204), (204, b""), id="204"),
        pytest.param(Reply(418, b"tea"), (418, b"tea"), id="an error"),
        pytest.param(
            Reply(body=b"hello", first=b"HTTP/1.1 103 Early Hints\r\n\r\n"), (200, b"hello"), id="after a 103"
        ),
        pytest.param(Slow(Reply(body=b"hello")), (200, b"hello"), id="byte by byte"),
        pytest.param(Slow(Reply(body=b"hello", framing="chunked"), 3), (200, b"hello"), id="by three bytes"),
        pytest.param(Slow(Stream(["a", "b"]), 5), (200, b"data: a\n\ndata: b\n\ndata: [DONE]\n\n"), id="SSE"),
        pytest.param(Stream(["a"], end="eof", framing="close"), (200, b"data: a\n\n"), id="SSE to the end"),
    ],
)
async def test_an_answer(talk: Talk, behaviour: Behaviour, expected: tuple[int, bytes]) -> None:
    async with talk(behaviour) as (connection, fake):
        assert await exchange(connection, b'{"a": 1}') == expected
        assert fake.requests[0].json() == {"a": 1}


async def test_an_answer_to_head(talk: Talk) -> None:
    async with talk(Reply(body=b"hello")) as (connection, _):
        for method, body in (("HEAD", b""), ("POST", b"hello"), ("HEAD", b"")):
            assert await exchange(connection, method=method) == (200, body)
            assert connection.is_reusable
            connection.rest()


@pytest.mark.parametrize(
    ("behaviour", "phase", "answered"),
    [
        pytest.param(ResetBeforeHead(), "head", False, id="reset before the head"),
        pytest.param(Garbage(b""), "head", False, id="closed before the head"),
        pytest.param(Garbage(b"HTTP/1.1 200 OK\r\n"), "head", True, id="closed in the head"),
        pytest.param(ResetAfterHead(), "body", True, id="reset in the body"),
        pytest.param(Truncated(), "body", True, id="closed in the body"),
        pytest.param(Stream(end="cut"), "body", True, id="cut between chunks"),
        pytest.param(Stream(end="reset"), "body", True, id="reset between chunks"),
        pytest.param(Stream(end="reset", framing="close"), "body", True, id="reset instead of the end"),
    ],
)
async def test_a_lost_connection(talk: Talk, behaviour: Behaviour, phase: str, answered: bool) -> None:
    async with talk(behaviour) as (connection, _):
        with pytest.raises(ConnectionLost) as lost:
            await exchange(connection)
        assert (lost.value.phase, lost.value.answered, lost.value.reused) == (phase, answered, False)


class EndsWithoutNotice:
    """Sends a body that ends with the connection, then closes the socket without a TLS close_notify."""

    async def play(self, asked: Request, wire: Wire) -> None:
        await wire.send(raw_head(200, {}) + b"hel")
        await asyncio.sleep(0.02)
        wire.transport.abort()


async def test_over_tls_a_cut_body_does_not_pass_for_a_complete_one(
    dialer: Dialer, certificates: Certificates
) -> None:
    async with FakeUpstream(EndsWithoutNotice(), tls=certificates.good) as fake:
        connection = await dialer.dial(origin_of(fake, certificates), 5)
        with pytest.raises(ConnectionLost):
            await exchange(connection)


async def test_what_is_not_http(talk: Talk) -> None:
    async with talk(Garbage()) as (connection, _):
        with pytest.raises(BadAnswer):
            await exchange(connection)


async def test_silence_before_the_head_and_in_the_body(talk: Talk) -> None:
    async with talk(Hang()) as (connection, _):
        connection.send(*request())
        with pytest.raises(ReadTimeout) as timeout:
            await connection.read_head(0.01)
        assert timeout.value.phase == "head"
    async with talk(HangAfterHead(b"x")) as (connection, _):
        connection.send(*request())
        await connection.read_head(5)
        assert await connection.read_some(5) == b"x"
        with pytest.raises(ReadTimeout) as timeout:
            await connection.read_some(0.01)
        assert timeout.value.phase == "body"


@pytest.mark.parametrize("behaviour", [Hang(), HangAfterHead(b"x"), Stream(["x"] * 1000, gap_s=0.01)])
async def test_an_abort_reaches_the_upstream_at_once(talk: Talk, behaviour: Behaviour) -> None:
    """uvloop's `close()` would keep a TLS connection for 30 s; 2 s are for slow machines."""
    async with talk(behaviour) as (connection, fake):
        connection.send(*request())
        await fake.until(lambda f: f.running == 1)
        waiting = asyncio.ensure_future(exchange_rest(connection))
        await asyncio.sleep(0)
        connection.abort()
        with pytest.raises(ConnectionLost):
            await waiting
        await fake.until(lambda f: f.aborted == 1 and f.open == 0, timeout_s=2)


async def exchange_rest(connection: Connection) -> tuple[ResponseHead, bytes]:
    return await connection.read_head(5), await read_all(connection)


class Flood:
    """Sends a body of `size` bytes as fast as the client takes it, and counts what it was rid of."""

    def __init__(self, size: int, framing: str) -> None:
        self.size, self.framing, self.sent = size, framing, 0

    async def play(self, asked: Request, wire: Wire) -> None:
        await wire.send(raw_head(200, {}, self.framing, self.size, keep=self.framing != "none"))
        piece = bytes(range(256)) * 256
        while self.sent < self.size:
            await wire.send(b"%x\r\n%b\r\n" % (len(piece), piece) if self.framing == "chunked" else piece)
            self.sent += len(piece)
        if self.framing == "chunked":
            await wire.send(b"0\r\n\r\n")
        elif self.framing == "none":
            wire.end("close")


@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
async def test_a_reader_that_does_not_read_holds_little_and_misses_nothing(talk: Talk, framing: str) -> None:
    size = 50 * 1024 * 1024
    flood = Flood(size, framing)
    async with talk(flood) as (connection, _):
        connection.send(*request())
        await connection.read_head(5)
        largest = total = reads = 0
        while True:
            if reads % 100 == 0:
                await stalled(flood)
            piece = await connection.read_some(5)
            if not piece:
                break
            assert piece[:1] == bytes([total % 256])
            reads, total, largest = reads + 1, total + len(piece), max(largest, len(piece))
        assert total == size
        assert largest < 1024 * 1024


async def stalled(flood: Flood) -> None:
    """Wait until the upstream can send no more, because nobody reads."""
    before, quiet = flood.sent, 0
    while quiet < 20:
        await asyncio.sleep(0)
        quiet = quiet + 1 if flood.sent == before else 0
        before = flood.sent


async def test_a_large_request_arrives_whole(talk: Talk) -> None:
    body = bytes(range(256)) * 4096 * 20
    async with talk(Reply(body=b"ok")) as (connection, fake):
        assert await exchange(connection, body) == (200, b"ok")
        assert fake.requests[0].body == body
        assert connection.is_reusable


async def test_an_early_answer_to_a_large_request_is_read(talk: Talk) -> None:
    async with talk(Reply(413, b"too large"), read_body=False) as (connection, _):
        assert await exchange(connection, b"x" * 20_000_000) == (413, b"too large")
        assert not connection.is_reusable


async def test_an_upstream_that_does_not_read_can_be_left(talk: Talk) -> None:
    async with talk(Hang(), read_body=False) as (connection, _):
        connection.send(*request(b"x" * 20_000_000))
        with pytest.raises(ReadTimeout):
            await connection.read_head(0.05)
