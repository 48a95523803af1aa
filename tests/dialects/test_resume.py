"""Continuing a broken stream: what is asked, what is skipped, what is rewritten."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.endpoints import Endpoint, find
from proxy.dialects.openai import Call, read_call
from proxy.dialects.resume import DivergedError, Story, Way, anchor_of, ask, may_resume, ways_for
from proxy.dialects.sse import data_of
from proxy.dialects.streams import Sight, StreamReader

SAID = "The keeper wrote home about the sea"


def call_of(path: str = "/v1/chat/completions", **more: Any) -> Call:
    endpoint = find("POST", path)
    assert isinstance(endpoint, Endpoint)
    body: dict[str, Any] = {"model": "m", "stream": True, **more}
    if path.endswith("chat/completions"):
        body.setdefault("messages", [{"role": "user", "content": "Hi"}])
    return read_call(endpoint, json.dumps(body).encode())


def chunk(text: str | None, name: str = "a", finish: str | None = None, **delta: Any) -> bytes:
    choice = {
        "index": 0,
        "delta": ({"content": text} if text is not None else {}) | delta,
        "finish_reason": finish,
    }
    event = {"id": f"id-{name}", "created": 1, "model": f"model-{name}", "choices": [choice]}
    return f"data: {json.dumps(event)}\n\n".encode()


def told(story: Story, *events: bytes) -> str:
    """Let the story have events; return the text that the client gets of them."""
    reader, text = StreamReader("chat"), ""
    for event in events:
        out = story.tell(event, reader.look(event))
        data = data_of(out[out.rfind(b"data:") :]) if out else None
        if data and data != b"[DONE]":
            for choice in json.loads(data)["choices"]:
                text += choice["delta"].get("content") or ""
    return text


def broken_after(text: str) -> Story:
    story = Story("chat")
    assert told(story, chunk("", role="assistant"), chunk(text)) == text
    assert story.can_go_on
    return story


@given(st.text(min_size=1, max_size=60), st.data())
def test_a_replay_is_skipped_up_to_where_the_first_broke_off(text: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(text)))
    story = broken_after(text[:at])
    story.join(Way.REPLAY)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    rest = told(story, chunk("", "b", role="assistant"), *(chunk(piece, "b") for piece in pieces))
    assert text[:at] + rest == text
    assert story.text == text


@pytest.mark.parametrize("other", ["A keeper", "The keeper wrote home about the sky", "The keepers"])
def test_another_answer_is_not_joined(other: str) -> None:
    story = broken_after(SAID)
    story.join(Way.REPLAY)
    with pytest.raises(DivergedError):
        told(story, *(chunk(letter, "b") for letter in other), chunk(None, "b", "stop"))


def test_a_shorter_answer_is_not_joined() -> None:
    story = broken_after(SAID)
    story.join(Way.REPLAY)
    with pytest.raises(DivergedError):
        told(story, chunk(SAID[:-1], "b"), chunk(None, "b", "stop"))


def test_an_answer_that_says_exactly_this_and_ends_is_whole() -> None:
    story = broken_after(SAID)
    story.join(Way.REPLAY)
    assert told(story, chunk(SAID, "b"), chunk(None, "b", "stop")) == ""
    assert story.is_joined


ECHOES = ["{0}, {1}", '"{0}, {1}', "…{0}, {1}", "  \n{0}, {1}"]


@pytest.mark.parametrize("echo", ECHOES)
def test_an_instructed_answer_is_joined_at_the_words_it_repeats(echo: str) -> None:
    story = broken_after(SAID)
    story.join(Way.INSTRUCTION)
    answer = echo.format(anchor_of(SAID), "and the gulls.")
    assert told(story, *(chunk(letter, "b") for letter in answer)) == ", and the gulls."


def test_one_that_does_not_repeat_them_is_not_joined() -> None:
    story = broken_after(SAID)
    story.join(Way.INSTRUCTION)
    with pytest.raises(DivergedError):
        told(story, chunk("and the gulls.", "b"))


@pytest.mark.parametrize(("said", "rest", "new"), [("a ", " b", "b"), ("a ", "b", "b"), ("a", " b", " b")])
def test_spaces_at_the_seam_are_neither_lost_nor_doubled(said: str, rest: str, new: str) -> None:
    story = broken_after(said)
    story.join(Way.PREFILL)
    assert told(story, chunk(rest, "b")) == new


def test_the_last_words_are_whole_words() -> None:
    text = "x" * 100 + " and a few more words that make up the end of it all"
    assert text.endswith(" " + anchor_of(text))
    assert anchor_of("short") == "short"
    assert len(anchor_of("y" * 500)) == 48


def test_ids_and_model_stay_those_of_the_first_answer_and_the_role_is_told_once() -> None:
    story = broken_after("A")
    story.join(Way.PREFILL, b": resumed on b\n\n")
    event = story.tell(chunk("B", "b", role="assistant"), Sight.CONTENT)
    comment, _, rest = event.partition(b"\n\n")
    assert comment == b": resumed on b"
    document = json.loads(data_of(rest) or b"")
    assert (document["id"], document["model"]) == ("id-a", "model-a")
    assert document["choices"][0]["delta"] == {"content": "B"}


def test_what_agrees_is_not_touched() -> None:
    story = broken_after("A")
    story.join(Way.PREFILL)
    event = chunk("B", "a").replace(b'": ', b'" : ')
    assert story.tell(event, Sight.CONTENT) == event


MORE = [
    {"tool_calls": [{"index": 0, "function": {"name": "f"}}]},
    {"reasoning_content": "Hm."},
    {"refusal": "No."},
    {"content": [{"type": "thinking"}]},
]


@pytest.mark.parametrize("delta", MORE, ids=[next(iter(delta)) for delta in MORE])
def test_more_than_text_can_not_go_on(delta: dict[str, Any]) -> None:
    story = Story("chat")
    told(story, chunk("A"))
    story.tell(chunk(None, **delta), Sight.CONTENT)
    assert not story.can_go_on


def test_a_prefill_ends_with_what_was_said() -> None:
    asked = ask(call_of(temperature=0.125), broken_after(SAID + " "), Way.PREFILL)
    assert asked is not None
    body = json.loads(asked.body)
    assert body["messages"][-1] == {"role": "assistant", "content": SAID}
    assert body["temperature"] == 0.125
    assert (asked.model, asked.stream) == ("m", True)


def test_the_limit_on_the_length_is_what_is_left_of_it() -> None:
    story = broken_after("word " * 100)
    asked = ask(call_of(max_tokens=300), story, Way.INSTRUCTION)
    assert asked is not None
    assert json.loads(asked.body)["max_tokens"] == 175
    short = ask(call_of(max_tokens=100), story, Way.INSTRUCTION)
    assert short is not None
    assert json.loads(short.body)["max_tokens"] == 16


def test_a_replay_asks_the_very_same() -> None:
    call = call_of()
    assert ask(call, broken_after(SAID), Way.REPLAY) is call


@pytest.mark.parametrize(
    ("prompt", "asked"), [("Q: ", f"Q: {SAID}"), (["Q: "], f"Q: {SAID}"), ([1, 2], None)]
)
def test_a_completion_goes_on_from_its_prompt(prompt: Any, asked: str | None) -> None:
    call = ask(call_of("/v1/completions", prompt=prompt), broken_after(SAID), Way.PREFILL)
    assert (json.loads(call.body)["prompt"] if call is not None else None) == asked


@pytest.mark.parametrize("given_input", ["Q", [{"role": "user", "content": "Q"}]], ids=["text", "items"])
def test_a_response_is_told_to_go_on(given_input: Any) -> None:
    call = ask(call_of("/v1/responses", input=given_input, store=False), broken_after(SAID), Way.INSTRUCTION)
    assert call is not None
    assert [item["role"] for item in json.loads(call.body)["input"]] == ["user", "assistant", "user"]


def test_the_ways_depend_on_what_the_target_is_known_to_do() -> None:
    assert ways_for(call_of(), prefills=False) == (Way.REPLAY, Way.INSTRUCTION)
    assert ways_for(call_of(), prefills=True) == (Way.REPLAY, Way.PREFILL, Way.INSTRUCTION)
    assert ways_for(call_of("/v1/completions", prompt="x"), prefills=False) == (Way.REPLAY, Way.PREFILL)


NEVER = [
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"n": 2},
    {"logprobs": True},
    {"response_format": {"type": "json_schema", "json_schema": {}}},
    {"store": True},
    {"stream": False},
]


@pytest.mark.parametrize("more", NEVER, ids=[next(iter(more)) for more in NEVER])
def test_what_is_never_continued(more: dict[str, Any]) -> None:
    assert may_resume(call_of())
    assert not may_resume(call_of(**more))


def test_a_stored_response_is_the_providers() -> None:
    assert not may_resume(call_of("/v1/responses", input="x"))
    assert may_resume(call_of("/v1/responses", input="x", store=False))
