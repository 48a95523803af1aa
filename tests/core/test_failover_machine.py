"""Many requests at once on one route, in any order of events: the rules of failover hold for each."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.core.budget import RetryBudget
from proxy.core.deadline import Deadline
from proxy.core.failover import Failover
from proxy.core.outcome import OK, Kind, Outcome
from proxy.core.permit import Permit
from proxy.core.pool import Pool
from proxy.core.steps import GiveUp, Try, Wait
from proxy.core.target import BreakerPolicy, RoutePolicy
from tests.core.given import a_call, a_route, a_target

BREAKER = BreakerPolicy(consecutive=3)
POLICY = RoutePolicy(max_attempts=4, hold_s=10.0, deadline_s=60.0, hedge=1.0, patience_s=2.0)
ROUTE = a_route(
    a_target("a", facts={"breaker": BREAKER, "credentials": ("k1", "k2")}),
    [
        a_target("b", facts={"breaker": BREAKER, "max_concurrency": 3}),
        a_target("c", facts={"breaker": BREAKER}),
    ],
    a_target("a", "small", facts={"breaker": BREAKER, "credentials": ("k1", "k2")}, context=1000),
    policy=POLICY,
)
TARGETS = [target for tier in ROUTE.tiers for target in tier.targets]
OUTCOMES = st.one_of(
    st.sampled_from([OK, Outcome(Kind.OVERLOADED, status=503), Outcome(Kind.SERVER_ERROR, status=500)]),
    st.builds(
        Outcome,
        st.sampled_from([kind for kind in Kind if kind is not Kind.OK]),
        status=st.sampled_from([None, 500]),
        retry_after_s=st.sampled_from([None, 1.5, 20.0]),
        unready=st.booleans(),
    ),
)


@dataclass(eq=False)
class Running:
    """One request under way."""

    failover: Failover
    began: float
    asks_at: float
    permits: list[Permit] = field(default_factory=list)
    sent: int = 0
    stale: int = 0
    by_target: Counter[tuple[str, str]] = field(default_factory=Counter)


class FailoverMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.rng = random.Random(1)
        facts = {target.upstream.name: target.upstream for target in TARGETS}
        self.pool = Pool(facts.values(), self.rng)
        self.budget = RetryBudget()
        self.running: list[Running] = []
        self.number = 0

    @rule(seconds=st.sampled_from([0.0, 0.05, 1.0, 4.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(body=st.integers(0, 3), stream=st.booleans(), replayable=st.sampled_from([True, True, True, False]))
    def a_request_arrives(self, body: int, *, stream: bool, replayable: bool) -> None:
        self.number += 1
        call = a_call(self.number, digest=b"%d" % body, stream=stream, replayable=replayable)
        deadline = Deadline(self.now, POLICY.deadline_s)
        failover = Failover(call, ROUTE, self.pool, self.budget, deadline, self.rng)
        request = Running(failover, self.now, self.now)
        self.running.append(request)
        self.ask(request)

    @precondition(lambda self: any(not request.permits for request in self.running))
    @rule(which=st.integers(0, 1000))
    def a_waiting_request_asks(self, which: int) -> None:
        waiting = [request for request in self.running if not request.permits]
        request = waiting[which % len(waiting)]
        self.now = max(self.now, request.asks_at)
        self.ask(request)

    def ask(self, request: Running) -> None:
        step, _ = request.failover.next_step(self.now)
        match step:
            case Try():
                self.sent(request, step)
            case Wait():
                assert step.until > self.now
                assert step.until <= request.began + POLICY.deadline_s + 1e-9
                request.asks_at = step.until
            case GiveUp():
                self.end(request)

    def sent(self, request: Running, step: Try) -> None:
        request.permits.append(step.permit)
        request.sent += 1
        request.by_target[step.permit.target.key] += 1
        assert request.sent - request.stale <= POLICY.max_attempts
        assert step.timeouts.head_s > 0.0
        assert step.timeouts.connect_s > 0.0

    @precondition(lambda self: any(request.permits for request in self.running))
    @rule(which=st.integers(0, 1000), outcome=OUTCOMES)
    def an_attempt_ends(self, which: int, outcome: Outcome) -> None:
        trying = [request for request in self.running if request.permits]
        request = trying[which % len(trying)]
        permit = request.permits.pop(which % len(request.permits))
        if outcome.kind is Kind.OK:
            request.failover.first_content(permit, 0.1, self.now)
            for loser in request.permits:
                request.failover.settle(loser, Outcome(Kind.CANCELLED), self.now)
            request.permits.clear()
        request.stale += outcome.kind is Kind.STALE_CONNECTION
        request.failover.settle(permit, outcome, self.now, committed=outcome.kind is Kind.OK)
        if outcome.kind is Kind.OK:
            self.end(request)
        elif not request.permits:
            self.ask(request)

    @precondition(lambda self: any(request.permits for request in self.running))
    @rule(which=st.integers(0, 1000))
    def a_hedge_is_asked_for(self, which: int) -> None:
        trying = [request for request in self.running if request.permits]
        request = trying[which % len(trying)]
        hedge, _ = request.failover.next_hedge(self.now)
        if hedge is not None:
            assert not hedge.permit.probe
            self.sent(request, hedge)
            assert len({permit.target.key for permit in request.permits}) == 2

    @precondition(lambda self: any(request.permits for request in self.running))
    @rule(which=st.integers(0, 1000))
    def a_soft_limit_passes(self, which: int) -> None:
        trying = [request for request in self.running if request.permits]
        request = trying[which % len(trying)]
        at, _ = request.failover.soft_limit_passed(request.permits[0], self.now)
        assert at is None or at >= self.now

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1000))
    def a_client_leaves(self, which: int) -> None:
        self.end(self.running[which % len(self.running)])

    def end(self, request: Running) -> None:
        request.failover.close(self.now)
        self.running.remove(request)

    @invariant()
    def in_flight_is_what_runs(self) -> None:
        for name in ("a", "b", "c"):
            running = sum(p.target.upstream.name == name for request in self.running for p in request.permits)
            assert self.pool.in_flight(name) == running

    @invariant()
    def no_target_has_two_probes(self) -> None:
        young = [p for request in self.running for p in request.permits if self.now - p.issued_at < 30.0]
        probes = [(p.target.key, p.admission.generation) for p in young if p.admission.probe]
        assert len(probes) == len(set(probes))

    @invariant()
    def nobody_asks_one_target_again_and_again(self) -> None:
        for request in self.running:
            assert max(request.by_target.values(), default=0) <= POLICY.max_attempts + request.stale

    @invariant()
    def only_who_waits_is_in_line(self) -> None:
        line = self.pool.lines.of(ROUTE.name)
        assert (len(line) if line is not None else 0) <= sum(not request.permits for request in self.running)

    def teardown(self) -> None:
        for request in list(self.running):
            self.end(request)
        assert sum(self.pool.attempts_in_flight().values()) == 0
        assert self.pool.lines.of(ROUTE.name) is None


TestFailoverMachine = FailoverMachine.TestCase
