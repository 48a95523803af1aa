"""The kill test: a steady load while the first of two upstreams fails in four ways, one after another.

`make chaos` runs it at full length with the default breaker; in the ordinary run the faults are shorter
and the breaker recovers sooner, so that all four fit into about a minute.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.serving import Proxy, running_proxy
from tests.fakes.load import SteadyLoad
from tests.fakes.upstream import (
    Behaviour,
    FakeUpstream,
    Hang,
    Reply,
    Request,
    ResetBeforeHead,
    Stream,
    chat_events,
)

FULL = os.environ.get("SIDESTEP_TEST_CHAOS") == "full"
RATE = 20  # requests per second, half of them streamed
ROUNDING_S = 0.01
UNDER_WAY_S = 0.1  # what was sent just before its target opened may arrive just after

FAULTS: dict[str, Behaviour | None] = {
    "refused": None,  # as after `kill -9`: all connections break and nobody listens any more
    "reset": ResetBeforeHead(),
    "503": Reply(503),
    "hanging": Hang(),
}


@dataclass
class Upstream:
    """A healthy upstream that can be given a fault, and remembers when it was asked (Unix time)."""

    fake: FakeUpstream
    fault: str | None = None
    arrivals: list[float] = field(default_factory=list)

    def answer(self, request: Request) -> Behaviour:
        self.arrivals.append(time.time())
        if self.fault is not None and (behaviour := FAULTS[self.fault]) is not None:
            return behaviour
        return Stream(chat_events(n=10), gap_s=0.03) if request.json()["stream"] else Reply(delay_s=0.1)

    async def break_down(self, fault: str) -> None:
        self.fault = fault
        if FAULTS[fault] is None:
            await self.fake.__aexit__()

    async def heal(self) -> None:
        if self.fault is not None and FAULTS[self.fault] is None:
            await self.fake.__aenter__()  # on the same port as before
        self.fault = None


@pytest.fixture
async def upstreams() -> AsyncIterator[tuple[Upstream, Upstream]]:
    first, second = Upstream(FakeUpstream()), Upstream(FakeUpstream())
    for upstream in (first, second):
        upstream.fake.behave(upstream.answer)
    async with first.fake, second.fake:
        yield first, second


async def test_no_client_notices_how_the_first_upstream_dies(
    upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    first, second = upstreams
    with running_proxy(_config(first, second), tmp_path) as proxy:
        async with SteadyLoad(proxy.base_url, model="gpt-5", rate=RATE) as load:
            await _until(lambda: len(load.ended("complete")) >= 3 * RATE)
            for fault in FAULTS:
                await _one_fault(fault, first, load, proxy)
        assert load.ended("failed") == []
        assert load.ended("truncated") == []
        assert load.answers[-1].headers["x-sidestep-upstream"] == "first"


async def _one_fault(fault: str, first: Upstream, load: SteadyLoad, proxy: Proxy) -> None:
    """Break the first upstream, let the load go on, heal it, and wait until it is trusted again."""
    begin, wall_begin = time.monotonic(), time.time()
    await first.break_down(fault)
    await asyncio.sleep(_length_s(fault))
    end, wall_end = time.monotonic(), time.time()
    await first.heal()
    await _until(lambda: proxy.breaker_state("first") == "closed")

    during = [answer for answer in load.answers if begin <= answer.started < end]
    await _until(lambda: all(answer.ended for answer in during))
    assert load.ended("failed", since=begin) == []
    assert load.ended("truncated", since=begin) == []
    assert len(during) >= RATE * _length_s(fault) * 0.9

    # Only streams that were already talking when the process died may break, and only then.
    interrupted = load.ended("interrupted", since=begin - 5)
    assert all(answer.first_content is not None and answer.first_content <= begin for answer in interrupted)
    assert not interrupted or fault == "refused"

    ids = {answer.headers["x-request-id"] for answer in during}
    await _until(lambda: ids <= {line["request_id"] for line in _requests(proxy)})
    lines = [line for line in _requests(proxy) if line["request_id"] in ids]
    ratio = sum(len(line["attempts"]) for line in lines) / len(lines)
    openings = [at for at in _openings(proxy) if wall_begin <= at < wall_end]
    asked = [at for at in first.arrivals if wall_begin <= at < wall_end] or _attempts(lines, "first")
    probes = _per_period(asked, openings)
    print(f"\n{fault}: {len(lines)} requests, {ratio:.3f} attempts each, probes per open period: {probes}")
    assert ratio <= 1.3
    assert openings, "the breaker never opened"
    assert max(probes) <= 1


def _per_period(asked: list[float], openings: list[float]) -> list[int]:
    """Count what was sent to the upstream between one opening and the next.

    Requests are under way at the first opening only: each later one is caused by a probe, which was alone
    and whose arrival a log's whole milliseconds may put after the opening.
    """
    later = [at + ROUNDING_S for at in openings[1:]]
    starts = [at + UNDER_WAY_S for at in openings[:1]] + later
    ends = [*later, float("inf")]
    return [sum(start < at <= end for at in asked) for start, end in zip(starts, ends, strict=False)]


def _requests(proxy: Proxy) -> list[dict[str, Any]]:
    return [line for line in proxy.lines() if line["event"] == "request"]


def _openings(proxy: Proxy) -> list[float]:
    """Return when the first upstream's breakers opened, in Unix time."""
    return [
        datetime.fromisoformat(line["ts"]).timestamp()
        for line in proxy.lines()
        if line["event"] == "breaker" and line["upstream"] == "first" and line["to"] == "open"
    ]


def _attempts(lines: list[dict[str, Any]], upstream: str) -> list[float]:
    """Return about when requests were sent to an upstream that could not count them itself."""
    return [
        datetime.fromisoformat(line["ts"]).timestamp() - line["duration_s"]
        for line in lines
        for attempt in line["attempts"]
        if attempt["upstream"] == upstream
    ]


def _config(first: Upstream, second: Upstream) -> dict[str, Any]:
    brief = {"open": "2s", "open_max": "4s", "recovery": "2s"}
    return {
        "upstreams": {
            "first": {"base_url": first.fake.base_url},
            "second": {"base_url": second.fake.base_url},
        },
        "routes": {"gpt-5": ["first", "second"]},
        "policy": {"first_token": "2s", "response": "2s", **({} if FULL else {"breaker": brief})},
    }


def _length_s(fault: str) -> float:
    # Until the first silence has lasted 2 s, every request waits it out: the ratio needs the longer run.
    return 20.0 if FULL else 12.0 if fault == "hanging" else 6.0


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not await asyncio.to_thread(true):
            await asyncio.sleep(0.1)
