"""Rolling counts: how many attempts, failures and slow ones there were lately.

A window is a ring of buckets that forgets by itself: reading or writing drops every bucket that has
left the span, so that after a silence longer than the span nothing is left, without a timer. The
counts are exact. A time-decayed average would be smaller, but gives a tight burst and the same burst
spread out different answers (`linkerd2-proxy`'s breaker says the same of its ring). Reading sums the
buckets rather than keep a running total: writes happen for every request and reads only for failures,
and a total that is added to and taken from is one more thing that can be wrong.
"""

from __future__ import annotations

from typing import NamedTuple


class Counts(NamedTuple):
    """What a window holds. `attempts` is never less than `failures` or `slow`."""

    attempts: int
    failures: int
    slow: int

    @property
    def failure_ratio(self) -> float:
        """Return the share of failures, 0..1; 0 for an empty window."""
        return self.failures / self.attempts if self.attempts else 0.0

    @property
    def slow_ratio(self) -> float:
        """Return the share of slow attempts, 0..1; 0 for an empty window."""
        return self.slow / self.attempts if self.attempts else 0.0


class RollingWindow:
    """Counts over the last `span_s` seconds, to within one bucket."""

    __slots__ = ("_attempts", "_failures", "_newest", "_slot", "_slow", "_width_s", "span_s")

    def __init__(self, span_s: float, buckets: int = 10) -> None:
        if span_s <= 0 or buckets < 1:
            raise ValueError(f"a window needs a positive span and a bucket: {span_s=}, {buckets=}")
        self.span_s = span_s
        self._width_s = span_s / buckets
        self._attempts = [0] * buckets
        self._failures = [0] * buckets
        self._slow = [0] * buckets
        self._newest = 0
        self._slot = 0

    def success(self, now: float) -> None:
        """Count one attempt that is neither failed nor slow: `add`, for every request's path."""
        index = int(now / self._width_s)
        if index > self._newest:
            self._turn_to(index)
        self._attempts[self._slot] += 1

    def add(self, now: float, *, attempts: int = 0, failures: int = 0, slow: int = 0) -> None:
        """Add to the counts; what is true of an attempt may come in several parts."""
        index = int(now / self._width_s)
        if index > self._newest:
            self._turn_to(index)
        self._attempts[self._slot] += attempts
        self._failures[self._slot] += failures
        self._slow[self._slot] += slow

    def counts(self, now: float) -> Counts:
        """Return what the whole window holds."""
        return self.latest(now, len(self._attempts) * self._width_s)

    def latest(self, now: float, span_s: float, attempts: int = 0) -> Counts:
        """Return the counts of at least the last `span_s`, and of as much before as makes `attempts`."""
        newest = int(now / self._width_s)
        size = len(self._attempts)
        total = failures = slow = 0
        for age in range(size):
            if (age - 1) * self._width_s >= span_s and total >= attempts:
                break
            if 0 <= self._newest - (newest - age) < size:
                slot = (newest - age) % size
                total += self._attempts[slot]
                failures += self._failures[slot]
                slow += self._slow[slot]
        return Counts(max(total, failures, slow), failures, slow)

    def clear(self) -> None:
        """Forget everything."""
        for row in (self._attempts, self._failures, self._slow):
            row[:] = [0] * len(row)

    def _turn_to(self, index: int) -> None:
        size = len(self._attempts)
        for gone in range(max(self._newest, index - size) + 1, index + 1):
            slot = gone % size
            self._attempts[slot] = self._failures[slot] = self._slow[slot] = 0
        self._newest = index
        self._slot = index % size


class RecentRequests:
    """The last few different requests that failed: enough to ask whether it were at least three."""

    __slots__ = ("_last_seen",)

    SIZE = 3

    def __init__(self) -> None:
        self._last_seen: dict[str, float] = {}

    def add(self, request: str, now: float) -> None:
        """Note that *request* failed."""
        self._last_seen.pop(request, None)
        self._last_seen[request] = now
        if len(self._last_seen) > self.SIZE:
            del self._last_seen[next(iter(self._last_seen))]

    def since(self, then: float) -> int:
        """Return how many different requests have failed since *then*; counts no further than `SIZE`."""
        return sum(seen >= then for seen in self._last_seen.values())

    def clear(self) -> None:
        """Forget everything."""
        self._last_seen.clear()
