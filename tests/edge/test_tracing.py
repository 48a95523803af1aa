"""Traces: when they are on, what goes upstream, what spans tell, and what they never tell."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import aiohttp
import pytest

from proxy.edge.telemetry import exporters, traces_from
from tests.e2e.serving import running_proxy as running_process
from tests.fakes.proxy import RunningProxy, running_proxy
from tests.fakes.upstream import (
    CloseIdle,
    FakeUpstream,
    Reply,
    Request,
    Stream,
    chat_answer,
    chat_events,
    dead_port,
)

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}

Attributes = dict[str, Any]


@dataclass
class Spans:
    """What was traced. `tracing` is for the proxy."""

    tracing: Any
    exporter: Any

    def all(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())

    def request(self) -> Any:
        """Return the one span of a request."""
        (span,) = [span for span in self.all() if span.kind.name == "SERVER"]
        return span

    def attempts(self) -> list[Any]:
        """Return the attempts' spans in the order of their beginnings."""
        spans = [span for span in self.all() if span.kind.name == "CLIENT"]
        return sorted(spans, key=lambda span: span.start_time)


@pytest.fixture
def spans() -> Spans:
    pytest.importorskip("opentelemetry.sdk.trace", reason="the extra sidestep[otel] is not installed")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from proxy.edge.tracing import Tracing

    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Spans(Tracing(provider, time.monotonic, time.time), exporter)


def config(*urls: str, policy: str = "") -> str:
    names = "abc"[: len(urls)]
    upstreams = ", ".join(f'{name}: {{base_url: "{url}"}}' for name, url in zip(names, urls, strict=True))
    targets = ", ".join([names[0], *(f"{name}/there" for name in names[1:])])
    return f"upstreams: {{{upstreams}}}\nroutes: {{m: [{targets}]}}\npolicy: {{{policy}}}\n"


async def ask(proxy: RunningProxy, *, traced: dict[str, str] | None = None, **more: Any) -> int:
    """Ask once, read the answer and return its status."""
    proxy.headers = traced or {}
    async with proxy.chat(**more) as answer:
        await answer.read()
        return int(answer.status)


def carried(request: Request) -> tuple[str, str, str]:
    """Return trace id, span id and flags of a request's `traceparent`."""
    version, trace, span, flags = request.headers["traceparent"].split("-")
    assert version == "00"
    return trace, span, flags


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, ["otlp_proto_http"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, ["otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp_proto_http"]),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ["otlp_proto_grpc"]),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, []),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, []),
    ],
)
def test_the_standard_environment_says_whether_to_trace(environ: dict[str, str], expected: list[str]) -> None:
    assert exporters(environ) == expected


def test_what_is_not_installed_is_said_and_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "proxy.edge.tracing", None)  # as if the extra were not installed
    traces, obstacle = traces_from({"OTEL_TRACES_EXPORTER": "otlp"}, time.monotonic, time.time)
    assert traces is None
    assert "sidestep[otel]" in obstacle
    assert traces_from({}, time.monotonic, time.time) == (None, "")


def test_an_exporter_that_nobody_knows_is_said(spans: Spans) -> None:
    traces, obstacle = traces_from({"OTEL_TRACES_EXPORTER": "carrier_pigeon"}, time.monotonic, time.time)
    assert traces is None
    assert "carrier_pigeon" in obstacle


async def test_without_tracing_the_client_s_headers_pass_as_they_came(tmp_path: Path) -> None:
    async with FakeUpstream(Reply()) as fake, running_proxy(config(fake.base_url), tmp_path) as proxy:
        await ask(proxy, traced=SAMPLED)
        await ask(proxy)
    first, second = fake.requests
    assert {name: first.headers[name] for name in SAMPLED} == SAMPLED
    assert not SAMPLED.keys() & second.headers.keys()


async def test_a_request_is_a_span_below_the_client_s_and_above_its_attempts(
    tmp_path: Path, spans: Spans
) -> None:
    async with (
        FakeUpstream(Reply(503)) as first,
        FakeUpstream(Reply(json=chat_answer(model="real-1"))) as second,
        running_proxy(config(first.base_url, second.base_url), tmp_path, traces=spans.tracing) as proxy,
    ):
        assert await ask(proxy, traced=SAMPLED) == 200
    request, (failed, good) = spans.request(), spans.attempts()
    assert f"{request.context.trace_id:032x}" == TRACE
    assert f"{request.parent.span_id:016x}" == SPAN
    assert failed.parent.span_id == good.parent.span_id == request.context.span_id
    for upstream, attempt in ((first, failed), (second, good)):
        (asked,) = upstream.requests
        assert carried(asked) == (TRACE, f"{attempt.context.span_id:016x}", "01")
        assert asked.headers["tracestate"] == "vendor=1"
    assert request.start_time <= failed.start_time <= failed.end_time <= good.start_time
    assert good.end_time <= request.end_time
    _tells_the_request(request)
    _tells_the_attempts(failed, good, first, second)


