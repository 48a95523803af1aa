"""A client that leaves, in every phase: nothing goes on for it, and nobody is blamed."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.proxy import RunningProxy, running_proxy
from tests.fakes.upstream import FakeUpstream, Garbage, Hang, HangAfterHead, Plan, Reply, Stream, chat_events
from tests.transport.connection.lab import Certificates
from tests.transport.route import proxied

BOTH_LOOPS = True

# A socket is closed at once, or (over TLS, by `close`) only after the provider's answer to it.
AT_ONCE_S = 1.0
CLIENTS = 1000 if os.environ.get("SIDESTEP_TEST_STREAMS") == "full" else 200

ROLE, *CONTENT = chat_events("x")
PHASES = [
    pytest.param(Hang(), True, id="a stream, before the head"),
    pytest.param(Stream([ROLE], end="hang"), True, id="a stream, before its content"),
    pytest.param(Stream([ROLE, CONTENT[0]], end="hang"), True, id="a stream, in its middle"),
    pytest.param(Hang(), False, id="before the head"),
    pytest.param(HangAfterHead(b'{"id"', "application/json"), False, id="within the body"),
    pytest.param(HangAfterHead(b" " * 2_000_000, "application/json"), False, id="within a large body"),
]


@pytest.fixture(autouse=True)
async def _no_error_goes_to_the_loop() -> Any:
    errors: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, error: errors.append(error))
    yield
    assert errors == []


async def vanish_while_running(proxy: RunningProxy, fake: FakeUpstream, *, stream: bool) -> None:
    """Ask, wait until the upstream is at it, and leave; the request must end there, too."""
    asking = asyncio.ensure_future(_ask(proxy, stream=stream))
    await fake.until(lambda f: f.running == 1)
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await fake.until(lambda f: f.running == 0 and f.open == 0, timeout_s=AT_ONCE_S)


async def _ask(proxy: RunningProxy, *, stream: bool = False) -> None:
    async with proxy.chat(stream=stream) as answer:
        await answer.read()


@pytest.mark.parametrize(("plan", "stream"), PHASES)
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "over TLS"])
async def test_the_upstream_s_socket_is_closed_at_once(
    plan: Plan, stream: bool, secure: bool, certificates: Certificates, tmp_path: Path
) -> None:
    tls = certificates if secure else None
    policy = "first_token: 60s, response: 60s, stall: 60s"
    async with proxied(tmp_path, plan, Reply(), policy=policy, tls=tls) as (proxy, (a, b)):
        await vanish_while_running(proxy, a, stream=stream)
        assert b.requests == []
        metrics = await proxy.metrics()
        assert 'requests_total{endpoint="chat/completions",outcome="client_gone",route="m"} 1.0' in metrics
        assert 'attempts_total{model="model-a",outcome="client_gone",upstream="a"} 1.0' in metrics


async def test_a_client_that_leaves_during_a_backoff_is_not_tried_for_again(tmp_path: Path) -> None:
    policy = "hold: 30s, backoff: 20s"
    async with proxied(tmp_path, Reply(503), policy=policy) as (proxy, (a,)):
        asking = asyncio.ensure_future(_ask(proxy))
        await a.until(lambda f: len(f.requests) == 1 and f.running == 0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until_idle(proxy)
        assert len(a.requests) == 1


async def test_a_client_that_leaves_while_it_is_held_leaves_the_line(tmp_path: Path) -> None:
    limited = Reply(429, headers={"retry-after": "5"})
    async with proxied(tmp_path, limited, policy="hold: 30s") as (proxy, (a,)):
        asking = [asyncio.ensure_future(_ask(proxy)) for _ in range(5)]
        await a.until(lambda f: len(f.requests) >= 1 and f.running == 0)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        await until_idle(proxy)


async def test_a_client_that_leaves_while_we_connect(tmp_path: Path) -> None:
    async with FakeUpstream() as deaf:  # it takes TCP connections, and knows nothing of TLS
        upstream = f"{{base_url: 'https://127.0.0.1:{deaf.port}/v1'}}"
        text = f"upstreams: {{a: {upstream}}}\nroutes: {{m: [a]}}\npolicy: {{hold: 0s, connect: 30s}}\n"
        async with running_proxy(text, tmp_path) as proxy:
            asking = asyncio.ensure_future(_ask(proxy))
            await deaf.until(lambda f: f.open == 1)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await deaf.until(lambda f: f.open == 0, timeout_s=AT_ONCE_S)
            await until_idle(proxy)


async def until_idle(proxy: RunningProxy, timeout_s: float = 2.0) -> None:
    """Wait until the proxy does nothing for anybody."""
    forwarder = proxy.application.forwarder
    async with asyncio.timeout(timeout_s):
        while forwarder.running:
            await asyncio.sleep(0.01)


def misbehaviours(rng: random.Random) -> Iterator[Plan]:
    """Every phase that a client can leave in, at random."""
    while True:
        yield rng.choice(
            [
                Hang(),
                Stream([ROLE], end="hang"),
                Stream([ROLE, CONTENT[0]], end="hang"),
                Stream(gap_s=0.02),
                HangAfterHead(b'{"id"', "application/json"),
                Reply(delay_s=0.05),
                Reply(503),
                Garbage(b"", "reset"),
            ]
        )


async def test_many_clients_that_vanish_leave_nothing_behind(
    certificates: Certificates, tmp_path: Path
) -> None:
    rng = random.Random(4)
    plans = misbehaviours(rng)
    policy = "hold: 1s, first_token: 60s, response: 60s, stall: 60s, hedge: 30ms"

    def plan(_request: Any) -> Plan:
        return next(plans)

    async with proxied(tmp_path, plan, plan, policy=policy, tls=certificates) as (proxy, fakes):
        await vanishing(proxy, rng, 10)
        tasks, files = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
        await vanishing(proxy, rng, CLIENTS)
        for fake in fakes:
            await fake.until(lambda f: f.running == 0, timeout_s=2.0)
        await until_idle(proxy)
        await until_few(lambda: len(asyncio.all_tasks()) <= tasks + 5)
        idle = sum(fake.open for fake in fakes)  # connections kept for the next request are no leak
        await until_few(lambda: len(os.listdir("/proc/self/fd")) <= files + 2 * idle + 10)
        in_flight = [x for x in (await proxy.metrics()).splitlines() if "attempts_in_flight{" in x]
        assert {line.rpartition(" ")[2] for line in in_flight} <= {"0.0"}


async def vanishing(proxy: RunningProxy, rng: random.Random, count: int) -> None:
    """Ask for this much, ten at a time, and leave each at a random moment."""
    gate = asyncio.Semaphore(20)

    async def one() -> None:
        async with gate:
            try:
                async with asyncio.timeout(rng.uniform(0.0, 0.12)), aiohttp.ClientSession() as session:
                    body = {"model": "m", "stream": rng.random() < 0.6, "messages": []}
                    async with session.post(f"{proxy.url}/chat/completions", json=body) as answer:
                        await answer.read()
            except (TimeoutError, aiohttp.ClientError):
                pass

    await asyncio.gather(*(one() for _ in range(count)))


async def until_few(is_so: Any) -> None:
    async with asyncio.timeout(2.0):
        while not is_so():
            await asyncio.sleep(0.02)
