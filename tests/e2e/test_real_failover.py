"""The main job on real input: a real model's server is killed in mid-traffic and its clients go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai
from openai import AsyncOpenAI, OpenAI

from tests.e2e.conftest import config_for
from tests.e2e.real_model import ModelServer
from tests.e2e.serving import Proxy, running_proxy

ASK = {"model": "smollm2", "max_tokens": 16}
QUESTION = [{"role": "user", "content": "Tell me about the sea."}]


@dataclass
class Ask:
    """One request of the mix. `error` is what the SDK raised; `finish` the finish_reason it was given."""

    way: str
    started: float
    first_token: float | None = None
    ended: float = 0.0
    finish: str | None = None
    error: Exception | None = None
    text: list[str] = field(default_factory=list)


async def test_killing_the_first_of_two_real_servers_is_not_noticed(
    doomed_model_servers: list[ModelServer], tmp_path: Path
) -> None:
    first, _ = doomed_model_servers
    with running_proxy(config_for(doomed_model_servers), tmp_path) as proxy:
        async with steady_mix(proxy) as asks:
            await until(lambda: sum(ask.ended > 0 for ask in asks) >= 6)
            await until(lambda: any(ask.first_token and not ask.ended for ask in asks))
            killing = time.monotonic()
            await asyncio.to_thread(first.kill)
            killed = time.monotonic()
            await until(lambda: proxy.breaker_state("one") == "open")
            opened = time.monotonic()
            await until(lambda: sum(ask.ended > 0 and ask.started > opened for ask in asks) >= 8)

        broken = [ask for ask in asks if ask.error]
        begun = [ask for ask in asks if ask.first_token and ask.first_token < killed and ask.ended > killing]
        assert all(ask in begun for ask in broken), broken
        assert all(isinstance(ask.error, openai.APIError) for ask in broken), broken
        whole = [ask for ask in asks if not ask.error]
        assert all(ask.finish in ("stop", "length") and ask.text for ask in whole), whole
        assert {ask.way for ask in whole if ask.started > killed} == {
            "sync", "sync stream", "async", "async stream",
        }  # fmt: skip
        _metrics_tell_the_story(proxy, len(broken))


def _metrics_tell_the_story(proxy: Proxy, interrupted: int) -> None:
    assert proxy.metric("sidestep_failovers_total", **{"from": "one", "to": "two"}) >= 1
    assert proxy.metric("sidestep_breaker_transitions_total", upstream="one", to="open") >= 1
    assert proxy.metric("sidestep_attempts_total", upstream="one", outcome="connect_failed") >= 1
    assert proxy.metric("sidestep_attempts_total", upstream="two", outcome="ok") >= 8
    assert proxy.metric("sidestep_requests_total", outcome="ok_failover") >= 1
    assert proxy.metric("sidestep_requests_total", outcome="upstream_error") == 0
    assert proxy.metric("sidestep_requests_total", outcome="interrupted") == interrupted


@asynccontextmanager
async def steady_mix(proxy: Proxy) -> AsyncIterator[list[Ask]]:
    """Keep one async client, streamed and not, and one sync client asking until the block ends."""
    asks: list[Ask] = []
    stop = asyncio.Event()
    options = {"base_url": proxy.base_url, "api_key": "anything", "max_retries": 0, "timeout": 60}

    async def keep_asking(*ways: Callable[[Ask], Awaitable[None]]) -> None:
        while not stop.is_set():
            for way in ways:
                ask = Ask(way.__name__.replace("_", " "), time.monotonic())
                asks.append(ask)
                try:
                    await way(ask)
                except openai.APIError as error:
                    ask.error = error
                ask.ended = time.monotonic()

    async with AsyncOpenAI(**options) as client:
        with OpenAI(**options) as blocking:
            async_, async_stream, sync, sync_stream = _ways(client, blocking)
            async with asyncio.TaskGroup() as group:
                for ways in ((async_,), (async_stream,), (sync, sync_stream)):
                    group.create_task(keep_asking(*ways))
                try:
                    yield asks
                finally:
                    stop.set()


def _ways(client: AsyncOpenAI, blocking: OpenAI) -> Iterator[Callable[[Ask], Awaitable[None]]]:
    async def async_(ask: Ask) -> None:
        answer = await client.chat.completions.create(messages=QUESTION, **ASK)
        _take_whole(ask, answer)

    async def async_stream(ask: Ask) -> None:
        async with await client.chat.completions.create(messages=QUESTION, stream=True, **ASK) as stream:
            async for event in stream:
                _take_event(ask, event)

    async def sync(ask: Ask) -> None:
        answer = await asyncio.to_thread(blocking.chat.completions.create, messages=QUESTION, **ASK)
        _take_whole(ask, answer)

    async def sync_stream(ask: Ask) -> None:
        def read() -> None:
            with blocking.chat.completions.create(messages=QUESTION, stream=True, **ASK) as stream:
                for event in stream:
                    _take_event(ask, event)

        await asyncio.to_thread(read)

    async_.__name__ = "async"
    return iter((async_, async_stream, sync, sync_stream))


def _take_whole(ask: Ask, answer: openai.types.chat.ChatCompletion) -> None:
    ask.finish = answer.choices[0].finish_reason
    ask.text.append(answer.choices[0].message.content or "")


def _take_event(ask: Ask, event: openai.types.chat.ChatCompletionChunk) -> None:
    for choice in event.choices:
        if choice.delta.content:
            ask.first_token = ask.first_token or time.monotonic()
            ask.text.append(choice.delta.content)
        ask.finish = choice.finish_reason or ask.finish


async def until(true: Callable[[], bool], longest_s: float = 60.0) -> None:
    """Wait until something is true of the outside world, which can only be asked again and again."""
    async with asyncio.timeout(longest_s):
        while not await asyncio.to_thread(true):
            await asyncio.sleep(0.05)
