"""The scan of a body's top level: exact spans, and a refusal of whatever two servers may read differently."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.scan import MAX_DEPTH, ScanError, Span, read_members

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)
SPACES = st.text(" \t\r\n", max_size=3)


@given(
    st.dictionaries(st.text(max_size=6), JSON, max_size=6), st.booleans(), SPACES, SPACES, st.integers(0, 4)
)
def test_every_value_is_found_where_it_lies(
    document: dict[str, Any], ascii_only: bool, before: str, around: str, indent: int
) -> None:
    text = json.dumps(
        document, ensure_ascii=ascii_only, indent=indent or None, separators=(",", around + ":" + around)
    )
    body = (before + text + before).encode()
    members = read_members(body)
    assert [span.name for span in members.spans()] == list(document)
    for span in members.spans():
        assert json.loads(body[span.start : span.end]) == document[span.name]
        assert json.loads(body[span.key_start : span.key_end]) == span.name
        assert members.span(span.name) == (span.start, span.end)


def test_a_span_is_exact() -> None:
    body = b' { "a" : [1, {"model": 2}] ,\n"model":"gpt-5" }'
    members = read_members(body)
    assert body[slice(*members.span("model") or ())] == b'"gpt-5"'
    assert members.spans()[0] == Span("a", 3, 6, 9, 26)
    assert members.span("stream") is None
    assert read_members(b"{}").spans() == []


@pytest.mark.parametrize(
    "second", [b'"model"', b'"mod\\u0065l"', b'"\\u006d\\u006F\\u0064\\u0065\\u006c"', b'"m\\u006fdel"']
)
@pytest.mark.parametrize("first", [b'"model"', b'"mode\\u006C"'])
def test_a_key_that_occurs_twice_is_noticed_in_any_spelling(first: bytes, second: bytes) -> None:
    members = read_members(b"{" + first + b':"a","n":1,' + second + b':"b"}')
    with pytest.raises(ScanError, match="'model' occurs twice"):
        members.refuse_doubles(("model", "stream"))
    assert [span.name for span in members.spans()] == ["model", "n", "model"]


def test_other_doubles_and_the_same_key_deeper_down_are_no_matter() -> None:
    members = read_members(b'{"model":"a","n":1,"n":2,"tools":[{"model":"b"}],"x":"\\"model\\":1"}')
    members.refuse_doubles(("model", "stream"))


BAD = {
    "empty": b"",
    "blanks": b" \n",
    "an array": b'["model"]',
    "a string": b'"model"',
    "null": b"null",
    "not JSON": b"model=gpt-5",
    "cut short": b'{"model": "gpt',
    "a second document": b'{"model": "a"}{"model": "b"}',
    "trailing garbage": b'{"model": "a"} x',
    "a NUL at the end": b'{"model": "a"}\x00',
    "NaN": b'{"temperature": NaN}',
    "Infinity": b'{"temperature": -Infinity}',
    "NaN deep down": b'{"a": [{"b": NaN}]}',
    "single quotes": b"{'model': 'a'}",
    "a comment": b'{"model": /* which? */ "a"}',
    "a trailing comma": b'{"model": "a",}',
    "a leading zero": b'{"n": 01}',
    "a bad escape": b'{"a": "\\x41"}',
    "a lone surrogate": b'{"a": "\\ud800"}',
    "a raw line feed in a string": b'{"a": "\n"}',
    "a control character": b'{"a": "\x01"}',
    "a byte order mark": b'\xef\xbb\xbf{"model": "a"}',
    "bad UTF-8 in a value": b'{"a": "\xff"}',
    "bad UTF-8 in a deep key": b'{"a": {"\xc3": 1}}',
    "bad UTF-8 in a key": b'{"\xff": 1}',
    "an overlong encoding": b'{"a": "\xc0\xaf"}',
    "a surrogate in UTF-8": b'{"a": "\xed\xa0\x80"}',
    "cut UTF-8 at the end of a string": b'{"a": "\xe2\x82"}',
    "UTF-16": '{"model": "a"}'.encode("utf-16"),
    "100,000 open brackets": b'{"a":' + b"[" * 100_000,
    "100,000 levels": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "100,000 levels of objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep after a long string": b'{"s":"' + b"x" * 200_000 + b'","a":' + b"[" * 200 + b"]" * 200 + b"}",
    "one level too many": b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_what_is_no_plain_object_is_refused_without_quoting_it(body: bytes) -> None:
    with pytest.raises(ScanError) as caught:
        read_members(body)
    assert "gpt" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_deepest_allowed_document_passes() -> None:
    levels = MAX_DEPTH - 1
    assert read_members(b'{"a":' + b"[" * levels + b"]" * levels + b"}").values.keys() == {"a"}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 500, id="brackets"),
        pytest.param('"' + "[{" * 300, id="a quote and brackets"),
        pytest.param("\\" * 301 + "{" * 300, id="backslashes"),
        pytest.param('\\"[' * 300, id="backslash, quote, bracket"),
    ],
)
@pytest.mark.parametrize("padding", range(6))
def test_brackets_in_strings_have_no_depth_wherever_a_window_ends(text: str, padding: int) -> None:
    filler = "x" * (64 * 1024 - 300 + padding)
    body = json.dumps({"a": filler, "b": text, "c": [text] * 40, "d": filler + text, "model": "m"}).encode()
    assert body[slice(*read_members(body).span("model") or ())] == b'"m"'


@given(
    st.lists(st.sampled_from(['"', "\\", "[", "]", "{", "n", "x" * 1000, "é"]), max_size=40),
    st.integers(100, 160),
)
def test_depth_is_counted_outside_of_strings_alone(text: list[str], depth: int) -> None:
    nested = "[" * depth + "]" * depth
    body = f'{{"a": {json.dumps("".join(text) * 20)}, "b": {nested}}}'.encode()
    if depth + 1 <= MAX_DEPTH:
        assert "b" in read_members(body).values
        return
    with pytest.raises(ScanError, match="levels deep"):
        read_members(body)


def test_a_character_across_two_windows_is_whole() -> None:
    for padding in range(4):
        body = json.dumps({"a": "x" * (64 * 1024 - 8 + padding) + "😀é" * 3}, ensure_ascii=False).encode()
        assert "a" in read_members(body).values
