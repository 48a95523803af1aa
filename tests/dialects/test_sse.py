"""The splitter: byte-exact, whatever the slicing; and the fields of an event."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.sse import EventTooLarge, Fields, Splitter, data_of, fields_of, name_of

# Streams made of what can go wrong: all line ends, blank lines, comments, ids, split characters, a BOM.
PIECES = st.sampled_from(
    [b"data: x", b"data:", b"data", b": comment", b"id: 7", b"event: e", b"retry: 1", b" ", b"{}",
     b"\xc3\xa9\xf0\x9f\x98\x80", b"\xef\xbb\xbf", b"\n", b"\r\n", b"\r", b"\n\n", b"\r\n\r\n", b"\r\r",
       b"\n\r", b"\r\n\n"]
)  # fmt: skip
STREAMS = st.lists(PIECES, max_size=30).map(b"".join)


def reference(stream: bytes) -> tuple[list[bytes], bytes]:
    """Cut a whole stream the plain way: line by line, an event ends with its first empty line."""
    events, event = [], b""
    for line in re.findall(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+", stream):
        event += line
        if not line.strip(b"\r\n"):
            events.append(event)
            event = b""
    return events, event


def sliced(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [stream[start:end] for start, end in pairwise(edges)]


@given(STREAMS, st.lists(st.integers(min_value=0, max_value=10_000), max_size=12))
def test_any_slicing_gives_the_same_events_and_the_same_bytes(stream: bytes, cuts: list[int]) -> None:
    splitter = Splitter()
    events = [event for piece in sliced(stream, cuts) for event in splitter.feed(piece)]
    events += splitter.finish()
    assert (events, splitter.rest()) == reference(stream)
    assert b"".join(events) + splitter.rest() == stream


@given(STREAMS)
def test_byte_by_byte_is_like_all_at_once(stream: bytes) -> None:
    whole, single = Splitter(), Splitter()
    at_once = whole.feed(stream) + whole.finish()
    assert [event for byte in stream for event in single.feed(bytes([byte]))] + single.finish() == at_once
    assert single.rest() == whole.rest()


@pytest.mark.parametrize(
    ("stream", "events", "rest"),
    [
        pytest.param(b"data: a\n\n", [b"data: a\n\n"], b"", id="one event"),
        pytest.param(b"data: a\n\ndata: b\n\n", [b"data: a\n\n", b"data: b\n\n"], b"", id="two events"),
        pytest.param(b"data: a\r\n\r\n", [b"data: a\r\n\r\n"], b"", id="CRLF"),
        pytest.param(b"data: a\r\n\ndata: b\n\r\n", [b"data: a\r\n\n", b"data: b\n\r\n"], b"", id="mixed"),
        pytest.param(b"data: a\n\n\n\ndata: b\n\n", [b"data: a\n\n", b"\n", b"\n", b"data: b\n\n"], b"",
                     id="blank lines keep a connection alive"),
        pytest.param(b"\n\ndata: a\n\n", [b"\n", b"\n", b"data: a\n\n"], b"", id="blank lines first"),
        pytest.param(b"data: a\ndata: b\n\n", [b"data: a\ndata: b\n\n"], b"", id="several lines"),
        pytest.param(b"data: a\n\ndata: b", [b"data: a\n\n"], b"data: b", id="a rest"),
        pytest.param(b"data: a\n", [], b"data: a\n", id="no blank line yet"),
        pytest.param(b"data: a\r\r", [], b"data: a\r\r", id="a CR may be half a CRLF"),
        pytest.param(b"data: a\r\rdata: b", [b"data: a\r\r"], b"data: b", id="CR"),
        pytest.param(b"", [], b"", id="nothing"),
    ],
)  # fmt: skip
def test_a_stream_is_cut(stream: bytes, events: list[bytes], rest: bytes) -> None:
    splitter = Splitter()
    assert splitter.feed(stream) == events
    assert splitter.rest() == rest


def test_the_end_of_the_stream_completes_an_event_that_ends_in_cr() -> None:
    splitter = Splitter()
    assert splitter.feed(b"data: a\r\r") == []
    assert splitter.finish() == [b"data: a\r\r"]
    assert splitter.rest() == b""
    assert splitter.finish() == []


def test_an_incomplete_event_is_not_completed_by_the_end() -> None:
    splitter = Splitter()
    splitter.feed(b"data: a\r\n")
    assert splitter.finish() == []
    assert splitter.rest() == b"data: a\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param([b"data: " + b"x" * 94], id="held back"),
        pytest.param([b"data: " + b"x" * 93 + b"\n\n"], id="complete at once"),
        pytest.param([b"data: ", b"x" * 50, b"x" * 50], id="in pieces"),
        pytest.param([b"data: a\n\ndata: " + b"x" * 93 + b"\n\n"], id="after a small one"),
        pytest.param([b"data: " + b"x" * 93, b"\r\n\r\n"], id="complete in pieces"),
    ],
)
def test_an_event_of_more_than_the_limit_is_refused(pieces: list[bytes]) -> None:
    *harmless, last = pieces
    splitter = Splitter(max_event_bytes=99)
    for piece in harmless:
        splitter.feed(piece)
    with pytest.raises(EventTooLarge):
        splitter.feed(last)


def test_many_events_may_be_more_than_the_limit_together() -> None:
    splitter = Splitter(max_event_bytes=99)
    assert len(splitter.feed(b"data: abc\n\n" * 1000)) == 1000


@pytest.mark.parametrize(
    ("event", "data"),
    [
        pytest.param(b'data: {"a": 1}\n\n', b'{"a": 1}', id="the common case"),
        pytest.param(b"data:x\n\n", b"x", id="no space"),
        pytest.param(b"data:  x\n\n", b" x", id="only one space is dropped"),
        pytest.param(b"data: x\r\n\r\n", b"x", id="CRLF"),
        pytest.param(b"data: x\r\r", b"x", id="CR"),
        pytest.param(b"data: a\ndata: b\n\n", b"a\nb", id="lines are joined"),
        pytest.param(b"data: a\ndata:\ndata: b\n\n", b"a\n\nb", id="an empty line among them"),
        pytest.param(b"event: e\ndata: x\nid: 7\n\n", b"x", id="among other fields"),
        pytest.param(b": hi\ndata: x\n\n", b"x", id="after a comment"),
        pytest.param(b"\xef\xbb\xbfdata: x\n\n", b"x", id="after a byte order mark"),
        pytest.param(b"data: \n\n", b"", id="empty"),
        pytest.param(b"data\n\n", b"", id="a name alone"),
        pytest.param(b"database: x\n\n", None, id="another field"),
        pytest.param(b": ping\n\n", None, id="a comment"),
        pytest.param(b"event: ping\n\n", None, id="no data"),
        pytest.param(b"\n", None, id="a blank line"),
        pytest.param(b"data: x", b"x", id="without its blank line"),
    ],
)
def test_the_data_of_an_event(event: bytes, data: bytes | None) -> None:
    assert data_of(event) == data
    assert fields_of(event).data == data


def test_the_name_of_an_event_is_its_last() -> None:
    assert name_of(b"event: response.created\ndata: {}\n\n") == b"response.created"
    assert name_of(b"event:a\nevent: b\ndata: {}\r\n\r\n") == b"b"
    assert name_of(b"data: {}\n\n") == b""


def test_fields_tell_comments_from_events_without_data() -> None:
    assert fields_of(b": hi\n\n") == Fields(None, b"", has_id=False, only_comments=True)
    assert fields_of(b"retry: 1000\n\n") == Fields(None, b"", has_id=False, only_comments=False)
    assert fields_of(b"id: 7\ndata: x\n\n") == Fields(b"x", b"", has_id=True, only_comments=False)
