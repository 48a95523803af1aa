"""One simulated proxy: the whole real core, and the forwarder's loop in virtual time.

`_Exchange` is `transport/forwarder.py` without sockets: it makes the same calls to `Failover` in the same
order (next_step, first_content, settle, soft_limit_passed, next_hedge, close) and does what it is told.
Only the wire is made up: what an attempt comes to is a `Fate` instead of bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import assert_never

from proxy.core.budget import Budgets
from proxy.core.deadline import Deadline
from proxy.core.events import BreakerMoved, Decided, Event
from proxy.core.failover import Failover
from proxy.core.outcome import OK, Kind, Outcome
from proxy.core.pool import Pool
from proxy.core.steps import GiveUp, Try, Wait
from proxy.core.target import CallFacts, Route, UpstreamFacts
from proxy.sim.clients import Exchange, Reply
from proxy.sim.ledger import CallRecord, Ending, Ledger, Moved, Sent
from proxy.sim.scripted import STUMBLED, Fate, ScriptedProvider
from proxy.sim.world import World

SOFT_LIMIT_RECHECK_S = 1.0
PATHS = {
    "chat": "chat/completions",
    "completions": "completions",
    "responses": "responses",
    "embeddings": "embeddings",
    "images": "images/generations",
    "audio": "audio/speech",
}
COMMITS = (Kind.OK, Kind.INTERRUPTED, Kind.STALLED)


@dataclass(frozen=True, slots=True)
class Cast:
    """Who plays what: the route for each model of the scenario, the role of each upstream, and the
    provider in each role. `patience_s` is how long clients say they will wait.
    """

    upstreams: tuple[UpstreamFacts, ...]
    routes: Mapping[str, Route]
    roles: Mapping[str, str]
    providers: Mapping[str, ScriptedProvider]
    patience_s: float


class Sidecar:
    """One simulated proxy: its own pool, budgets and chance, as one process has them."""

    def __init__(self, world: World, cast: Cast, ledger: Ledger, number: int) -> None:
        self.number = number
        self.world = world
        self.cast = cast
        self.ledger = ledger
        self.rng = world.rng(f"sidecar {number}")
        self.pool = Pool(cast.upstreams, self.rng)
        self._budgets = Budgets()

    def send(self, record: CallRecord, first: Callable[[], None], done: Callable[[Reply], None]) -> Exchange:
        """Take one request from a client."""
        call = record.call
        route = self.cast.routes[call.model]
        limit_s = max(1.0, self.cast.patience_s - 1.0)  # what openai-python says of itself, less one second
        facts = CallFacts(
            request_id=f"{call.number}.{record.requests}",
            model=_asked_name(route),
            endpoint=PATHS.get(call.operation, call.operation),
            operation=call.operation,
            stream=call.stream,
            digest=b"%d" % call.number,
            client_retry=record.requests - 1,
            client_limit_s=limit_s,
        )
        deadline = Deadline(self.world.now, route.policy.deadline_s, client_s=limit_s)
        failover = Failover(facts, route, self.pool, self._budgets.of(route), deadline, self.rng)
        exchange = _Exchange(self, record, failover, first, done)
        exchange.advance()
        return exchange

    def tell(self, events: Iterable[Event]) -> None:
        """Keep the facts that the report needs."""
        for event in events:
            if isinstance(event, BreakerMoved):
                role = self.cast.roles.get(event.upstream, "")
                self.ledger.moves.append(Moved(self.number, role, event))
                self.world.note("moved", self.number, event.scope, role, event.to_state, event.reason)
            elif isinstance(event, Decided):
                self.ledger.decisions[event.decision, event.reason] += 1


class _Exchange:
    """One request through one simulated proxy: the forwarder's loop, in virtual time."""

    __slots__ = (
        "_attempts",
        "_done",
        "_first",
        "_over",
        "_record",
        "_stumbles",
        "failover",
        "sidecar",
        "world",
    )

    def __init__(
        self,
        sidecar: Sidecar,
        record: CallRecord,
        failover: Failover,
        first: Callable[[], None],
        done: Callable[[Reply], None],
    ) -> None:
        self.sidecar = sidecar
        self.world = sidecar.world
        self.failover = failover
        self._record = record
        self._first = first
        self._done = done
        self._attempts: list[_Attempt] = []
        self._over = False
        self._stumbles = 0

    def advance(self) -> None:
        """Ask the core what to do, and do it."""
        if self._over:
            return
        step, events = self.failover.next_step(self.world.now)
        self.sidecar.tell(events)
        match step:
            case Try():
                attempt = self._start(step)
                if step.hedge_after_s is not None:
                    self.world.after(step.hedge_after_s, lambda: self._hedge(attempt))
            case Wait():
                self.world.at(step.until, self.advance)
            case GiveUp():
                self._give_up(step)
            case _:
                assert_never(step)

    def abandon(self) -> None:
        """The client hangs up."""
        for attempt in tuple(self._attempts):
            self._settle(attempt, Outcome(Kind.CLIENT_GONE))
        self._close()

    def ended(self, attempt: _Attempt, outcome: Outcome) -> None:
        """Hear that an attempt has come to nothing; go on unless another still runs."""
        self._settle(attempt, outcome)
        if not self._attempts:
            self.advance()

    def began(self, attempt: _Attempt) -> None:
        """Hear that an attempt is good: it is committed, and any other is cancelled."""
        for other in tuple(self._attempts):
            if other is not attempt:
                self._settle(other, Outcome(Kind.CANCELLED))
        now = self.world.now
        self.sidecar.tell(self.failover.first_content(attempt.permit, now - attempt.sent_at, now))
        self._first()

    def finished(self, attempt: _Attempt, outcome: Outcome) -> None:
        """Hear how a committed answer ended."""
        self._settle(attempt, outcome, committed=True)
        self._close()
        self._done(Reply(Ending.ANSWERED if outcome.kind is Kind.OK else Ending.INTERRUPTED, 200))

    def _start(self, step: Try) -> _Attempt:
        now, record, sidecar = self.world.now, self._record, self.sidecar
        call = record.call
        role = sidecar.cast.roles[step.permit.target.upstream.name]
        record.attempts += 1
        record.first_choice = record.first_choice or role
        sidecar.ledger.sent.append(
            Sent(now, role, call.model, sidecar.number, step.timeouts.head_s, step.permit.probe)
        )
        self.world.note("sent", call.number, role, step.permit.probe)
        provider = sidecar.cast.providers[role]
        fate = provider.answer(now, call.model, call.operation, stream=call.stream)
        attempt = _Attempt(self, step, fate, provider)
        self._attempts.append(attempt)
        attempt.begin()
        return attempt

    def _hedge(self, beside: _Attempt) -> None:
        if beside.begun or beside not in self._attempts:
            return
        hedge, events = self.failover.next_hedge(self.world.now)
        self.sidecar.tell(events)
        if hedge is not None:
            self._start(hedge)

    def _settle(self, attempt: _Attempt, outcome: Outcome, *, committed: bool = False) -> None:
        attempt.leave()
        self._attempts.remove(attempt)
        self._stumbles += outcome is STUMBLED
        self.world.note("ended", self._record.call.number, outcome.kind)
        committed = committed or attempt.begun
        self.sidecar.tell(self.failover.settle(attempt.permit, outcome, self.world.now, committed=committed))

    def _give_up(self, step: GiveUp) -> None:
        self._close()
        allowed = self.sidecar.cast.routes[self._record.call.model].policy.max_attempts
        is_spent = len(self.failover.attempts) >= allowed
        self._record.unlucky += self._stumbles >= 2 or (self._stumbles == 1 and is_spent)
        refused = step.status < 500 and step.status not in (408, 409, 429)
        ending = Ending.REFUSED if refused else Ending.FAILED
        self._done(Reply(ending, step.status, step.should_retry, step.retry_after_s))

    def _close(self) -> None:
        self._over = True
        self.sidecar.tell(self.failover.close(self.world.now))


