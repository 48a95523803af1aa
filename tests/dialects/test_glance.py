"""A glance says what the long way says, or nothing."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.endpoints import Endpoint, find
from proxy.dialects.features import read_features
from proxy.dialects.glance import glance
from proxy.dialects.openai import MAX_MODEL_CHARS, body_for, read_call
from proxy.dialects.scan import read_members

CHAT = find("POST", "/v1/chat/completions")
assert isinstance(CHAT, Endpoint)

messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "system"]), "content": st.text(max_size=20)}),
    max_size=3,
)
bodies = st.fixed_dictionaries(
    {"model": st.sampled_from(["gpt-4o", "o3-mini", "a/b:c"]), "messages": messages},
    optional={
        "stream": st.sampled_from([True, False, None]),
        "stream_options": st.sampled_from([None, {}, {"include_usage": True}]),
        "temperature": st.floats(0, 2),
        "max_tokens": st.integers(0, 100),
        "max_completion_tokens": st.integers(1, 100),
        "user": st.text(max_size=5),
        "seed": st.integers(),
    },
)


@given(bodies, st.sampled_from([None, (",", ":"), (" , ", " : ")]))
def test_a_glance_agrees_with_the_long_way(body: dict[str, Any], separators: tuple[str, str] | None) -> None:
    raw = json.dumps(body, separators=separators).encode()
    seen = glance(raw, MAX_MODEL_CHARS)
    if seen is None:
        return
    members = read_members(raw)
    long_way = read_features("chat", members.values, body["model"], stream=body.get("stream") is True)
    assert seen.model == body["model"]
    assert seen.model_span == members.span("model")
    assert msgspec.structs.replace(seen.features, prompt_tokens=0) == msgspec.structs.replace(
        long_way, prompt_tokens=0
    )


def test_an_ordinary_request_is_read_at_a_glance_and_its_model_is_spliced() -> None:
    raw = b'{ "messages": [{"role": "user", "content": "say \\"model\\""}], "model" : "m", "stream": true}'
    call = read_call(CHAT, raw)
    assert glance(raw, MAX_MODEL_CHARS) is not None
    assert body_for(call, "n") == raw.replace(b': "m"', b': "n"')


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b'{"model":"a","messages":[],"model":"b"}', id="model twice"),
        pytest.param(
            b'{"model":"a","messages":[],"mod\\u0065l":"b"}', id="model twice, once spelt with an escape"
        ),
        pytest.param(b'{"model":"a","messages":[],"stream":true,"stream":false}', id="stream twice"),
        pytest.param(b'{"model":"a","messages":[],"tools":[]}', id="a key that may ask for something"),
        pytest.param(b'{"model":"a","messages":[{"role":"user","content":[]}]}', id="content in parts"),
        pytest.param(b'{"model":"a\\/b","messages":[]}', id="a model spelt with an escape"),
        pytest.param(b'{"model":7,"messages":[]}', id="a model that is a number"),
        pytest.param('{"model":"a","messages":[{"role":"user","content":"ä"}]}'.encode(), id="not ASCII"),
        pytest.param(b'{"model":"a","messages":[]', id="half a document"),
        pytest.param(b'{"model":"a","messages":[],"temperature":NaN}', id="NaN"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_out_of_the_ordinary_goes_the_long_way(raw: bytes) -> None:
    assert glance(raw, MAX_MODEL_CHARS) is None
