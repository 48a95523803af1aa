"""Drills against a real proxy with two upstreams: `a`, which is drilled, and `b`, which stands behind it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.proxy import RunningProxy, running_proxy
from tests.fakes.upstream import FakeUpstream, Plan, Reply, Stream

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
FAST = "response: 300ms, first_token: 300ms, same_target_retries: 0, hold: 0s"
STEADY = FAST + ", breaker: {mode: off}"
UNTOUCHED = [
    "refuse",
    "status:503",
    "status:500",
    "status:429",
    "status:401",
    "status:404",
    "hang",
    "garbage",
]


def answering(request: Any) -> Plan:
    """A stream to who asked for one, else a whole answer."""
    return Stream() if request.json().get("stream") else Reply()


@asynccontextmanager
async def two(
    tmp_path: Path, policy: str = STEADY, routes: str = "m: [a/m, b/m]"
) -> AsyncIterator[tuple[RunningProxy, FakeUpstream, FakeUpstream]]:
    async with FakeUpstream(answering) as a, FakeUpstream(answering) as b:
        text = (
            f"upstreams: {{a: {{base_url: {a.base_url}}}, b: {{base_url: {b.base_url}}}}}\n"
            f"routes: {{{routes}}}\npolicy: {{{policy}}}\n"
        )
        async with running_proxy(text, tmp_path) as proxy:
            yield proxy, a, b


async def start(proxy: RunningProxy, fault: str, **more: Any) -> dict[str, Any]:
    """Start a drill against `a`; return its report."""
    status, answer = await post(proxy, {"upstream": "a", "fault": fault, **more})
    assert status == 201, answer
    return answer


async def post(proxy: RunningProxy, asked: Any) -> tuple[int, dict[str, Any]]:
    async with proxy.session.post(f"{proxy.admin_url}/-/drills", json=asked) as answer:
        return answer.status, await answer.json()


async def stop(proxy: RunningProxy, query: str = "?upstream=a") -> list[dict[str, Any]]:
    async with proxy.session.delete(f"{proxy.admin_url}/-/drills{query}") as answer:
        ended: list[dict[str, Any]] = (await answer.json())["ended"]
        return ended


async def listed(proxy: RunningProxy) -> dict[str, Any]:
    async with proxy.session.get(f"{proxy.admin_url}/-/drills") as answer:
        found: dict[str, Any] = await answer.json()
        return found


async def ask(proxy: RunningProxy, *, stream: bool = False) -> tuple[int, str, str]:
    """Return status, what came of the text, and the upstream that answered."""
    async with proxy.chat(stream=stream) as answer:
        text = b""
        with suppress(aiohttp.ClientPayloadError):  # a broken answer is no complete one
            async for data in answer.content.iter_any():
                text += data
        return answer.status, text.decode(), answer.headers.get("x-sidestep-upstream", "")


async def until_over(proxy: RunningProxy) -> dict[str, Any]:
    """Wait for the drill's own end; return its report."""
    async with asyncio.timeout(10):
        while (found := await listed(proxy))["running"]:
            await asyncio.sleep(0.02)
    report: dict[str, Any] = found["ended"][-1]
    return report


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", UNTOUCHED)
async def test_clients_see_no_error_and_the_upstream_hears_nothing(
    fault: str, stream: bool, tmp_path: Path
) -> None:
    async with two(tmp_path) as (proxy, a, b):
        await start(proxy, fault)
        status, text, upstream = await ask(proxy, stream=stream)
        assert (status, upstream) == (200, "b")
        assert "hello" in text
        assert text.endswith("data: [DONE]\n\n") == stream
        assert (len(a.requests), a.opened, len(b.requests)) == (0, 0, 1)
        (report,) = await stop(proxy)
        assert report["requests"] == {"ok": 0, "ok_failover": 1, "failed": 0, "interrupted": 0, "other": 0}
        assert (report["attempts"], report["hit"], report["open"]) == (1, 1, 0)