class _Attempt:
    """One attempt: its fate, cut short by its limits."""

    __slots__ = (
        "_exchange",
        "_fate",
        "_over",
        "_place",
        "_provider",
        "_timeouts",
        "begun",
        "permit",
        "sent_at",
    )

    def __init__(self, exchange: _Exchange, step: Try, fate: Fate, provider: ScriptedProvider) -> None:
        self.permit = step.permit
        self.sent_at = exchange.world.now
        self.begun = False
        self._exchange = exchange
        self._timeouts = step.timeouts
        self._fate = fate
        self._provider = provider
        self._over = False
        self._place = provider.enter(self._cut)

    def begin(self) -> None:
        """Schedule what comes first: the fate, or the limit that cuts it short, and the soft limit."""
        world, limits, fate = self._exchange.world, self._timeouts, self._fate
        limit_s = limits.connect_s if fate.outcome.kind is Kind.CONNECT_FAILED else limits.head_s
        decided_s = min(fate.first_s, limit_s)
        world.after(decided_s, self._decided if fate.first_s <= limit_s else self._timed_out)
        if limits.soft_s < decided_s:
            world.after(limits.soft_s, self._soft_limit_passed)

    def leave(self) -> None:
        """Be over: whatever is still scheduled does nothing."""
        self._over = True
        self._provider.leave(self._place)

    def _decided(self) -> None:
        if self._over:
            return
        if self._fate.outcome.kind not in COMMITS:
            self._exchange.ended(self, self._fate.outcome)
            return
        self.begun = True
        self._exchange.began(self)
        more_s = self._fate.end_s - self._fate.first_s
        if self._fate.outcome.kind is Kind.STALLED:
            more_s += self._timeouts.stall_s
        if more_s > 0:
            self._exchange.world.after(more_s, self._finished)
        else:
            self._finished()

    def _finished(self) -> None:
        if not self._over:
            kind = self._fate.outcome.kind
            self._exchange.finished(self, OK if kind is Kind.OK else self._fate.outcome)

    def _timed_out(self) -> None:
        if not self._over:
            kind = self._fate.outcome.kind
            failed = kind if kind is Kind.CONNECT_FAILED else Kind.NO_ANSWER
            self._exchange.ended(self, Outcome(failed, client_cut=self._timeouts.client_cut))

    def _soft_limit_passed(self) -> None:
        if self._over or self.begun:
            return
        world = self._exchange.world
        at, events = self._exchange.failover.soft_limit_passed(self.permit, world.now)
        self._exchange.sidecar.tell(events)
        if at is None:
            world.after(SOFT_LIMIT_RECHECK_S, self._soft_limit_passed)
        else:
            world.at(at, self._evacuate)

    def _evacuate(self) -> None:
        if not self._over and not self.begun:
            self._exchange.ended(self, Outcome(Kind.NO_ANSWER, code="evacuated"))

    def _cut(self) -> None:
        if self._over:
            return
        if self.begun:
            self._exchange.finished(self, Outcome(Kind.INTERRUPTED, status=200, code="cut"))
        else:
            self._exchange.ended(self, Outcome(Kind.RESET, code="head"))


def _asked_name(route: Route) -> str:
    """Return a model name that matches the route: its own, or one that fits its pattern."""
    return route.name.replace("*", "simulated")
