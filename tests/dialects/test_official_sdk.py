"""The official Python SDK raises on our ends of streams and on our errors, whatever the operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import httpx2
import openai
import pytest

from proxy.dialects.openai import WireError, error_body, stream_error_event

CHUNK = (
    b'data: {"id":"c","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'
)
DELTA = b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"Hel"}\n\n'
TEXT = b'data: {"id":"c","object":"text_completion","choices":[{"index":0,"text":"Hel"}]}\n\n'


def client_of(status: int, body: bytes, headers: dict[str, str]) -> openai.OpenAI:
    """Return a real client whose connection always answers the same."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, content=body, headers=headers, request=request)

    transport = httpx2.Client(transport=httpx2.MockTransport(answer))
    return openai.OpenAI(api_key="k", base_url="http://127.0.0.1/v1", http_client=transport, max_retries=0)


def chat(client: openai.OpenAI) -> Iterable[Any]:
    return client.chat.completions.create(model="m", messages=[], stream=True)


def completions(client: openai.OpenAI) -> Iterable[Any]:
    return client.completions.create(model="m", prompt="x", stream=True)


def responses(client: openai.OpenAI) -> Iterable[Any]:
    return client.responses.create(model="m", input="x", stream=True)


@pytest.mark.parametrize(
    ("operation", "before", "ask"),
    [
        pytest.param("chat", CHUNK, chat, id="chat"),
        pytest.param("completions", TEXT, completions, id="completions"),
        pytest.param("responses", DELTA, responses, id="responses"),
    ],
)
def test_a_broken_stream_raises_after_what_had_come(
    operation: str, before: bytes, ask: Callable[[openai.OpenAI], Iterable[Any]]
) -> None:
    end = stream_error_event(operation, "upstream_error", "The stream broke.", sequence=4)
    client = client_of(200, before + end, {"content-type": "text/event-stream"})
    received = []
    with pytest.raises(openai.APIError, match=r"The stream broke\.") as caught:
        received.extend(ask(client))
    assert caught.value.code == "upstream_error"


def test_a_refusal_is_the_exception_that_its_status_stands_for() -> None:
    refusal = WireError(404, "model_not_found", "There is no route for 'x'.", "model")
    client = client_of(refusal.status, refusal.body(), {"content-type": "application/json"})
    with pytest.raises(openai.NotFoundError) as caught:
        chat(client)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_the_attempts_of_an_exhausted_chain_reach_the_client() -> None:
    body = error_body(502, "upstream_error", "All failed.", attempts=[("openai", "overloaded", 0.5)])
    client = client_of(502, body, {"content-type": "application/json", "x-should-retry": "false"})
    with pytest.raises(openai.InternalServerError) as caught:
        chat(client)
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["attempts"] == [{"upstream": "openai", "outcome": "overloaded", "seconds": 0.5}]
