"""Canaries: texts that must not get out, upstreams that try to get them out, and where they were found."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_plus

from tests.fakes.upstream import (
    Behaviour,
    Garbage,
    Hang,
    Reply,
    Request,
    ResetBeforeHead,
    Stream,
    Truncated,
    chat_answer,
    chat_events,
)

SECRETS = (
    "prompt", "answer", "client_key", "wrong_key", "upstream_key", "admin_key", "wrong_admin_key", "query",
    "file_name", "header", "proxy_password", "extra_header",
)  # fmt: skip


def canary(name: str) -> str:
    """Return the text of a canary: one that looks different in each encoding, and like a key."""
    return f"sk-kanari{name.replace('_', '')}/0+Z9=x7Q"


def forms(text: str) -> set[str]:
    """Return *text* as it might be written: plain, in a URL, JSON, HTML, hexadecimal, or within Base64."""
    data = text.encode()
    found = {text, quote(text, safe=""), quote_plus(text), html.escape(text), data.hex(), data.hex().upper()}
    found |= {
        quote(text, safe="").lower(),
        json.dumps(text)[1:-1],
        json.dumps(text)[1:-1].replace("/", "\\/"),
    }
    for before in range(3):  # the characters that depend on its neighbours are left out
        encoded = base64.b64encode(b"\0" * before + data).decode()
        whole = encoded[(before * 8 + 5) // 6 : len(encoded) - (4 if (before + len(data)) % 3 else 0)]
        found |= {whole, whole.replace("+", "-").replace("/", "_")}
    return found


FORMS = {name: forms(canary(name)) for name in SECRETS}


def names_in(blob: bytes | str) -> set[str]:
    """Return which canaries are in *blob*, in whatever form."""
    text = blob if isinstance(blob, str) else blob.decode("utf-8", "surrogateescape")
    return {name for name, written in FORMS.items() if any(form in text for form in written)}


@dataclass
class Aviary:
    """Everything that came out of the proxy; `leaks` are the canaries where none should be."""

    leaks: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)

    def note(self, where: str, *blobs: bytes | str, allowed: set[str] | None = None) -> None:
        """Look through what came out at *where*."""
        for blob in blobs:
            self.seen[where] = self.seen.get(where, 0) + len(blob)
            self.leaks += [f"{name} in {where}: {_around(blob, name)}" for name in self._found(blob, allowed)]

    def _found(self, blob: bytes | str, allowed: set[str] | None) -> set[str]:
        return names_in(blob) - (allowed or set())


def _around(blob: bytes | str, name: str) -> str:
    text = blob if isinstance(blob, str) else blob.decode("utf-8", "replace")
    at = min(found for form in FORMS[name] if (found := text.find(form)) >= 0)
    return repr(text[max(0, at - 80) : at + 60])


def echo(request: Request) -> str:
    """Return everything an upstream knows, as a careless one puts it into its messages."""
    key = request.headers.get("authorization", "")
    encoded = base64.b64encode(key.encode()).decode()
    asked = request.body.decode("utf-8", "replace")
    return f"Incorrect API key provided: {key} ({encoded}, {quote(key)}). {canary('answer')} {asked}"


def gossip(request: Request) -> dict[str, str]:
    """Return headers that tell the same, none of which describe an answer."""
    told = echo(request).replace("\n", " ")[:2000]
    return {"set-cookie": f"k={told}", "x-debug": told, "www-authenticate": f"Bearer {told}", "via": told}


def _error(status: int, code: str, tell: Callable[[Request], str] = echo) -> Plan:
    def behave(request: Request) -> Behaviour:
        error = {"message": tell(request), "type": "x", "param": None, "code": code}
        return Reply(status, json={"error": error}, headers=gossip(request))

    return behave


def _page(status: int, kind: str = "text/html") -> Plan:
    return lambda request: Reply(
        status, body=f"<html>{echo(request)}</html>", headers={**gossip(request), "content-type": kind}
    )


def _prompt(request: Request) -> str:
    return f"Unsupported value: {canary('prompt')}" if canary("prompt") in request.body.decode() else "no"


def _stream(count: int, then: Callable[[Request], list[Any]], end: Any = "cut") -> Plan:
    def behave(request: Request) -> Behaviour:
        events = chat_events(canary("answer"))[:count]
        return Stream([*events, *then(request)], end=end, headers=gossip(request))

    return behave


def _good(request: Request) -> Behaviour:
    if request.headers.get("content-type") == "application/json" and request.json().get("stream"):
        return Stream(chat_events(canary("answer")), headers=gossip(request))
    return Reply(json=chat_answer(canary("answer")), headers=gossip(request))


Plan = Callable[[Request], Behaviour]

# What each upstream does; upstreams and routes have the same names.
PLANS: dict[str, Plan] = {
    "good": _good,
    "unauthorized": _error(401, "invalid_api_key"),
    "forbidden": _error(403, "permission_denied"),
    "firewall": _page(403),
    "quota": _error(429, "insufficient_quota"),
    "limited": _error(429, "rate_limit_exceeded"),
    "missing": _error(404, "model_not_found"),
    "broken": _error(500, "server_error"),
    "overloaded": _error(503, "overloaded"),
    "text": _page(500, "text/plain"),
    "html": _page(200),
    "redirect": lambda request: Reply(302, headers={"location": f"http://127.0.0.1:9/?{echo(request)[:99]}"}),
    "empty": lambda _: Reply(200, body=" "),
    "half": lambda _: Reply(200, body='{"choices": [{"message": "' + canary("answer")),
    "in_band": lambda request: Reply(200, json={"error": {"message": echo(request), "code": "server_error"}}),
    "garbage": lambda request: Garbage(echo(request).encode() + b"\r\n\r\n"),
    "bad_head": lambda request: Garbage(b"HTTP/1.1 200 OK\r\n" + echo(request).encode() + b"\r\n\r\n"),
    "reset": lambda _: ResetBeforeHead(),
    "silent": lambda _: Hang(),
    "short": lambda _: Truncated(b'{"choices": [{"message": "' + canary("answer").encode()),
    "first_error": _stream(0, lambda request: [{"error": {"message": echo(request)}}]),
    "cut": _stream(3, lambda _: []),
    "cut_off": _stream(3, lambda _: [], end="reset"),
    "stalled": _stream(3, lambda _: [], end="hang"),
    "late_error": _stream(3, lambda request: [{"error": {"message": echo(request), "code": "x"}}]),
    "malformed": _stream(5, lambda request: [f"data: {{{echo(request)}\n\n".encode()], end="done"),
    # About the client's own request, and relayed as it is: the one place where a prompt comes back.
    "rejecting": _error(400, "invalid_value", _prompt),
    "refusing": _error(400, "content_filter", _prompt),
    "too_large": _error(400, "context_length_exceeded", _prompt),
}
RELAYED = frozenset({"rejecting", "refusing", "too_large"})
