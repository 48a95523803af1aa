"""How long rules take to see an outage, and how often they see one that is not there.

Independent requests arrive at a steady rate (Poisson) and fail at once with a given probability: a
ranking of rules and a regression test, not a promise, for real failures cluster. Every rule sees the
same traffic from the same seed. The rules of others are retold from their sources and documents with
their defaults; `Ours` is the real `Breaker`, through the calls that a proxy makes.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from proxy.core.breaker import Breaker, State
from proxy.core.outcome import OK, Kind, Outcome
from proxy.core.target import BreakerPolicy

HEALTHY = 0.01
PATIENCE_S = 900.0
DAY_S = 86_400.0
RATES = (0.1, 1.0, 10.0, 50.0)
FAILED = Outcome(Kind.SERVER_ERROR, status=500)
DEFAULTS = BreakerPolicy()


class Rule(Protocol):
    """Something that decides when to stop sending."""

    def observe(self, failed: bool, now: float) -> bool:
        """Take one result; return whether that trips the rule."""


class Ours:
    """The breaker, with a healthy target beside it: one failure among its last hundred results."""

    def __init__(self, policy: BreakerPolicy = DEFAULTS, alternative: float | None = 1.4 / 120) -> None:
        self.breaker = Breaker(policy)
        self._alternative = lambda: alternative
        self._rng = random.Random(0)
        self._requests = count()

    def observe(self, failed: bool, now: float) -> bool:
        """Take one result; return whether that trips the rule."""
        breaker, rng = self.breaker, self._rng
        admission = breaker.admit(now, rng)
        if admission is None:
            return True
        if not failed:
            breaker.first_content(admission, 0.3, now, request="fine", rng=rng)
            breaker.record(admission, OK, now, request="fine", rng=rng)
            return False
        breaker.record(
            admission, FAILED, now, request=str(next(self._requests)), rng=rng, alternative=self._alternative
        )
        return breaker.state is State.OPEN


class EnvoyConsecutive:
    """Envoy's `consecutive_5xx`: ejected after five failures in a row (checked at once)."""

    def __init__(self) -> None:
        self._run = 0

    def observe(self, failed: bool, now: float) -> bool:
        """Take one result; return whether that trips the rule."""
        self._run = self._run + 1 if failed else 0
        return self._run >= 5


class Resilience4j:
    """A ring of the last 100 calls; half of them failed, judged when it is full."""

    def __init__(self) -> None:
        self._calls: deque[bool] = deque(maxlen=100)
        self._failures = 0

    def observe(self, failed: bool, now: float) -> bool:
        """Take one result; return whether that trips the rule."""
        if len(self._calls) == 100:
            self._failures -= self._calls[0]
        self._calls.append(failed)
        self._failures += failed
        return len(self._calls) == 100 and self._failures >= 50


class Polly:
    """One failure in ten, of at least 100 calls in 30 s, in ten windows; judged at failures."""

    def __init__(self) -> None:
        self._windows: deque[list[float]] = deque()

    def observe(self, failed: bool, now: float) -> bool:
        """Take one result; return whether that trips the rule."""
        windows = self._windows
        if not windows or now - windows[-1][0] >= 3:
            windows.append([now, 0, 0])
        while now - windows[0][0] >= 30:
            windows.popleft()
        windows[-1][1] += 1
        windows[-1][2] += failed
        if not failed:
            return False
        calls = sum(window[1] for window in windows)
        return calls >= 100 and sum(window[2] for window in windows) >= 0.1 * calls


class Finagle:
    """A success rate below 0.8, averaged over 30 s, of five requests at least; or five failures in a row."""

    def __init__(self) -> None:
        self._run = 0
        self._rate = 1.0
        self._began: float | None = None
        self._last = 0.0
        self._recent: deque[float] = deque()

    def observe(self, failed: bool, now: float) -> bool:
        """Take one result; return whether that trips the rule."""
        if self._began is None:
            self._began = self._last = now
            self._rate = float(not failed)
        weight = math.exp(-(now - self._last) / 30)
        self._rate = weight * self._rate + (1 - weight) * (not failed)
        self._last = now
        self._recent.append(now)
        while now - self._recent[0] > 30:
            self._recent.popleft()
        self._run = self._run + 1 if failed else 0
        is_warm = now - self._began >= 30 and len(self._recent) >= 5
        return failed and (self._run >= 5 or (is_warm and self._rate < 0.8))


class LiteLLM:
    """More than half of the calls of the current minute failed, of two at least."""

    def __init__(self) -> None:
        self._minute = -1
        self._calls = self._failures = 0

    def observe(self, failed: bool, now: float) -> bool:
        """Take one result; return whether that trips the rule."""
        if int(now / 60) != self._minute:
            self._minute = int(now / 60)
            self._calls = self._failures = 0
        self._calls += 1
        self._failures += failed
        return failed and self._calls > 1 and self._failures > 0.5 * self._calls


RULES: dict[str, Callable[[], Rule]] = {
    "Sidestep": Ours,
    "Envoy, 5 in a row": EnvoyConsecutive,
    "resilience4j": Resilience4j,
    "Polly": Polly,
    "Finagle": Finagle,
    "LiteLLM": LiteLLM,
}


@dataclass(frozen=True, slots=True)
class Detection:
    """Seconds from the beginning of an outage to the trip; `missed` is the share never seen."""

    median_s: float
    p90_s: float
    missed: float


def detect(make: Callable[[], Rule], rate: float, share: float, *, trials: int, seed: int) -> Detection:
    """Let *share* of the requests fail after a healthy time, again and again with new chance."""
    chances = (random.Random(f"{seed} {rate} {share} {trial}") for trial in range(trials))
    waits = sorted(_one_outage(make(), rate, share, rng) for rng in chances)
    return Detection(
        median_s=(waits[(trials - 1) // 2] + waits[trials // 2]) / 2,
        p90_s=waits[trials * 9 // 10],
        missed=sum(math.isinf(wait) for wait in waits) / trials,
    )


def false_trips(
    make: Callable[[], Rule], rate: float, days: float, *, seed: int, errors: float = HEALTHY
) -> int:
    """Return how often a rule trips on a healthy upstream in so many days; it begins anew after each."""
    rng = random.Random(f"{seed} {rate}")
    uniform, log = rng.random, math.log
    rule, trips, now, end = make(), 0, 0.0, days * DAY_S
    while now < end:
        now -= log(1 - uniform()) / rate
        if rule.observe(uniform() < errors, now):
            trips += 1
            rule = make()
    return trips


def _one_outage(rule: Rule, rate: float, share: float, rng: random.Random) -> float:
    """Return the seconds until the trip. A rule that tripped before the outage was not there to see it."""
    onset = max(120.0, 150 / rate) + rng.random() * 60  # fills every window, and ends at any phase of it
    now = rng.expovariate(rate)
    while now < onset:
        if rule.observe(rng.random() < HEALTHY, now):
            return math.inf
        now += rng.expovariate(rate)
    while now < onset + PATIENCE_S:
        if rule.observe(rng.random() < share, now):
            return now - onset
        now += rng.expovariate(rate)
    return math.inf
