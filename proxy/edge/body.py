"""Reading a request's body: framing, size and time limits of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

from proxy.dialects.openai import WireError
from proxy.edge.client import ClientSink

BODY_IDLE_S = 15.0  # longest silence while a body is on its way
BODY_TOTAL_S = 300.0  # longest time for a whole body: 64 MiB at 1.7 Mbit/s


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


def whole_body(request: web.BaseRequest, limit: int) -> bytes | None:
    """Return the body if all of it has arrived, else None.

    Raises:
        WireError: too large (413).
    """
    if not request.content.is_eof():
        return None
    body = request.content.read_nowait()
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def read_body(
    request: web.BaseRequest, sink: ClientSink, headers: Mapping[str, str], limit: int
) -> bytes:
    """Read the whole body.

    Raises:
        WireError: too large (413), too slow (408), or badly framed (400).
    """
    if headers.get("expect", "").lower() == "100-continue":
        sink.send_continue()
    return await _read_slowly(request, limit)


async def _read_slowly(request: web.BaseRequest, limit: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TOTAL_S):
            while True:
                async with asyncio.timeout(BODY_IDLE_S):
                    data = await request.content.readany()
                if not data:
                    return b"".join(pieces)
                pieces.append(data)
                size += len(data)
                if size > limit:
                    raise _too_large(limit)
    except TimeoutError:
        raise WireError(408, "request_timeout", "The request body took too long.") from None
    except web.RequestPayloadError as error:
        raise WireError(400, "invalid_request", "The request body is not framed correctly.") from error


def _too_large(limit: int) -> WireError:
    return WireError(413, "request_too_large", f"The request body is larger than {limit} bytes.")