def _tells_the_request(request: Any) -> None:
    assert (request.name, request.status.status_code.name) == ("chat m", "UNSET")
    told: Attributes = dict(request.attributes)
    assert told.pop("sidestep.request_id").startswith("req_")
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": False,
        "gen_ai.response.model": "real-1",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "openai.api.type": "chat_completions",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "sidestep.route": "m",
        "sidestep.outcome": "ok_failover",
        "sidestep.upstream": "b",
        "sidestep.attempts": 2,
        "sidestep.path": "a=overloaded, b=ok",
    }


def _tells_the_attempts(failed: Any, good: Any, first: FakeUpstream, second: FakeUpstream) -> None:
    assert (failed.name, failed.status.status_code.name) == ("chat m", "ERROR")
    assert dict(failed.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "m",
        "gen_ai.request.stream": False,
        "openai.api.type": "chat_completions",
        "server.address": "127.0.0.1",
        "server.port": first.port,
        "http.response.status_code": 503,
        "error.type": "overloaded",
        "sidestep.upstream": "a",
        "sidestep.attempt": 1,
        "sidestep.outcome": "overloaded",
        "sidestep.code": "server_error",
    }
    assert (good.name, good.status.status_code.name) == ("chat there", "UNSET")
    told = dict(good.attributes)
    assert (told["gen_ai.request.model"], told["gen_ai.response.model"]) == ("there", "real-1")
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (3, 5)
    assert (told["server.port"], told["sidestep.outcome"]) == (second.port, "ok")
    assert "error.type" not in told


async def test_a_stream_tells_when_it_began_and_what_it_used(tmp_path: Path, spans: Spans) -> None:
    events: list[Any] = [*chat_events(model="real-2"), {"choices": [], "usage": USAGE}]
    async with (
        FakeUpstream(Stream(events, first_s=0.1)) as fake,
        running_proxy(config(fake.base_url), tmp_path, traces=spans.tracing) as proxy,
    ):
        assert await ask(proxy, stream=True) == 200
    (attempt,) = spans.attempts()
    assert attempt.parent.span_id == spans.request().context.span_id
    assert spans.request().parent is None
    for span in (spans.request(), attempt):
        told = dict(span.attributes)
        assert told["gen_ai.request.stream"] is True
        assert told["gen_ai.response.time_to_first_chunk"] >= 0.1
        assert told["gen_ai.usage.output_tokens"] == 5
        assert told["gen_ai.response.model"] == "real-2"


async def test_a_client_that_does_not_sample_is_followed_in_that(tmp_path: Path, spans: Spans) -> None:
    async with (
        FakeUpstream(Reply()) as fake,
        running_proxy(config(fake.base_url), tmp_path, traces=spans.tracing) as proxy,
    ):
        assert await ask(proxy, traced={"traceparent": f"00-{TRACE}-{SPAN}-00"}) == 200
    trace, span, flags = carried(fake.requests[0])
    assert (trace, flags) == (TRACE, "00")
    assert span != SPAN
    assert spans.all() == []


