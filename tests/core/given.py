"""What the core's tests are given: upstreams, targets, routes, calls, and a request to walk through."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from proxy.core.budget import RetryBudget
from proxy.core.deadline import Deadline
from proxy.core.events import Decided, Event
from proxy.core.failover import Failover
from proxy.core.outcome import OK, Kind, Outcome
from proxy.core.permit import Permit
from proxy.core.pool import Pool
from proxy.core.steps import GiveUp, Step, Try, Wait
from proxy.core.target import BreakerPolicy, CallFacts, Route, RoutePolicy, Target, Tier, UpstreamFacts

NOW = 1000.0

# Breakers that open after three failures, and for nothing else.
TOUCHY = BreakerPolicy(consecutive=3, adaptive=False, min_requests=1000)


def an_upstream(name: str, **changes: Any) -> UpstreamFacts:
    facts = UpstreamFacts(name, endpoint=f"https://{name}:443", credentials=(f"{name}-key",), fate=name)
    return replace(facts, **changes)


def a_target(
    name: str, model: str | None = "m", *, facts: dict[str, Any] | None = None, **changes: Any
) -> Target:
    return Target(an_upstream(name, **(facts or {})), model, **changes)


def a_route(
    *tiers: Target | Iterable[Target], name: str = "m", policy: RoutePolicy | None = None, **changes: Any
) -> Route:
    made = tuple(Tier((tier,)) if isinstance(tier, Target) else Tier(tuple(tier)) for tier in tiers)
    return Route(name, made, policy=policy or RoutePolicy(), **changes)


def a_call(number: int = 1, **changes: Any) -> CallFacts:
    call = CallFacts(f"r{number}", "m", "chat/completions", "chat", digest=b"%d" % number)
    return replace(call, **changes)


def failed(kind: Kind = Kind.SERVER_ERROR, status: int | None = 500, **details: Any) -> Outcome:
    return Outcome(kind, status=status, **details)


OVERLOADED = Outcome(Kind.OVERLOADED, status=503)
REFUSED_TO_CONNECT = Outcome(Kind.CONNECT_FAILED, code="refused")


class Given:
    """A pool, a budget, and requests on one route, with a clock that is moved by hand."""

    def __init__(self, route: Route, *, seed: int = 1, now: float = NOW) -> None:
        self.route = route
        self.rng = random.Random(seed)
        facts = {t.upstream.name: t.upstream for tier in route.tiers for t in tier.targets}
        self.pool = Pool(facts.values(), self.rng)
        self.budget = RetryBudget(route.policy.retry_budget_ratio)
        self.now = now
        self.requests = 0

    def request(self, *, asked_s: float | None = None, **changes: Any) -> Request:
        self.requests += 1
        return Request(self, a_call(self.requests, **changes), asked_s)

    def open(self, upstream: str, *, times: int = 3, outcome: Outcome = OVERLOADED) -> None:
        """Let *upstream* fail until its breaker is open."""
        route = self.route
        only = [t for tier in route.tiers for t in tier.targets if t.upstream.name == upstream]
        self.route = a_route(*only, name=route.name)
        for _ in range(times):
            request = self.request(stream=False)
            request.attempt(outcome)
            request.close()
        self.route = route

    def state(self, upstream: str, scope: str = "target") -> str:
        found = [s for s in self.pool.snapshot(self.now) if (s.upstream, s.scope) == (upstream, scope)]
        return found[0].state if found else "closed"


class Request:
    """One request, walked through step by step."""

    def __init__(self, given: Given, call: CallFacts, asked_s: float | None = None) -> None:
        self.given = given
        self.call = call
        policy = given.route.policy
        deadline = Deadline(given.now, policy.deadline_s, asked_s, call.client_limit_s)
        self.failover = Failover(call, given.route, given.pool, given.budget, deadline, given.rng)
        self.events: list[Event] = []

    def step(self) -> Step:
        step, events = self.failover.next_step(self.given.now)
        self.events += events
        return step

    def try_(self) -> Try:
        """Take the next step, which is an attempt."""
        step = self.step()
        assert isinstance(step, Try), step
        return step

    def wait(self) -> Wait:
        """Take the next step, which is to wait."""
        step = self.step()
        assert isinstance(step, Wait), step
        return step

    def gives_up(self) -> GiveUp:
        """Take the next step, which is the end."""
        step = self.step()
        assert isinstance(step, GiveUp), step
        return step

    def settle(self, permit: Permit, outcome: Outcome, *, committed: bool = False) -> None:
        self.events += self.failover.settle(permit, outcome, self.given.now, committed=committed)

    def attempt(self, outcome: Outcome, *, after_s: float = 0.0) -> str:
        """Make an attempt that ends so, waiting before it if need be; return its upstream."""
        step = self.after_waiting()
        assert isinstance(step, Try), step
        self.given.now += after_s
        if outcome is OK:
            self.events += self.failover.first_content(step.permit, after_s, self.given.now)
        self.settle(step.permit, outcome, committed=outcome is OK)
        return step.permit.target.upstream.name

    def after_waiting(self) -> Step:
        """Take steps, letting time pass, until one is not to wait."""
        while isinstance(step := self.step(), Wait):
            assert step.until > self.given.now
            self.given.now = step.until
        return step

    def close(self) -> None:
        self.events += self.failover.close(self.given.now)

    def decisions(self) -> list[tuple[str, str, str]]:
        """Return (decision, upstream, reason) of each decision so far."""
        return [(e.decision.value, e.upstream, e.reason) for e in self.events if isinstance(e, Decided)]
