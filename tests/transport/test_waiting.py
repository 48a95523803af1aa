"""Holding, hedging and evacuating: what is done for a request while nothing comes for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.fakes.proxy import RunningProxy
from tests.fakes.upstream import FakeUpstream, Hang, Plan, Reply, Request, Stream, chat_answer, chat_events
from tests.transport.route import proxied, stream_text

SECOND = "second0second1second2"
EARNED = 20  # requests that earn one hedge: 5 %


def after(count: int, then: Plan) -> Plan:
    """Answer that many requests at once, then do something else."""
    seen = [0]

    def plan(request: Request) -> Plan:
        seen[0] += 1
        quick = Stream(chat_events("quick")) if request.json().get("stream") else Reply()
        return quick if seen[0] <= count else then

    return plan


def second(request: Request) -> Plan:
    if request.json().get("stream"):
        return Stream(chat_events("second"))
    return Reply(json=chat_answer(SECOND))


@asynccontextmanager
async def hedging(
    tmp_path: Path, then: Plan, other: Plan = second
) -> AsyncIterator[tuple[RunningProxy, Sequence[FakeUpstream]]]:
    """A proxy that has earned a hedge, and whose first upstream now does something else."""
    policy = "hedge: 200ms, first_token: 20s, response: 20s"
    async with proxied(tmp_path, after(EARNED, then), other, policy=policy) as (proxy, fakes):
        for _ in range(EARNED):
            async with proxy.chat() as answer:
                assert answer.headers["x-sidestep-upstream"] == "a"
        yield proxy, fakes


async def ask(proxy: RunningProxy, *, stream: bool) -> tuple[str, str]:
    """Return who answered, and what."""
    async with proxy.chat(stream=stream) as answer:
        assert answer.status == 200
        body = await answer.read()
        text = stream_text(body) if stream else (await answer.json())["choices"][0]["message"]["content"]
        return answer.headers["x-sidestep-upstream"], text


SILENT = [
    pytest.param(Stream(chat_events("first"), first_s=30), True, id="a stream without content"),
    pytest.param(Hang(), True, id="a stream without a head"),
    pytest.param(Reply(delay_s=30), False, id="no stream"),
]


@pytest.mark.parametrize(("silent", "stream"), SILENT)
async def test_a_slow_attempt_is_hedged_and_the_first_content_wins(
    silent: Plan, stream: bool, tmp_path: Path
) -> None:
    async with hedging(tmp_path, silent) as (proxy, (a, _)):
        assert await ask(proxy, stream=stream) == ("b", SECOND)
        await a.until(lambda f: f.running == 0 and f.aborted == 1, timeout_s=1.0)
        metrics = await proxy.metrics()
        assert 'decisions_total{decision="hedge",reason="slow",route="m",upstream="b"} 1.0' in metrics
        assert 'attempts_total{model="model-a",outcome="cancelled",upstream="a"} 1.0' in metrics


async def test_the_first_attempt_may_win_all_the_same(tmp_path: Path) -> None:
    slow = Stream(chat_events("first"), first_s=0.5)
    async with hedging(tmp_path, slow, Hang()) as (proxy, (_, b)):
        assert await ask(proxy, stream=True) == ("a", "first0first1first2")
        await b.until(lambda f: f.running == 0 and f.aborted == 1, timeout_s=1.0)


async def test_a_hedge_that_fails_leaves_the_first_attempt_running(tmp_path: Path) -> None:
    slow = Stream(chat_events("first"), first_s=0.5)
    async with hedging(tmp_path, slow, Reply(503)) as (proxy, (_, b)):
        assert await ask(proxy, stream=True) == ("a", "first0first1first2")
        assert len(b.requests) == 1


async def test_when_both_fail_the_request_fails(tmp_path: Path) -> None:
    async with hedging(tmp_path, Reply(503, delay_s=0.4), Reply(503, delay_s=0.4)) as (proxy, _):
        async with proxy.chat() as answer:
            assert answer.status in (502, 503)
            attempts = (await answer.json())["error"]["attempts"]
        assert [attempt["upstream"] for attempt in attempts[:2]] == ["a", "b"]


@pytest.mark.parametrize("stream", [True, False], ids=["a stream", "no stream"])
async def test_a_request_is_held_until_its_target_is_back(stream: bool, tmp_path: Path) -> None:
    limited = [Reply(429, headers={"retry-after": "1"})]

    def plan(request: Request) -> Plan:
        return limited.pop() if limited else second(request)

    async with proxied(tmp_path, plan, policy="hold: 5s") as (proxy, (a,)):
        async with proxy.chat() as answer:
            assert answer.status == 429  # it is the one that learnt of the limit
        assert await ask(proxy, stream=stream) == ("a", SECOND)
        assert len(a.requests) == 2
        assert 'decision="hold"' in await proxy.metrics()


@pytest.mark.parametrize("stream", [True, False], ids=["streams", "no streams"])
async def test_when_a_target_opens_the_requests_that_wait_for_it_move_on(
    stream: bool, tmp_path: Path
) -> None:
    policy = "first_token: 20s, response: 20s, breaker: {slow_after: 300ms}"
    async with proxied(tmp_path, Hang(), second, policy=policy) as (proxy, (a, b)):
        answers = await asyncio.wait_for(
            asyncio.gather(*(ask(proxy, stream=stream) for _ in range(12))), timeout=15
        )
        assert set(answers) == {("b", SECOND)}
        await a.until(lambda f: f.running == 0)
        assert len(a.requests) >= 10
        assert len(b.requests) == 12
        assert 'decision="evacuate"' in await proxy.metrics()
