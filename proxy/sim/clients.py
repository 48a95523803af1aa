"""The applications: Poisson arrivals, streams and others, and an SDK that retries as openai-python does.

The same arrivals, drawn from the same seed, are played with Sidestep and without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Protocol

from proxy.core.outcome import Kind, Outcome
from proxy.sim.ledger import Call, CallRecord, Ending, Ledger, Sent
from proxy.sim.scenario import Traffic
from proxy.sim.scripted import NEVER, ScriptedProvider
from proxy.sim.world import World

# openai-python: _constants.py and _base_client.py (2 retries, 0.5 s doubling to 8 s, minus up to a
# quarter; Retry-After obeyed up to 60 s; 408, 409, 429 and 5xx are retried unless x-should-retry says no;
# connecting may take 5 s).
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 8.0
LONGEST_RETRY_AFTER_S = 60.0
CONNECT_S = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    """How one HTTP request ended for the SDK; `status` is `None` where no answer came."""

    ending: Ending
    status: int | None = None
    should_retry: bool | None = None
    retry_after_s: float | None = None
    in_band: bool = False

    @property
    def is_retried(self) -> bool:
        """Tell whether the SDK would try again."""
        if self.ending in (Ending.ANSWERED, Ending.INTERRUPTED) or self.in_band:
            return False
        if self.should_retry is not None:
            return self.should_retry
        return self.status is None or self.status in (408, 409, 429) or self.status >= 500


class Exchange(Protocol):
    """One HTTP request under way; `abandon` is the client hanging up."""

    def abandon(self) -> None: ...


# Sends one request; calls `first` when the answer begins and `done` when it is over.
Send = Callable[[CallRecord, Callable[[], None], Callable[[Reply], None]], Exchange]


def arrivals(traffic: Traffic, duration: float, rng: Random) -> Iterator[Call]:
    """Yield every call of every sidecar, in the order of time."""
    now, number = 0.0, 0
    while True:
        now += rng.expovariate(traffic.rate * traffic.sidecars)
        if now >= duration:
            return
        operation = _pick(traffic.operations, rng)
        yield Call(
            number=number,
            at=now,
            sidecar=rng.randrange(traffic.sidecars),
            model=_pick(traffic.models, rng),
            operation=operation,
            stream=operation != "embeddings" and rng.random() < traffic.streams,
        )
        number += 1


def _pick(weights: dict[str, float], rng: Random) -> str:
    return next(iter(weights)) if len(weights) == 1 else rng.choices(list(weights), list(weights.values()))[0]


class SdkCall:
    """One call as the SDK makes it: a request, and another if that fails in a way worth retrying."""

    __slots__ = ("_exchange", "_rng", "_send", "_traffic", "_waits_for", "_world", "record")

    def __init__(self, world: World, call: Call, traffic: Traffic, send: Send, rng: Random) -> None:
        self.record = CallRecord(call)
        self._world = world
        self._traffic = traffic
        self._send = send
        self._rng = rng
        self._exchange: Exchange | None = None
        self._waits_for = 0  # the number of the request under way; 0: none

    def start(self) -> None:
        """Send the first or the next request and give it `patience` to begin answering."""
        self.record.requests += 1
        number = self._waits_for = self.record.requests
        self._world.after(self._traffic.patience, lambda: self._impatient(number))
        self._exchange = self._send(self.record, self._first, self._done)

    def _first(self) -> None:
        self.record.first_s = self._world.now - self.record.call.at

    def _impatient(self, number: int) -> None:
        waiting = number == self._waits_for and self.record.first_s is None
        if waiting and self._exchange is not None:
            self._exchange.abandon()
            self._done(Reply(Ending.GAVE_UP))

    def _done(self, reply: Reply) -> None:
        self._waits_for = 0  # `_send` may call this before it returns the exchange
        record = self.record
        if reply.ending in (Ending.FAILED, Ending.GAVE_UP):
            record.failed_requests += 1
        if reply.is_retried and record.requests <= self._traffic.retries:
            self._world.after(self._delay_s(reply), self.start)
            return
        record.ending, record.status, record.ended_at = reply.ending, reply.status, self._world.now

    def _delay_s(self, reply: Reply) -> float:
        if reply.retry_after_s is not None and 0 < reply.retry_after_s <= LONGEST_RETRY_AFTER_S:
            return reply.retry_after_s
        delay_s = min(FIRST_DELAY_S * 2.0 ** (self.record.requests - 1), LONGEST_DELAY_S)
        return delay_s * (1 - 0.25 * self._rng.random())


class Direct:
    """The world without Sidestep: the SDK talks to the first provider, and to nobody else."""

    def __init__(self, world: World, provider: ScriptedProvider, ledger: Ledger) -> None:
        self._world = world
        self._provider = provider
        self._ledger = ledger

    def send(self, record: CallRecord, first: Callable[[], None], done: Callable[[Reply], None]) -> Exchange:
        """Send one request straight to the provider."""
        call = record.call
        record.attempts += 1
        record.first_choice = self._provider.role
        sent = Sent(self._world.now, self._provider.role, call.model, call.sidecar, NEVER, probe=False)
        self._ledger.sent.append(sent)
        return _DirectExchange(self._world, self._provider, call, first, done)


class _DirectExchange:
    """One request to the provider itself, ended by the provider or by the client's patience."""

    def __init__(
        self,
        world: World,
        provider: ScriptedProvider,
        call: Call,
        first: Callable[[], None],
        done: Callable[[Reply], None],
    ) -> None:
        self._world = world
        self._provider = provider
        self._first = first
        self._done = done
        self._begun = False
        self._over = False
        self._fate = provider.answer(world.now, call.model, call.operation, stream=call.stream)
        self._place = provider.enter(self._cut)
        if self._fate.outcome.kind is Kind.CONNECT_FAILED:
            world.after(min(self._fate.first_s, CONNECT_S), self._decided)
        elif self._fate.first_s != NEVER:
            world.after(self._fate.first_s, self._decided)

    def abandon(self) -> None:
        """Hang up."""
        self._over = True
        self._provider.leave(self._place)

    def _decided(self) -> None:
        outcome = self._fate.outcome
        if self._over:
            return
        if outcome.kind not in (Kind.OK, Kind.INTERRUPTED, Kind.STALLED):
            self._end(reply_to(outcome))
            return
        self._begun = True
        self._first()
        ending = Ending.ANSWERED if outcome.kind is Kind.OK else Ending.INTERRUPTED
        self._world.after(self._fate.end_s - self._fate.first_s, lambda: self._end(Reply(ending, 200)))

    def _cut(self) -> None:
        self._end(Reply(Ending.INTERRUPTED if self._begun else Ending.FAILED))

    def _end(self, reply: Reply) -> None:
        if not self._over:
            self.abandon()
            self._done(reply)


def reply_to(outcome: Outcome) -> Reply:
    """Return what the SDK makes of a provider's bad answer."""
    status = outcome.status
    refused = status is not None and 400 <= status < 500 and status not in (408, 409, 429)
    return Reply(
        Ending.REFUSED if refused else Ending.FAILED,
        status,
        retry_after_s=outcome.retry_after_s,
        in_band=outcome.in_band,
    )
