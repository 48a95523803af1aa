"""`midstream: resume`: a stream that breaks goes on elsewhere, and the client sees one answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.proxy import RunningProxy
from tests.fakes.upstream import FakeUpstream, Hang, Plan, Reply, Request, Stream
from tests.transport import route
from tests.transport.route import read, read_broken, text_of

SAID = "The keeper wrote home about the sea, the gulls and the slow turning light."
WORDS = [word if number == 0 else f" {word}" for number, word in enumerate(SAID.split(" "))]
REFUSAL = {
    "error": {"message": "Prefilling is not supported.", "type": "invalid_request_error", "code": None}
}


def chunks(words: Sequence[str], name: str = "a", *, finish: bool = True) -> list[dict[str, Any]]:
    """Return a chat stream of these words as an upstream of that name would send it."""
    whole = {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": f"model-{name}",
    }
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}, *({"content": w} for w in words)]
    events = [{**whole, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
    if finish:
        events.append({**whole, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return events


def breaks_after(count: int, words: Sequence[str] = WORDS, end: Any = "cut", name: str = "a") -> Stream:
    return Stream(chunks(words[:count], name, finish=False), end=end)


@asynccontextmanager
async def proxied(
    tmp_path: Path, *plans: Plan, policy: str = "", upstream: str = ""
) -> AsyncIterator[tuple[RunningProxy, Sequence[FakeUpstream]]]:
    """A proxy that resumes what breaks."""
    resumes = f"midstream: resume, same_target_retries: 0{policy}"
    async with route.proxied(tmp_path, *plans, policy=resumes, upstream=upstream) as both:
        yield both


@pytest.mark.parametrize("end", ["cut", "reset", "eof", "hang"])
@pytest.mark.parametrize("count", [1, 5, len(WORDS)])
async def test_the_same_answer_given_again_is_joined_where_the_first_broke_off(
    count: int, end: Any, tmp_path: Path
) -> None:
    again = Stream(chunks(WORDS, "b"))
    async with proxied(tmp_path, breaks_after(count, end=end), again) as (proxy, fakes):
        async with proxy.chat(stream=True) as answer:
            body, events = await read(answer)
        assert text_of(events) == SAID
        assert body.endswith(b"data: [DONE]\n\n")
        assert {(e["id"], e["model"]) for e in events} == {("chatcmpl-a", "model-a")}
        assert [e["choices"][0]["delta"].get("role") for e in events].count("assistant") == 1
        assert body.count(b": resumed on b\n\n") == 1
        assert fakes[1].requests[0].json()["messages"] == fakes[0].requests[0].json()["messages"]
        metrics = await proxy.metrics()
        assert 'sidestep_stream_resumes_total{result="exact",route="m"} 1.0' in metrics
        assert 'outcome="ok_failover",route="m"} 1.0' in metrics
    line = json.loads(proxy.log.read_text().splitlines()[-1])
    assert line["resumed"] == "exact"
    assert [a["outcome"] for a in line["attempts"]][-1] == "ok"


async def test_events_that_agree_with_the_first_answer_go_out_byte_for_byte(tmp_path: Path) -> None:
    odd = json.dumps(chunks([" tail"], "a", finish=False)[1], indent=None, separators=(" ,  ", " : "))
    again = Stream([*chunks(WORDS[:5], "a", finish=False), odd, *chunks([], "a")[1:]])
    async with proxied(tmp_path, breaks_after(5), again) as (proxy, _):
        async with proxy.chat(stream=True) as answer:
            body, events = await read(answer)
        assert text_of(events) == "".join(WORDS[:5]) + " tail"
        assert f"data: {odd}\n\n".encode() in body


def prefilled(request: Request) -> Plan:
    """A target that goes on from an assistant's message, and otherwise says something else each time."""
    last = request.json()["messages"][-1]
    if last["role"] != "assistant":
        return Stream(chunks(["Something", " else."], "b"))
    assert SAID.startswith(last["content"])
    return Stream(chunks([SAID[len(last["content"]) :]], "b"))


async def test_a_target_that_is_known_to_go_on_is_given_the_beginning(tmp_path: Path) -> None:
    able = ", capabilities: {prefill: true}"
    async with proxied(tmp_path, breaks_after(5), prefilled, upstream=able) as (proxy, fakes):
        async with proxy.chat(stream=True) as answer:
            _, events = await read(answer)
        assert text_of(events) == SAID
        assert [len(r.json()["messages"]) for r in fakes[1].requests] == [1, 2]
        assert 'resumes_total{result="prefill"' in await proxy.metrics()


