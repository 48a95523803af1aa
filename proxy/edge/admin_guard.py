"""What every request to the admin listener must pass, and what every answer carries."""

from __future__ import annotations

import base64
from http import HTTPStatus

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from proxy.edge.auth import KeyRing
from proxy.edge.hosts import is_loopback_host, is_same_origin

HEALTH_PATHS = frozenset({"/livez", "/readyz", "/healthz"})
SAFE_METHODS = frozenset({"GET", "HEAD"})
SAME_SITE = frozenset({"same-origin", "none"})
NOTHING_LOADED = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def json_answer(data: object, status: int = 200) -> web.Response:
    """Return *data* as JSON."""
    return web.Response(body=msgspec.json.encode(data), status=status, content_type="application/json")


def refusal(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """Return an error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    answer = json_answer({"error": error}, status)
    answer.headers.update(headers or {})
    return answer


class Guard:
    """Checks requests to the admin listener.

    On loopback the Host header must name loopback, or a page that rebinds its name could read the
    state. Beyond loopback Host may be any name, since only *keys* open that door and no page has one.
    Health needs no key: it tells one bit, to load balancers that could not send one.
    """

    def __init__(self, keys: KeyRing | None, *, loopback: bool) -> None:
        if keys is None and not loopback:
            raise ValueError("an admin listener beyond loopback needs a key")
        self._keys = keys
        self._loopback = loopback

    def check(self, request: web.Request) -> web.Response | None:
        """Return the refusal, or `None` if the request may pass."""
        if self._loopback and not is_loopback_host(request.headers.get("Host")):
            return refusal(403, "host_not_allowed", "The admin listener answers only to localhost.")
        if request.method not in SAFE_METHODS and not _is_own_page(request):
            return refusal(403, "origin_not_allowed", "Requests from other web pages are refused.")
        if self._keys is None or request.path in HEALTH_PATHS:
            return None
        if self._keys.identify(_as_bearer(request.headers.get("Authorization"))) is None:
            challenge = {"WWW-Authenticate": 'Bearer realm="sidestep", Basic realm="sidestep"'}
            message = "Send the admin key as a Bearer token, or as the password of a browser's log-in."
            return refusal(401, "invalid_api_key", message, challenge)
        return None


def _as_bearer(authorization: str | None) -> str | None:
    """Return a browser's log-in (Basic, any user name) as the bearer token that its password is."""
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return authorization
    try:
        _, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except ValueError:
        return None
    return f"Bearer {password}"


def _is_own_page(request: web.Request) -> bool:
    """Return whether no page, or one of this listener's own, has sent the request."""
    origin = request.headers.get("Origin")
    if origin is not None and not is_same_origin(origin, request.headers.get("Host")):
        return False
    return request.headers.get("Sec-Fetch-Site", "none") in SAME_SITE


def guarding(guard: Guard | None) -> Middleware:
    """Return the middleware: *guard* first; the router's refusals become JSON."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = guard.check(request) if guard is not None else None
        if refused is not None:
            return refused
        try:
            return await handler(request)
        except web.HTTPException as error:
            return _as_json(error)

    return middleware


def _as_json(error: web.HTTPException) -> web.Response:
    codes = {404: "unknown_endpoint", 405: "method_not_allowed", 413: "request_too_large"}
    allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    message = f"{HTTPStatus(error.status).phrase}."
    return refusal(error.status, codes.get(error.status, "invalid_request"), message, allow)


async def add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Give every answer the headers that keep it out of caches, frames and other pages' reach."""
    headers = response.headers
    headers.pop("Server", None)
    headers["Cache-Control"] = "no-store"
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "no-referrer"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    headers.setdefault("Content-Security-Policy", NOTHING_LOADED)
