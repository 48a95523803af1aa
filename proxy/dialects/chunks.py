"""The fields of stream events that matter, as msgspec decodes them, and the tolerant way to read them."""

from __future__ import annotations

import json
from typing import TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from proxy.dialects.answers import Usage
from proxy.dialects.shapes import decode_tolerantly

# A delta's keys that say nothing to the reader.
_SILENT_KEYS = frozenset({"role", "name", "index", "id", "annotations"})


class _Called(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Audio(msgspec.Struct, gc=False):
    data: str | None = None
    transcript: str | None = None


class Delta(msgspec.Struct, gc=False):
    """One choice's news. `content` is a list with Mistral's thinking models."""

    content: str | list[Raw] | None = None
    reasoning_content: str | None = None  # DeepSeek, vLLM, xAI
    reasoning: str | None = None  # OpenRouter, Groq, newer vLLM
    reasoning_details: list[Raw] | None = None
    refusal: str | None = None
    tool_calls: list[Raw] | None = None
    function_call: _Called | None = None
    audio: _Audio | None = None
    images: list[Raw] | None = None

    def speaks(self) -> bool:
        """Say whether there is anything in it for the reader."""
        return bool(self.content) or self.says_more()

    def says_more(self) -> bool:
        """Say whether there is anything but text in it for the reader."""
        called, audio = self.function_call, self.audio
        return bool(
            self.reasoning_content
            or self.reasoning
            or self.tool_calls
            or self.refusal
            or self.reasoning_details
            or self.images
            or (called is not None and (called.name or called.arguments))
            or (audio is not None and (audio.data or audio.transcript))
        )


class Choice(msgspec.Struct, gc=False):
    """One choice of a chunk; `text` is what legacy completions have."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    error: Raw | UnsetType = UNSET


class XGroq(msgspec.Struct, gc=False):
    """Groq's own place for errors and usage."""

    error: str | None = None
    usage: Usage | None = None


class Chunk(msgspec.Struct, gc=False):
    """A chunk of a chat or legacy completion."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Raw | UnsetType = UNSET
    x_groq: XGroq | None = None

    def is_ordinary(self) -> bool:
        """Say whether nothing here can speak of an error."""
        if self.choices is None or self.error is not UNSET:
            return False
        if self.x_groq is not None and self.x_groq.error is not None:
            return False
        for choice in self.choices:  # a generator would cost a third of the whole look
            if choice.error is not UNSET or choice.finish_reason == "error":
                return False
        return True

    def used(self) -> Usage | None:
        """Return the token counts that came with it."""
        if self.usage is None and self.x_groq is not None:
            return self.x_groq.usage
        return self.usage


class Opening(msgspec.Struct, gc=False):
    """What names an answer: in a chat chunk, or in a response inside its event."""

    id: str | None = None
    model: str | None = None
    usage: Usage | None = None


class ResponseEvent(msgspec.Struct, gc=False):
    """An event of the Responses API."""

    type: str = ""
    sequence_number: int | None = None
    delta: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    response: Raw | UnsetType = UNSET


class OtherEvent(msgspec.Struct, gc=False):
    """An event of an image, speech, transcription or run."""

    type: str | None = None
    object: str | None = None
    error: Raw | UnsetType = UNSET
    errors: Raw | UnsetType = UNSET
    usage: Usage | None = None


CHUNK = msgspec.json.Decoder(Chunk)
OPENING = msgspec.json.Decoder(Opening)
RESPONSE_EVENT = msgspec.json.Decoder(ResponseEvent)
OTHER_EVENT = msgspec.json.Decoder(OtherEvent)


T = TypeVar("T")


def decode_plainly(decoder: msgspec.json.Decoder[T], data: bytes) -> T | None:
    """Decode JSON that SDKs read and msgspec does not, or return `None` if its types are odd too."""
    document = decode_tolerantly(data)
    plain = json.dumps(document, ensure_ascii=False).encode(errors="replace")
    try:
        return decoder.decode(plain)
    except (msgspec.DecodeError, RecursionError):
        return None


def chunk_of(document: dict[str, object]) -> Chunk:
    """Read a chunk whose values have types that `Chunk` does not know."""
    choices = document.get("choices")
    return Chunk(choices=[_choice_of(item) for item in choices] if isinstance(choices, list) else None)


def _choice_of(item: object) -> Choice:
    choice = item if isinstance(item, dict) else {}
    delta, index, finish_reason = choice.get("delta"), choice.get("index"), choice.get("finish_reason")
    said = delta if isinstance(delta, dict) else {}
    content = said.get("content")
    speaks = any(value for key, value in said.items() if key not in _SILENT_KEYS)
    text = choice.get("text")
    return Choice(
        index=index if isinstance(index, int) else 0,
        delta=Delta(content=content if isinstance(content, str) else None, refusal="?" if speaks else None),
        text=text if isinstance(text, str) else None,
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
    )
