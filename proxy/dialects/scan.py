"""Where the top-level values of a JSON object lie, found without decoding them.

msgspec checks the syntax of the whole document while it skips the values, NaN, bad escapes and
trailing bytes included. Three things it does not do for us, and two servers may disagree about each:
it takes the last of two equal keys, it does not look at the UTF-8 of strings it skips, and depth is
where its recursion limit ends. `read_members` covers all three; it is linear and does not recurse.
"""

from __future__ import annotations

import codecs
import re
from itertools import accumulate
from typing import NamedTuple

import msgspec

# The deepest documents that official SDKs send are JSON schemas, some 20 levels. Python's own limit
# is near 1,000 and Go's 10,000.
MAX_DEPTH = 128

_WINDOW = 64 * 1024
_DEPTH_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# All but brackets, quotes, and what may stand in an escape: deleting those would join their neighbours.
_PROSE = bytes(set(range(256)) - set(b'[]{}"\\/bfnrtu'))
_TO_VALUE = re.compile(
    rb'[ \t\n\r]*[,{]?[ \t\n\r]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\n\r]*:[ \t\n\r]*', re.DOTALL
)


class ScanError(Exception):
    """The document is not what we forward; the message says why, without quoting it."""


class Span(NamedTuple):
    """Where one member lies: its key (with quotes) and its value, as offsets into the document."""

    name: str
    key_start: int
    key_end: int
    start: int
    end: int


class Members:
    """The top-level members of one JSON object: raw values by name, spans when asked."""

    __slots__ = ("_body", "_pairs", "values")

    def __init__(self, body: bytes, pairs: dict[_Key, msgspec.Raw]) -> None:
        """Keep `pairs`, which holds every member in the order of the document, doubles included."""
        self._body = body
        self._pairs = pairs
        self.values = {key.name: raw for key, raw in pairs.items()}

    def refuse_doubles(self, names: tuple[str, ...]) -> None:
        """Raise ScanError if one of `names` occurs twice, in whatever spelling."""
        if len(self.values) == len(self._pairs):
            return
        seen: set[str] = set()
        for key in self._pairs:
            if key.name in seen and key.name in names:
                raise ScanError(f"The key '{key.name}' occurs twice.")
            seen.add(key.name)

    def span(self, name: str) -> tuple[int, int] | None:
        """Return where the first value of `name` lies."""
        if name not in self.values:
            return None
        position = 0
        for key, raw in self._pairs.items():
            start = self._next_key(position).end()
            position = start + len(raw)
            if key.name == name:
                return start, position
        return None

    def spans(self) -> list[Span]:
        """Return where every member lies, in the document's order."""
        position, spans = 0, []
        for key, raw in self._pairs.items():
            found = self._next_key(position)
            position = found.end() + len(raw)
            spans.append(Span(key.name, found.start(1), found.end(1), found.end(), position))
        return spans

    def _next_key(self, position: int) -> re.Match[bytes]:
        # Every value's length is known, so only keys and punctuation are read.
        found = _TO_VALUE.match(self._body, position)
        if found is None:
            raise ScanError("The body is not a JSON object.")
        return found


def read_members(body: bytes) -> Members:
    """Return the members of the JSON object in `body`.

    Raises: ScanError for anything but a well-formed object of at most MAX_DEPTH levels in UTF-8.
    """
    if not body.isascii():
        _check_utf8(body)
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH:
        _check_depth(body)
    try:
        return Members(body, _DECODER.decode(body))
    except msgspec.ValidationError as error:
        raise ScanError("The body is not a JSON object.") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise ScanError(f"The body is not valid JSON: {_reason(error)}") from error


class _Key:
    """A key that equals nothing but itself, so that a dict of them keeps doubles.

    Its constructor is msgspec's `dec_hook`, which is called with the type wanted and the value.
    """

    __slots__ = ("name",)

    def __init__(self, _: type, name: str) -> None:
        self.name = name


_DECODER: msgspec.json.Decoder[dict[_Key, msgspec.Raw]] = msgspec.json.Decoder(
    dict[_Key, msgspec.Raw], dec_hook=_Key
)


def _check_utf8(body: bytes) -> None:
    # In windows: one decode of 64 MiB would cost up to 256 MiB for a moment.
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(body)
    try:
        for start in range(0, len(body), _WINDOW):
            decoder.decode(view[start : start + _WINDOW])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ScanError("The body is not valid UTF-8.") from error


def _check_depth(body: bytes) -> None:
    """Follow the brackets outside of strings; what is no JSON at all is msgspec's to refuse."""
    depth, in_string, start = 0, False, 0
    while start < len(body):
        end = min(start + _WINDOW, len(body))
        window = body[start:end]
        if (len(window) - len(window.rstrip(b"\\"))) % 2:  # never cut an escape in two
            window += body[end : end + 1]
        start += len(window)
        # Without `\\` and `\"`, every quote opens or closes a string.
        marks = window.translate(None, _PROSE).replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = marks.split(b'"')
        steps = b"".join(parts[in_string::2]).translate(_DEPTH_STEPS, _NOT_BRACKETS)
        in_string ^= len(parts) % 2 == 0
        depths = list(accumulate(memoryview(steps).cast("b"), initial=depth))
        if max(depths) > MAX_DEPTH:
            raise ScanError(f"The body is nested more than {MAX_DEPTH} levels deep.")
        depth = depths[-1]


def _reason(error: Exception) -> str:
    # msgspec's messages name a position and a class of fault, never the text itself.
    return "it is nested too deep." if isinstance(error, RecursionError) else f"{error}."
