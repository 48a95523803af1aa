"""What one client may use at once and per minute: pure counters, with `now` as an argument."""

from __future__ import annotations

BURST_S = 10.0  # an idle client may send this much of its minute at once


class TokenBucket:
    """Requests per minute, smoothed: refills steadily and holds ten seconds' worth, at least one.

    A bucket of a whole minute would let twice the configured number through in the first one.
    """

    def __init__(self, now: float, rpm: int) -> None:
        self._rpm = rpm
        self._tokens = self._capacity
        self._at = now

    @property
    def _capacity(self) -> float:
        return max(1.0, self._rpm / 60.0 * BURST_S)

    def take(self, now: float, rpm: int) -> float:
        """Take a token: return 0.0, or the seconds until there is one. *rpm* may have changed."""
        self._rpm = rpm
        rate = rpm / 60.0
        self._tokens = min(self._capacity, self._tokens + max(0.0, now - self._at) * rate)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / rate
        self._tokens -= 1.0
        return 0.0


class Concurrency:
    """How many requests of one client run."""

    def __init__(self) -> None:
        self.running = 0

    def try_enter(self, limit: int | None) -> bool:
        """Count one more, unless that would be more than *limit*."""
        if limit is not None and self.running >= limit:
            return False
        self.running += 1
        return True

    def leave(self) -> None:
        """Count one less; each entry is left once."""
        if self.running == 0:
            raise ValueError("left more often than entered")
        self.running -= 1


class Usage:
    """One client's use of its limits; both kinds are kept across a reload that changes them."""

    def __init__(self) -> None:
        self.concurrency = Concurrency()
        self._bucket: TokenBucket | None = None

    def enter(self, now: float, max_concurrency: int | None, rpm: int | None) -> float:
        """Begin a request: return 0.0, or the seconds after which it is worth asking again."""
        if not self.concurrency.try_enter(max_concurrency):
            return 1.0
        wait_s = self._take(now, rpm) if rpm is not None else 0.0
        if wait_s:
            self.concurrency.leave()
        return wait_s

    def _take(self, now: float, rpm: int) -> float:
        if self._bucket is None:
            self._bucket = TokenBucket(now, rpm)
        return self._bucket.take(now, rpm)
