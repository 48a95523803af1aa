"""Drills: a live proxy treats an upstream as failing, for a while, and tells what its clients felt.

1. A drill has one upstream, one fault, a share of the attempts to hit, and an end: at most an hour away.
2. Nothing is pretended above the attempt: breakers, metrics and failover act on what attempts end in.
3. When it ends, by its time or by hand, nothing hurts any more: what hangs breaks off, what waits goes
   on. Breakers stay as they are and recover by themselves.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from proxy.core.events import BreakerMoved, Event, RequestEnded
from proxy.core.permit import Permit
from proxy.core.steps import Timeouts
from proxy.core.target import Route
from proxy.transport.faults import DrilledAttempt, Fault, read_fault
from proxy.transport.felt import Felt, Listed, Report, extra
from proxy.transport.upstream import Attempt, Upstream, Wire

DEFAULT_S = 60.0
LONGEST_S = 3600.0
KEPT = 20  # ended drills, the last of each upstream
KNOWN = ("upstream", "fault", "share", "for_s")


class Say(Protocol):
    """Writes a line about the process itself to the log."""

    def __call__(self, event: str, fields: Mapping[str, object], *, level: str = "info") -> None:
        """Write it; *fields* are plain data without secrets."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a drill is to do: `share` (0..1) of the attempts on `upstream`, for `for_s` seconds."""

    upstream: str
    fault: Fault
    share: float
    for_s: float


class Drill:
    """One drill, running or over; *routes* are those whose requests it counts."""

    def __init__(
        self, number: int, plan: Plan, began_at: float, rng: random.Random, routes: Collection[str]
    ) -> None:
        self.number = number
        self.plan = plan
        self.fault = plan.fault
        self.began_at = began_at
        self.ended_at: float | None = None
        self.attempts = self.hit = 0
        self.open: set[str] = set()  # requests that were hit and have not ended
        self.timer: asyncio.TimerHandle | None = None
        self._rng = rng
        self._felt = Felt(rng)
        self._routes = routes
        self._held: set[DrilledAttempt] = set()

    def end(self, now: float) -> None:
        """Hit no more, and let go of what is held."""
        self.ended_at = now
        if self.timer is not None:
            self.timer.cancel()
        for attempt in tuple(self._held):
            attempt.let_go()

    def take(self, attempt: DrilledAttempt) -> bool:
        """Count an attempt that begins; tell whether it is hit."""
        if self.ended_at is not None:
            return False
        self.attempts += 1
        if self.plan.share < 1 and self._rng.random() >= self.plan.share:
            return False
        self.hit += 1
        self.open.add(attempt.permit.request_id)
        self._held.add(attempt)
        return True

    def leave(self, attempt: DrilledAttempt) -> None:
        """Note that a hit attempt has come to its first decisive moment."""
        self._held.discard(attempt)

    def request_ended(self, event: RequestEnded, now: float) -> None:
        """Count a request that is the drill's own."""
        is_ours = event.route in self._routes and now - event.duration_s >= self.began_at
        if event.request_id in self.open:
            self.open.discard(event.request_id)
        elif self.ended_at is not None or not is_ours:
            return
        self._felt.request_ended(event)

    def breaker_moved(self, event: BreakerMoved) -> None:
        """Keep a move of the upstream's breakers."""
        self._felt.breaker_moved(event, max(0.0, event.at - self.began_at))

    def left_s(self, now: float) -> float:
        """Return how long it will go on."""
        return 0.0 if self.ended_at is not None else max(0.0, self.began_at + self.plan.for_s - now)

    def report(self, now: float) -> Report:
        """Return what came of it so far."""
        plan, felt = self.plan, self._felt
        failed_over, others = felt.failed_over.latency(), felt.others.latency()
        return Report(
            id=self.number,
            upstream=plan.upstream,
            fault=str(plan.fault),
            share=plan.share,
            for_s=plan.for_s,
            elapsed_s=round((self.ended_at if self.ended_at is not None else now) - self.began_at, 3),
            left_s=round(self.left_s(now), 3),
            running=self.ended_at is None,
            requests=dict(felt.requests),
            open=len(self.open),
            attempts=self.attempts,
            hit=self.hit,
            failed_over=failed_over,
            others=others,
            extra_p50_s=extra(failed_over.p50_s, others.p50_s),
            extra_p99_s=extra(failed_over.p99_s, others.p99_s),
            moves=list(felt.moves),
        )


