"""A simulated OpenAI-compatible provider on a loopback socket, with faults that can be switched.

It answers `POST /v1/chat/completions`, `/v1/completions`, `/v1/embeddings` and `GET /v1/models` as
OpenAI would, streams word by word at a person's pace, and breaks on command in the ways real
providers do. `sidestep demo` puts the real proxy in front of two of these.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any

from aiohttp import web

from proxy.sim import answers
from proxy.sim.answers import Answer, Json

HANG_S = 120.0  # a hung request is dropped after this, so that nothing waits for ever
LARGEST_EMBEDDING = 4096


class Ill(StrEnum):
    """The ways in which a provider can be ill."""

    HEALTHY = "healthy"
    STATUS = "status"  # answers with an HTTP error
    HANG = "hang"  # takes the request and says nothing
    SLOW = "slow"  # the first token comes late
    CUT = "cut"  # dies half-way through the answer
    RESET = "reset"  # dies before the answer begins
    REFUSE = "refuse"  # doesn't listen
    BLANK = "blank"  # 200 with no content
    HTML = "html"  # a CDN's error page
    EVENT = "event"  # 200, then an error event before any content


@dataclass(frozen=True, slots=True)
class Fault:
    """An illness and, for `status`, its number."""

    ill: Ill = Ill.HEALTHY
    status: int = 503

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Read "hang", "cut", "status:503".

        Raises: ValueError for anything else.
        """
        name, _, number = text.partition(":")
        return cls(Ill(name), int(number)) if number else cls(Ill(name))


class Provider:
    """One provider: listens while entered, answers as its fault tells it.

    `wall` gives Unix time (for `created`), `pace_s` is the pause between words, `slow_s` how late
    the first word of a slow answer is.
    """

    def __init__(
        self,
        name: str,
        wall: Callable[[], float],
        rng: random.Random,
        *,
        pace_s: float = 0.04,
        slow_s: float = 4.0,
    ) -> None:
        self.name = name
        self.fault = Fault()
        self.requests = 0
        self.port = 0
        self._wall = wall
        self._rng = rng
        self._pace_s = pace_s
        self._slow_s = slow_s
        self._web: web.Server | None = None
        self._listener: asyncio.Server | None = None

    @property
    def base_url(self) -> str:
        """Return what to configure as `base_url`."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Provider:
        self._web = web.Server(self._answer, handler_cancellation=True, access_log=None)
        await self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_listening()
        if self._web is not None:
            await self._web.shutdown(timeout=0)

    async def become(self, fault: Fault) -> None:
        """Switch the fault; `refuse` closes the listening socket and every connection."""
        self.fault = fault
        if fault.ill is not Ill.REFUSE:
            await self._listen()
            return
        self._stop_listening()
        for connection in self._web.connections if self._web else ():
            connection.force_close()

    async def _listen(self) -> None:
        if self._listener is None and self._web is not None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(self._web, "127.0.0.1", self.port)
            self.port = self._listener.sockets[0].getsockname()[1]

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET" and request.path == "/v1/models":
            return web.json_response(answers.model_list(self.name, int(self._wall())))
        if request.path not in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            return self._error(404, f"Invalid URL ({request.method} {request.path})")
        if request.method != "POST":
            return self._error(405, f"Not allowed to {request.method} on {request.path}")
        self.requests += 1
        return await self._ill(request) or await self._healthy(request)

    async def _ill(self, request: web.BaseRequest) -> web.StreamResponse | None:
        """Return what an ill provider answers, `None` where the answer itself must be made."""
        match self.fault.ill:
            case Ill.STATUS:
                return self._error(self.fault.status)
            case Ill.HTML:
                page = "<html><head><title>502 Bad Gateway</title></head><body>cloudfront</body></html>"
                return web.Response(status=502, text=page, content_type="text/html")
            case Ill.BLANK:
                return web.Response(status=200, content_type="application/json")
            case Ill.HANG | Ill.RESET as ill:
                await request.read()
                await asyncio.sleep(HANG_S if ill is Ill.HANG else 0)
                return _die(request, web.Response())
            case Ill.SLOW:
                await asyncio.sleep(self._slow_s)
            case Ill.HEALTHY | Ill.CUT | Ill.EVENT | Ill.REFUSE:
                pass
        return None

    async def _healthy(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = json.loads(await request.read())
            model = body["model"]
        except (ValueError, KeyError, TypeError):
            return self._error(400, "The body must be a JSON object with a model.")
        if request.path == "/v1/embeddings":
            return await self._whole(request, _embed(body))
        chat = request.path == "/v1/chat/completions"
        answer = self._compose(body, str(model), "chatcmpl" if chat else "cmpl")
        if not body.get("stream"):
            await asyncio.sleep(self._pace_s * 4)
            complete = answers.chat_completion if chat else answers.text_completion
            return await self._whole(request, complete(answer))
        include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
        chunks = answers.chat_chunks if chat else answers.text_chunks
        return await self._stream(request, chunks(answer, include_usage), len(answer.words))

    def _compose(self, body: Json, model: str, prefix: str) -> Answer:
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        sentence = self._rng.choice(answers.SENTENCES).format(name=self.name)
        words, finish = answers.words_of(sentence, limit)
        prompt = json.dumps(body.get("messages") or body.get("prompt") or "")
        return Answer(
            words=words,
            finish=finish,
            id=f"{prefix}-{self._rng.getrandbits(96):024x}",
            created=int(self._wall()),
            model=model,
            fingerprint=f"fp_{self.name}",
            prompt_tokens=max(len(prompt.split()), 1),
        )

    async def _whole(self, request: web.BaseRequest, body: Json) -> web.StreamResponse:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **self._headers()}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        if self.fault.ill is Ill.CUT:
            await response.write(data[: len(data) // 2])
            return _die(request, response)
        await response.write(data)
        return response

    async def _stream(
        self, request: web.BaseRequest, chunks: Iterator[Json], words: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **self._headers()})
        await response.prepare(request)
        if self.fault.ill is Ill.EVENT:
            await response.write(_event(answers.error(503)))
            return response
        for number, chunk in enumerate(chunks):
            await response.write(_event(chunk))
            await asyncio.sleep(self._pace_s * self._rng.uniform(0.5, 1.5))
            if self.fault.ill is Ill.CUT and number >= words // 2:
                return _die(request, response)
        await response.write(b"data: [DONE]\n\n")
        return response

    def _error(self, status: int, message: str | None = None) -> web.Response:
        headers = self._headers() | ({"Retry-After": "2"} if status == 429 else {})
        return web.json_response(answers.error(status, message), status=status, headers=headers)

    def _headers(self) -> dict[str, str]:
        return {"x-request-id": f"req_{self._rng.getrandbits(96):024x}"}


def _event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def _die(request: web.BaseRequest, response: web.StreamResponse) -> web.StreamResponse:
    """Drop the connection without a farewell."""
    if request.transport is not None:
        request.transport.abort()
    return response


def _embed(body: Json) -> Json:
    given = body.get("input")
    texts = given if isinstance(given, list) and not all(isinstance(part, int) for part in given) else [given]
    size = min(int(body.get("dimensions") or answers.EMBEDDING_SIZE), LARGEST_EMBEDDING)
    as_base64 = body.get("encoding_format") == "base64"
    return answers.embeddings(
        [part if isinstance(part, str) else json.dumps(part) for part in texts],
        str(body["model"]),
        size,
        as_base64,
    )
