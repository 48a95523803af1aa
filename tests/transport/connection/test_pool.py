"""Lending and keeping connections: reuse, age, death while idle, the reuse race, no leaks."""

from __future__ import annotations

import asyncio

import pytest

from proxy.transport.connection.dial import Dialer, Origin
from proxy.transport.connection.dns import Resolver
from proxy.transport.connection.http1 import ConnectError, ConnectionLost
from proxy.transport.connection.pool import IDLE_S, MAX_AGE_S, ConnectionPool
from tests.fakes.upstream import (
    Behaviour,
    CloseIdle,
    FakeUpstream,
    Garbage,
    Hang,
    HangAfterHead,
    Reply,
    Request,
    Stream,
    Truncated,
    Wire,
    dead_port,
)  # fmt: skip
from tests.transport.connection.lab import Certificates, Clock, exchange, origin_of, request


async def ask(pool: ConnectionPool, origin: Origin, *, fresh: bool = False) -> int:
    """Make one whole exchange; return the number of the connection as the fake counts them."""
    connection = await pool.acquire(origin, connect_s=5, fresh=fresh)
    try:
        return int((await exchange(connection))[1])
    finally:
        pool.release(connection)


def number(asked: Request) -> Behaviour:
    """Answer with the number of the connection."""
    return Reply(body=str(asked.connection))


async def test_a_connection_is_used_again(pool: ConnectionPool) -> None:
    async with FakeUpstream(number) as fake:
        assert [await ask(pool, origin_of(fake)) for _ in range(3)] == [1, 1, 1]
        assert (pool.idle(), fake.open) == (1, 1)
        assert "127.0.0.1" in repr(pool)


async def test_reuse_is_known_to_the_connection(pool: ConnectionPool) -> None:
    async with FakeUpstream() as fake:
        for reused in (False, True, True):
            connection = await pool.acquire(origin_of(fake), connect_s=5)
            assert connection.reused is reused
            await exchange(connection)
            pool.release(connection)


async def test_over_tls_too(pool: ConnectionPool, certificates: Certificates) -> None:
    async with FakeUpstream(number, tls=certificates.good) as fake:
        origin = origin_of(fake, certificates)
        assert [await ask(pool, origin) for _ in range(3)] == [1, 1, 1]


async def test_fresh_passes_the_idle_ones_by_and_leaves_them(pool: ConnectionPool) -> None:
    async with FakeUpstream(number) as fake:
        origin = origin_of(fake)
        assert await ask(pool, origin) == 1
        assert await ask(pool, origin, fresh=True) == 2
        assert pool.idle() == 2


async def test_the_last_used_is_used_first(pool: ConnectionPool) -> None:
    async with FakeUpstream(number) as fake:
        origin = origin_of(fake)
        first, second = [await pool.acquire(origin, connect_s=5) for _ in range(2)]
        for connection in (first, second):
            await exchange(connection)
            pool.release(connection)
        assert [await ask(pool, origin) for _ in range(3)] == [2, 2, 2]


async def test_origins_that_differ_in_anything_share_nothing(
    pool: ConnectionPool, certificates: Certificates
) -> None:
    async with FakeUpstream(number, tls=certificates.good) as fake:
        one = origin_of(fake, certificates)
        by_name = origin_of(fake, certificates, host="localhost")
        assert [await ask(pool, origin) for origin in (one, by_name, one, by_name)] == [1, 2, 1, 2]
        with pytest.raises(ConnectError):
            await ask(pool, origin_of(fake, certificates, ca_file=None))
        with pytest.raises(ConnectError):
            await ask(pool, origin_of(fake, certificates, proxy=f"http://127.0.0.1:{dead_port()}"))


async def test_no_more_idle_ones_than_allowed_and_the_oldest_go(dialer: Dialer, clock: Clock) -> None:
    pool = ConnectionPool(dialer, clock, max_idle_per_origin=3)
    async with FakeUpstream(number) as fake:
        origin = origin_of(fake)
        connections = await asyncio.gather(*(pool.acquire(origin, connect_s=5) for _ in range(8)))
        for connection in connections:
            await exchange(connection)
        for connection in connections:
            pool.release(connection)
        assert pool.idle() == 3
        await fake.until(lambda f: f.open == 3)
        assert [connection.is_open for connection in connections] == [False] * 5 + [True] * 3
        await pool.close()
        await fake.until(lambda f: f.open == 0)


