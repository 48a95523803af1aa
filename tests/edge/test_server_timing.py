"""Where a request's time went: the `Server-Timing` header, and what counts as the proxy's own."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from tests.fakes.proxy import RunningProxy, running_proxy
from tests.fakes.upstream import FakeUpstream, Hang, Reply, Stream

LIMITED = Reply(429, headers={"retry-after": "1"})


def config(*urls: str, policy: str = "") -> str:
    names = "abc"[: len(urls)]
    upstreams = ", ".join(f'{name}: {{base_url: "{url}"}}' for name, url in zip(names, urls, strict=True))
    return f"upstreams: {{{upstreams}}}\nroutes: {{m: [{', '.join(names)}]}}\npolicy: {{{policy}}}\n"


def durations(header: str) -> dict[str, float]:
    """Return the milliseconds of each entry, named by its `desc` too where it has one."""
    found = re.findall(r"(\w+);dur=([\d.]+)(?:;desc=([\w.-]+))?(?:, |$)", header)
    return {f"{name} {desc}".strip(): float(dur) for name, dur, desc in found}


async def overhead_s(proxy: RunningProxy) -> float:
    """Return the sum of the proxy's own time over all requests."""
    found = re.search(
        r'sidestep_overhead_seconds_sum\{endpoint="chat/completions"\} (\S+)', await proxy.metrics()
    )
    assert found is not None
    return float(found[1])


async def test_an_answer_tells_our_share_and_its_upstream_s(tmp_path: Path) -> None:
    async with (
        FakeUpstream(Reply(delay_s=0.2), Stream(first_s=0.2)) as fake,
        running_proxy(config(fake.base_url), tmp_path) as proxy,
    ):
        for stream in (False, True):
            async with proxy.chat(stream=stream) as answer:
                told = durations(answer.headers["server-timing"])
                await answer.read()
            assert told.keys() == {"proxy", "upstream a"}
            assert told["upstream a"] >= 200
            assert told["proxy"] < 200


async def test_time_lost_on_others_is_told_apart(tmp_path: Path) -> None:
    async with (
        FakeUpstream(Reply(503, delay_s=0.2)) as first,
        FakeUpstream(Reply()) as second,
        running_proxy(config(first.base_url, second.base_url), tmp_path) as proxy,
        proxy.chat() as answer,
    ):
        told = durations(answer.headers["server-timing"])
    assert told.keys() == {"proxy", "failover", "upstream b"}
    assert told["failover"] >= 200
    assert told["upstream b"] < 200


async def test_an_error_has_no_upstream(tmp_path: Path) -> None:
    async with (
        FakeUpstream(Reply(503)) as fake,
        running_proxy(config(fake.base_url, policy="max_attempts: 1"), tmp_path) as proxy,
        proxy.chat() as answer,
    ):
        assert answer.status == 502
        assert durations(answer.headers["server-timing"]).keys() == {"proxy", "failover"}


async def test_waiting_for_an_upstream_is_not_the_proxy_s_own_time(tmp_path: Path) -> None:
    async with (
        FakeUpstream(LIMITED, default=Reply()) as fake,
        running_proxy(config(fake.base_url), tmp_path) as proxy,
        proxy.chat() as answer,
    ):
        assert answer.status == 429
        async with proxy.chat() as answer:  # held until the upstream may be asked again
            assert answer.status == 200
            told = durations(answer.headers["server-timing"])
        own_s = await overhead_s(proxy)
        decisions = await proxy.metrics()
    assert re.search(r'sidestep_decisions_total\{decision="hold",reason="cooldown".*\} 1\.0', decisions)
    assert told["proxy"] < 500
    assert own_s < 0.5


async def test_waiting_for_the_client_s_body_is_not_the_proxy_s_own_time(tmp_path: Path) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]}).encode()
    async with FakeUpstream(Reply()) as fake, running_proxy(config(fake.base_url), tmp_path) as proxy:
        listen = proxy.application.listen
        reader, writer = await asyncio.open_connection(listen.host, listen.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body[:10])
        await asyncio.sleep(0.6)  # a client on a slow line
        writer.write(body[10:])
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        writer.close()
        await writer.wait_closed()
        own_s = await overhead_s(proxy)
    assert answer.startswith("HTTP/1.1 200")
    assert durations(answer.partition("server-timing: ")[2].partition("\r\n")[0])["proxy"] < 300
    assert own_s < 0.3


async def test_attempts_in_vain_are_no_overhead(tmp_path: Path) -> None:
    async with FakeUpstream(Hang()) as first, FakeUpstream(Reply()) as second:
        limits = "response: 500ms"
        async with running_proxy(config(first.base_url, second.base_url, policy=limits), tmp_path) as proxy:
            async with proxy.chat() as answer:
                told = durations(answer.headers["server-timing"])
            own_s = await overhead_s(proxy)
    assert told["failover"] >= 500
    assert told["proxy"] < 250
    assert own_s < 0.25
