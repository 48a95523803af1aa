"""The demo's own small traffic: a few requests per second through the proxy, so that the status page lives.

Bounded: at most `MOST_IN_FLIGHT` requests at a time, short answers, and all of it ends at the exit.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

import aiohttp

from proxy.sim.demo import CHAT_MODEL, EMBEDDING_MODEL

MOST_IN_FLIGHT = 16
PATIENCE = aiohttp.ClientTimeout(total=30)


@dataclass(slots=True)
class Tally:
    """What the traffic's clients have felt so far."""

    asked: int = 0
    answered: int = 0
    interrupted: int = 0
    failed: int = 0
    by_upstream: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {count}" for name, count in sorted(self.by_upstream.items()))
        return (
            f"{self.asked} asked, {self.answered} answered ({shares or 'nobody'}), "
            f"{self.interrupted} interrupted, {self.failed} failed"
        )


class DemoTraffic:
    """Asks the endpoint *rate* times per second while entered: mostly streams, some whole answers."""

    def __init__(self, base_url: str, rng: random.Random, *, rate: float = 3.0) -> None:
        self.tally = Tally()
        self._base_url = base_url
        self._rng = rng
        self._rate = rate
        self._source: asyncio.Task[None] | None = None

    async def __aenter__(self) -> DemoTraffic:
        self._source = asyncio.get_running_loop().create_task(self._ask_on())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._source is not None:
            self._source.cancel()
            await asyncio.wait([self._source])

    async def _ask_on(self) -> None:
        async with aiohttp.ClientSession(timeout=PATIENCE) as session, asyncio.TaskGroup() as group:
            pending: set[asyncio.Task[None]] = set()
            for number in itertools.count():
                if len(pending) < MOST_IN_FLIGHT:
                    task = group.create_task(self._ask(session, number))
                    pending.add(task)
                    task.add_done_callback(pending.discard)
                await asyncio.sleep(self._rng.expovariate(self._rate))

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        path, body = _question(number)
        self.tally.asked += 1
        try:
            async with session.post(f"{self._base_url}{path}", json=body) as response:
                text = await response.text()
                self._count(response, text, streamed="stream" in body)
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            self.tally.interrupted += 1
        except (aiohttp.ClientError, TimeoutError):
            self.tally.failed += 1

    def _count(self, response: aiohttp.ClientResponse, text: str, *, streamed: bool) -> None:
        if response.status != 200:
            self.tally.failed += 1
        elif streamed and "[DONE]" not in text:
            self.tally.interrupted += 1
        else:
            self.tally.answered += 1
            self.tally.by_upstream[response.headers.get("x-sidestep-upstream", "unknown")] += 1


def _question(number: int) -> tuple[str, dict[str, object]]:
    if number % 5 == 4:
        return "/embeddings", {"model": EMBEDDING_MODEL, "input": f"request {number}"}
    messages = [{"role": "user", "content": f"request {number}"}]
    body: dict[str, object] = {"model": CHAT_MODEL, "messages": messages, "max_tokens": 12}
    return "/chat/completions", body if number % 5 == 3 else body | {"stream": True}
