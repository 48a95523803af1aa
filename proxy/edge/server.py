"""The OpenAI-compatible endpoint: one handler on aiohttp's low-level server.

What a request must pass, in order: Host and Origin (where no key is asked for), loop detection, the
client's key, the path, the body's framing and size, its JSON, the route. Then the forwarder has it.
Every request that got as far as a head ends in exactly one `RequestEnded`.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from proxy.core.deadline import Deadline
from proxy.core.events import Event, RequestEnded, RequestOutcome
from proxy.core.routing import RouteTable
from proxy.core.target import CallFacts, Route
from proxy.dialects.endpoints import Endpoint, Treatment
from proxy.dialects.openai import Call, WireError, error_body, read_call
from proxy.edge.auth import ClientKey, Gate
from proxy.edge.body import read_body
from proxy.edge.client import Answered, ClientConnection, ClientSink
from proxy.edge.models import model_body, models_body
from proxy.edge.paths import find_endpoint
from proxy.transport.forwarder import JSON_TYPE, Forwarder, Forwarding

KEEPALIVE_S = 75.0  # idle client connections; longer than the 60 s of common load balancers
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)(ms|s|m)?")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, None: 1.0}


@dataclass(frozen=True, slots=True)
class Setup:
    """What a reload replaces as a whole."""

    routes: RouteTable
    gate: Gate
    max_body: int
    max_connections: int
    allow_admin_operations: bool = False


@dataclass(slots=True)
class ProxyServer:
    """The endpoint. `instance` names this process in `x-sidestep-hop`; `clock` is monotonic seconds."""

    setup: Setup
    forwarder: Forwarder
    observe: Callable[[Event], None]
    clock: Callable[[], float]
    wall: Callable[[], float]
    instance: str
    draining: bool = False
    connections: set[ClientConnection] = field(default_factory=set)
    in_flight: int = 0
    streams: int = 0
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def server(self) -> web.Server:
        """Return the aiohttp server, to be bound to a socket."""
        return _Server(self)

    async def handle(self, request: web.BaseRequest) -> Answered:
        """Answer one request."""
        exchange = Exchange(self, request)
        self.in_flight += 1
        try:
            await exchange.run()
        finally:
            self.in_flight -= 1
            self.observe(exchange.ended())
        return Answered(exchange.sink.keep_alive and not self.draining)

    def close_idle(self) -> None:
        """Close the connections on which nothing is asked; the others close after their answer."""
        for connection in tuple(self.connections):
            if connection.is_idle:
                connection.force_close()

    def close_all(self) -> None:
        """Close every connection at once."""
        for connection in tuple(self.connections):
            connection.force_close()

    def next_request_id(self) -> str:
        """Return an id that no other process and no other request has."""
        return f"req_{self.instance}{next(self._numbers):x}"


class _Server(web.Server):
    """aiohttp's server with our connection class."""

    def __init__(self, proxy: ProxyServer) -> None:
        super().__init__(proxy.handle, handler_cancellation=True)  # type: ignore[arg-type] # Answered is no response
        self._proxy = proxy

    def __call__(self) -> ClientConnection:
        connections = self._proxy.connections
        connection = ClientConnection(
            self,
            connections.discard,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=KEEPALIVE_S,
            access_log=None,
            auto_decompress=False,
            max_field_size=16384,
            full=len(connections) >= self._proxy.setup.max_connections,
        )
        connections.add(connection)
        return connection


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_endpoint", "_forwarding", "_key", "_outcome", "_proxy", "_request", "_retry", "_route",
        "_started", "_stream", "request_id", "sink",
    )  # fmt: skip

    def __init__(self, proxy: ProxyServer, request: web.BaseRequest) -> None:
        self.request_id = proxy.next_request_id()
        connection: Any = request.protocol
        self.sink = ClientSink(
            connection, request.keep_alive and not proxy.draining, request.version < (1, 1)
        )
        self._proxy = proxy
        self._request = request
        self._started = proxy.clock()
        self._key: ClientKey | None = None
        self._endpoint: Endpoint | None = None
        self._route: Route | None = None
        self._forwarding: Forwarding | None = None
        self._stream = False
        self._retry = 0
        self._outcome = RequestOutcome.CLIENT_GONE

    async def run(self) -> None:
        """Check, read, route and forward the request."""
        setup = self._proxy.setup
        try:
            self._key = setup.gate.admit(self._request, self._proxy.clock())
            try:
                await self._serve(setup)
            finally:
                setup.gate.release(self._key)
        except WireError as error:
            self._refuse(error)

    async def _serve(self, setup: Setup) -> None:
        request = self._request
        self._check_loop()
        endpoint = self._endpoint = find_endpoint(
            request.method, request.raw_path, allow_admin=setup.allow_admin_operations
        )
        if endpoint.treatment is Treatment.MODELS:
            self._answer_locally(_models(setup.routes, endpoint))
            return
        body = await read_body(request, self.sink, setup.max_body)
        call = read_call(endpoint, body)
        self._stream = call.stream
        route = self._route = setup.routes.find(call.model)
        if route is None:
            raise WireError(404, "model_not_found", _unknown_model(call.model, setup.routes), "model")
        await self._forward(call, route)

    async def _forward(self, call: Call, route: Route) -> None:
        headers: Mapping[str, str] = self._request.headers
        facts = self._facts(call, headers)
        deadline = Deadline(
            started=self._started,
            policy_s=route.policy.deadline_s,
            asked_s=_duration_s(headers.get("x-sidestep-deadline")),
            client_s=facts.client_limit_s,
        )
        forwarding = self._proxy.forwarder.begin(call, facts, route, deadline, headers, self._hop(headers))
        self._forwarding = forwarding
        self._proxy.streams += call.stream
        try:
            await forwarding.run(self.sink)
        finally:
            self._proxy.streams -= call.stream

    def _facts(self, call: Call, headers: Mapping[str, str]) -> CallFacts:
        retry = headers.get("x-stainless-retry-count", "0")
        self._retry = int(retry) if retry.isdecimal() and len(retry) < 4 else 0
        body = call.body
        return CallFacts(
            request_id=self.request_id,
            model=call.model,
            endpoint=call.endpoint.label,
            operation=call.endpoint.operation,
            stream=call.stream,
            reasoning=call.reasoning,
            needs=call.needs,
            allowed=self._key.allow if self._key is not None else None,
            pinned=headers.get("x-sidestep-upstream"),
            replayable=call.endpoint.replayable,
            digest=hash(body if len(body) < 65536 else (len(body), body[:4096], body[-32768:])).to_bytes(
                8, "little", signed=True
            ),
            client_retry=self._retry,
            client_limit_s=_client_limit_s(headers),
            prompt_tokens=len(body) // 4,
        )

    def _check_loop(self) -> None:
        hops = self._request.headers.get("x-sidestep-hop")
        if hops is not None and self._proxy.instance in [hop.strip() for hop in hops.split(",")]:
            raise WireError(508, "loop_detected", "This request has been through this proxy already.")

    def _hop(self, headers: Mapping[str, str]) -> bytes:
        hops = headers.get("x-sidestep-hop")
        chain = (
            f"{hops}, {self._proxy.instance}"
            if hops and hops.isascii() and len(hops) < 1024
            else self._proxy.instance
        )
        return f"x-sidestep-hop: {chain}\r\n".encode()

    def _answer_locally(self, body: bytes) -> None:
        self._outcome = RequestOutcome.OK
        self.sink.answer(200, [*JSON_TYPE, (b"x-request-id", self.request_id.encode())], body)

    def _refuse(self, error: WireError) -> None:
        """Answer a request that goes nowhere; what is left of its body is not worth reading."""
        self._outcome = RequestOutcome.REJECTED
        if not self._request.content.is_eof():
            self.sink.keep_alive = False
        headers = [*JSON_TYPE, (b"x-request-id", self.request_id.encode()), *error.headers]
        body = error_body(error.status, error.code, error.message, error.param)
        self.sink.answer(error.status, headers, body)

    def ended(self) -> RequestEnded:
        """Return everything there is to say about the request."""
        proxy, forwarding = self._proxy, self._forwarding
        first_sent = forwarding.first_sent_at if forwarding is not None else None
        usage = forwarding.usage if forwarding is not None else None
        return RequestEnded(
            request_id=self.request_id,
            route=self._route.name if self._route is not None else "other",
            endpoint=self._endpoint.label if self._endpoint is not None else "other",
            operation=self._endpoint.operation if self._endpoint is not None else "other",
            stream=self._stream,
            outcome=forwarding.outcome if forwarding is not None else self._outcome,
            status=self.sink.status,
            upstream=forwarding.upstream if forwarding is not None else "",
            model=forwarding.model if forwarding is not None else "",
            attempts=forwarding.failover.attempts if forwarding is not None else (),
            overhead_s=first_sent - self._started if first_sent is not None else None,
            ttft_s=forwarding.ttft_s if forwarding is not None else None,
            duration_s=proxy.clock() - self._started,
            input_tokens=usage[0] if usage is not None else None,
            output_tokens=usage[1] if usage is not None else None,
            client=self._key.name if self._key is not None else "",
            client_retry=self._retry,
            wall=proxy.wall(),
        )


def _models(routes: RouteTable, endpoint: Endpoint) -> bytes:
    name = endpoint.param("model")
    body = models_body(routes) if name is None else model_body(routes, name)
    if body is None:
        raise WireError(404, "model_not_found", _unknown_model(name or "", routes), "model")
    return body


def _client_limit_s(headers: Mapping[str, str]) -> float | None:
    """Return how long the client's SDK will wait, less the second its network may take."""
    text = headers.get("x-stainless-read-timeout") or headers.get("x-stainless-timeout")
    limit = _duration_s(text)
    return max(0.5, limit - 1.0) if limit is not None else None


def _duration_s(text: str | None) -> float | None:
    """Read `20s`, `500ms`, `2m` or plain seconds; anything else is as good as none."""
    match = _DURATION.fullmatch(text.strip()) if text is not None else None
    return float(match[1]) * _UNIT_S[match[2]] if match is not None else None


def _unknown_model(model: str, routes: RouteTable) -> str:
    names = ", ".join(routes.names) or "none"
    shown = model if len(model) <= 100 else model[:100] + "..."
    return f"No route for model '{shown}'. Configured models: {names}."
