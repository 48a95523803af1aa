"""What trips a breaker: failures in a row, their share, the adaptive scores, slowness.

Each alone misses what another catches: a run of failures is seen at once but tells nothing of one
failure in four; a share needs volume; the scores need neither but cannot see what they have come to
take for normal. The first that finds something gives the reason, in a fixed order, so that two that
cross together are one trip with one name.

Rules for all of them:

1. Opening needs failures of at least three different requests (fewer if `consecutive` or
   `min_requests` is smaller): one client in a retry loop is one arrival, not an outage.
2. Slowness and partial failure open only if somebody else could do better. A target that fails one
   call in four is no reason to leave it for one that fails as often, or for nobody.
3. Detectors see evidence and return a finding; what becomes of it is the breaker's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from proxy.core.adaptive import Adaptive, smoothed, wilson_lower
from proxy.core.target import BreakerPolicy
from proxy.core.window import Counts, RecentRequests, RollingWindow

Alternative = Callable[[], float | None]
"""Asked only when the answer matters: the smallest `failure_estimate` among the targets that could
take over this one's traffic now; `None` if there is no such target."""

# 0.08 with z = 3 sees one failure in eight at one request per second and more, and in simulation never
# tripped at 3 % errors; 0.06 did.
PARTIAL_BOUND, PARTIAL_FAILURES = 0.08, 5
RUN_REQUESTS = 8  # so many different requests of a run are remembered: three must be among them


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a breaker should open, with the figures that show it."""

    reason: str
    numbers: Mapping[str, float]


class Consecutive:
    """Failures in a row.

    The first content of any answer ends a run of failures, but not one of interruptions: a target
    that breaks every stream begins each of them well. Those end with an answer that is complete, which
    in turn ends no run of failures: it may have begun long before them.
    Streams that broke together (each had begun before the last counted break) count as one, so that
    a dropped connection or a restart of one upstream process is not five failures in a row.
    """

    __slots__ = ("_broken", "_broken_at", "_limit", "_needed", "_requests", "_unanswered")

    def __init__(self, limit: int, needed: int) -> None:
        self._limit = limit
        self._needed = needed
        self._unanswered = self._broken = 0
        self._broken_at = 0.0
        self._requests: dict[str, bool] = {}  # the requests that failed, and whether after content

    def success(self) -> None:
        """End the run of failures that had no content."""
        if self._unanswered:
            self._unanswered = 0
            self._requests = {name: broke for name, broke in self._requests.items() if broke}

    def completed(self) -> None:
        """End the run of interruptions: an answer arrived whole."""
        if self._broken:
            self._broken = 0
            self._requests = {name: broke for name, broke in self._requests.items() if not broke}

    def clear(self) -> None:
        """End both runs."""
        self._unanswered = self._broken = 0
        self._requests = {}

    def failure(self, now: float, request: str, began: float | None) -> Finding | None:
        """Count a failure; *began* is when the attempt began, if it broke after content."""
        if began is None:
            self._unanswered += 1
        elif not self._broken or began >= self._broken_at:
            self._broken += 1
            self._broken_at = now
        if request in self._requests or len(self._requests) < RUN_REQUESTS:
            self._requests[request] = self._requests.get(request, False) or began is not None
        failures, requests = self._unanswered + self._broken, len(self._requests)
        if failures < self._limit or requests < self._needed:
            return None
        return Finding("consecutive", {"failures": failures, "requests": requests})


class Detectors:
    """All detectors of one breaker, told each piece of evidence once."""

    __slots__ = ("_adaptive", "_consecutive", "_failed", "_needed", "_policy", "_sluggish", "_window")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._adaptive = Adaptive()
        self.adopt(policy)

    def adopt(self, policy: BreakerPolicy) -> None:
        """Follow another policy from now on; what was learnt of the target's rate and baseline stays."""
        self._policy = policy
        self._needed = min(RecentRequests.SIZE, policy.consecutive, policy.min_requests)
        self._consecutive = Consecutive(policy.consecutive, self._needed)
        self._window = RollingWindow(policy.window_s)
        self._failed = RecentRequests()
        self._sluggish = RecentRequests()

    def success(self, now: float) -> None:
        """Count an attempt whose answer began well."""
        self._consecutive.success()
        self._window.success(now)
        self._adaptive.success(now)

    def completed(self) -> None:
        """Note that an answer arrived whole."""
        self._consecutive.completed()

    def failure(
        self, now: float, request: str, alternative: Alternative, *, began: float | None, late: bool
    ) -> Finding | None:
        """Count a failed attempt.

        *began* is when it began, if it broke after content; *late* says that it was counted as a
        success before: that success then becomes a failure, so that a target which breaks every
        stream fails in all of its attempts and not in half of them.
        """
        self._failed.add(request, now)
        self._window.add(now, attempts=not late, failures=1)
        self._adaptive.failure(now, late=late)
        return (
            self._consecutive.failure(now, request, began)
            or self._failure_ratio(now)
            or self._adaptive_failures()
            or self._partial(now, alternative)
        )

    def slow(self, now: float, request: str) -> Finding | None:
        """Count that an attempt is slow, beside what it counts as in the end."""
        self._sluggish.add(request, now)
        self._window.add(now, slow=1)
        self._adaptive.slow(now)
        return self._slow_ratio(now) or self._adaptive_slowness()

    def redeem(self, now: float) -> None:
        """Note that a slow attempt did well in the end."""
        self._adaptive.redeem(now)

    def clear(self) -> None:
        """Forget the evidence: what comes now is judged afresh."""
        self._consecutive.clear()
        self._window.clear()
        self._adaptive.clear()
        self._failed.clear()
        self._sluggish.clear()

    def counts(self, now: float) -> Counts:
        """Return what the rolling window holds."""
        return self._window.counts(now)

    def estimate(self, now: float) -> float:
        """Return a share of failures fit for comparing this target with others."""
        return smoothed(self._adaptive.latest(now))

    def figures(self) -> Mapping[str, float]:
        """Return what the adaptive detector has learnt and how near it is to opening."""
        return {
            "score": self._adaptive.hard_score(),
            "slow_score": self._adaptive.slow_score(),
            "threshold": self._adaptive.threshold,
            "baseline": self._adaptive.baseline,
            "rate_per_s": self._adaptive.rate_per_s,
        }

    def _failure_ratio(self, now: float) -> Finding | None:
        policy, counts = self._policy, self._window.counts(now)
        if counts.attempts < policy.min_requests or counts.failure_ratio < policy.failure_ratio:
            return None
        if self._failed.since(now - policy.window_s) < self._needed:
            return None
        return Finding("failure_ratio", self._shares(counts, counts.failures, "failures"))

    def _slow_ratio(self, now: float) -> Finding | None:
        policy, counts = self._policy, self._window.counts(now)
        if counts.attempts < policy.min_requests or counts.slow_ratio < policy.slow_ratio:
            return None
        if self._sluggish.since(now - policy.window_s) < self._needed:
            return None
        return Finding("slow_ratio", self._shares(counts, counts.slow, "slow"))

    def _shares(self, counts: Counts, bad: int, name: str) -> Mapping[str, float]:
        return {
            name: bad,
            "attempts": counts.attempts,
            "ratio": bad / counts.attempts,
            "window_s": self._policy.window_s,
        }

    def _adaptive_failures(self) -> Finding | None:
        adaptive = self._adaptive
        if not self._policy.adaptive or adaptive.hard_score() < adaptive.threshold:
            return None
        if self._failed.since(adaptive.hard.rose_at) < self._needed:
            return None
        return Finding("adaptive", self.figures())

    def _adaptive_slowness(self) -> Finding | None:
        adaptive = self._adaptive
        if not self._policy.adaptive or adaptive.slow_score() < adaptive.threshold:
            return None
        if self._sluggish.since(adaptive.sluggish.rose_at) < self._needed:
            return None
        return Finding("slow", self.figures())

    def _partial(self, now: float, alternative: Alternative) -> Finding | None:
        """Wilson's bound on the latest results: acts only for a target half as bad or better."""
        if not self._policy.adaptive:
            return None
        latest = self._adaptive.latest(now)
        bound = wilson_lower(latest.failures, latest.attempts)
        if latest.failures < PARTIAL_FAILURES or bound <= PARTIAL_BOUND:
            return None
        other = alternative()
        if other is None or other >= smoothed(latest) / 2 or self._failed.since(0.0) < self._needed:
            return None
        numbers = {"lower_bound": bound, "failures": latest.failures, "attempts": latest.attempts}
        return Finding("partial", {**numbers, "alternative": other})
