"""Which headers pass, both ways: allow-lists only (field rule: build, never copy)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Passed on from any client. Credentials, cookies, forwarding and hop-by-hop headers never are; what
# identifies an OpenAI account (`openai-organization`, `openai-project`) only goes with the client's
# own key.
FROM_CLIENT = (
    "accept",
    "content-type",
    "idempotency-key",
    "openai-beta",
    "traceparent",
    "tracestate",
)
WITH_CLIENT_KEY = ("authorization", "api-key", "openai-organization", "openai-project")

# Never accepted in `headers_from_client`: a configuration mistake must not leak a credential.
NEVER_FROM_CLIENT = frozenset(
    {
        "authorization", "api-key", "x-api-key", "cookie", "host", "connection", "content-length",
        "transfer-encoding", "te", "trailer", "upgrade", "expect", "keep-alive", "proxy-authorization",
        "proxy-connection", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto",
        "accept-encoding", "content-encoding", "x-sidestep-hop",
    }
)  # fmt: skip

_FROM_UPSTREAM = frozenset(
    {b"content-type", b"retry-after", b"retry-after-ms", b"content-disposition", b"content-language", b"date"}
)
_FROM_UPSTREAM_PREFIXES = (b"openai-", b"x-ratelimit-")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_UNSAFE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def from_client(headers: Mapping[str, str], names: Iterable[str]) -> bytes:
    """Return the header lines of *names* that the client sent, ready for the wire."""
    lines = []
    for name in names:
        value = headers.get(name)
        if value is not None and not _UNSAFE_VALUE.search(value):
            lines.append(f"{name}: {value}\r\n".encode("utf-8", "surrogateescape"))
    return b"".join(lines)


def to_client(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the upstream's headers that describe its answer and may reach the client.

    Values with control characters are left out: upstream parsers are lenient, ours must not be.
    """
    return [
        (name, value)
        for name, value in headers
        if (name in _FROM_UPSTREAM or name.startswith(_FROM_UPSTREAM_PREFIXES)) and not _CONTROL.search(value)
    ]
