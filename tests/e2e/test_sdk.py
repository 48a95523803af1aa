"""The official openai SDK, through the proxy, against a real model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.serving import Proxy

ASK = {"model": "smollm2", "max_tokens": 12, "temperature": 0}
QUESTION = [{"role": "user", "content": "Count to five."}]


@pytest.fixture
def client(real_proxy: Proxy) -> Iterator[OpenAI]:
    with OpenAI(base_url=real_proxy.base_url, api_key="anything", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(real_proxy: Proxy) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=real_proxy.base_url, api_key="anything", max_retries=0) as client:
        yield client


def test_a_chat_is_answered(client: OpenAI) -> None:
    answer = client.chat.completions.create(messages=QUESTION, **ASK)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 12


def test_a_streamed_chat_is_answered_to_its_end(client: OpenAI) -> None:
    with client.chat.completions.create(messages=QUESTION, stream=True, **ASK) as stream:
        events = [event for event in stream if event.choices]
    assert "".join(event.choices[0].delta.content or "" for event in events)
    assert events[-1].choices[0].finish_reason == "length"


def test_a_stream_says_the_same_as_the_whole_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(messages=QUESTION, **ASK).choices[0].message.content
    with client.chat.completions.create(messages=QUESTION, stream=True, **ASK) as stream:
        pieces = [event.choices[0].delta.content or "" for event in stream if event.choices]
    assert "".join(pieces) == whole


def test_usage_is_streamed_when_asked_for(client: OpenAI) -> None:
    options = {"include_usage": True}
    with client.chat.completions.create(
        messages=QUESTION, stream=True, stream_options=options, **ASK
    ) as stream:
        usages = [event.usage for event in stream if event.usage]
    assert usages[-1].completion_tokens == 12


async def test_the_async_client_is_answered(async_client: AsyncOpenAI) -> None:
    answer = await async_client.chat.completions.create(messages=QUESTION, **ASK)
    assert answer.choices[0].message.content


async def test_the_async_client_is_streamed_to(async_client: AsyncOpenAI) -> None:
    async with await async_client.chat.completions.create(messages=QUESTION, stream=True, **ASK) as stream:
        events = [event async for event in stream if event.choices]
    assert events[-1].choices[0].finish_reason == "length"


def test_a_plain_completion_is_answered_and_streamed(client: OpenAI) -> None:
    answer = client.completions.create(prompt="One, two,", **ASK)
    assert answer.choices[0].text
    with client.completions.create(prompt="One, two,", stream=True, **ASK) as stream:
        assert "".join(event.choices[0].text for event in stream) == answer.choices[0].text


def test_embeddings_are_answered(client: OpenAI) -> None:
    answer = client.embeddings.create(model="smollm2", input=["one", "two"])
    assert [len(item.embedding) for item in answer.data] == [576, 576]


def test_the_models_are_those_of_the_configuration(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2"]


def test_the_headers_say_who_answered(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(messages=QUESTION, **ASK)
    assert raw.headers["x-sidestep-upstream"] == "one"
    assert raw.headers["x-sidestep-attempts"] == "1"
    assert raw.parse()._request_id == raw.headers["x-request-id"]


def test_an_unknown_model_is_the_sdks_own_kind_of_error(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="smollm2") as caught:
        client.chat.completions.create(model="gpt-99", messages=QUESTION)
    assert caught.value.code == "model_not_found"


def test_a_mistake_of_the_clients_is_relayed_and_opens_no_breaker(client: OpenAI, real_proxy: Proxy) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(messages=[{"role": "user", "content": "word " * 9000}], **ASK)
    assert real_proxy.breaker_state("one") == "closed"
    assert client.chat.completions.create(messages=QUESTION, **ASK).choices
