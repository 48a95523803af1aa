from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from proxy.core.outcome import Kind, Outcome
from proxy.core.pool import Pool
from proxy.core.target import Target
from proxy.transport.background import AT_A_TIME, ModelChecks
from proxy.transport.connection.dial import Dialer, Origin
from proxy.transport.connection.dns import Resolver
from proxy.transport.connection.pool import ConnectionPool
from proxy.transport.upstream import Upstream, Wire
from tests.core.given import a_call, a_target
from tests.fakes.upstream import FakeUpstream, Garbage, Hang, Plan, Reply, ResetBeforeHead, dead_port
from tests.transport.connection.lab import Clock

REFUSED = Outcome(Kind.UNAUTHORIZED, status=401)
MODELS = Reply(json={"object": "list", "data": []})


class Desk:
    """A pool and its checks in front of fake upstreams, with a clock that is set by hand."""

    def __init__(self, ports: dict[str, int], keys: int = 1) -> None:
        self.clock = Clock()
        self.targets = {
            name: a_target(name, facts={"credentials": tuple(f"{name}-{n}" for n in range(keys))})
            for name in ports
        }
        self.pool = Pool([target.upstream for target in self.targets.values()], random.Random(1))
        self.connections = ConnectionPool(Dialer(Resolver(self.clock)), self.clock)
        wire = Wire(self.connections, self.clock, self.clock)
        self.upstreams = {name: self._upstream(name, port) for name, port in ports.items()}
        self.checks = ModelChecks(self.pool, wire, lambda: self.upstreams, look_s=0.01)

    def _upstream(self, name: str, port: int) -> Upstream:
        facts = self.targets[name].upstream
        return Upstream(
            facts,
            Origin("http", "127.0.0.1", port),
            "/v1",
            keys={key: f"authorization: Bearer {key}\r\n".encode() for key in facts.credentials},
            fixed=b"host: fake\r\n",
            query="?api-version=1",
        )

    def target(self, name: str = "a") -> Target:
        return self.targets[name]

    def refuse_key(self, name: str = "a") -> None:
        """Let a request end in a 401: the key that it used is open for minutes."""
        permit = self.pool.try_acquire(self.target(name), a_call(), 1, self.clock())
        assert permit is not None
        self.pool.settle(permit, REFUSED, self.clock())

    def is_available(self, name: str = "a") -> bool:
        return self.pool.admits(self.target(name), "chat", self.clock()).ok

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(5.0):
            while not true():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def a_desk(*plans: Plan, keys: int = 1) -> AsyncIterator[tuple[Desk, list[FakeUpstream]]]:
    """Upstreams a, b, ... that answer so, all with a refused key, a minute later."""
    async with AsyncExitStack() as stack:
        fakes = [await stack.enter_async_context(FakeUpstream(plan)) for plan in plans]
        desk = Desk({chr(97 + index): fake.port for index, fake in enumerate(fakes)}, keys)
        for name in desk.targets:
            desk.refuse_key(name)
        desk.clock.now += 60.0
        running = asyncio.get_running_loop().create_task(desk.checks.run())
        try:
            yield desk, fakes
        finally:
            running.cancel()
            await asyncio.wait([running])
            await desk.connections.close()


async def test_what_is_open_and_idle_is_asked_for_its_models_and_may_be_tried_again() -> None:
    async with a_desk(MODELS) as (desk, [fake]):
        assert not desk.is_available()
        await desk.until(desk.is_available)
        [request] = fake.requests
        assert (request.method, request.path) == ("GET", "/v1/models?api-version=1")
        assert request.headers["authorization"] == "Bearer a-0"
        permit = desk.pool.try_acquire(desk.target(), a_call(), 1, desk.clock())
        assert permit is not None
        assert permit.probe  # nothing is closed by a check: the next request is the test


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(Reply(401), id="the key is still refused"),
        pytest.param(Reply(503), id="it is overloaded"),
        pytest.param(Reply(404), id="it has no list of models"),
        pytest.param(ResetBeforeHead(), id="it resets"),
        pytest.param(Garbage(), id="it speaks no HTTP"),
    ],
)
async def test_a_bad_answer_changes_nothing(plan: Plan) -> None:
    async with a_desk(plan) as (desk, [fake]):
        await desk.until(lambda: len(fake.requests) == 1 and not desk.checks.asked)
        assert not desk.is_available()


async def test_who_can_not_be_reached_stays_open() -> None:
    async with a_desk(MODELS, MODELS) as (desk, [gone, well]):
        await desk.until(lambda: desk.is_available("a") and desk.is_available("b"))
        nowhere = replace(desk.upstreams["a"], origin=Origin("http", "127.0.0.1", dead_port()))
        desk.upstreams["a"] = nowhere
        for name in ("a", "b"):
            desk.refuse_key(name)
        desk.clock.now += 60.0
        await desk.until(lambda: desk.is_available("b") and not desk.checks.asked)
        assert not desk.is_available("a")
        assert (len(gone.requests), len(well.requests)) == (1, 2)


async def test_an_upstream_that_does_not_answer_is_not_asked_a_second_time_meanwhile() -> None:
    async with a_desk(Hang(), MODELS) as (desk, [silent, well]):
        await desk.until(lambda: len(silent.requests) == 1 and desk.is_available("b"))
        desk.refuse_key("b")
        desk.clock.now += 60.0  # both are due again
        await desk.until(lambda: len(well.requests) == 2)
        assert len(silent.requests) == 1
        assert "a" in desk.checks.asked


async def test_only_a_few_are_asked_at_a_time() -> None:
    async with a_desk(*[Hang()] * (AT_A_TIME + 2), MODELS) as (desk, fakes):
        *silent, last = fakes
        await desk.until(lambda: sum(fake.running for fake in silent) == AT_A_TIME)
        assert len(desk.checks.asked) == AT_A_TIME + 3
        assert last.requests == []


async def test_of_several_keys_the_refused_one_is_asked_with() -> None:
    async with a_desk(MODELS, keys=2) as (desk, [fake]):
        await desk.until(lambda: len(fake.requests) == 1 and not desk.checks.asked)
        assert fake.requests[0].headers["authorization"] == "Bearer a-0"


async def test_a_key_that_was_not_asked_with_stays_refused() -> None:
    desk = Desk({"a": dead_port()}, keys=2)
    desk.refuse_key()
    desk.refuse_key()
    assert not desk.is_available()
    desk.clock.now += 60.0
    desk.pool.health_check_passed("a", desk.clock(), credential="a-1")
    permit = desk.pool.try_acquire(desk.target(), a_call(), 1, desk.clock())
    assert permit is not None
    assert permit.credential == "a-1"


async def test_a_connection_whose_answer_came_whole_is_there_for_the_next_request() -> None:
    async with a_desk(MODELS) as (desk, [fake]):
        await desk.until(desk.is_available)
        assert (fake.opened, desk.connections.idle()) == (1, 1)


async def test_stopping_leaves_nothing_running_and_nothing_open() -> None:
    async with a_desk(Hang(), Hang()) as (desk, fakes):
        await desk.until(lambda: all(fake.running for fake in fakes))
    assert desk.checks.asked == frozenset()
    for fake in fakes:
        assert fake.open == 0
