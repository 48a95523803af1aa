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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import assert_never

from proxy.core.budget import Budgets
from proxy.core.deadline import Deadline
from proxy.core.events import Event, FirstToken, RateLimitSeen, RequestOutcome, StreamEventsDropped
from proxy.core.events import StreamInterrupted, TokensUsed
from proxy.core.failover import Failover, GiveUp, Try, Wait
from proxy.core.outcome import OK, Kind, Outcome
from proxy.core.pool import Pool
from proxy.core.target import CallFacts, Route
from proxy.dialects.openai import Call, error_body, stream_error_event
from proxy.transport.headers import to_client
from proxy.transport.relay import StreamRelay, relay_body
from proxy.transport.sink import Headers, Sink
from proxy.transport.upstream import Attempt, Upstream, Wire

STREAM_HEADERS: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
JSON_TYPE: Headers = [(b"content-type", b"application/json")]
SOFT_LIMIT_RECHECK_S = 1.0


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

    def begin(
        self, call: Call, facts: CallFacts, route: Route, deadline: Deadline, client: Mapping[str, str], hop: bytes
    ) -> Forwarding:
        """Return the forwarding of one request, not yet running."""
        failover = Failover(facts, route, self.pool, self.budgets.of(route), deadline, self.rng)
        return Forwarding(self, call, facts, route, failover, client, hop)

    def interrupt(self) -> None:
        """End every running request with a clean error: the proxy stops."""
        for forwarding in tuple(self.running):
            forwarding.interrupt()


