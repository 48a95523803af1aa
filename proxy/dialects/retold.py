"""Events of a continuing answer, rewritten so that they belong to the first one.

Only what differs is rewritten: ids, the model, times, a role that was told before, the text where a part
of it was told before, the numbers of events, and usage, which is the sum of what all attempts reported.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.dialects.sse import data_of

Document = dict[str, Any]

_IDENTITY = ("id", "model", "created", "created_at", "system_fingerprint")
_OPENINGS = frozenset({"response.created", "response.in_progress", "response.queued"})
_TERMINALS = frozenset({"response.completed", "response.incomplete"})


class Retold:
    """What the first answer was called, and where its parts stand."""

    __slots__ = ("identity", "item", "place", "sequence", "usage")

    def __init__(self) -> None:
        self.identity: Document = {}
        self.item: Document = {}  # Responses: the message as `response.output_item.added` told it
        self.place: Document = {}  # Responses: item_id, output_index and content_index of the text
        self.sequence = -1
        self.usage: Document = {}

    def note_chunk(self, data: bytes) -> None:
        """Note from a chunk of the first answer how it is called."""
        if not self.identity.get("id"):
            document = _read(data)
            self.identity = {key: document[key] for key in _IDENTITY if document.get(key) is not None}

    def note_response(self, document: Document) -> bool:
        """Note an event of the first answer; return whether it is of a kind that can be continued."""
        kind = document.get("type")
        self._count(document)
        if kind in _OPENINGS:
            response = document.get("response")
            if isinstance(response, dict):
                self.identity = {key: response[key] for key in _IDENTITY if response.get(key) is not None}
            return True
        if kind == "response.output_item.added":
            item = document.get("item")
            self.item = item if isinstance(item, dict) else {}
            return self.item.get("type") == "message"
        if kind == "response.content_part.added":
            part = document.get("part")
            return isinstance(part, dict) and part.get("type") == "output_text"
        if kind == "response.output_text.delta":
            places = ("item_id", "output_index", "content_index")
            self.place = {key: document[key] for key in places if key in document}
            return True
        return False

    def add_usage(self, pair: tuple[int, int]) -> None:
        """Add what an attempt that broke had reported: (input, output) tokens."""
        names = ("input_tokens", "output_tokens") if self.place else ("prompt_tokens", "completion_tokens")
        self.usage = _sum(self.usage, {**dict(zip(names, pair, strict=True)), "total_tokens": sum(pair)})

    def read_response_event(self, event: bytes) -> Document:
        """Return an event of the Responses API as a document."""
        return _read(data_of(event) or b"")

    def is_of_answer(self, document: Document) -> bool:
        """Tell whether a continuing answer's event says anything new: its opening does not."""
        kind = document.get("type")
        if kind in ("response.output_text.delta", "response.output_text.done"):
            return True
        if kind == "response.content_part.done":
            return _of(document, "part") == "output_text"
        if kind == "response.output_item.done":
            return _of(document, "item") == "message"
        return kind in _TERMINALS

    def _count(self, document: Document) -> None:
        number = document.get("sequence_number")
        self.sequence = number if isinstance(number, int) else self.sequence + 1


def chat_event(told: Retold, event: bytes, data: bytes, text: str | None) -> bytes:
    """Return a chunk as one of the first answer; with *text* in the place of its own."""
    document = _read(data)
    before = msgspec.json.encode(document)
    document.update({key: value for key, value in told.identity.items() if key in document or key == "id"})
    for choice in document.get("choices") or ():
        delta = choice.get("delta")
        if isinstance(delta, dict):
            delta.pop("role", None)
            if text is not None:
                delta["content"] = text
        elif text is not None:
            choice["text"] = text
    if isinstance(document.get("usage"), dict):
        document["usage"] = _sum(told.usage, document["usage"])
    after = msgspec.json.encode(document)
    return event if before == after else b"data: " + after + b"\n\n"


def response_event(told: Retold, document: Document, delta: str | None, whole: str) -> bytes:
    """Return an event of a continuing response as one of the first; *whole* is all its text."""
    told.sequence += 1
    kind = str(document["type"])
    document.update({key: value for key, value in told.place.items() if key in document})
    document["sequence_number"] = told.sequence
    if delta is not None:
        document["delta"] = delta
    elif kind == "response.output_text.done":
        document["text"] = whole
    elif kind == "response.content_part.done":
        document["part"]["text"] = whole
    elif kind == "response.output_item.done":
        document["item"] = _message(told, document["item"], whole)
    elif isinstance(document.get("response"), dict):
        _retell_response(told, document["response"], whole)
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode(document))


def _retell_response(told: Retold, response: Document, whole: str) -> None:
    response.update(told.identity)
    items = [item for item in response.get("output") or () if isinstance(item, dict)]
    response["output"] = [_message(told, item, whole) for item in items if item.get("type") == "message"][:1]
    if isinstance(response.get("usage"), dict):
        response["usage"] = _sum(told.usage, response["usage"])


def _message(told: Retold, item: Document, whole: str) -> Document:
    parts = [part for part in item.get("content") or () if isinstance(part, dict)]
    texts = [{**part, "text": whole} for part in parts if part.get("type") == "output_text"][:1]
    return {**item, "id": told.item.get("id", item.get("id")), "content": texts}


def _of(document: Document, key: str) -> object:
    inner = document.get(key)
    return inner.get("type") if isinstance(inner, dict) else None


def _read(data: bytes) -> Document:
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _sum(one: Document, other: Document) -> Document:
    """Add two usage objects, number by number."""
    total = {**one, **other}
    for key, value in one.items():
        theirs = other.get(key)
        if isinstance(value, int) and isinstance(theirs, int):
            total[key] = value + theirs
        elif isinstance(value, dict) and isinstance(theirs, dict):
            total[key] = _sum(value, theirs)
    return total
