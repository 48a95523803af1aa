"""The simulated provider, asked by the official SDK over real sockets."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI

from proxy.sim.provider import Fault, Ill, Provider

QUESTION = [{"role": "user", "content": "who is there?"}]


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with Provider("first", lambda: 1_790_000_000.5, random.Random(7), pace_s=0.0) as running:
        yield running


@pytest.fixture
async def client(provider: Provider) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=provider.base_url, api_key="k", max_retries=0) as running:
        yield running


async def test_a_chat_answer_has_the_shape_the_sdk_expects(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="demo-chat", messages=QUESTION)
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == "demo-chat"
    assert answer.created == 1_790_000_000
    assert answer.system_fingerprint == "fp_first"
    assert choice.finish_reason == "stop"
    assert "first" in (choice.message.content or "")
    assert answer.usage.completion_tokens == len(choice.message.content.split())
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_a_chat_stream_says_the_role_then_words_then_the_finish(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(model="demo-chat", messages=QUESTION, stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "first" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert len({chunk.id for chunk in chunks}) == 1


async def test_usage_comes_last_in_a_stream_where_asked_for(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="demo-chat", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert {chunk.usage for chunk in chunks[:-1]} == {None}


async def test_max_tokens_cuts_the_answer_and_says_so(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="m", messages=QUESTION, max_tokens=3)
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


async def test_legacy_completions_work_streamed_and_not(client: AsyncOpenAI) -> None:
    whole = await client.completions.create(model="m", prompt="hello")
    stream = await client.completions.create(model="m", prompt="hello", stream=True)
    streamed = [chunk async for chunk in stream]
    assert "first" in whole.choices[0].text
    assert "first" in "".join(chunk.choices[0].text for chunk in streamed)
    assert streamed[-1].choices[0].finish_reason == "stop"


async def test_embeddings_are_the_same_for_the_same_text_in_both_encodings(client: AsyncOpenAI) -> None:
    packed = await client.embeddings.create(model="m", input=["cat", "dog"])
    plain = await client.embeddings.create(model="m", input="cat", encoding_format="float", dimensions=16)
    assert packed.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-6)
    assert packed.data[0].embedding != packed.data[1].embedding
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1.0)


async def test_token_inputs_give_one_vector(client: AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="m", input=[1, 2, 3])
    assert len(answer.data) == 1


async def test_models_are_listed(client: AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["demo-chat", "demo-embed"]


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        pytest.param("status:503", openai.InternalServerError, id="overloaded"),
        pytest.param("status:429", openai.RateLimitError, id="rate limited"),
        pytest.param("status:401", openai.AuthenticationError, id="key refused"),
        pytest.param("status:404", openai.NotFoundError, id="model missing"),
        pytest.param("html", openai.InternalServerError, id="a page of a CDN"),
        pytest.param("reset", openai.APIConnectionError, id="dies before the head"),
        pytest.param("refuse", openai.APIConnectionError, id="does not listen"),
    ],
)
async def test_faults_look_to_the_sdk_like_the_real_thing(
    provider: Provider, client: AsyncOpenAI, fault: str, error: type[Exception]
) -> None:
    await provider.become(Fault.parse(fault))
    with pytest.raises(error):
        await client.chat.completions.create(model="m", messages=QUESTION)


async def test_an_overloaded_body_is_the_one_openai_sends(provider: Provider, client: AsyncOpenAI) -> None:
    await provider.become(Fault.parse("status:503"))
    with pytest.raises(openai.InternalServerError) as caught:
        await client.chat.completions.create(model="m", messages=QUESTION)
    assert caught.value.code == "server_is_overloaded"


async def test_a_cut_stream_breaks_after_some_words_without_an_end(
    provider: Provider, client: AsyncOpenAI
) -> None:
    await provider.become(Fault(Ill.CUT))
    heard: list[str] = []
    stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)

    async def read() -> None:
        async for chunk in stream:
            heard.append(chunk.choices[0].delta.content or "")

    with pytest.raises(openai.APIConnectionError):
        await read()
    assert "".join(heard)


async def test_a_stream_begun_in_health_is_cut_by_the_fault(provider: Provider) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
    await provider.become(Fault(Ill.CUT))
    writer.write(_post({"model": "m", "stream": True, "messages": QUESTION}))
    text = await reader.read()
    writer.close()
    assert b'"content": ' in text
    assert b"[DONE]" not in text
    assert not text.endswith(b"0\r\n\r\n")


async def test_an_error_event_comes_inside_a_200(provider: Provider, client: AsyncOpenAI) -> None:
    await provider.become(Fault(Ill.EVENT))
    stream = await client.chat.completions.create(model="m", messages=QUESTION, stream=True)
    with pytest.raises(openai.APIError, match="overloaded"):
        [chunk async for chunk in stream]


async def test_a_hung_request_ends_with_the_provider(client: AsyncOpenAI, provider: Provider) -> None:
    await provider.become(Fault(Ill.HANG))
    asked = asyncio.ensure_future(client.chat.completions.create(model="m", messages=QUESTION))
    while provider.requests == 0:
        await asyncio.sleep(0)
    assert not asked.done()
    asked.cancel()
    await asyncio.wait([asked])
    assert asked.cancelled()


async def test_it_listens_again_on_the_same_port_after_refusing(
    provider: Provider, client: AsyncOpenAI
) -> None:
    port = provider.port
    await provider.become(Fault(Ill.REFUSE))
    await provider.become(Fault(Ill.HEALTHY))
    answer = await client.chat.completions.create(model="m", messages=QUESTION)
    assert answer.choices[0].finish_reason == "stop"
    assert provider.port == port


@pytest.mark.parametrize(
    ("line", "status"),
    [
        pytest.param("POST /v1/chat/completions", b"400", id="no model"),
        pytest.param("GET /v1/chat/completions", b"405", id="wrong method"),
        pytest.param("POST /v1/nowhere", b"404", id="no such path"),
    ],
)
async def test_nonsense_gets_a_4xx(provider: Provider, line: str, status: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", provider.port)
    writer.write(f"{line} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}".encode())
    text = await reader.read()
    writer.close()
    assert text.split(b" ")[1] == status
    assert b'"error"' in text


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="sleepy"):
        Fault.parse("sleepy")


def _post(body: dict[str, object]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data