class Forwarding:
    """One request on its way, and what is to be told of it afterwards."""

    __slots__ = (
        "_client", "_failed", "_forwarder", "_hop", "_interrupted", "_task", "call", "facts", "failover",
        "first_sent_at", "model", "outcome", "route", "sink", "status", "ttft_s", "upstream", "usage",
    )  # fmt: skip

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
        self.facts = facts
        self.route = route
        self.failover = failover
        self.outcome = RequestOutcome.CLIENT_GONE
        self.status = 0
        self.upstream = ""
        self.model = ""
        self.ttft_s: float | None = None
        self.first_sent_at: float | None = None
        self.usage: tuple[int, int] | None = None
        self._forwarder = forwarder
        self._client = client
        self._hop = hop
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
            self._end_with_error(503, "shutting_down", "The proxy is shutting down.", RequestOutcome.INTERRUPTED)
        finally:
            self._forwarder.running.discard(self)
            self._tell(self.failover.close(self._now()))

    def interrupt(self) -> None:
        """End this request with a clean error, from outside."""
        self._interrupted = True
        if self._task is not None:
            self._task.cancel()

    def _now(self) -> float:
        return self._forwarder.wire.clock()

    def _tell(self, events: Iterable[Event]) -> None:
        observe = self._forwarder.observe
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
        loop = asyncio.get_running_loop()
        soft = _SoftLimit(self, attempt, loop)
        outcome = Outcome(Kind.CLIENT_GONE)
        if self.first_sent_at is None:
            self.first_sent_at = self._now()
        try:
            request = attempt.upstream.request(self.call, attempt.permit, self._client, self._hop)
            outcome = await attempt.run(self.call, request, fresh=step.fresh_connection)
        except asyncio.CancelledError:
            outcome = Outcome(Kind.CANCELLED if self._interrupted else Kind.CLIENT_GONE)
            raise
        finally:
            soft.cancel()
            if outcome.kind is not Kind.OK:
                attempt.close()
                self._settle(attempt, outcome)
        return outcome.kind is Kind.OK

    async def _try_hedged(self, step: Try, after_s: float) -> Attempt | None:
        """Run a second attempt beside a slow first one; the first good one wins."""
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
                    if task.result():
                        winner = winner or attempt
        finally:
            for task in running:
                task.cancel()
            if running:
                await asyncio.gather(*running, return_exceptions=True)
        return winner

    def _start(self, step: Try, running: dict[asyncio.Task[bool], Attempt]) -> None:
        attempt = self._attempt(step)
        running[asyncio.get_running_loop().create_task(self._run(attempt, step))] = attempt

    def _settle(self, attempt: Attempt, outcome: Outcome, *, committed: bool = False) -> None:
        if attempt.head is not None and not committed:
            self._failed[attempt.permit.id] = attempt
        if attempt.dropped:
            self._tell([StreamEventsDropped(self._name(attempt), "malformed", attempt.dropped)])
        self._tell(self.failover.settle(attempt.permit, outcome, self._now(), committed=committed))

    async def _answer(self, attempt: Attempt) -> None:
        """Commit to *attempt* and carry its answer to the client."""
        now = self._now()
        target = attempt.permit.target
        self.upstream, self.model = target.upstream.name, target.model or self.call.model
        seconds = now - attempt.sent_at
        self._tell(self.failover.first_content(attempt.permit, seconds, now))
        outcome = Outcome(Kind.CLIENT_GONE)
        try:
            outcome = await self._send_answer(attempt, seconds)
        except asyncio.CancelledError:
            if self._interrupted:
                outcome = Outcome(Kind.CANCELLED)
            raise
        finally:
            attempt.close()
            self._note_usage(attempt)
            self._settle(attempt, outcome, committed=True)
            self._conclude(attempt, outcome)

    async def _send_answer(self, attempt: Attempt, seconds: float) -> Outcome:
        assert attempt.head is not None
        self.status = attempt.head.status
        headers = self._headers(attempt)
        if attempt.complete:
            self.sink.answer(self.status, headers, attempt.body)
            return OK
        if attempt.reader is None:
            assert attempt.connection is not None
            declared = attempt.head.get(b"content-length")
            length = int(declared) if declared is not None else None
            self.sink.start(self.status, headers, length)
            return await relay_body(
                attempt.connection, attempt.body, length, self.sink, attempt.timeouts.stall_s
            )
        self.ttft_s = seconds
        self._tell([FirstToken(self.facts.request_id, self._name(attempt), attempt.permit.target.label, seconds)])
        self.sink.start(self.status, headers + STREAM_HEADERS, None)
        keepalive_s = self.route.policy.keepalive_s
        return await StreamRelay(attempt, self.sink, keepalive_s, self._forwarder.wire.clock).run()

    def _conclude(self, attempt: Attempt, outcome: Outcome) -> None:
        """Write the ending that a broken answer needs, and note how the request ended."""
        if outcome.kind is Kind.OK:
            self.outcome = RequestOutcome.OK_FAILOVER if self.failover.saved else RequestOutcome.OK
        elif outcome.kind in (Kind.INTERRUPTED, Kind.STALLED):
            self.outcome = RequestOutcome.INTERRUPTED
            self._tell([StreamInterrupted(self.facts.request_id, self._name(attempt), outcome.kind)])
            if attempt.reader is not None:
                message = f"The answer broke off: upstream '{self.upstream}' failed in mid-stream."
                self.sink.write(stream_error_event(self.facts.operation, "stream_interrupted", message))
            self.sink.abort()
        elif outcome.kind is Kind.CLIENT_GONE:
            self.sink.abort()

    def _give_up(self, step: GiveUp) -> None:
        """Tell the client why there is no answer, or relay the upstream's own refusal."""
        relayed = self._failed.get(step.relay_permit) if step.relay_permit is not None else None
        if relayed is not None and relayed.head is not None:
            target = relayed.permit.target
            self.upstream, self.model = target.upstream.name, target.model or self.call.model
            self.status = relayed.head.status
            self.outcome = RequestOutcome.CLIENT_ERROR
            self.sink.answer(self.status, self._headers(relayed), relayed.body)
            return
        self._end_with_error(step.status, step.code, step.message, _outcome_of(step), step)

    def _end_with_error(
        self, status: int, code: str, message: str, outcome: RequestOutcome, step: GiveUp | None = None
    ) -> None:
        self.outcome = outcome
        if self.sink.started:
            self.sink.write(stream_error_event(self.facts.operation, code, message))
            self.sink.abort()
            return
        self.status = status
        headers = JSON_TYPE + self._own_headers()
        if step is not None and step.retry_after_s is not None:
            headers.append((b"retry-after", b"%d" % max(1, round(step.retry_after_s))))
        if step is not None and step.should_retry is not None:
            headers.append((b"x-should-retry", b"true" if step.should_retry else b"false"))
        body = error_body(status, code, message, attempts=[(a.upstream, a.outcome, a.seconds) for a in self.failover.attempts])
        self.sink.answer(status, headers, body)

    def _own_headers(self) -> Headers:
        return [
            (b"x-request-id", self.facts.request_id.encode()),
            (b"x-sidestep-attempts", b"%d" % len(self.failover.attempts)),
            (b"x-sidestep-path", self.failover.path().encode("utf-8", "replace")),
        ]

    def _headers(self, attempt: Attempt) -> Headers:
        assert attempt.head is not None
        headers = to_client(attempt.head.headers)
        headers += self._own_headers()
        headers.append((b"x-sidestep-upstream", self.upstream.encode()))
        headers.append((b"x-sidestep-model", self.model.encode()))
        upstream_id = attempt.head.get(b"x-request-id") or attempt.head.get(b"request-id")
        if upstream_id is not None:
            headers.append((b"x-sidestep-upstream-request-id", upstream_id))
        self._note_rate_limits(attempt)
        return headers

    def _note_rate_limits(self, attempt: Attempt) -> None:
        assert attempt.head is not None
        for resource in ("requests", "tokens"):
            value = attempt.head.get(b"x-ratelimit-remaining-" + resource.encode())
            if value is not None and value.isdigit():
                self._tell([RateLimitSeen(self._name(attempt), resource, float(value))])

    def _note_usage(self, attempt: Attempt) -> None:
        self.usage = attempt.reader.usage if attempt.reader is not None else attempt.usage
        if self.usage is not None:
            self._tell([TokensUsed(self._name(attempt), attempt.permit.target.label, *self.usage)])

    @staticmethod
    def _name(attempt: Attempt) -> str:
        return attempt.permit.target.upstream.name


class _SoftLimit:
    """The timer of one attempt's soft limit: evidence of slowness, and evacuation if its target opened."""

    __slots__ = ("_attempt", "_forwarding", "_handle", "_loop")

    def __init__(self, forwarding: Forwarding, attempt: Attempt, loop: asyncio.AbstractEventLoop) -> None:
        self._forwarding = forwarding
        self._attempt = attempt
        self._loop = loop
        self._handle = loop.call_later(attempt.timeouts.soft_s, self._passed)

    def cancel(self) -> None:
        """Stop the timer."""
        self._handle.cancel()

    def _passed(self) -> None:
        forwarding = self._forwarding
        now = forwarding._now()  # noqa: SLF001 # one thing in two classes
        at, events = forwarding.failover.soft_limit_passed(self._attempt.permit, now)
        forwarding._tell(events)  # noqa: SLF001
        if at is None:
            self._handle = self._loop.call_later(SOFT_LIMIT_RECHECK_S, self._passed)
        else:
            self._handle = self._loop.call_later(max(0.0, at - now), self._evacuate)

    def _evacuate(self) -> None:
        self._attempt.force(Outcome(Kind.NO_ANSWER, code="evacuated"))


def _outcome_of(step: GiveUp) -> RequestOutcome:
    return RequestOutcome.REJECTED if step.status in (400, 403) else RequestOutcome.UPSTREAM_ERROR