def instructed(request: Request) -> Plan:
    """A target that does what it is told: it repeats the last words it is given and goes on."""
    last = request.json()["messages"][-1]
    if last["role"] == "assistant":
        return Reply(400, json=REFUSAL)
    if len(request.json()["messages"]) == 1:
        return Stream(chunks(["Something", " else."], "b"))
    anchor = last["content"].rpartition("\n\n")[2]
    rest = SAID[SAID.index(anchor) :]
    return Stream(chunks([rest[index : index + 7] for index in range(0, len(rest), 7)], "b"))


async def test_other_targets_are_told_to_go_on_from_the_last_words(tmp_path: Path) -> None:
    async with proxied(tmp_path, breaks_after(9), instructed) as (proxy, fakes):
        async with proxy.chat(stream=True, max_tokens=500) as answer:
            _, events = await read(answer)
        assert text_of(events) == SAID
        assert fakes[1].requests[-1].json()["max_tokens"] < 500
        assert 'resumes_total{result="instruction"' in await proxy.metrics()


async def test_a_refused_prefill_is_learnt_and_never_seen(tmp_path: Path) -> None:
    able = ", capabilities: {prefill: true}"
    async with proxied(tmp_path, breaks_after(9), instructed, upstream=able) as (proxy, fakes):
        for _ in range(2):
            async with proxy.chat(stream=True) as answer:
                _, events = await read(answer)
            assert text_of(events) == SAID
        assert [len(r.json()["messages"]) for r in fakes[1].requests] == [1, 2, 3, 1, 3]


async def test_an_answer_that_does_not_continue_is_not_spliced(tmp_path: Path) -> None:
    stubborn = Stream(chunks(["Something", " else."], "b"))
    async with proxied(tmp_path, breaks_after(9), stubborn) as (proxy, _):
        async with proxy.chat(stream=True) as answer:
            body = await read_broken(answer)
        assert b"Something" not in body
        assert b'"code":"stream_interrupted"' in body
        assert b"[DONE]" not in body
        assert 'resumes_total{result="failed"' in await proxy.metrics()
        assert 'state="open",upstream="b"} 1.0' not in await proxy.metrics()


async def test_what_breaks_again_is_carried_on_again(tmp_path: Path) -> None:
    plans = [breaks_after(3), breaks_after(7, name="b"), Reply(503), Stream(chunks(WORDS, "d"))]
    async with proxied(tmp_path, *plans) as (proxy, _):
        async with proxy.chat(stream=True) as answer:
            body, events = await read(answer)
        assert text_of(events) == SAID
        assert b": resumed on b\n\n" in body
        assert b": resumed on d\n\n" in body


async def test_usage_is_the_sum_of_what_was_reported(tmp_path: Path) -> None:
    def used(output: int) -> dict[str, Any]:
        usage = {"prompt_tokens": 10, "completion_tokens": output, "total_tokens": 10 + output}
        return {"id": "chatcmpl-b", "choices": [], "usage": usage}

    first = Stream([*chunks(WORDS[:4], finish=False), used(4)], end="cut")
    async with proxied(tmp_path, first, Stream([*chunks(WORDS, "b"), used(14)])) as (proxy, _):
        async with proxy.chat(stream=True, stream_options={"include_usage": True}) as answer:
            _, events = await read(answer)
        assert events[-1]["usage"] == {"prompt_tokens": 20, "completion_tokens": 18, "total_tokens": 38}
        assert events[-1]["id"] == "chatcmpl-a"
    line = json.loads(proxy.log.read_text().splitlines()[-1])
    assert line["tokens"] == {"input": 20, "output": 18}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
UNSAFE = [
    pytest.param({"tools": [TOOL]}, id="tools"),
    pytest.param({"n": 2}, id="several choices"),
    pytest.param({"logprobs": True}, id="logprobs"),
    pytest.param({"response_format": {"type": "json_object"}}, id="structured output"),
    pytest.param({"store": True}, id="stored at the provider"),
]


@pytest.mark.parametrize("more", UNSAFE)
async def test_what_is_not_plain_text_ends_with_an_error(more: dict[str, Any], tmp_path: Path) -> None:
    async with proxied(tmp_path, breaks_after(5), Stream(chunks(WORDS, "b"))) as (proxy, fakes):
        async with proxy.chat(stream=True, **more) as answer:
            await read_broken(answer)
        assert len(fakes[1].requests) == 0


async def test_thoughts_that_were_told_are_not_thought_again(tmp_path: Path) -> None:
    thought = chunks([], finish=False)[0] | {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}
    first = Stream([thought, *chunks(WORDS[:3], finish=False)], end="cut")
    async with proxied(tmp_path, first, Stream(chunks(WORDS, "b"))) as (proxy, fakes):
        async with proxy.chat(stream=True) as answer:
            await read_broken(answer)
        assert len(fakes[1].requests) == 0
        assert 'resumes_total{result="unsafe"' in await proxy.metrics()