async def test_an_idle_connection_expires(pool: ConnectionPool, clock: Clock) -> None:
    async with FakeUpstream(number) as fake:
        origin = origin_of(fake)
        assert await ask(pool, origin) == 1
        clock.now += IDLE_S - 1
        assert await ask(pool, origin) == 1
        clock.now += IDLE_S
        assert await ask(pool, origin) == 2
        await fake.until(lambda f: f.open == 1)


async def test_a_busy_connection_grows_old_all_the_same(pool: ConnectionPool, clock: Clock) -> None:
    async with FakeUpstream(number) as fake:
        origin = origin_of(fake)
        used = []
        for _ in range(int(MAX_AGE_S / 30) + 2):
            used.append(await ask(pool, origin))
            clock.now += 30
        assert used == [1] * 10 + [2] * 2


async def test_what_grows_too_old_in_use_is_not_kept(pool: ConnectionPool, clock: Clock) -> None:
    async with FakeUpstream() as fake:
        connection = await pool.acquire(origin_of(fake), connect_s=5)
        await exchange(connection)
        clock.now += MAX_AGE_S
        pool.release(connection)
        assert pool.idle() == 0
        await fake.until(lambda f: f.open == 0)


async def test_the_sweep_closes_what_nobody_asks_for(dialer: Dialer) -> None:
    pool = ConnectionPool(dialer, asyncio.get_running_loop().time, idle_s=0.02)
    async with FakeUpstream() as fake:
        for _ in range(2):
            connections = [await pool.acquire(origin_of(fake), connect_s=5) for _ in range(2)]
            for connection in connections:
                await exchange(connection)
                pool.release(connection)
            await fake.until(lambda f: f.open == 0)
            assert pool.idle() == 0
            assert repr(pool) == "ConnectionPool({})"


async def test_an_idle_connection_that_the_server_closes_leaves_at_once(pool: ConnectionPool) -> None:
    async with FakeUpstream(CloseIdle(Reply(body=b"1")), number) as fake:
        origin = origin_of(fake)
        await ask(pool, origin)
        async with asyncio.timeout(5):
            while pool.idle():
                await asyncio.sleep(0.001)
        assert await ask(pool, origin) == 2


class LateBytes:
    """Answers in full, and when told so says something more."""

    def __init__(self) -> None:
        self.now = asyncio.Event()

    async def play(self, request: Request, wire: Wire) -> None:
        await Reply(body=b"1").play(request, wire)
        await self.now.wait()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen")


async def test_a_byte_on_an_idle_connection_ends_it(pool: ConnectionPool) -> None:
    late = LateBytes()
    async with FakeUpstream(late, number) as fake:
        origin = origin_of(fake)
        await ask(pool, origin)
        assert pool.idle() == 1
        late.now.set()
        await fake.until(lambda f: f.open == 0)
        assert pool.idle() == 0
        assert await ask(pool, origin) == 2


@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen"])
async def test_bytes_behind_an_answer_never_answer_the_next_request(
    pool: ConnectionPool, extra: bytes
) -> None:
    smuggled = Garbage(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n1" + extra, "keep")
    async with FakeUpstream(smuggled, number) as fake:
        origin = origin_of(fake)
        assert [await ask(pool, origin) for _ in range(3)] == [1, 2, 2]


async def test_the_reuse_race_is_told_from_a_failure(pool: ConnectionPool) -> None:
    async with FakeUpstream(CloseIdle(when="next"), Reply(body=b"2")) as fake:
        origin = origin_of(fake)
        connection = await pool.acquire(origin, connect_s=5)
        await exchange(connection)
        pool.release(connection)
        connection = await pool.acquire(origin, connect_s=5)
        with pytest.raises(ConnectionLost) as lost:
            await exchange(connection)
        assert (lost.value.phase, lost.value.reused, lost.value.answered) == ("head", True, False)
        pool.release(connection)
        assert await ask(pool, origin, fresh=True) == 2


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(Hang(), id="no answer yet"),
        pytest.param(HangAfterHead(b"x"), id="half an answer"),
        pytest.param(Truncated(), id="a cut answer"),
        pytest.param(Garbage(), id="garbage"),
        pytest.param(Reply(keep_alive=False), id="connection: close"),
        pytest.param(Reply(framing="close"), id="ends with the connection"),
        pytest.param(Stream(end="reset"), id="reset"),
    ],
)
async def test_only_a_connection_that_ended_well_is_kept(pool: ConnectionPool, behaviour: Behaviour) -> None:
    async with FakeUpstream(behaviour) as fake:
        connection = await pool.acquire(origin_of(fake), connect_s=5)
        connection.send(*request())
        await fake.until(lambda f: len(f.requests) == 1)
        pool.release(connection)
        assert pool.idle() == 0
        await fake.until(lambda f: f.open == 0)