@pytest.mark.parametrize(
    "header", ["garbage", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01", "x" * 4000]
)
async def test_a_traceparent_that_is_none_begins_a_new_trace(
    header: str, tmp_path: Path, spans: Spans
) -> None:
    async with (
        FakeUpstream(Reply()) as fake,
        running_proxy(config(fake.base_url), tmp_path, traces=spans.tracing) as proxy,
    ):
        assert await ask(proxy, traced={"traceparent": header}) == 200
    request = spans.request()
    assert request.parent is None
    assert carried(fake.requests[0])[0] == f"{request.context.trace_id:032x}" != TRACE


async def test_a_request_that_goes_nowhere_is_a_span_all_the_same(tmp_path: Path, spans: Spans) -> None:
    text = config(f"http://127.0.0.1:{dead_port()}/v1", policy="max_attempts: 1, hold: 0s")
    async with running_proxy(text, tmp_path, traces=spans.tracing) as proxy:
        assert await ask(proxy, traced=SAMPLED, model="unknown") == 404
        assert await ask(proxy, traced=SAMPLED) == 502
    rejected, failed = sorted(
        (span for span in spans.all() if span.kind.name == "SERVER"), key=lambda span: span.start_time
    )
    assert f"{rejected.parent.span_id:016x}" == f"{failed.parent.span_id:016x}" == SPAN
    told = dict(rejected.attributes)
    assert (rejected.name, rejected.status.status_code.name) == ("chat other", "UNSET")
    assert (told["error.type"], told["sidestep.outcome"]) == ("404", "rejected")
    told = dict(failed.attributes)
    assert (failed.name, failed.status.status_code.name) == ("chat m", "ERROR")
    assert (told["error.type"], told["sidestep.outcome"]) == ("502", "upstream_error")
    (attempt,) = spans.attempts()
    assert dict(attempt.attributes)["error.type"] == "connect_failed"
    assert dict(attempt.attributes)["sidestep.code"] == "refused"


async def test_the_replacement_of_a_stale_connection_is_an_attempt_of_its_own(
    tmp_path: Path, spans: Spans
) -> None:
    async with (
        FakeUpstream(CloseIdle(when="next"), default=Reply()) as fake,
        running_proxy(config(fake.base_url), tmp_path, traces=spans.tracing) as proxy,
    ):
        await ask(proxy)
        spans.exporter.clear()
        assert await ask(proxy) == 200
    outcomes = [dict(span.attributes)["sidestep.outcome"] for span in spans.attempts()]
    assert outcomes == ["stale_connection", "ok"]
    last = spans.attempts()[-1]
    assert carried(fake.requests[-1])[1] == f"{last.context.span_id:016x}"


async def test_a_broken_stream_is_an_error_of_its_attempt_and_its_request(
    tmp_path: Path, spans: Spans
) -> None:
    async with (
        FakeUpstream(Stream(chat_events()[:3], end="cut")) as fake,
        running_proxy(config(fake.base_url), tmp_path, traces=spans.tracing) as proxy,
        proxy.chat(stream=True) as answer,
    ):
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    request, (attempt,) = spans.request(), spans.attempts()
    assert dict(attempt.attributes)["error.type"] == "interrupted"
    assert dict(request.attributes)["error.type"] == "interrupted"
    assert request.status.status_code.name == attempt.status.status_code.name == "ERROR"


async def test_nothing_of_prompts_answers_or_keys_is_in_a_span(tmp_path: Path, spans: Spans) -> None:
    echo = {"error": {"message": "canary-key-1 canary-prompt", "type": "x", "code": "canary-code"}}
    text = config("%s", "%s").replace("a: {", "a: {api_key: canary-key-1, ", 1)
    async with (
        FakeUpstream(Reply(500, json=echo), Reply(401, json=echo), default=Reply(400, json=echo)) as first,
        FakeUpstream(default=Reply(json=chat_answer("canary-answer"))) as second,
        running_proxy(text % (first.base_url, second.base_url), tmp_path, traces=spans.tracing) as proxy,
    ):
        for _ in range(3):
            await ask(proxy, messages=[{"role": "user", "content": "canary-prompt"}], user="canary-user")
    assert len(spans.attempts()) >= 3
    assert "canary" not in "".join(span.to_json() for span in spans.all())


async def test_a_collector_gets_the_spans_by_the_time_the_proxy_has_ended(
    tmp_path: Path, spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the OTLP exporter is not installed")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    with _collector() as (url, posts):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        async with FakeUpstream(Reply()) as fake:
            settings = {"upstreams": {"a": {"base_url": fake.base_url}}, "routes": {"m": ["a"]}}
            await asyncio.to_thread(_one_request, settings, tmp_path)
    assert posts
    assert {path for path, _ in posts} == {"/v1/traces"}
    sent = [ExportTraceServiceRequest.FromString(body) for _, body in posts]
    (resource, *_) = [each.resource for request in sent for each in request.resource_spans]
    about = {each.key: each.value.string_value for each in resource.attributes}
    assert (about["service.name"], about["deployment.environment.name"]) == ("sidestep", "test")
    names = [
        span.name
        for request in sent
        for each in request.resource_spans
        for scope in each.scope_spans
        for span in scope.spans
    ]
    assert names == ["chat m", "chat m"]


def _one_request(settings: dict[str, Any], tmp_path: Path) -> None:
    with running_process(settings, tmp_path) as proxy:
        body = json.dumps({"model": "m", "messages": []}).encode()
        request = urllib.request.Request(f"{proxy.base_url}/chat/completions", body)
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200


@contextmanager
def _collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Run a server that takes whatever is posted; yield its address and what it got."""
    posts: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", posts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
