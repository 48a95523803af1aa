"""A request's body: what need not be read to be refused, and reading what may come.

Both readers take the bytes as they arrive and give back what follows the body, so that a request which
a client has sent ahead is found where it begins.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proxy.dialects.openai import WireError

# A chunk's size and, ignored, its extensions (RFC 9112, 7.1.1); a trailer field, ignored too (7.1.2).
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t -~\x80-\xff]{0,256})?")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*")
_MAX_LINE_BYTES = 4096
_FREE_OVERHEAD_BYTES = 16 * 1024  # beside the data, an eighth of which may be overhead as well


def check_framing(headers: Mapping[str, str], limit: int) -> None:
    """Refuse what need not be read to be refused; *headers* has lower-case names.

    Raises:
        WireError: compressed (415), of unknown length (411), too large (413).
    """
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise WireError(415, "unsupported_encoding", "Compressed request bodies are not accepted.")
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers:
        raise WireError(411, "length_required", "Send Content-Length, or a chunked body.")
    if length is not None and int(length) > limit:
        raise _too_large(limit)


class SizedBody:
    """A body whose size was told."""

    __slots__ = ("_data", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._data = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """Take *data*; return what follows the body once it is complete, `None` before."""
        missing = self._size - len(self._data)
        self._data += data[:missing]
        return data[missing:] if len(data) >= missing else None

    @property
    def received(self) -> int:
        """Return how many bytes are held."""
        return len(self._data)

    def data(self) -> bytes:
        """Return the complete body."""
        return bytes(self._data)


class ChunkedBody:
    """A body in chunks, at most *limit* bytes of it.

    Strict where readers are known to differ: sizes are plain hexadecimal, every line ends with CRLF,
    and extensions and trailers, which are dropped, are well-formed and short. Chunks of a few bytes
    cost more to read than to send, so there can not be very many of them.
    """

    __slots__ = ("_data", "_left", "_limit", "_overhead", "_pending", "_step")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self._pending = b""  # the beginning of a line
        self._left = 0  # of the current chunk
        self._overhead = 0
        self._step = self._read_size

    def feed(self, data: bytes) -> bytes | None:
        """Take *data*; return what follows the body once it is complete, `None` before.

        Raises:
            WireError: malformed (400) or too large (413).
        """
        data = self._pending + data
        at: int | None = 0
        while at is not None and at < len(data):
            if self._left:
                at = self._read_data(data, at)
                continue
            end = data.find(b"\r\n", at)
            if end < 0:
                self._keep(data[at:])
                return None
            
        self._pending = b""
        return None

    @property
    def received(self) -> int:
        """Return how many bytes are held."""
        return len(self._data)

    def data(self) -> bytes:
        """Return the complete body."""
        return bytes(self._data)
