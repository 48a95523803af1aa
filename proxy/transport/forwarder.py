"""The path of one request, and the only loop there is.

1. `edge` has checked key, path and size, read the body and made `Call`, `CallFacts`, `Route`, `Deadline`.
2. `Forwarding.run` asks `Failover.next_step` what to do, and does it: try, wait, or give up.
3. `core` decides the order, the permit, the leave to retry and the time. It does no I/O.
4. `Attempt` sends one request; it returns at the complete body or the first content, or ends in an
   `Outcome`. Nothing above it sees a socket error.
5. `dialects` read head, body and events into that `Outcome`.
6. Not good: `Failover.settle` feeds breaker and budget and returns the facts; back to 2.
7. Good: the relay sends the held bytes and from then on copies. **The commit point is the first content
   byte to the client**: at the first content token of a stream, at the complete and checked body of a
   small non-stream; an answer too large to hold is committed when holding ends.
8. Whatever happens, the permit is settled (client gone: neutral) and the connection is given back or
   closed; `edge` then tells the observers that the request has ended.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from proxy.core.budget import Budgets
from proxy.core.deadline import Deadline
from proxy.core.events import (
    Event,
    FirstToken,
    RequestOutcome,
    StreamEventsDropped,
    StreamInterrupted,
    TokensUsed,
)
from proxy.core.failover import Failover
from proxy.core.outcome import OK, Kind, Outcome
from proxy.core.pool import Pool
from proxy.core.steps import GiveUp, Try, Wait
from proxy.core.target import CallFacts, Route
from proxy.dialects.openai import Call, error_body, stream_error_event
from proxy.transport.headers import header_text, rate_limits, to_client, who_answered
from proxy.transport.relay import StreamRelay, relay_body
from proxy.transport.sink import Sink
from proxy.transport.slowness import SlowWatch
from proxy.transport.upstream import Attempt, Upstream, Wire

JSON_TYPE = b"content-type: application/json\r\n"
STREAM_LINES = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
SHUTTING_DOWN = "The proxy is shutting down."
BROKE_OFF = frozenset({Kind.INTERRUPTED, Kind.STALLED, Kind.CANCELLED})


@dataclass(slots=True)
class Forwarder:
    """What all requests share. `upstreams` is replaced as a whole on reload."""

    pool: Pool
    budgets: Budgets
    upstreams: Mapping[str, Upstream]
    wire: Wire
    rng: random.Random
    observe: Callable[[Event], None]
    running: set[Forwarding] = field(default_factory=set)
    slow: SlowWatch = field(init=False)

    def __post_init__(self) -> None:
        self.slow = SlowWatch(self.wire.clock)

    def begin(
        self,
        call: Call,
        facts: CallFacts,
        route: Route,
        deadline: Deadline,
        client: Mapping[str, str],
        hop: bytes,
    ) -> Forwarding:
        """Return the forwarding of one request, not yet running; *client* has lower-case header names."""
        failover = Failover(facts, route, self.pool, self.budgets.of(route), deadline, self.rng)
        return Forwarding(self, call, facts, route, failover, client, hop)

    def facts_of(self, request_id: str) -> list[Event] | None:
        """Return what happened so far to a request that runs, None if it does not."""
        for forwarding in self.running:
            if forwarding.call_facts.request_id == request_id:
                return forwarding.facts
        return None

    def interrupt(self) -> None:
        """End every running request with a clean error: the proxy stops."""
        for forwarding in tuple(self.running):
            forwarding.interrupt()


class Forwarding:
    """One request on its way, and what is to be told of it afterwards."""

    __slots__ = (
        "_client",
        "_failed",
        "_forwarder",
        "_hop",
        "_interrupted",
        "_now",
        "_observe",
        "_task",
        "call",
        "call_facts",
        "facts",
        "failover",
        "first_sent_at",
        "model",
        "outcome",
        "route",
        "sink",
        "ttft_s",
        "upstream",
        "usage",
    )

    sink: Sink

    def __init__(
        self,
        forwarder: Forwarder,
        call: Call,
        facts: CallFacts,
        route: Route,
        failover: Failover,
        client: Mapping[str, str],
        hop: bytes,
    ) -> None:
        self.call = call
        self.call_facts = facts
        self.facts: list[Event] = []
        self.route = route
        self.failover = failover
        self.outcome = RequestOutcome.CLIENT_GONE
        self.upstream = ""
        self.model = ""
        self.ttft_s: float | None = None
        self.first_sent_at: float | None = None
        self.usage: tuple[int, int] | None = None
        self._forwarder = forwarder
        self._client = client
        self._hop = hop
        self._now = forwarder.wire.clock
        self._observe = forwarder.observe
        self._failed: dict[int, Attempt] = {}  # by permit, for relaying an upstream's own refusal
        self._interrupted = False
        self._task: asyncio.Task[object] | None = None

    async def run(self, sink: Sink) -> None:
        """Carry the request to its end; everything the client sees goes through *sink*.

        Raises:
            asyncio.CancelledError: the client has left; everything is settled and closed.
        """
        self.sink = sink
        self._task = asyncio.current_task()
        self._forwarder.running.add(self)
        try:
            await self._loop()
        except asyncio.CancelledError:
            if not self._interrupted or self._task is None:
                raise
            self._task.uncancel()
            self._end_with_error(503, "shutting_down", SHUTTING_DOWN, RequestOutcome.INTERRUPTED)
        finally:
            self._forwarder.running.discard(self)
            self._tell(self.failover.close(self._now()))

    def interrupt(self) -> None:
        """End this request with a clean error, from outside."""
        self._interrupted = True
        if self._task is not None:
            self._task.cancel()

    def _tell(self, events: Sequence[Event]) -> None:
        if events:
            self.facts += events
            observe = self._observe
            for event in events:
                observe(event)

    async def _loop(self) -> None:
        while True:
            step, events = self.failover.next_step(self._now())
            self._tell(events)
            match step:
                case Try():
                    attempt = await self._try(step)
                    if attempt is not None:
                        await self._answer(attempt)
                        return
                case Wait():
                    await asyncio.sleep(max(0.0, step.until - self._now()))
                case GiveUp():
                    self._give_up(step)
                    return
                case _:
                    assert_never(step)

    async def _try(self, step: Try) -> Attempt | None:
        """Make an attempt, hedged if the route says so; return it if it is good."""
        if step.hedge_after_s is not None:
            return await self._try_hedged(step, step.hedge_after_s)
        attempt = self._attempt(step)
        return attempt if await self._run(attempt, step) else None

    def _attempt(self, step: Try) -> Attempt:
        upstream = self._forwarder.upstreams[step.permit.target.upstream.name]
        return Attempt(upstream, step.permit, step.timeouts, self._forwarder.wire)

    async def _run(self, attempt: Attempt, step: Try) -> bool:
        """Run one attempt to its first decisive moment; settle it unless it is good."""
        watch = self._forwarder.slow
        outcome = Outcome(Kind.CLIENT_GONE)
        now = self._now()
        if self.first_sent_at is None:
            self.first_sent_at = now
        watch.add(attempt, self, now + step.timeouts.soft_s)
        try:
            request = attempt.upstream.request(self.call, attempt.permit, self._client, self._hop)
            outcome = await attempt.run(self.call, request, fresh=step.fresh_connection)
        except asyncio.CancelledError:
            if self._interrupted or not self.sink.gone:
                outcome = Outcome(Kind.CANCELLED)
            raise
        finally:
            watch.discard(attempt)
            if outcome.kind is not Kind.OK:
                attempt.close()
                self._settle(attempt, outcome)
        return outcome.kind is Kind.OK

    async def _try_hedged(self, step: Try, after_s: float) -> Attempt | None:
        """Run a second attempt beside a slow first one; the first good one wins, the other is cancelled."""
        running: dict[asyncio.Task[bool], Attempt] = {}
        winner: Attempt | None = None
        try:
            self._start(step, running)
            done, _ = await asyncio.wait(running, timeout=after_s)
            if not done:
                hedge, events = self.failover.next_hedge(self._now())
                self._tell(events)
                if hedge is not None:
                    self._start(hedge, running)
            while running and winner is None:
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    attempt = running.pop(task)
                    if task.result() and winner is None:
                        winner = attempt
                    elif task.result():
                        self._drop(attempt)
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.gather(*running, return_exceptions=True)
        return winner

    def _start(self, step: Try, running: dict[asyncio.Task[bool], Attempt]) -> None:
        attempt = self._attempt(step)
        running[asyncio.get_running_loop().create_task(self._run(attempt, step))] = attempt

    def _drop(self, attempt: Attempt) -> None:
        """End a good attempt that came second."""
        attempt.close()
        self._settle(attempt, Outcome(Kind.CANCELLED))

    def soft_limit_passed(self, attempt: Attempt) -> float | None:
        """Report that *attempt* is slow; return when to abandon it, None to go on and ask again."""
        at, events = self.failover.soft_limit_passed(attempt.permit, self._now())
        self._tell(events)
        return at

    def _settle(self, attempt: Attempt, outcome: Outcome, *, committed: bool = False) -> None:
        if attempt.head is not None and not committed:
            self._failed[attempt.permit.id] = attempt
        if attempt.dropped:
            self._tell([StreamEventsDropped(attempt.upstream.facts.name, "malformed", attempt.dropped)])
        self._tell(self.failover.settle(attempt.permit, outcome, self._now(), committed=committed))

    async def _answer(self, attempt: Attempt) -> None:
        """Commit to *attempt* and carry its answer to the client."""
        now = self._now()
        self._name(attempt)
        seconds = now - attempt.sent_at
        self._tell(self.failover.first_content(attempt.permit, seconds, now))
        outcome = Outcome(Kind.CLIENT_GONE)
        try:
            if attempt.complete:
                self.sink.answer(attempt.status, self._lines(attempt), attempt.body)
                outcome = OK
            else:
                outcome = await self._stream(attempt, seconds)
        except asyncio.CancelledError:
            if self._interrupted:
                outcome = Outcome(Kind.CANCELLED)
            raise
        finally:
            attempt.close()
            self._note_usage(attempt)
            self._settle(attempt, outcome, committed=True)
            self._conclude(attempt, outcome)

    async def _stream(self, attempt: Attempt, seconds: float) -> Outcome:
        """Send the beginning of a stream, or of a large body, and relay the rest."""
        assert attempt.head is not None
        lines = self._lines(attempt)
        if attempt.reader is None:
            assert attempt.connection is not None
            declared = attempt.head.get(b"content-length")
            length = int(declared) if declared is not None else None
            self.sink.start(attempt.status, lines, length)
            stall_s = attempt.timeouts.stall_s
            return await relay_body(attempt.connection, attempt.body, length, self.sink, stall_s)
        self.ttft_s = seconds
        name, label = attempt.upstream.facts.name, attempt.permit.target.label
        self._tell([FirstToken(self.call_facts.request_id, name, label, seconds)])
        self.sink.start(attempt.status, lines + STREAM_LINES, None)
        return await StreamRelay(attempt, self.sink, self.route.policy.keepalive_s, self._now).run()

    def _conclude(self, attempt: Attempt, outcome: Outcome) -> None:
        """Write the ending that a broken answer needs, and note how the request ended."""
        if outcome.kind is Kind.OK:
            saved = self.failover.saved
            self.outcome = RequestOutcome.OK_FAILOVER if saved else RequestOutcome.OK
        elif outcome.kind in BROKE_OFF:
            self.outcome = RequestOutcome.INTERRUPTED
            if outcome.kind is not Kind.CANCELLED:
                self._tell([StreamInterrupted(self.call_facts.request_id, self.upstream, outcome.kind)])
            if attempt.reader is not None:
                code, message = "stream_interrupted", f"Upstream '{self.upstream}' failed in mid-answer."
                if self._interrupted:
                    code, message = "shutting_down", SHUTTING_DOWN
                self.sink.write(stream_error_event(self.call_facts.operation, code, message))
            self.sink.abort()
        elif outcome.kind is Kind.CLIENT_GONE:
            self.sink.abort()

    def _give_up(self, step: GiveUp) -> None:
        """Tell the client why there is no answer, or relay the upstream's own refusal."""
        relayed = self._failed.get(step.relay_permit) if step.relay_permit is not None else None
        if relayed is not None:
            self._name(relayed)
            self.outcome = RequestOutcome.CLIENT_ERROR
            self.sink.answer(relayed.status, self._lines(relayed), relayed.body)
            return
        rejected = step.status in (400, 403)
        outcome = RequestOutcome.REJECTED if rejected else RequestOutcome.UPSTREAM_ERROR
        self._end_with_error(step.status, step.code, step.message, outcome, _advice(step))

    def _end_with_error(
        self, status: int, code: str, message: str, outcome: RequestOutcome, advice: bytes = b""
    ) -> None:
        if self.sink.started:
            return  # `_conclude` has said so already
        self.outcome = outcome
        attempts = self.failover.attempts
        body = error_body(
            status, code, message, attempts=[(a.upstream, a.outcome, a.seconds) for a in attempts]
        )
        self.sink.answer(status, JSON_TYPE + self._own_lines() + advice, body)

    def _own_lines(self) -> bytes:
        attempts = self.failover.attempts
        path = ", ".join([f"{attempt.upstream}={attempt.outcome}" for attempt in attempts])
        return b"x-request-id: %b\r\nx-sidestep-attempts: %d\r\nx-sidestep-path: %b\r\n" % (
            self.call_facts.request_id.encode(),
            len(attempts),
            header_text(path),
        )

    def _lines(self, attempt: Attempt) -> bytes:
        assert attempt.head is not None
        self._tell(rate_limits(attempt.head, self.upstream))
        lines = to_client(attempt.head.headers)
        return b"%b%b%b" % (lines, self._own_lines(), who_answered(self.upstream, self.model))

    def _name(self, attempt: Attempt) -> None:
        target = attempt.permit.target
        self.upstream, self.model = target.upstream.name, target.model or self.call.model

    def _note_usage(self, attempt: Attempt) -> None:
        self.usage = attempt.reader.usage if attempt.reader is not None else attempt.usage
        if self.usage is not None:
            self._tell([TokensUsed(self.upstream, attempt.permit.target.label, *self.usage)])


def _advice(step: GiveUp) -> bytes:
    """Return the header lines that tell an SDK whether and when to ask again."""
    lines = b""
    if step.retry_after_s is not None:
        lines += b"retry-after: %d\r\n" % max(1, round(step.retry_after_s))
    if step.should_retry is not None:
        lines += b"x-should-retry: %b\r\n" % (b"true" if step.should_retry else b"false")
    return lines
