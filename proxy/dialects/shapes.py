"""The shapes in which upstreams write errors, read into one: codes, words, and hints of a status.

Field by field, since nobody agrees: OpenAI nests, Anthropic nests and names the outer object, Google
wraps it in a list, Mistral and old vLLM are flat, xAI and Ollama put a string where others put an
object, OpenRouter's code is a number and Azure's is a number in quotes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from proxy.dialects.retry_after import duration_s

# Real error bodies have less than 8 KiB; a page of stack traces adds nothing to its first part.
MAX_ERROR_BYTES = 256 * 1024
_MAX_WORDS = 4000

_CODE_KEYS = ("code", "type", "status", "reason", "quotaId", "error_type", "error_code", "__type")
_WORD_KEYS = ("message", "Message", "detail", "msg", "description", "raw")
_STATUS_KEYS = ("code", "status", "statusCode", "status_code", "raw_status_code")
_WAIT_KEYS = ("retryDelay", "estimated_time", "retry_after")


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """What an error body says, whatever its shape.

    `codes` are its code-like values in lower case, most specific first; `words` are its messages in
    lower case, cut short; `status` is the HTTP status that it names for itself.
    """

    codes: tuple[str, ...]
    words: str
    status: int | None
    retry_after_s: float | None


def decode_json(body: bytes) -> object:
    """Return the JSON object or array in `body`, or `None` if it is anything else."""
    if len(body) > MAX_ERROR_BYTES:
        return None
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return document if isinstance(document, (dict, list)) else None


def decode_tolerantly(data: bytes) -> object:
    """Return the JSON value that an SDK would see, or `None` if it would see none.

    Lone surrogates (a character split between two tokens) and NaN (vLLM's log probabilities, here
    read as nothing) pass Python's parser and in part Node's, but not msgspec's.
    """
    try:
        return json.loads(data, parse_constant=_nothing)
    except (ValueError, RecursionError):
        return None


def _nothing(_: str) -> None:
    return None


def read_error(document: object) -> ErrorShape:
    """Read an error out of a JSON document that is known to be one."""
    objects = list(_objects_of(document))
    codes = [code for node in objects for code in _codes_of(node)]
    # One line each: a message's beginning is worth more than what it may quote further on.
    words = "\n".join(" ".join(word.split()) for node in objects for word in _words_of(node))[:_MAX_WORDS]
    statuses = (status for node in objects for status in _statuses_of(node))
    waits = (wait for node in objects for wait in _waits_of(node))
    return ErrorShape(
        codes=tuple(dict.fromkeys(codes)),
        words=words.lower(),
        status=next(statuses, None),
        retry_after_s=next(waits, None),
    )


def holds_error(document: object, event_name: bytes = b"") -> bool:
    """Say whether a JSON document that came with a 200, or in a stream, is or contains an error."""
    if isinstance(document, list):
        return bool(document) and holds_error(document[0])
    if not isinstance(document, dict):
        return False
    kind = document.get("type")
    return (
        bool(document.get("error"))
        or event_name == b"error"
        or document.get("object") == "error"
        or kind in ("error", "response.failed")
        or bool(_of(document, "response").get("error"))
        or bool(_of(document, "x_groq").get("error"))
        or any(_is_failed_choice(choice) for choice in _items(document.get("choices")))
        or ("choices" not in document and bool(document.get("errors")))
    )


def _is_failed_choice(choice: object) -> bool:
    return isinstance(choice, dict) and (bool(choice.get("error")) or choice.get("finish_reason") == "error")


def _objects_of(document: object) -> Iterator[dict[str, object]]:
    """Yield the objects that describe the error, the most specific first and the document last."""
    if isinstance(document, list):
        document = document[0] if document else None
    if not isinstance(document, dict):
        return
    holders = [_of(document, "response"), _of(document, "x_groq"), document]
    holders += [choice for choice in _items(document.get("choices")) if isinstance(choice, dict)]
    for holder in holders:
        error = holder.get("error")
        if isinstance(error, str):
            yield {"message": error}
        elif isinstance(error, dict):
            yield from _parts_of(error)
        for item in _items(holder.get("errors")):  # Cloudflare's API
            yield from _parts_of(item)
    yield from _parts_of(document)


def _parts_of(error: object) -> Iterator[dict[str, object]]:
    """Yield the details of an error (Google's, Azure's `innererror`, OpenRouter's `metadata`), then it."""
    if not isinstance(error, dict):
        return
    for detail in _items(error.get("details")):
        if isinstance(detail, dict):
            yield from (item for item in _items(detail.get("violations")) if isinstance(item, dict))
            yield detail
    yield from (node for key in ("innererror", "inner_error") if (node := _of(error, key)))
    yield error
    yield from (node for key in ("metadata", "detail") if (node := _of(error, key)))
    yield from (item for item in _items(error.get("detail")) if isinstance(item, dict))


def _codes_of(node: dict[str, object]) -> Iterator[str]:
    for key in _CODE_KEYS:
        value = node.get(key)
        if isinstance(value, str) and value:
            yield value.lower()


def _words_of(node: dict[str, object]) -> Iterator[str]:
    for key in _WORD_KEYS:
        value = node.get(key)
        if isinstance(value, str) and value:
            yield value[:_MAX_WORDS]
    code = node.get("code")
    if isinstance(code, str) and " " in code:  # xAI's codes are sentences
        yield code[:_MAX_WORDS]


def _statuses_of(node: dict[str, object]) -> Iterator[int]:
    for key in _STATUS_KEYS:
        value = node.get(key)
        if isinstance(value, str) and len(value) == 3 and value.isdecimal():
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            yield value


def _waits_of(node: dict[str, object]) -> Iterator[float]:
    for key in _WAIT_KEYS:
        value = node.get(key)
        wait = duration_s(value) if isinstance(value, str) else value
        if isinstance(wait, (int, float)) and not isinstance(wait, bool) and 0 <= wait < math.inf:
            yield float(wait)


def _of(node: dict[str, object], key: str) -> dict[str, object]:
    value = node.get(key)
    return value if isinstance(value, dict) else {}


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else []
