"""A proxy in front of fake upstreams `a`, `b`, ... that one route, `m`, tries in this order."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.fakes.proxy import RunningProxy, running_proxy
from tests.fakes.upstream import FakeUpstream, Plan
from tests.transport.connection.lab import Certificates

POLICY = {"first_token": "2s", "response": "2s", "stall": "500ms", "backoff": "1ms", "hold": "0s"}


@asynccontextmanager
async def proxied(
    tmp_path: Path,
    *plans: Plan,
    policy: str = "",
    upstream: str = "",
    tls: Certificates | None = None,
) -> AsyncIterator[tuple[RunningProxy, Sequence[FakeUpstream]]]:
    """Run them; *policy* ("hold: 5s, hedge: 1s") and *upstream* are more keys of these sections."""
    async with AsyncExitStack() as stack:
        fakes = [
            await stack.enter_async_context(FakeUpstream(plan, tls=tls.good if tls else None))
            for plan in plans
        ]
        ca_file = f", ca_file: {tls.ca_file}" if tls else ""
        upstreams = "".join(
            f"  {name}: {{base_url: {fake.base_url}{ca_file}{upstream}}}\n"
            for name, fake in zip("abcd", fakes, strict=False)
        )
        targets = ", ".join(f"{name}/model-{name}" for name in "abcd"[: len(fakes)])
        text = f"upstreams:\n{upstreams}routes: {{m: [{targets}]}}\npolicy: {{{_policy(policy)}}}\n"
        yield await stack.enter_async_context(running_proxy(text, tmp_path)), fakes


@asynccontextmanager
async def streamed(
    tmp_path: Path, *plans: Plan, policy: str = ""
) -> AsyncIterator[tuple[RunningProxy, aiohttp.ClientResponse]]:
    """Run them, and ask for one stream."""
    async with proxied(tmp_path, *plans, policy=policy) as (proxy, _), proxy.chat(stream=True) as answer:
        yield proxy, answer


def _policy(more: str) -> str:
    keys = POLICY | dict(pair.split(": ", 1) for pair in more.split(", ") if pair)
    return ", ".join(f"{key}: {value}" for key, value in keys.items())


async def read(answer: aiohttp.ClientResponse) -> tuple[bytes, list[dict[str, Any]]]:
    """Return a stream's bytes and its events' data, `[DONE]` left out."""
    body = await answer.read()
    data = [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]
    return body, [json.loads(item) for item in data if item != "[DONE]"]


async def read_broken(answer: aiohttp.ClientResponse) -> bytes:
    """Return what came of an answer that must break off."""
    body = b""
    try:
        async for piece in answer.content.iter_any():
            body += piece
    except aiohttp.ClientPayloadError:
        return body
    raise AssertionError(f"the answer looks complete: {body[-300:]!r}")


def stream_text(body: bytes) -> str:
    """Return the text that a chat stream's bytes carry."""
    return text_of(
        [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    )


def text_of(events: Sequence[dict[str, Any]]) -> str:
    """Return the text of a chat stream's events."""
    return "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e.get("choices"))
