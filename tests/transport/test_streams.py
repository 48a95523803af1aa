"""How streams end, and what a client sees of them meanwhile."""

from __future__ import annotations

import asyncio
import json
import socket
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.proxy import RunningProxy
from tests.fakes.upstream import (
    Garbage,
    Plan,
    Reply,
    Request,
    Slow,
    Stream,
    as_event,
    chat_answer,
    chat_events,
    raw_chunk,
    raw_head,
)
from tests.transport.connection.lab import Certificates
from tests.transport.route import proxied, read, read_broken, streamed, text_of

EVENTS = chat_events("said")
WHOLE = "said0said1said2"
SSE = {"content-type": "text/event-stream"}
DONE = b"data: [DONE]\n\n"


def raw(*events: Any, tail: bytes = b"", then: Any = "hang") -> Garbage:
    """A stream as one write after its head, then `tail` bytes, which may end it."""
    head = raw_head(200, SSE, "chunked")
    return Garbage(head + raw_chunk(b"".join(as_event(event) for event in events)) + tail, then)


# Endings


async def test_the_client_has_its_end_at_done_whatever_the_upstream_does_then(tmp_path: Path) -> None:
    async with proxied(tmp_path, raw(*EVENTS, "[DONE]")) as (proxy, (a,)):
        async with proxy.chat(stream=True) as answer:
            body, events = await asyncio.wait_for(read(answer), 0.4)
        assert text_of(events) == WHOLE
        assert body.endswith(DONE)
        await a.until(lambda f: f.open == 0)  # its last chunk never came, and it was not waited for long


async def test_a_connection_whose_last_chunk_comes_late_is_used_again(
    certificates: Certificates, tmp_path: Path
) -> None:
    class LastChunkLater:
        async def play(self, request: Request, wire: Any) -> None:
            await raw(*EVENTS, "[DONE]", then="keep").play(request, wire)
            await asyncio.sleep(0.05)
            await wire.send(b"0\r\n\r\n")

    async with proxied(tmp_path, LastChunkLater(), tls=certificates) as (proxy, (a,)):
        for _ in range(3):
            async with proxy.chat(stream=True) as answer:
                await read(answer)
            await a.until(lambda f: f.running == 0)
            await asyncio.sleep(0)
        assert len(a.requests) == 3
        assert a.opened == 1


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
async def test_any_line_end_will_do(end: str, tmp_path: Path) -> None:
    events = [*(f"data: {json.dumps(event)}{end}{end}".encode() for event in EVENTS)]
    async with streamed(tmp_path, Slow(Stream(events, end="eof"), step=7)) as (_, answer):
        body = await answer.read()
    assert body == b"".join(events) + DONE


async def test_a_stream_of_another_operation_may_end_without_a_mark(tmp_path: Path) -> None:
    events = [{"type": "thread.message.delta", "delta": "x"}]
    async with proxied(tmp_path, Stream(events, end="eof")) as (proxy, _):
        url, body = f"{proxy.url}/embeddings", {"model": "m", "input": "x", "stream": True}
        async with proxy.session.post(url, json=body) as answer:
            assert (await answer.read()) == as_event(events[0])


@pytest.mark.parametrize("end", ["cut", "reset"])
async def test_but_not_by_being_cut(end: Any, tmp_path: Path) -> None:
    async with proxied(tmp_path, Stream([{"type": "x.delta"}], end=end)) as (proxy, _):
        url, body = f"{proxy.url}/embeddings", {"model": "m", "input": "x", "stream": True}
        async with proxy.session.post(url, json=body) as answer:
            assert b"stream_interrupted" in await read_broken(answer)


@pytest.mark.parametrize("tail", [b"", b"data: [DO"], ids=["nothing", "half an event"])
@pytest.mark.parametrize("end", ["cut", "reset", "eof"])
async def test_a_finished_answer_is_complete_however_it_breaks_off(
    end: Any, tail: bytes, tmp_path: Path
) -> None:
    events = [*EVENTS, *([tail] if tail else [])]
    async with streamed(tmp_path, Stream(events, end=end)) as (_, answer):
        body, got = await read(answer)
    assert text_of(got) == WHOLE
    assert body.endswith(DONE)


async def test_events_without_data_are_kept_from_sdks_that_crash_on_them(tmp_path: Path) -> None:
    role, one, *rest = EVENTS
    pings = [b"event: ping\n\n", b"retry: 1000\n\n", b": comment\n\n"]
    async with proxied(tmp_path, Stream([role, one, *pings, *rest])) as (proxy, _):
        async with proxy.chat(stream=True) as answer:
            body, events = await read(answer)
        assert text_of(events) == WHOLE
        assert b"ping" not in body
        assert b"retry" not in body
        assert b": comment\n\n" in body
        assert 'stream_events_dropped_total{reason="malformed",upstream="a"} 0.0' in await proxy.metrics()


