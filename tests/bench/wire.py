"""The bytes that the mock upstream and the load exchange: built once, sent many times."""

from __future__ import annotations

import json

MODEL = "bench-model"


def request(port: int, *, events: int = 0, gap_ms: int = 0) -> bytes:
    """Return a chat request of about 1.5 KB; with `events`, for a stream of that many, `gap_ms` apart."""
    body = {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You are a careful assistant. " * 8},
            {"role": "user", "content": "What would a lighthouse keeper write home about? " * 21},
        ],
        "max_tokens": events or 256,
    }
    if events:
        body.update(stream=True, seed=gap_ms)
    data = json.dumps(body, separators=(",", ":")).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\n"
        f"host: 127.0.0.1:{port}\r\n"
        "authorization: Bearer bench\r\n"
        "content-type: application/json\r\n"
        "accept: application/json\r\n"
        "user-agent: bench/1\r\n"
        f"content-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def answer() -> bytes:
    """Return a complete response with a body of about 540 bytes."""
    body = {
        "id": "chatcmpl-bench00000000000000000001",
        "object": "chat.completion",
        "created": 1700000000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The sea, and what it brings. " * 8},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 212, "completion_tokens": 58, "total_tokens": 270},
    }
    data = json.dumps(body, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        len(data), data,
    )  # fmt: skip


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
CONTENT = b'"content":"'  # once in each event that carries text


def event(*, last: bool = False) -> bytes:
    """Return one chunk with one event of 188 bytes; the last one tells the finish_reason."""
    choice = '{"index":0,"delta":{},"finish_reason":"stop"}' if last else (
        '{"index":0,"delta":{"content":" lighthouse"},"finish_reason":null}'
    )  # fmt: skip
    data = (
        'data: {"id":"chatcmpl-bench01","object":"chat.completion.chunk","created":1700000000,'
        f'"model":"{MODEL}","choices":[{choice}]}}\n\n'
    ).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)
