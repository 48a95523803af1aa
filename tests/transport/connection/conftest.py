"""Every test here runs twice: on asyncio's event loop and on uvloop's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NoReturn

import pytest
import uvloop

from proxy.transport.connection.dial import Dialer
from proxy.transport.connection.dns import Resolver
from proxy.transport.connection.pool import ConnectionPool
from tests.transport.connection.lab import Certificates, Clock


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": UvloopWithoutLookUps}


class UvloopWithoutLookUps(uvloop.Loop):
    """uvloop's `sock_connect` looks up even what is an address, in libuv's two threads for slow work."""

    async def getaddrinfo(self, *_: object, **__: object) -> NoReturn:
        raise AssertionError("two hanging names elsewhere would stop every connection from opening")


@pytest.fixture(autouse=True)
async def _no_error_goes_to_the_loop() -> AsyncIterator[None]:
    """Fail where a callback has raised: the loop would only log it."""
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
    yield
    assert errors == []


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def dialer(clock: Clock) -> Dialer:
    return Dialer(Resolver(clock))


@pytest.fixture
async def pool(dialer: Dialer, clock: Clock) -> AsyncIterator[ConnectionPool]:
    pool = ConnectionPool(dialer, clock)
    yield pool
    await pool.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))