KINDS = [
    ("refuse", "connect_failed"),
    ("status:503", "overloaded"),
    ("status:500", "server_error"),
    ("status:429", "rate_limited"),
    ("status:401", "unauthorized"),
    ("status:402", "quota_spent"),
    ("status:403", "unauthorized"),
    ("status:404", "model_missing"),
    ("hang", "no_answer"),
    ("garbage", "malformed"),
    ("slow:5s", "no_answer"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("fault", "kind"), KINDS)
async def test_the_attempt_ends_in_what_the_real_thing_would_give(
    fault: str, kind: str, stream: bool, tmp_path: Path
) -> None:
    async with two(tmp_path) as (proxy, _, _):
        await start(proxy, fault)
        async with proxy.chat(stream=stream) as answer:
            await answer.read()
            assert answer.headers["x-sidestep-path"].startswith(f"a={kind}")
        assert (
            f'sidestep_attempts_total{{model="m",outcome="{kind}",upstream="a"}} 1.0' in await proxy.metrics()
        )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_slow_delays_the_real_answer(stream: bool, tmp_path: Path) -> None:
    async with two(tmp_path, "hold: 0s") as (proxy, a, b):
        await start(proxy, "slow:250ms")
        status, text, upstream = await ask(proxy, stream=stream)
        assert (status, upstream) == (200, "a")
        assert "hello" in text
        assert (len(a.requests), len(b.requests)) == (1, 0)
        (report,) = await stop(proxy)
        assert report["requests"]["ok"] == 1
        assert report["others"]["p50_s"] >= 0.25  # the delay itself: it is felt, and it is told


async def test_cut_breaks_a_stream_off_after_content(tmp_path: Path) -> None:
    async with two(tmp_path) as (proxy, a, _):
        await start(proxy, "cut")
        status, text, upstream = await ask(proxy, stream=True)
        assert (status, upstream, len(a.requests)) == (200, "a", 1)
        events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
        assert "hello0" in text
        assert "hello1" not in text
        assert "[DONE]" not in text
        assert json.loads(events[-1])["error"]["code"] == "stream_interrupted"
        (report,) = await stop(proxy)
        assert report["requests"]["interrupted"] == 1
        metrics = await proxy.metrics()
        assert 'sidestep_stream_interruptions_total{reason="interrupted",upstream="a"} 1.0' in metrics


async def test_a_cut_stream_is_resumed_where_that_is_wanted(tmp_path: Path) -> None:
    async with two(tmp_path, STEADY + ", midstream: resume") as (proxy, _, _):
        await start(proxy, "cut")
        _, text, _ = await ask(proxy, stream=True)
        said = [json.loads(event[6:]) for event in text.split("\n\n") if event.startswith("data: {")]
        words = [choice["delta"].get("content", "") for one in said for choice in one["choices"]]
        assert "".join(words) == "hello0hello1hello2"
        assert text.endswith("data: [DONE]\n\n")


async def test_cut_breaks_a_body_off_before_it_reaches_anybody(tmp_path: Path) -> None:
    async with two(tmp_path) as (proxy, a, _):
        await start(proxy, "cut")
        status, text, upstream = await ask(proxy)
        assert (status, upstream, len(a.requests)) == (200, "b", 1)
        assert json.loads(text)["choices"][0]["message"]["content"] == "hello"


async def test_a_body_too_large_to_hold_is_cut_in_the_middle(tmp_path: Path) -> None:
    large = json.dumps({"choices": [{"message": {"content": "x" * 3_000_000}}]})
    async with two(tmp_path) as (proxy, a, _):
        a.behave(Reply(body=large))
        await start(proxy, "cut")
        assert len((await ask(proxy))[1]) < len(large)
        (report,) = await stop(proxy)
        assert report["requests"]["interrupted"] == 1


async def test_garbage_never_passes_for_an_answer_where_anything_could_be_one(tmp_path: Path) -> None:
    async with two(tmp_path) as (proxy, a, b):
        b.behave(Reply(body=b"sound", headers={"content-type": "audio/mpeg"}))
        await start(proxy, "garbage")
        body = {"model": "m", "input": "Hi", "voice": "alloy"}
        async with proxy.session.post(f"{proxy.url}/audio/speech", json=body) as answer:
            assert (answer.status, await answer.read()) == (200, b"sound")
        assert not a.requests


async def test_a_share_of_the_attempts_is_hit(tmp_path: Path) -> None:
    async with two(tmp_path) as (proxy, a, b):
        proxy.application.drills.rng = random.Random(7)
        await start(proxy, "status:503", share=0.3)
        chance = random.Random(7)
        expected = [chance.random() < 0.3 for _ in range(60)]
        answered = [(await ask(proxy))[2] == "b" for _ in range(60)]
        assert answered == expected
        assert len(a.requests) == 60 - sum(expected)
        assert len(b.requests) == sum(expected)
        (report,) = await stop(proxy)
        assert (report["attempts"], report["hit"]) == (60, sum(expected))
        assert report["requests"]["ok"] == 60 - sum(expected)
        assert report["extra_p50_s"] is not None


async def test_it_ends_by_itself_and_stops_hurting(tmp_path: Path) -> None:
    async with two(tmp_path) as (proxy, a, _):
        await start(proxy, "refuse", for_s=0.2)
        assert (await ask(proxy))[2] == "b"
        report = await until_over(proxy)
        assert (report["running"], report["left_s"], report["requests"]["ok_failover"]) == (False, 0.0, 1)
        assert (await ask(proxy))[2] == "a"
        assert len(a.requests) == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("fault", "answers"), [("hang", "b"), ("slow:1m", "a")])
async def test_what_it_holds_is_let_go_at_the_end(
    fault: str, answers: str, stream: bool, tmp_path: Path
) -> None:
    policy = "same_target_retries: 0, response: 50s, first_token: 50s"
    async with two(tmp_path, policy) as (proxy, _, _):
        await start(proxy, fault)
        running = asyncio.ensure_future(ask(proxy, stream=stream))
        async with asyncio.timeout(5):
            while not (await listed(proxy))["running"][0]["hit"]:
                await asyncio.sleep(0.01)
            (report,) = await stop(proxy)
            assert report["open"] == 1
            assert (await running)[::2] == (200, answers)
        (report,) = (await listed(proxy))["ended"]
        assert report["open"] == 0
        assert report["requests"]["ok" if answers == "a" else "ok_failover"] == 1


