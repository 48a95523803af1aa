"""The last requests and what was decided for them, in bounded memory and without their contents."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Any

from proxy.core.events import (
    AttemptEnded,
    AttemptStarted,
    Decided,
    Event,
    FailedOver,
    FirstToken,
    RequestEnded,
)
from proxy.edge.lines import DIGITS, MAX_NAME, RequestLine, Stamp, clean, request_line
from proxy.edge.observers import Handlers

Fact = Decided | FailedOver | AttemptStarted | FirstToken | AttemptEnded

LIMIT = 1000
MAX_FACTS = 64  # of one request: four attempts make about twenty
MAX_RUNNING = 20_000  # twice `max_connections`; a request that never ends must not stay for ever


class Recent:
    """The last *limit* requests, found by id; requests that still run can be looked up too."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._running: OrderedDict[str, list[Fact]] = OrderedDict()
        self._ended: OrderedDict[str, tuple[RequestEnded, list[Fact]]] = OrderedDict()
        self.handlers: Handlers = {
            Decided: self._note,
            FailedOver: self._note,
            AttemptStarted: self._note,
            FirstToken: self._note,
            AttemptEnded: self._note,
            RequestEnded: self._end,
        }

    def observe(self, event: Event) -> None:
        """Keep an event, if it is about a request."""
        handler = self.handlers.get(type(event))
        if handler is not None:
            handler(event)

    def latest(self, count: int = 100) -> list[RequestLine]:
        """Return the last *count* requests, newest first."""
        stamp = Stamp()
        newest = list(reversed(self._ended.values()))[:count]
        return [request_line(event, stamp.of(event.wall)) for event, _ in newest]

    def find(self, request_id: str) -> dict[str, Any] | None:
        """Return all that is known of one request as plain data, `None` if it is not known (any more).

        `steps` tells in order what was decided and tried; `request` is the log's line, and null
        while the request runs.
        """
        if request_id in self._ended:
            event, facts = self._ended[request_id]
            line = request_line(event, Stamp().of(event.wall))
            return {"request_id": request_id, "running": False, "request": line, "steps": _steps(facts)}
        if request_id in self._running:
            steps = _steps(self._running[request_id])
            return {"request_id": request_id, "running": True, "request": None, "steps": steps}
        return None

    def _note(self, event: Fact) -> None:
        facts = self._running.get(event.request_id)
        if facts is None:
            facts = self._begin(event.request_id)
        if len(facts) < MAX_FACTS:
            facts.append(event)

    def _begin(self, request_id: str) -> list[Fact]:
        if request_id in self._ended:  # a hedge's loser may end after its request
            return self._ended[request_id][1]
        facts = self._running[request_id] = []
        if len(self._running) > MAX_RUNNING:
            self._running.popitem(last=False)
        return facts

    def _end(self, event: RequestEnded) -> None:
        self._ended[event.request_id] = (_bounded(event), self._running.pop(event.request_id, []))
        if len(self._ended) > self._limit:
            self._ended.popitem(last=False)


def _bounded(event: RequestEnded) -> RequestEnded:
    """Return the event without names so long that a thousand of them would matter."""
    if max([len(event.model), *(len(attempt.model) for attempt in event.attempts)]) <= MAX_NAME:
        return event
    attempts = tuple(replace(attempt, model=clean(attempt.model)) for attempt in event.attempts)
    return replace(event, model=clean(event.model), attempts=attempts)


def _steps(facts: list[Fact]) -> list[dict[str, Any]]:
    return [_step(fact) for fact in facts]


def _step(fact: Fact) -> dict[str, Any]:
    match fact:
        case Decided():
            return {
                "step": "decision",
                "decision": fact.decision,
                "upstream": fact.upstream,
                "reason": fact.reason,
            }
        case FailedOver():
            return {
                "step": "failover",
                "from": fact.from_upstream,
                "to": fact.to_upstream,
                "reason": fact.reason,
            }
        case AttemptStarted():
            return {
                "step": "attempt",
                "number": fact.number,
                "upstream": fact.upstream,
                "model": clean(fact.model),
                "probe": fact.probe,
            }
        case FirstToken():
            return {"step": "first_token", "upstream": fact.upstream, "seconds": round(fact.seconds, DIGITS)}
        case AttemptEnded():
            return {
                "step": "ended",
                "number": fact.number,
                "upstream": fact.upstream,
                "outcome": fact.outcome.kind,
                "status": fact.outcome.status,
                "code": fact.outcome.code,
                "seconds": round(fact.seconds, DIGITS),
            }