async def test_comments_keep_the_client_while_the_stream_is_carried_on(tmp_path: Path) -> None:
    slow = Stream(chunks(WORDS, "b"), first_s=1.2)
    async with proxied(tmp_path, breaks_after(5), slow, policy=", keepalive: 1s, stall: 5s") as (proxy, _):
        async with proxy.chat(stream=True) as answer:
            body, events = await read(answer)
        assert text_of(events) == SAID
        assert body.count(b": keep-alive\n\n") == 1


async def test_a_client_that_leaves_meanwhile_ends_the_new_attempt_too(tmp_path: Path) -> None:
    async with proxied(tmp_path, breaks_after(5), Hang()) as (proxy, fakes):
        async with proxy.chat(stream=True) as answer:
            await answer.content.readany()
            await fakes[1].until(lambda f: f.running == 1)
            answer.close()
        await fakes[1].until(lambda f: f.running == 0 and f.aborted == 1, timeout_s=1.0)


async def test_a_legacy_completion_goes_on_from_its_prompt(tmp_path: Path) -> None:
    def pieces(words: Sequence[str], finish: str | None = None) -> list[dict[str, Any]]:
        whole = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m"}
        events = [{**whole, "choices": [{"index": 0, "text": w, "finish_reason": None}]} for w in words]
        return [*events, {**whole, "choices": [{"index": 0, "text": "", "finish_reason": finish}]}]

    def goes_on(request: Request) -> Plan:
        told = request.json()["prompt"].removeprefix("Q: ")
        return Stream(pieces([SAID[len(told) :]] if told else ["Else"], "stop"))

    async with proxied(tmp_path, Stream(pieces(WORDS[:6]), end="cut"), goes_on) as (proxy, _):
        body = {"model": "m", "prompt": "Q: ", "stream": True}
        async with proxy.session.post(f"{proxy.url}/completions", json=body) as answer:
            _, events = await read(answer)
        assert "".join(event["choices"][0]["text"] for event in events) == SAID


def responses(words: Sequence[str], name: str, *, finish: bool = True) -> list[bytes]:
    """Return a stream of the Responses API."""
    item = {
        "id": f"msg_{name}",
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [],
    }
    head = {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": 1,
        "model": f"model-{name}",
        "output": [],
    }
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": head},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": part},
        *({"type": "response.output_text.delta", **place, "delta": word} for word in words),
    ]
    if finish:
        text = "".join(words)
        done = {**item, "status": "completed", "content": [{**part, "text": text}]}
        usage = {"input_tokens": 3, "output_tokens": 5, "total_tokens": 8}
        events += [
            {"type": "response.output_text.done", **place, "text": text},
            {"type": "response.content_part.done", **place, "part": {**part, "text": text}},
            {"type": "response.output_item.done", "output_index": 0, "item": done},
            {"type": "response.completed", "response": {**head, "output": [done], "usage": usage}},
        ]
    return [
        f"event: {event['type']}\ndata: {json.dumps({**event, 'sequence_number': number})}\n\n".encode()
        for number, event in enumerate(events)
    ]


async def test_a_stateless_response_is_carried_on_as_one(tmp_path: Path) -> None:
    def goes_on(request: Request) -> Plan:
        given = request.json()["input"]
        if isinstance(given, str):
            return Stream(responses(["Something", " else."], "b"), end="eof")
        rest = SAID[SAID.index(given[-1]["content"].rpartition("\n\n")[2]) :]
        return Stream(responses([rest], "b"), end="eof")

    first = Stream(responses(WORDS[:8], "a", finish=False), end="cut")
    async with proxied(tmp_path, first, goes_on) as (proxy, _):
        body = {"model": "m", "input": "Q", "stream": True, "store": False}
        async with proxy.session.post(f"{proxy.url}/responses", json=body) as answer:
            _, events = await read(answer)
    kinds = [event["type"] for event in events]
    assert kinds.count("response.created") == kinds.count("response.output_item.added") == 1
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == SAID
    assert {event["item_id"] for event in events if "item_id" in event} == {"msg_a"}
    whole = events[-1]["response"]
    assert (whole["id"], whole["model"], whole["output"][0]["id"]) == ("resp_a", "model-a", "msg_a")
    assert whole["output"][0]["content"][0]["text"] == SAID


async def test_a_response_that_the_provider_stores_is_not_carried_on_elsewhere(tmp_path: Path) -> None:
    first = Stream(responses(WORDS[:8], "a", finish=False), end="cut")
    async with proxied(tmp_path, first, Stream(responses(WORDS, "b"), end="eof")) as (proxy, fakes):
        body = {"model": "m", "input": "Q", "stream": True}
        async with proxy.session.post(f"{proxy.url}/responses", json=body) as answer:
            await read_broken(answer)
        assert len(fakes[1].requests) == 0