async def test_the_error_that_ends_a_response_continues_its_numbers(tmp_path: Path) -> None:
    delta = {"type": "response.output_text.delta", "item_id": "i", "output_index": 0, "content_index": 0}
    events = [
        f"event: {delta['type']}\ndata: {json.dumps({**delta, 'delta': 'x', 'sequence_number': 4})}\n\n"
    ]
    async with proxied(tmp_path, Stream([events[0].encode()], end="cut")) as (proxy, _):
        body = {"model": "m", "input": "Q", "stream": True}
        async with proxy.session.post(f"{proxy.url}/responses", json=body) as answer:
            last = (await read_broken(answer)).strip().split(b"\n")
    assert last[-2] == b"event: error"
    error = json.loads(last[-1].removeprefix(b"data: "))
    assert (error["type"], error["code"], error["sequence_number"]) == ("error", "stream_interrupted", 5)


# Silence


async def test_pings_alone_are_no_progress(tmp_path: Path) -> None:
    class Pinging:
        async def play(self, request: Request, wire: Any) -> None:
            await raw(*EVENTS[:3], then="keep").play(request, wire)
            while True:
                await wire.send(raw_chunk(b": ping\n\n"))
                await asyncio.sleep(0.05)

    async with proxied(tmp_path, Pinging()) as (proxy, _):
        async with proxy.chat(stream=True) as answer:
            body = await asyncio.wait_for(read_broken(answer), 5)
        assert body.count(b": ping\n\n") > 10  # for longer than `stall`, which is 0.5 s
        assert 'interruptions_total{reason="stalled"' in await proxy.metrics()


async def test_a_silent_stream_is_kept_alive_by_comments(tmp_path: Path) -> None:
    slow = Stream(EVENTS[:2] + EVENTS[-1:], gap_s=1.05)
    async with streamed(tmp_path, slow, policy="stall: 5s, keepalive: 1s") as (_, answer):
        body, events = await read(answer)
    assert text_of(events) == "said0"
    assert body.count(b": keep-alive\n\n") >= 1


async def test_no_comment_follows_an_event_with_an_id(tmp_path: Path) -> None:
    events = [b"id: 1\n" + as_event(event) for event in EVENTS[:2] + EVENTS[-1:]]
    async with streamed(tmp_path, Stream(events, gap_s=1.05), policy="stall: 5s, keepalive: 1s") as (
        _,
        answer,
    ):
        body = await answer.read()
    assert body == b"".join(events) + DONE


async def test_an_early_head_and_comments_reach_a_client_that_waits_while_failover_goes_on(
    tmp_path: Path,
) -> None:
    silent = Stream(EVENTS, first_s=30)
    policy = "early_keepalive: 1s, first_token: 1500ms"
    async with streamed(tmp_path, silent, Stream(EVENTS, first_s=0.8), policy=policy) as (proxy, answer):
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-request-id"].startswith("req_")
        body, events = await read(answer)
        assert body.startswith(b": keep-alive\n\n")
        assert b": answered by b\n\n" in body
        assert text_of(events) == WHOLE
        assert 'outcome="ok_failover"' in await proxy.metrics()


async def test_a_quick_answer_has_its_headers_all_the_same(tmp_path: Path) -> None:
    async with streamed(tmp_path, Stream(EVENTS), policy="early_keepalive: 1s") as (_, answer):
        assert answer.headers["x-sidestep-upstream"] == "a"
        assert await answer.read() == b"".join(map(as_event, EVENTS)) + DONE


async def test_after_an_early_head_the_final_failure_is_an_error_event(tmp_path: Path) -> None:
    policy = "early_keepalive: 1s, first_token: 1200ms"
    async with streamed(tmp_path, Stream(EVENTS, first_s=30), policy=policy) as (proxy, answer):
        assert answer.status == 200
        body = await read_broken(answer)
        error = json.loads(body.strip().split(b"\n")[-1].removeprefix(b"data: "))["error"]
        assert error["code"] == "upstream_error"
        assert b"[DONE]" not in body
        assert 'outcome="upstream_error"' in await proxy.metrics()


async def test_after_an_early_head_a_refusal_keeps_its_words(tmp_path: Path) -> None:
    refusal = {"error": {"message": "bad temperature", "type": "invalid_request_error", "code": "nope"}}
    slow = Reply(400, json=refusal, delay_s=1.2)
    async with streamed(tmp_path, slow, policy="early_keepalive: 1s") as (_, answer):
        body = await read_broken(answer)
    error = json.loads(body.strip().split(b"\n")[-1].removeprefix(b"data: "))["error"]
    assert (error["message"], error["code"]) == ("bad temperature", "nope")


