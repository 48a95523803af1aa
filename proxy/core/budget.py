"""Leave for the attempts that are not strictly needed: same-target retries and hedges.

Failing over to another target displaces load and needs no budget (attempts and pacing bound it);
asking the same target again, or two at once, adds load just when load may be the trouble. So both
draw on a share of the route's recent requests.

The scheme is Finagle's `RetryBudget` (windowed deposits and withdrawals with a reserve): over any ten
seconds the withdrawals are at most `ratio` x requests + ten times the floor of one per second. The
floor lets a quiet route retry at all; the window forgets, so that a calm hour buys no retry storm.
Hedges draw on it too and are moreover held to 5 % of requests (The Tail at Scale: hedging after the
95th percentile costs about that), saved up to ten, so that a quiet route may hedge now and then.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.core.meter import Meter
from proxy.core.target import Route

WINDOW_S = 10
FLOOR_PER_S = 1.0
HEDGE_RATIO = 0.05
HEDGES_SAVED = 10.0


class RetryBudget:
    """One route's leave to retry and to hedge; it also knows the route's arrival rate."""

    __slots__ = ("_hedges", "_hedges_seen", "_requests", "_total", "_withdrawn", "ratio")

    def __init__(self, ratio: float = 0.2) -> None:
        self.ratio = ratio
        self._requests = Meter(WINDOW_S, 1.0)
        self._withdrawn = Meter(WINDOW_S, 1.0)
        self._total = 0
        self._hedges = 0.0
        self._hedges_seen = 0

    def __repr__(self) -> str:
        return f"RetryBudget(ratio={self.ratio}, requests={self._requests}, withdrawn={self._withdrawn})"

    def deposit(self, now: float) -> None:
        """Count a request that has arrived."""
        self._total += 1
        self._requests.add(now)

    def balance(self, now: float) -> float:
        """Return how many retries may be made now; each needs one whole."""
        return self._allowance(now) - self._withdrawn.total(now)

    def left(self, now: float) -> float:
        """Return the part of the budget that is left, 0..1: the metric."""
        return max(0.0, self.balance(now) / self._allowance(now))

    def try_retry(self, now: float) -> bool:
        """Withdraw leave for one same-target retry, if there is any."""
        if self.balance(now) < 1.0:
            return False
        self._withdrawn.add(now)
        return True

    def try_hedge(self, now: float) -> bool:
        """Withdraw leave for one hedge, if there is any."""
        earned = HEDGE_RATIO * (self._total - self._hedges_seen)
        self._hedges = min(HEDGES_SAVED, self._hedges + earned)
        self._hedges_seen = self._total
        if self._hedges < 1.0 or not self.try_retry(now):
            return False
        self._hedges -= 1.0
        return True

    def arrival_rate(self, now: float) -> float:
        """Return the route's requests per second over the last ten seconds."""
        return self._requests.rate(now)

    def peak_rate(self, now: float) -> float:
        """Return the most requests that arrived within one of the last ten seconds."""
        return self._requests.peak(now)

    def _allowance(self, now: float) -> float:
        return self.ratio * self._requests.total(now) + FLOOR_PER_S * WINDOW_S


class Budgets:
    """The budgets of all routes, by route name."""

    def __init__(self) -> None:
        self._by_route: dict[str, RetryBudget] = {}

    def of(self, route: Route) -> RetryBudget:
        """Return the budget of *route*, with the ratio that its policy has now."""
        ratio = route.policy.retry_budget_ratio
        budget = self._by_route.get(route.name)
        if budget is None:
            budget = self._by_route[route.name] = RetryBudget(ratio)
        elif budget.ratio != ratio:
            budget.ratio = ratio
        return budget

    def update(self, routes: Iterable[Route]) -> None:
        """Forget the budgets of routes that a reload has removed."""
        kept = {route.name for route in routes}
        self._by_route = {name: budget for name, budget in self._by_route.items() if name in kept}

    def left(self, now: float) -> dict[str, float]:
        """Return the part of each route's budget that is left, 0..1."""
        return {name: budget.left(now) for name, budget in self._by_route.items()}
