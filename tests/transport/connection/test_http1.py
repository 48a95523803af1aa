"""One connection, told byte by byte what comes: framing, limits, phases, waiting, writing."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.transport.connection.http1 import (
    MAX_HEAD_BYTES,
    READ_HIGH_WATER,
    WRITE_SLICE,
    BadAnswer,
    Connection,
    ConnectionLost,
    ReadTimeout,
    ResponseHead,
)
from tests.transport.connection.lab import HandLoop, PaperTransport, on_paper, read_all, request, whole

OK = b"HTTP/1.1 200 OK\r\n"
PLAIN = OK + b"content-length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"

ANSWERS = [
    pytest.param(PLAIN, 200, b"hello", True, id="content-length"),
    pytest.param(CHUNKED, 200, b"hello", True, id="chunked"),
    pytest.param(CHUNKED[:-2] + b"X-Sum: 1\r\nB: 2\r\n\r\n", 200, b"hello", True, id="trailers are dropped"),
    pytest.param(OK + b"\r\nhello", 200, b"hello", False, id="ends with the connection"),
    pytest.param(OK + b"content-length: 0\r\n\r\n", 200, b"", True, id="empty"),
    pytest.param(b"HTTP/1.1 204 No\r\n\r\n", 204, b"", True, id="204"),
    pytest.param(b"HTTP/1.1 304 No\r\ncontent-length: 9\r\n\r\n", 304, b"", True, id="304 with a length"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, 200, b"hello", True, id="after a 100"),
    pytest.param(
        b"HTTP/1.1 103 Hints\r\nlink: </x>\r\n\r\n" * 3 + CHUNKED, 200, b"hello", True, id="after three 103"
    ),
    pytest.param(OK + b"connection: close\r\ncontent-length: 2\r\n\r\nhi", 200, b"hi", False, id="close"),
    pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", 200, b"hello", False, id="HTTP/1.0"),
    pytest.param(
        b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello", 200, b"hello", True,
        id="HTTP/1.0 with keep-alive",
    ),
    pytest.param(b"HTTP/1.1 503\r\ncontent-length: 2\r\n\r\nno", 503, b"no", True, id="no reason phrase"),
    pytest.param(b"\r\n" + PLAIN, 200, b"hello", True, id="a stray empty line before"),
]  # fmt: skip

NO_ANSWERS = [
    pytest.param(b"\x16\x03\x01\x00\x05\r\n\r\n", id="TLS"),
    pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="SSH"),
    pytest.param(b"<html>no</html>", id="a page"),
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="a request"),
    pytest.param(OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello", id="two lengths"),
    pytest.param(OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", id="length and chunked"),
    pytest.param(OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n", id="chunked and length"),
    pytest.param(OK + b"content-length: +5\r\n\r\nhello", id="signed length"),
    pytest.param(OK + b"content-length: 99999999999999999999\r\n\r\n", id="length overflow"),
    pytest.param(OK + b"transfer-encoding: gzip\r\n\r\nhello", id="gzip as transfer coding"),
    pytest.param(OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", id="gzip, chunked"),
    pytest.param(
        OK + b"transfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n\r\n0\r\n\r\n",
        id="two codings",
    ),
    pytest.param(OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", id="bad chunk size"),
    pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n2\r\nhelp", id="chunk longer than it says"),
    pytest.param(OK + b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n", id="chunk overflow"),
    pytest.param(OK + b"transfer-encoding: chunked\r\n\r\n2\nhi\n0\n\n", id="chunks with bare LF"),
    pytest.param(b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello", id="bare LF"),
    pytest.param(OK + b"x: a\r\n folded\r\n\r\n", id="folded header"),
    pytest.param(OK + b"x: a\rb\r\n\r\n", id="CR in a value"),
    pytest.param(OK + b"x: a\0b\r\n\r\n", id="NUL in a value"),
    pytest.param(OK + b"x : a\r\n\r\n", id="space before the colon"),
    pytest.param(OK + b": a\r\n\r\n", id="header without a name"),
    pytest.param(b"HTTP/1.1 099 No\r\n\r\n", id="status below 100"),
    pytest.param(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", id="an upgrade"),
    pytest.param(b"HTTP/1.1 101 Switching\r\n\r\n", id="101"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, id="5,000 times 100"),
    pytest.param(OK + b"x: " + b"a" * 3 * MAX_HEAD_BYTES, id="a header that does not end"),
    pytest.param(OK + b"a" * 3 * MAX_HEAD_BYTES, id="a header name that does not end"),
    pytest.param(b"HTTP/1.1 200 " + b"a" * 3 * MAX_HEAD_BYTES, id="a reason that does not end"),
    pytest.param(OK + b"".join(b"x-%d: 1\r\n" % i for i in range(257)) + b"\r\n", id="257 headers"),
    pytest.param(CHUNKED[:-2] + b"x: " + b"a" * 3 * MAX_HEAD_BYTES, id="a trailer that does not end"),
    pytest.param(CHUNKED[:-2] + b"x: 1\r\n" * 40000, id="trailers that do not end"),
    pytest.param(CHUNKED[:-5] + b"1;" + b"a" * 3 * MAX_HEAD_BYTES, id="a chunk extension that does not end"),
]


def answer(*pieces: bytes, eof: bool = True) -> tuple[Connection, PaperTransport]:
    """Return a connection that has received an answer in these pieces and then a clean end."""
    connection, transport = on_paper()
    connection.send(*request())
    for piece in pieces:
        connection.data_received(piece)
    if eof:
        connection.eof_received()
        connection.connection_lost(None)
    return connection, transport


@pytest.mark.parametrize(("raw", "status", "body", "keep"), ANSWERS)
async def test_an_answer_is_read_the_same_however_it_is_cut(
    raw: bytes, status: int, body: bytes, keep: bool
) -> None:
    cuts = [(raw,), tuple(raw[i : i + 1] for i in range(len(raw)))]
    cuts += [(raw[:at], raw[at:]) for at in range(1, len(raw))]
    for pieces in cuts:
        connection, _ = answer(*pieces)
        head, read = await whole(connection)
        assert (head.status, read) == (status, body)
        connection, _ = answer(*pieces, eof=False)
        assert connection.is_reusable is keep


@given(st.lists(st.integers(1, len(CHUNKED) - 1), max_size=8))
def test_a_chunked_answer_survives_any_cuts(places: list[int]) -> None:
    async def check() -> None:
        edges = [0, *sorted(places), len(CHUNKED)]
        pieces = [CHUNKED[a:b] for a, b in pairwise(edges)]
        connection, _ = answer(*pieces, eof=False)
        assert (await whole(connection))[1] == b"hello"
        assert connection.is_reusable

    asyncio.run(check())


@pytest.mark.parametrize("raw", NO_ANSWERS)
async def test_what_is_no_answer_is_refused_and_the_connection_closed(raw: bytes) -> None:
    for step in (1000, 64 * 1024):
        connection, transport = answer(*(raw[i : i + step] for i in range(0, len(raw), step)), eof=False)
        with pytest.raises(BadAnswer):
            await whole(connection)
        assert transport.aborted
        assert not connection.is_reusable


async def test_a_large_head_within_the_limits_is_read() -> None:
    headers = b"".join(b"x-%d: %b\r\n" % (i, b"v" * 200) for i in range(255))
    connection, _ = answer(OK + headers + b"content-length: 0\r\n\r\n", eof=False)
    assert len((await connection.read_head(1)).headers) == 256
    assert connection.is_reusable


async def test_many_small_chunks_are_not_taken_for_silence() -> None:
    connection, _ = answer(OK + b"transfer-encoding: chunked\r\n\r\n", eof=False)
    for _ in range(20):
        connection.data_received(b"1\r\nx\r\n" * 10_000)
        assert await connection.read_some(1) == b"x" * 10_000


async def test_header_names_are_lower_cased_and_the_first_value_wins() -> None:
    connection, _ = answer(OK + b"X-A: One\r\nx-a: Two\r\nY: \xe9\r\nContent-Length: 0\r\n\r\n")
    head = await connection.read_head(1)
    assert head.headers[:3] == [(b"x-a", b"One"), (b"x-a", b"Two"), (b"y", b"\xe9")]
    assert head.get(b"x-a") == b"One"
    assert head.get(b"none") is None
    assert ResponseHead(200, []).get(b"x-a") is None


async def test_an_answer_to_head_has_no_body_and_the_next_exchange_works() -> None:
    connection, _ = on_paper()
    connection.send(*request(b"", "HEAD"))
    connection.data_received(OK + b"content-length: 500\r\n\r\n")
    assert (await whole(connection))[1] == b""
    assert connection.is_reusable
    connection.send(*request())
    connection.data_received(PLAIN)
    assert (await whole(connection))[1] == b"hello"


async def test_a_body_after_an_answer_to_head_ends_the_connection() -> None:
    connection, transport = on_paper()
    connection.send(*request(b"", "HEAD"))
    connection.data_received(PLAIN)
    assert (await whole(connection))[1] == b""
    assert transport.aborted


@pytest.mark.parametrize(
    "extra", [b"H", PLAIN, b"\0", b"<html>"], ids=["one byte", "an answer", "a NUL", "a page"]
)
@pytest.mark.parametrize("first", [PLAIN, CHUNKED], ids=["length", "chunked"])
async def test_bytes_after_the_end_never_become_the_next_answer(first: bytes, extra: bytes) -> None:
    together, transport = answer(first + extra, eof=False)
    assert (await whole(together))[1] == b"hello"
    assert transport.aborted
    assert not together.is_reusable
    later, transport = answer(first, extra, eof=False)
    assert (await whole(later))[1] == b"hello"
    assert transport.aborted
    resting, transport = answer(first, eof=False)
    resting.rest()
    resting.data_received(extra)
    assert transport.aborted


@pytest.mark.parametrize("reused", [False, True])
@pytest.mark.parametrize(
    ("arrived", "phase", "answered"),
    [
        pytest.param(b"", "head", False, id="before the answer"),
        pytest.param(b"H", "head", True, id="after its first byte"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", "head", True, id="after a 100"),
        pytest.param(PLAIN[:-1], "body", True, id="before the last byte"),
        pytest.param(CHUNKED[:-2], "body", True, id="before the last line of chunks"),
        pytest.param(CHUNKED[:-7], "body", True, id="before the last chunk"),
    ],
)
@pytest.mark.parametrize("error", [None, ConnectionResetError()], ids=["closed", "reset"])
async def test_a_lost_connection_says_how_far_it_had_come(
    arrived: bytes, phase: str, answered: bool, reused: bool, error: Exception | None
) -> None:
    connection, _ = answer(*([arrived] if arrived else []), eof=False)
    connection.reused = reused
    connection.eof_received()
    connection.connection_lost(error)
    with pytest.raises(ConnectionLost) as lost:
        await whole(connection)
    assert (lost.value.phase, lost.value.answered, lost.value.reused) == (phase, answered, reused)


async def test_sending_on_a_dead_connection_is_certainly_unsent() -> None:
    gone, _ = on_paper()
    gone.connection_lost(None)
    closing, transport = on_paper()
    transport.aborted = True
    for connection in (gone, closing):
        connection.reused = True
        connection.send(*request())
        with pytest.raises(ConnectionLost) as lost:
            await connection.read_head(1)
        assert (lost.value.phase, lost.value.reused, lost.value.answered) == ("unsent", True, False)


@pytest.mark.parametrize(
    ("fin", "error"), [(False, None), (True, ConnectionResetError())], ids=["no clean end", "reset"]
)
async def test_a_body_that_ends_with_the_connection_needs_a_clean_end(
    fin: bool, error: Exception | None
) -> None:
    connection, _ = answer(OK + b"\r\nhel", eof=False)
    if fin:
        connection.eof_received()
    connection.connection_lost(error)
    assert await connection.read_some(1) == b"hel"
    with pytest.raises(ConnectionLost) as lost:
        await connection.read_some(1)
    assert lost.value.phase == "body"


async def test_our_own_abort_does_not_complete_a_body_that_ends_with_the_connection() -> None:
    connection, transport = answer(OK + b"\r\nhel", eof=False)
    connection.abort()
    connection.eof_received()
    connection.connection_lost(None)
    assert transport.aborted
    assert await connection.read_some(1) == b"hel"
    with pytest.raises(ConnectionLost):
        await connection.read_some(1)


async def test_what_arrived_before_a_failure_is_read_before_it() -> None:
    connection, _ = answer(CHUNKED[:-5] + b"zz\r\n", eof=False)
    assert await connection.read_some(1) == b"hello"
    with pytest.raises(BadAnswer):
        await connection.read_some(1)
    with pytest.raises(BadAnswer):
        await connection.read_some(1)


async def test_a_wait_that_timed_out_can_be_repeated() -> None:
    connection, _ = answer(eof=False)
    with pytest.raises(ReadTimeout) as timeout:
        await connection.read_head(0.001)
    assert timeout.value.phase == "head"
    connection.data_received(PLAIN[:-2])
    assert (await connection.read_head(0.001)).status == 200
    assert await connection.read_some(0.001) == b"hel"
    with pytest.raises(ReadTimeout) as timeout:
        await connection.read_some(0.001)
    assert timeout.value.phase == "body"
    connection.data_received(PLAIN[-2:])
    assert await read_all(connection) == b"lo"
    assert connection.is_reusable


async def test_bytes_without_content_do_not_prolong_a_wait() -> None:
    loop = HandLoop()
    connection, _ = on_paper(loop)
    connection.send(*request())
    connection.data_received(CHUNKED.partition(b"2\r\n")[0])
    await connection.read_head(1)
    reading = asyncio.ensure_future(connection.read_some(1))
    await asyncio.sleep(0)
    connection.data_received(b"2;ext")
    await asyncio.sleep(0)
    loop.fire()
    with pytest.raises(ReadTimeout):
        await reading


@pytest.mark.parametrize("arrived", [b"", PLAIN[:-2]], ids=["head", "body"])
async def test_a_cancelled_wait_leaves_the_connection_to_be_used_or_aborted(arrived: bytes) -> None:
    connection, transport = answer(*([arrived] if arrived else []), eof=False)
    if arrived:
        await connection.read_head(1)
        assert await connection.read_some(1) == b"hel"
    reading = asyncio.ensure_future(connection.read_some(5) if arrived else connection.read_head(5))
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not transport.aborted
    connection.data_received(PLAIN[len(arrived) :])
    assert (await whole(connection))[1] == (b"lo" if arrived else b"hello")
    assert connection.is_reusable
    connection.abort()
    assert transport.aborted


async def test_an_abort_wakes_who_waits_at_once() -> None:
    connection, _ = answer(eof=False)
    reading = asyncio.ensure_future(connection.read_head(5))
    await asyncio.sleep(0)
    connection.abort()
    with pytest.raises(ConnectionLost):
        await reading


async def test_only_one_may_wait_and_nobody_after_the_exchange() -> None:
    connection, _ = answer(eof=False)
    first = asyncio.ensure_future(connection.read_head(5))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError):
        await connection.read_head(5)
    connection.data_received(PLAIN)
    await first
    connection.rest()
    idle, _ = on_paper()
    with pytest.raises(RuntimeError):
        await idle.read_head(5)


async def test_reading_pauses_while_nobody_reads() -> None:
    connection, transport = answer(OK + b"content-length: 10000000\r\n\r\n", eof=False)
    connection.data_received(b"x" * READ_HIGH_WATER)
    assert transport.reading
    connection.data_received(b"x")
    assert not transport.reading
    assert len(await connection.read_some(1)) == READ_HIGH_WATER + 1
    assert transport.reading
    connection.data_received(b"x" * READ_HIGH_WATER)
    assert transport.reading


async def test_reading_does_not_resume_on_a_closed_transport() -> None:
    connection, transport = answer(OK + b"content-length: 10000000\r\n\r\n", eof=False)
    connection.data_received(b"x" * (READ_HIGH_WATER + 1))
    connection.abort()
    await connection.read_some(1)
    assert not transport.reading
    with pytest.raises(ConnectionLost):
        await connection.read_some(1)


BIG = bytes(range(256)) * 4096  # 1 MiB: four slices


async def test_a_large_body_is_written_as_fast_as_it_is_taken() -> None:
    connection, transport = on_paper()
    connection.pause_writing()
    head, body = request(BIG)
    connection.send(head, body)
    assert transport.written == head
    connection.resume_writing()
    assert transport.written == head + body
    connection.data_received(PLAIN)
    assert connection.is_reusable


async def test_a_connection_that_still_writes_or_does_not_read_is_not_reusable() -> None:
    writing, _ = on_paper()
    writing.send(*request(BIG))
    writing.pause_writing()
    writing.data_received(PLAIN)
    assert not writing.is_reusable
    writing.resume_writing()
    assert writing.is_reusable
    unread, _ = answer(OK + b"content-length: 100000\r\n\r\n" + b"x" * 100_000, eof=False)
    assert not unread.is_reusable
    await whole(unread)
    assert unread.is_reusable


async def test_the_loss_of_a_half_written_request_is_certainly_unsent() -> None:
    connection, _ = on_paper()
    connection.pause_writing()
    connection.send(*request(BIG))
    connection.connection_lost(BrokenPipeError())
    with pytest.raises(ConnectionLost) as lost:
        await connection.read_head(1)
    assert (lost.value.phase, lost.value.answered) == ("unsent", False)


async def test_an_upstream_that_stops_reading_is_given_up() -> None:
    loop = HandLoop()
    connection, transport = on_paper(loop)
    connection.pause_writing()
    connection.send(*request(BIG))
    loop.fire()
    assert transport.aborted
    with pytest.raises(ReadTimeout) as timeout:
        await connection.read_head(1)
    assert timeout.value.phase == "unsent"


async def test_an_upstream_that_reads_slowly_is_not_given_up() -> None:
    loop = HandLoop()
    connection, transport = on_paper(loop)
    connection.pause_writing()
    connection.send(*request(BIG))
    connection.resume_writing()
    loop.fire()
    assert not transport.aborted
    connection.connection_lost(None)
    loop.fire()


async def test_an_early_error_stops_the_sending() -> None:
    connection, transport = on_paper()
    connection.pause_writing()
    connection.send(*request(BIG))
    connection.data_received(b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\nno")
    connection.resume_writing()
    assert len(transport.written) < WRITE_SLICE
    head, body = await whole(connection)
    assert (head.status, body) == (413, b"no")
    assert not connection.is_reusable


async def test_an_early_good_answer_does_not_stop_the_sending() -> None:
    connection, transport = on_paper()
    connection.pause_writing()
    connection.send(*request(BIG))
    connection.data_received(PLAIN)
    assert not connection.is_reusable
    connection.resume_writing()
    assert transport.written.endswith(BIG)
    assert connection.is_reusable


async def test_a_transport_that_comes_after_the_abort_is_aborted() -> None:
    connection = Connection(asyncio.get_running_loop())
    connection.abort()
    transport = PaperTransport()
    connection.connection_made(transport)
    assert transport.aborted