# Backpressure


@dataclass
class Flood:
    """An upstream that sends as much as is taken."""

    piece: bytes = as_event({"choices": [{"index": 0, "delta": {"content": "x" * 30_000}}]})
    sent: int = 0

    async def play(self, request: Request, wire: Any) -> None:
        await wire.send(raw_head(200, SSE, "chunked"))
        while True:
            await wire.send(raw_chunk(self.piece))
            self.sent += len(self.piece)

    async def until_held_up(self) -> None:
        """Wait until nothing more is taken."""
        before = -1
        while before != self.sent:
            before = self.sent
            await asyncio.sleep(0.2)


async def test_a_client_that_does_not_read_holds_up_the_upstream_and_is_dropped(tmp_path: Path) -> None:
    flood = Flood()
    async with proxied(tmp_path, flood) as (proxy, (a,)):
        client = slow_client(proxy)
        try:
            await a.until(lambda f: f.running == 1)
            await a.until(lambda f: f.aborted == 1, timeout_s=10)
        finally:
            client.close()
        assert 'outcome="client_gone"' in await proxy.metrics()


async def test_a_client_that_does_not_read_costs_at_most_256_kib(tmp_path: Path) -> None:
    count, flood = 10, Flood()
    async with proxied(tmp_path, flood, policy="stall: 30s") as (proxy, (a,)):
        tracemalloc.start()
        clients: list[socket.socket] = []
        try:
            before, _ = tracemalloc.get_traced_memory()
            clients += [slow_client(proxy) for _ in range(count)]
            await a.until(lambda f: f.running == count)
            await flood.until_held_up()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            for client in clients:
                client.close()
        theirs = 128 * 1024  # the fake upstream's own buffer is in this process, too
        assert (held - before) / count <= 256 * 1024 + theirs


def slow_client(proxy: RunningProxy) -> socket.socket:
    """Return a client that asks for a stream and never reads it."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = proxy.url.removeprefix("http://").removesuffix("/v1").split(":")
    client.connect((host, int(port)))
    body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: %b:%b\r\ncontent-type: application/json\r\n"
    head %= (host.encode(), port.encode())
    client.sendall(head + b"content-length: %d\r\n\r\n%b" % (len(body), body))
    return client


# Answers that are no streams


async def test_an_answer_too_large_to_hold_is_committed_when_holding_ends(tmp_path: Path) -> None:
    large = json.dumps(chat_answer("x" * 3_000_000)).encode()
    async with proxied(tmp_path, Reply(body=large)) as (proxy, _), proxy.chat() as answer:
        assert answer.headers["content-length"] == str(len(large))
        assert await answer.read() == large


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_large_answer_that_breaks_never_looks_complete(framing: str, tmp_path: Path) -> None:
    half = json.dumps(chat_answer("x" * 3_000_000)).encode()[:2_500_000]
    head = raw_head(200, {"content-type": "application/json"}, framing, 3_000_000)
    broken = Garbage(head + (raw_chunk(half) if framing == "chunked" else half), "close")
    async with proxied(tmp_path, broken) as (proxy, _):
        async with proxy.chat() as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()
        assert 'outcome="interrupted"' in await proxy.metrics()


# Breakers


@pytest.mark.parametrize(
    "alike", [pytest.param(False, id="different requests"), pytest.param(True, id="the same health check")]
)
async def test_five_streams_in_a_row_that_break_open_the_breaker_of_that_target_alone(
    alike: bool, tmp_path: Path
) -> None:
    def plan(request: Request) -> Plan:
        breaks = request.json().get("model") == "model-a" and request.path.endswith("chat/completions")
        return (
            Stream(EVENTS[:3], end="cut")
            if breaks
            else Reply(json={"object": "list", "data": [{"index": 0}]})
        )

    async with proxied(tmp_path, plan, Stream(EVENTS)) as (proxy, _):
        broken = 0
        for number in range(12):
            async with proxy.chat(stream=True, seed=1 if alike else number) as answer:
                try:
                    await answer.read()
                except aiohttp.ClientPayloadError:
                    broken += 1
        assert broken == 5
        states = (await proxy.metrics()).splitlines()
        opened = [
            line for line in states if line.startswith("sidestep_breaker_state") and 'state="open"' in line
        ]
        assert [line for line in opened if line.endswith(" 1.0")] == [
            'sidestep_breaker_state{model="model-a",operation="chat",scope="target",state="open",'
            'upstream="a"} 1.0'
        ]
        embeddings = {"model": "m", "input": "x"}
        async with proxy.session.post(f"{proxy.url}/embeddings", json=embeddings) as answer:
            assert answer.headers["x-sidestep-upstream"] == "a"
