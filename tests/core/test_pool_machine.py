"""Whatever happens to attempts, in whatever order, the pool's accounts are right."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.core.breaker import Admission
from proxy.core.budget import RetryBudget
from proxy.core.outcome import OK, Kind, Outcome
from proxy.core.permit import Permit, Shift
from proxy.core.pool import Pool
from proxy.core.target import BreakerPolicy, Target
from tests.core.given import a_call, a_target

BREAKER = BreakerPolicy(consecutive=3)
FEW = {"breaker": BREAKER, "max_concurrency": 4}
KEYS = {"breaker": BREAKER, "credentials": ("k1", "k2")}
TARGETS = [
    a_target("a", "m1", facts=FEW),
    a_target("a", "m2", facts=FEW),
    a_target("b", "m1", facts=KEYS),
    a_target("b", "asked-for", wildcard=True, facts=KEYS),
]
UPSTREAMS = list({target.upstream.name: target.upstream for target in TARGETS}.values())
OUTCOMES = st.one_of(
    st.just(OK),
    st.builds(
        Outcome,
        st.sampled_from(Kind),
        retry_after_s=st.sampled_from([None, 0.5, 10.0, 1e6]),
        unready=st.booleans(),
        client_cut=st.booleans(),
    ),
)
# The longest anything may be out of reach: a key refused three times and more.
LONGEST_S = 900.0


class PoolMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.pool = Pool(UPSTREAMS, random.Random(1))
        self.budget = RetryBudget()
        self.open: list[Permit] = []
        self.number = 0
        self.drained: set[str] = set()

    @rule(seconds=st.sampled_from([0.0, 0.01, 1.0, 5.0, 31.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(to=st.sampled_from(TARGETS), how=st.sampled_from(["plain", "displaced", "held", "least bad"]))
    def an_attempt_is_asked_for(self, to: Target, how: str) -> None:
        self.number += 1
        self.budget.deposit(self.now)
        call = a_call(self.number)
        if how == "least bad":
            permit = self.pool.try_least_bad([to], call, 1, self.now, TARGETS)
        else:
            shift = None if how == "plain" else Shift(self.budget, held=how == "held")
            available = self.pool.admits(to, "chat", self.now, shift)
            permit = self.pool.try_acquire(to, call, 1, self.now, others=TARGETS, shift=shift)
            assert available.ok or permit is None
        if permit is not None:
            assert to.upstream.name not in self.drained
            self.open.append(permit)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 1000), seconds=st.floats(0.0, 100.0))
    def content_arrives(self, which: int, seconds: float) -> None:
        permit = self.open[which % len(self.open)]
        self.pool.first_content(permit, seconds, self.now)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 1000))
    def the_soft_limit_passes(self, which: int) -> None:
        self.pool.soft_limit_passed(self.open[which % len(self.open)], self.now)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 1000), outcome=OUTCOMES, committed=st.booleans(), poisoned=st.booleans())
    def an_attempt_ends(self, which: int, outcome: Outcome, *, committed: bool, poisoned: bool) -> None:
        permit = self.open.pop(which % len(self.open))
        self.pool.settle(permit, outcome, self.now, committed=committed, poisoned=poisoned)

    @rule(name=st.sampled_from(["a", "b"]))
    def an_upstream_is_drained_or_put_back(self, name: str) -> None:
        if name in self.drained:
            self.pool.undrain(name)
        else:
            self.pool.drain(name)
        self.drained ^= {name}

    @rule()
    def the_configuration_is_read_again(self) -> None:
        self.pool.update(UPSTREAMS)

    @rule()
    def a_health_check_passes(self) -> None:
        for name in self.pool.due_checks(self.now):
            self.pool.health_check_passed(name, self.now)

    @invariant()
    def in_flight_is_what_is_open(self) -> None:
        for name in ("a", "b"):
            assert self.pool.in_flight(name) == sum(p.target.upstream.name == name for p in self.open)
        counted = sum(s.in_flight for s in self.pool.snapshot(self.now) if s.scope == "endpoint")
        assert counted == len(self.open)

    @invariant()
    def no_upstream_takes_more_than_it_may(self) -> None:
        rule_breakers = sum(p.least_bad and p.target.upstream.name == "a" for p in self.open)
        assert self.pool.in_flight("a") <= 4 + rule_breakers

    @invariant()
    def there_are_never_two_probes_of_one_target(self) -> None:
        # A lease lasts half a minute at least; what is older may have been replaced.
        young = [permit for permit in self.open if self.now - permit.issued_at < 30.0]
        probes = [(id(cell), ticket.generation) for permit in young for cell, ticket in _tickets(permit)]
        assert len(probes) == len(set(probes))

    @invariant()
    def nothing_is_out_of_reach_for_ever(self) -> None:
        for target in TARGETS:
            found = self.pool.admits(target, "chat", self.now)
            assert found.ok or found.reason == "drained" or found.at <= self.now + LONGEST_S

    def teardown(self) -> None:
        for permit in self.open:
            self.pool.settle(permit, Outcome(Kind.CANCELLED), self.now)
        assert self.pool.attempts_in_flight() == {"a": 0, "b": 0}


def _tickets(permit: Permit) -> Iterator[tuple[object, Admission]]:
    """Return what the attempt is a probe of."""
    cells = (permit.cell, permit.cell.upstream.endpoint, permit.key.credential)
    tickets = (permit.admission, permit.endpoint_admission, permit.credential_admission)
    for cell, ticket in zip(cells, tickets, strict=True):
        if ticket is not None and ticket.probe and not ticket.settled:
            yield cell, ticket


TestPoolMachine = PoolMachine.TestCase