class Drills:
    """All drills of a proxy: at most one at a time against each upstream.

    `upstreams` are the names there are, `routes` those in use; both are asked when a drill starts.
    """

    def __init__(
        self,
        *,
        upstreams: Callable[[], Collection[str]],
        routes: Callable[[], Iterable[Route]],
        clock: Callable[[], float],
        rng: random.Random,
        say: Say,
    ) -> None:
        self.rng = rng
        self._upstreams = upstreams
        self._routes = routes
        self._clock = clock
        self._say = say
        self._count = 0
        self._running: dict[str, Drill] = {}
        self._ended: dict[str, Drill] = {}
        self.handlers: Mapping[type, Callable[..., None]] = {
            RequestEnded: self._request_ended,
            BreakerMoved: self._breaker_moved,
        }

    def observe(self, event: Event) -> None:
        """Keep what a report will need of an event."""
        handler = self.handlers.get(type(event))
        if handler is not None:
            handler(event)

    def attempt(self, upstream: Upstream, permit: Permit, timeouts: Timeouts, wire: Wire) -> Attempt:
        """Return an attempt, which may be hit if a drill runs against its upstream."""
        drill = self._running.get(upstream.facts.name) if self._running else None
        if drill is None:
            return Attempt(upstream, permit, timeouts, wire)
        return DrilledAttempt(drill, upstream, permit, timeouts, wire)

    def running(self) -> Listed:
        """Return the reports of the drills that run, and of the last of each upstream that has ended."""
        now = self._clock()
        return Listed(
            running=[drill.report(now) for drill in self._running.values()],
            ended=[drill.report(now) for drill in self._ended.values()],
        )

    def active(self) -> Mapping[str, int]:
        """Count the drills that run, by upstream."""
        return dict.fromkeys(self._running, 1)

    def start(self, asked: Mapping[str, object]) -> Report:
        """Start a drill: `upstream`, `fault`, and if wanted `share` (0 to 1) and `for_s`.

        Raises: ValueError, with a message for the caller.
        """
        plan, now = self._read(asked), self._clock()
        name = plan.upstream
        self._count += 1
        drill = Drill(self._count, plan, now, self.rng, _routes_with(name, self._routes()))
        drill.timer = asyncio.get_running_loop().call_later(plan.for_s, self.stop, name)
        self._running[name] = drill
        told = {"upstream": name, "fault": str(plan.fault), "share": plan.share, "for_s": plan.for_s}
        self._say("drill_started", told, level="warning")
        return drill.report(now)

    def stop(self, upstream: str | None) -> dict[str, list[Report]]:
        """End the drill against *upstream*, or all, and return their reports."""
        names = [name for name in self._running if upstream is None or name == upstream]
        return {"ended": [self._end(name) for name in names]}

    def _end(self, name: str) -> Report:
        now = self._clock()
        drill = self._running.pop(name)
        drill.end(now)
        self._ended.pop(name, None)
        self._ended[name] = drill
        if len(self._ended) > KEPT:
            del self._ended[next(iter(self._ended))]
        report = drill.report(now)
        told = {"upstream": name, "fault": report.fault, "seconds": report.elapsed_s, "hit": report.hit}
        self._say("drill_ended", told | {"requests": report.requests, "open": report.open})
        return report

    def _read(self, asked: Mapping[str, object]) -> Plan:
        strange = sorted(set(asked) - set(KNOWN))
        if strange:
            raise ValueError(f"Unknown: {', '.join(strange)}. A drill takes {', '.join(KNOWN)}.")
        upstream, fault = asked.get("upstream"), asked.get("fault")
        if not isinstance(upstream, str) or upstream not in self._upstreams():
            names = ", ".join(self._upstreams())
            raise ValueError(f"No upstream of that name is configured; there are {names}.")
        if upstream in self._running:
            raise ValueError(f"A drill runs against '{upstream}' already; end it first.")
        read = read_fault(fault if isinstance(fault, str) else "")
        share = _number(asked, "share", 1.0, 1.0)
        for_s = _number(asked, "for_s", DEFAULT_S, LONGEST_S)
        return Plan(upstream, read, share, for_s)

    def _request_ended(self, event: RequestEnded) -> None:
        if not self._running and not self._ended:
            return
        now = self._clock()
        for drill in self._running.values():
            drill.request_ended(event, now)
        for drill in self._ended.values():
            if drill.open:
                drill.request_ended(event, now)

    def _breaker_moved(self, event: BreakerMoved) -> None:
        drill = self._running.get(event.upstream)
        if drill is not None:
            drill.breaker_moved(event)


def _routes_with(upstream: str, routes: Iterable[Route]) -> frozenset[str]:
    return frozenset(
        route.name
        for route in routes
        if any(target.upstream.name == upstream for tier in route.tiers for target in tier.targets)
    )


def _number(asked: Mapping[str, object], name: str, default: float, most: float) -> float:
    value = asked.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise ValueError(f"{name} must be a number above 0 and at most {most:g}.")
    return float(value)
