"""The access log: one line per request at its end, and one per move of a breaker.

JSON for machines (CONTRACT.md, section 9), or aligned text for people.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from proxy.core.events import BreakerMoved, Event, RequestEnded
from proxy.edge.lines import BreakerLine, RequestLine, Stamp, breaker_line, request_line
from proxy.edge.observers import Handlers

Format = Literal["json", "text"]


class AccessLog:
    """Turns events into lines for *write*; `wall` is Unix time, for breakers' moves."""

    def __init__(self, write: Callable[[bytes], None], wall: Callable[[], float], style: Format) -> None:
        self._write = write
        self._wall = wall
        self._encode = msgspec.json.Encoder().encode if style == "json" else encode_text
        self._stamp = Stamp()
        self.handlers: Handlers = {RequestEnded: self._request_ended, BreakerMoved: self._breaker_moved}

    def observe(self, event: Event) -> None:
        """Write a line for the event, if it is worth one."""
        handler = self.handlers.get(type(event))
        if handler is not None:
            handler(event)

    def _request_ended(self, event: RequestEnded) -> None:
        self._write(self._encode(request_line(event, self._stamp.of(event.wall))) + b"\n")

    def _breaker_moved(self, event: BreakerMoved) -> None:
        self._write(self._encode(breaker_line(event, self._stamp.of(self._wall()))) + b"\n")


def encode_text(line: RequestLine | BreakerLine) -> bytes:
    """Return a line for people, without its newline."""
    text = _request_text(line) if isinstance(line, RequestLine) else _breaker_text(line)
    # A client's text (the model's name) must not be able to end a line or move the cursor.
    shown = text if text.isprintable() else text.encode("unicode_escape").decode()
    return shown.encode()


def _request_text(line: RequestLine) -> str:
    tried = ", ".join(
        f"{attempt.upstream}={attempt.outcome} {attempt.seconds:.2f}s" for attempt in line.attempts
    )
    parts = [
        f"{line.ts} {line.outcome:<14} {line.status or '-':>3} {line.duration_s:8.2f}s",
        f"{line.route} {line.endpoint}{' stream' if line.stream else ''}",
        tried or "no attempt",
    ]
    if line.ttft_s is not None:
        parts.append(f"ttft {line.ttft_s:.2f}s")
    if line.tokens is not None:
        parts.append(f"tokens {line.tokens.input or 0}+{line.tokens.output or 0}")
    if line.client:
        parts.append(line.client)
    return "  ".join([*parts, line.request_id])


def _breaker_text(line: BreakerLine) -> str:
    cell = " ".join(filter(None, (line.scope, line.upstream, line.model, line.operation)))
    numbers = ", ".join(f"{name} {value:g}" for name, value in line.numbers.items())
    why = f"{line.reason} ({numbers})" if numbers else line.reason
    only = "" if line.enforced else "  [observed only]"
    return (
        f"{line.ts} {'breaker':<14} {line.to_state.upper():>13}  {cell}  was {line.from_state}: {why}{only}"
    )
