"""Whatever happens, in whatever order: one live probe, no leak while open, and nothing wedges."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from proxy.core.breaker import TRANSITIONS, Admission, Breaker, Move, State
from proxy.core.outcome import Kind, Outcome
from proxy.core.target import BreakerPolicy

LEASE_S, OPEN_MAX_S = 30.0, 30.0
OUTCOMES = [Outcome(kind) for kind in Kind] + [
    Outcome(Kind.NO_ANSWER, client_cut=True),
    Outcome(Kind.OVERLOADED, unready=True),
]
POLICIES = st.builds(
    BreakerPolicy,
    window_s=st.sampled_from([1.0, 30.0, 600.0]),
    failure_ratio=st.sampled_from([0.1, 0.5, 1.0]),
    min_requests=st.sampled_from([1, 10]),
    consecutive=st.sampled_from([1, 2, 5]),
    slow_after_s=st.sampled_from([None, 1.0]),
    slow_ratio=st.sampled_from([0.1, 0.8]),
    adaptive=st.booleans(),
    open_s=st.sampled_from([0.5, 5.0, 60.0]),
    open_max_s=st.just(OPEN_MAX_S),
    recovery_s=st.sampled_from([0.0, 15.0]),
)


class BreakerMachine(RuleBasedStateMachine):
    """Attempts begin, answer, hang, end or are lost, while time passes and other rooms interfere."""

    attempts: Bundle[Admission] = Bundle("attempts")

    @initialize(policy=POLICIES, seed=st.integers(0, 1_000))
    def begin(self, policy: BreakerPolicy, seed: int) -> None:
        self.policy = policy
        self.breaker = Breaker(policy)
        self.rng = Random(seed)
        self.now = 1_000.0
        self.probes: dict[int, float] = {}  # the live ones' generations, and when each lease ends
        self.last_state = State.CLOSED
        self.unavailable_since: float | None = None
        self.number = 0

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.4, 1.0, 3.0, 7.5, 14.0, 29.9, 31.0, 700.0]))
    def time_passes(self, seconds: float) -> None:
        # In small steps, so that the moment in which somebody could have asked is not missed.
        for _ in range(20):
            self.now += seconds / 20
            self.nothing_stays_unavailable()

    @rule(target=attempts)
    def ask(self) -> Admission:
        could, opens_until = self.breaker.peek(self.now), self.breaker.snapshot(self.now).opens_until
        admission = self.breaker.admit(self.now, self.rng)
        if opens_until is not None:
            assert (admission is not None) == (self.now >= opens_until), "open means open, and no longer"
        if admission is None:
            assert not could or self.breaker.state is State.RECOVERING, (
                "only chance may say no to who may ask"
            )
            return Admission(-1, False, self.now)
        assert could
        if admission.probe:
            self.forget_dead_probes()
            assert not self.probes, "two live probes"
            assert self.breaker.state is State.HALF_OPEN
            self.probes[admission.generation] = self.now + LEASE_S
        return admission

    @rule(target=attempts)
    def ask_against_the_rules(self) -> Admission:
        before = dict(self.probes)
        admission = self.breaker.admit_anyway(self.now, self.rng)
        if admission.probe:
            self.probes = {**before, admission.generation: self.now + LEASE_S}
        return admission

    @rule(admission=attempts, seconds=st.sampled_from([0.3, 5.0]))
    def answer(self, admission: Admission, seconds: float) -> None:
        if not admission.settled:
            self.take(
                self.breaker.first_content(
                    admission, seconds, self.now, request=self.name(), rng=self.rng, alternative=self.other
                )
            )

    @rule(admission=attempts)
    def pass_soft_limit(self, admission: Admission) -> None:
        if not admission.settled:
            self.take(
                self.breaker.soft_limit_passed(
                    admission, self.now, request=self.name(), rng=self.rng, alternative=self.other
                )
            )

    @rule(admission=consumes(attempts), outcome=st.sampled_from(OUTCOMES), poisoned=st.booleans())
    def end(self, admission: Admission, outcome: Outcome, poisoned: bool) -> None:
        self.take(
            self.breaker.record(
                admission,
                outcome,
                self.now,
                request=self.name(),
                rng=self.rng,
                committed=admission.answered,
                poisoned=poisoned,
                alternative=self.other,
            )
        )
        if admission.probe:
            self.probes.pop(admission.generation, None)

    @rule(admission=consumes(attempts))
    def lose(self, admission: Admission) -> None:
        """A bug: the attempt is never settled."""

    @rule(times=st.integers(1, 8))
    def fail_in_a_row(self, times: int) -> None:
        for _ in range(times):
            admission = self.ask()
            if admission.generation >= 0:
                self.end(admission, Outcome(Kind.SERVER_ERROR), poisoned=False)

    @rule(seconds=st.sampled_from([1.0, 30.0]))
    def open_from_outside(self, seconds: float) -> None:
        self.take(self.breaker.trip("unauthorized", seconds, self.now))
        self.unavailable_since = None  # who orders it again and again gets what is ordered

    @rule()
    def health_check(self) -> None:
        self.take(self.breaker.health_check_passed(self.now))

    @precondition(lambda self: self.breaker.state is not State.CLOSED)
    @rule()
    def idle(self) -> None:
        """Whatever was going on: left alone for a lease and the longest open time, it can be tried."""
        self.now += LEASE_S + OPEN_MAX_S
        assert self.breaker.peek(self.now)
        self.unavailable_since = None

    @invariant()
    def nothing_stays_unavailable(self) -> None:
        if self.breaker.peek(self.now):
            self.unavailable_since = None
            return
        if self.unavailable_since is None:
            self.unavailable_since = self.now
        assert self.now - self.unavailable_since <= LEASE_S + OPEN_MAX_S

    @invariant()
    def it_can_be_tried_when_it_says_so(self) -> None:
        at = self.breaker.available_at(self.now)
        assert self.now <= at <= self.now + max(LEASE_S, OPEN_MAX_S)
        assert self.breaker.peek(at)

    @invariant()
    def the_share_fits_the_state(self) -> None:
        share = self.breaker.share(self.now)
        if self.breaker.state is State.RECOVERING:
            assert 0 < share <= 1
        else:
            assert share == (1.0 if self.breaker.state is State.CLOSED else 0.0)

    @invariant()
    def every_move_is_listed(self) -> None:
        self.take(self.breaker.take_moves())
        assert self.last_state is self.breaker.state, "a move was not reported"

    def take(self, moves: list[Move]) -> None:
        listed = {(before, after) for (before, _), after in TRANSITIONS.items()}
        for move in moves:
            assert move.from_state is self.last_state
            assert (move.from_state, move.to_state) in listed
            assert move.reason
            if move.to_state is State.OPEN and move.reason != "unauthorized":
                assert 0 <= move.numbers["open_s"] <= OPEN_MAX_S
            self.last_state = move.to_state
        if self.breaker.state is not State.HALF_OPEN:
            self.probes.clear()

    def forget_dead_probes(self) -> None:
        self.probes = {generation: until for generation, until in self.probes.items() if until > self.now}

    def other(self) -> float | None:
        return self.rng.choice([None, 0.001, 0.5])

    def name(self) -> str:
        self.number += 1
        return f"request {self.number}"


BreakerMachine.TestCase.settings = settings(stateful_step_count=50)
TestBreakerMachine = BreakerMachine.TestCase