async def test_a_connection_without_an_exchange_is_not_kept(pool: ConnectionPool) -> None:
    async with FakeUpstream() as fake:
        pool.release(await pool.acquire(origin_of(fake), connect_s=5))
        assert pool.idle() == 0
        await fake.until(lambda f: f.opened == 1 and f.open == 0)


async def test_a_complete_answer_need_not_be_read_to_the_end(pool: ConnectionPool) -> None:
    async with FakeUpstream(Reply(body=b"first"), number) as fake:
        connection = await pool.acquire(origin_of(fake), connect_s=5)
        connection.send(*request())
        await connection.read_head(5)
        async with asyncio.timeout(5):
            while not connection.is_reusable:
                await asyncio.sleep(0.001)
        pool.release(connection)
        assert await ask(pool, origin_of(fake)) == 1


async def test_released_twice_it_is_closed_rather_than_lent_to_two(pool: ConnectionPool) -> None:
    async with FakeUpstream(number) as fake:
        origin = origin_of(fake)
        connection = await pool.acquire(origin, connect_s=5)
        await exchange(connection)
        pool.release(connection)
        pool.release(connection)
        first, second = [await pool.acquire(origin, connect_s=5) for _ in range(2)]
        assert first is not second
        assert connection not in (first, second)
        for connection in (first, second):
            pool.release(connection)


async def test_closing_closes_the_idle_now_and_the_lent_when_they_come_back(pool: ConnectionPool) -> None:
    async with FakeUpstream() as fake:
        origin = origin_of(fake)
        lent, idle = [await pool.acquire(origin, connect_s=5) for _ in range(2)]
        await exchange(idle)
        pool.release(idle)
        await pool.close()
        await fake.until(lambda f: f.open == 1)
        assert (await exchange(lent))[0] == 200
        pool.release(lent)
        await fake.until(lambda f: f.open == 0)
        with pytest.raises(ConnectError):
            await pool.acquire(origin, connect_s=5)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_many_exchanges_at_once_get_their_own_answers(
    pool: ConnectionPool, certificates: Certificates, tls: bool
) -> None:
    def echo(asked: Request) -> Behaviour:
        return Reply(body=asked.body, framing="chunked" if len(asked.body) % 2 else "length")

    async with FakeUpstream(echo, tls=certificates.good if tls else None) as fake:
        origin = origin_of(fake, certificates if tls else None)

        async def one(worker: int) -> None:
            for turn in range(10):
                connection = await pool.acquire(origin, connect_s=5)
                body = b"%d/%d" % (worker, turn) * (1 + worker * 50)
                assert await exchange(connection, body) == (200, body)
                pool.release(connection)

        await asyncio.gather(*(one(worker) for worker in range(20)))
        assert len(fake.requests) == 200
        assert fake.open == pool.idle() <= fake.opened <= 20


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize(
    ("behaviour", "turns"),
    [
        pytest.param(Reply(body=b"x" * 1000), range(30), id="anywhere"),
        pytest.param(Hang(), range(20, 21), id="before the head"),
        pytest.param(HangAfterHead(b"x"), range(40, 41), id="in the body"),
    ],
)
async def test_a_cancelled_exchange_leaves_no_connection_behind(
    pool: ConnectionPool, certificates: Certificates, behaviour: Behaviour, turns: range, tls: bool
) -> None:
    async with FakeUpstream(behaviour, tls=certificates.good if tls else None) as fake:
        origin = origin_of(fake, certificates if tls else None)

        async def one() -> None:
            connection = await pool.acquire(origin, connect_s=5)
            try:
                await exchange(connection)
            finally:
                pool.release(connection)

        for count in turns:
            asking = asyncio.ensure_future(one())
            for _ in range(count):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await fake.until(lambda f: f.open == pool.idle())
        await pool.close()
        await fake.until(lambda f: f.open == 0)


def test_an_idle_connection_keeps_no_loop_alive(clock: Clock) -> None:
    async def leave_one_idle() -> int:
        async with FakeUpstream(Reply(body=b"1")) as fake:
            pool = ConnectionPool(Dialer(Resolver(clock)), clock)
            await ask(pool, origin_of(fake))
            return pool.idle()

    assert asyncio.run(leave_one_idle()) == 1
