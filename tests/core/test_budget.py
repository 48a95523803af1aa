from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.core.budget import Budgets, RetryBudget
from proxy.core.meter import Meter
from proxy.core.target import RoutePolicy
from tests.core.given import a_route, a_target


def test_a_quiet_route_may_retry_once_a_second() -> None:
    budget = RetryBudget(ratio=0.2)
    assert sum(budget.try_retry(100.0) for _ in range(50)) == 10
    assert not budget.try_retry(105.0)
    assert sum(budget.try_retry(110.5) for _ in range(50)) == 10


def test_ten_thousand_requests_buy_their_share_and_the_floor() -> None:
    budget = RetryBudget(ratio=0.2)
    for number in range(10_000):
        budget.deposit(100.0 + number / 1000)
    assert sum(budget.try_retry(109.99) for _ in range(5000)) == 2000 + 10


def test_a_calm_hour_buys_no_storm() -> None:
    budget = RetryBudget(ratio=0.2)
    for second in range(3600):
        budget.deposit(float(second))
    assert sum(budget.try_retry(3600.0) for _ in range(100)) == 11


def test_retries_are_a_share_of_a_steady_stream_of_requests() -> None:
    budget = RetryBudget(ratio=0.2)
    retries = 0
    for number in range(60_000):
        now = number / 100
        budget.deposit(now)
        retries += budget.try_retry(now)
    assert retries == pytest.approx(60_000 * 0.2 + 600, rel=0.02)


def test_what_is_left_is_shown_as_a_ratio() -> None:
    budget = RetryBudget(ratio=0.2)
    assert budget.left(100.0) == 1.0
    for _ in range(5):
        budget.try_retry(100.0)
    assert budget.left(100.0) == 0.5
    for _ in range(5):
        budget.try_retry(100.0)
    assert budget.left(100.0) == 0.0


def test_hedges_are_one_request_in_twenty() -> None:
    budget = RetryBudget(ratio=0.2)
    hedges = 0
    for number in range(10_000):
        budget.deposit(number / 10)
        hedges += budget.try_hedge(number / 10)
    assert hedges == pytest.approx(500, abs=1)


def test_hedges_that_were_not_needed_are_saved_up_to_ten() -> None:
    budget = RetryBudget(ratio=0.5)
    for number in range(10_000):
        budget.deposit(number / 100)
    assert sum(budget.try_hedge(100.0) for _ in range(100)) == 10


def test_a_hedge_draws_on_the_retry_budget_too() -> None:
    budget = RetryBudget(ratio=0.0)
    for number in range(1000):
        budget.deposit(100.0 + number / 1000)
    while budget.try_retry(101.0):
        pass
    assert not budget.try_hedge(101.0)


def test_the_arrival_rate_is_of_the_last_ten_seconds_and_its_peak_of_one() -> None:
    budget = RetryBudget()
    for number in range(100):
        budget.deposit(100.0 + number / 10)
    for _ in range(40):
        budget.deposit(109.95)
    assert budget.arrival_rate(109.99) == pytest.approx(14.0, rel=0.01)
    assert budget.peak_rate(109.99) == 50.0
    assert budget.arrival_rate(130.0) == 0.0
    assert budget.peak_rate(130.0) == 0.0


def test_the_first_second_of_traffic_counts_as_a_second() -> None:
    budget = RetryBudget()
    for _ in range(8):
        budget.deposit(100.1)
    assert budget.arrival_rate(100.2) == 8.0


def test_budgets_are_kept_by_route_and_follow_its_policy() -> None:
    budgets = Budgets()
    route = a_route(a_target("a"))
    budget = budgets.of(route)
    budget.try_retry(100.0)
    changed = a_route(a_target("a"), policy=RoutePolicy(retry_budget_ratio=0.5))
    assert budgets.of(changed) is budget
    assert budget.ratio == 0.5
    assert budgets.left(100.0) == {"m": 0.9}
    budgets.update([a_route(a_target("a"), name="other")])
    assert budgets.left(100.0) == {}


def test_a_meter_forgets_slice_by_slice() -> None:
    meter = Meter(slices=6, slice_s=10.0)
    for now in (5.0, 15.0, 25.0, 61.0):
        meter.add(now)
    assert [meter.total(now) for now in (61.0, 70.0, 80.0, 500.0)] == [3, 2, 1, 0]
    meter.add(500.0, 4)
    assert meter.total(505.0, span_s=10.0) == 4
    assert meter.total(515.0, span_s=10.0) == 0


class BudgetMachine(RuleBasedStateMachine):
    """Over any ten seconds, retries are at most the share of the requests plus the floor."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.budget = RetryBudget(ratio=0.2)
        self.requests: list[float] = []
        self.retries: list[float] = []
        self.hedges = 0

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 1.0, 4.0, 11.0, 1000.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(count=st.integers(1, 60))
    def requests_arrive(self, count: int) -> None:
        for _ in range(count):
            self.budget.deposit(self.now)
            self.requests.append(self.now)

    @rule(count=st.integers(1, 30))
    def retries_are_asked_for(self, count: int) -> None:
        self.retries += [self.now for _ in range(count) if self.budget.try_retry(self.now)]

    @rule()
    def a_hedge_is_asked_for(self) -> None:
        if self.budget.try_hedge(self.now):
            self.hedges += 1
            self.retries.append(self.now)

    @precondition(lambda self: self.budget.balance(self.now) >= 1)
    @rule()
    def what_is_left_can_be_had(self) -> None:
        assert self.budget.try_retry(self.now)
        self.retries.append(self.now)

    @invariant()
    def the_bound_holds(self) -> None:
        # Slices of one second: what is counted lies between nine and ten seconds back.
        since = int(self.now) - 9
        requests = sum(at >= since for at in self.requests)
        # Withdrawals of requests that have since been forgotten may exceed what is allowed now.
        last = max((at for at in self.retries), default=0.0)
        if last == self.now:
            assert sum(at >= since for at in self.retries) <= 0.2 * requests + 10

    @invariant()
    def hedges_are_few(self) -> None:
        assert self.hedges <= 0.05 * len(self.requests)

    @invariant()
    def the_ratio_is_a_ratio(self) -> None:
        assert 0.0 <= self.budget.left(self.now) <= 1.0


TestBudgetMachine = BudgetMachine.TestCase