async def test_breakers_open_for_real_and_are_told_of(tmp_path: Path) -> None:
    async with two(tmp_path, "hold: 0s, breaker: {open: 100ms, recovery: 100ms}") as (proxy, a, _):
        await start(proxy, "status:503")
        for _ in range(12):
            assert (await ask(proxy))[0] == 200
        (report,) = await stop(proxy)
        moves = [(move["scope"], move["from"], move["to"]) for move in report["moves"]]
        assert moves[0] == ("target", "closed", "open")
        assert report["hit"] < 12  # the breaker spared the rest
        assert not a.requests
        async with asyncio.timeout(10):
            while (await ask(proxy))[2] != "a":  # it recovers by itself
                await asyncio.sleep(0.02)


async def test_it_is_seen_everywhere_while_it_runs(tmp_path: Path) -> None:
    async with two(tmp_path) as (proxy, _, _):
        line = 'sidestep_drills_active{upstream="%s"} %d'
        assert line % ("a", 0) in await proxy.metrics()
        await start(proxy, "hang", share=0.5, for_s=30)
        metrics = await proxy.metrics()
        assert line % ("a", 1) in metrics
        assert line % ("b", 0) in metrics
        status = await proxy.status()
        assert [(drill["upstream"], drill["fault"], drill["share"]) for drill in status["drills"]] == [
            ("a", "hang", 0.5)
        ]
        assert [notice["kind"] for notice in status["notices"]] == ["drill"]
        assert len(await stop(proxy, "")) == 1
        assert line % ("a", 0) in await proxy.metrics()
        assert (await proxy.status())["drills"] == []
    lines = [json.loads(text) for text in proxy.log.read_text().splitlines()]
    told = [(line["event"], line["upstream"]) for line in lines if line["event"].startswith("drill")]
    assert told == [("drill_started", "a"), ("drill_ended", "a")]


async def test_requests_of_other_routes_are_not_counted(tmp_path: Path) -> None:
    async with two(tmp_path, routes="m: [a, b], other: [b]") as (proxy, _, _):
        await start(proxy, "refuse")
        async with proxy.chat(model="other") as answer:
            assert answer.status == 200
        await ask(proxy)
        (report,) = await stop(proxy)
        assert sum(report["requests"].values()) == 1


async def test_the_only_upstream_fails_and_that_is_told(tmp_path: Path) -> None:
    async with two(tmp_path, routes="m: [a]") as (proxy, a, _):
        await start(proxy, "refuse")
        assert (await ask(proxy))[0] == 502
        (report,) = await stop(proxy)
        assert report["requests"]["failed"] == 1
        assert not a.requests


BAD = [
    pytest.param({"upstream": "c", "fault": "hang"}, "there are a, b", id="no such upstream"),
    pytest.param({"fault": "hang"}, "upstream", id="no upstream"),
    pytest.param({"upstream": "a"}, "there are refuse", id="no fault"),
    pytest.param({"upstream": "a", "fault": "explode"}, "there are refuse", id="no such fault"),
    pytest.param({"upstream": "a", "fault": 503}, "there are refuse", id="a fault that is no text"),
    pytest.param({"upstream": "a", "fault": "status"}, "status:503", id="status without a number"),
    pytest.param({"upstream": "a", "fault": "status:200"}, "400 to 599", id="a good status"),
    pytest.param({"upstream": "a", "fault": "slow:0s"}, "slow:5s", id="not slow at all"),
    pytest.param({"upstream": "a", "fault": "hang:5s"}, "there are refuse", id="hang with a time"),
    pytest.param({"upstream": "a", "fault": "hang", "share": 0}, "share", id="a share of nothing"),
    pytest.param({"upstream": "a", "fault": "hang", "share": 50}, "share", id="more than all"),
    pytest.param({"upstream": "a", "fault": "hang", "for_s": 3601}, "3600", id="longer than an hour"),
    pytest.param({"upstream": "a", "fault": "hang", "for": 5}, "for_s", id="an unknown member"),
    pytest.param(["a"], "object", id="no object"),
]


@pytest.mark.parametrize(("asked", "says"), BAD)
async def test_a_drill_that_makes_no_sense_is_a_clear_400(asked: Any, says: str, tmp_path: Path) -> None:
    async with two(tmp_path) as (proxy, _, _):
        status, answer = await post(proxy, asked)
        assert status == 400
        assert says in answer["error"]["message"]
        assert (await listed(proxy))["running"] == []


async def test_one_drill_at_a_time_for_each_upstream(tmp_path: Path) -> None:
    async with two(tmp_path) as (proxy, _, _):
        await start(proxy, "hang")
        status, answer = await post(proxy, {"upstream": "a", "fault": "cut"})
        assert (status, "already" in answer["error"]["message"]) == (400, True)
        assert (await post(proxy, {"upstream": "b", "fault": "cut"}))[0] == 201
        assert await stop(proxy, "?upstream=c") == []
        assert [report["upstream"] for report in await stop(proxy, "")] == ["a", "b"]
