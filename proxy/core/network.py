"""Suspecting our own network: when nobody can be reached, the upstreams are not to blame.

If at least two hosts, and all that were tried, fail to connect within ten seconds, with no answer
from anybody in between, learning is frozen: no breaker hears of failures to connect. The hosts that
failed are then tried once a second in all, until anybody answers. A host that has not failed is tried
freely: it may be the one that works.
"""

from __future__ import annotations

WITHIN_S = 10.0
HOSTS = 2
LASTS_S = 30.0  # without further failures, so that a doubt cannot outlive its reasons
RETRY_S = 1.0


class Network:
    """What is known of the way to all hosts together."""

    __slots__ = ("_failed", "_next_try_at", "_suspect_until", "answered_at")

    def __init__(self) -> None:
        self.answered_at = float("-inf")  # set for each answer, from any host
        self._failed: dict[str, float] = {}
        self._suspect_until = float("-inf")
        self._next_try_at = float("-inf")

    def __repr__(self) -> str:
        return f"Network(failed={self._failed}, suspect_until={self._suspect_until})"

    def failed(self, endpoint: str, now: float) -> None:
        """Note that *endpoint* could not be reached."""
        since = max(now - WITHIN_S, self.answered_at)
        is_suspect = self.is_suspect(now)
        if not is_suspect:
            self._failed = {name: at for name, at in self._failed.items() if at > since}
        self._failed[endpoint] = now
        if is_suspect or len(self._failed) >= HOSTS:
            self._suspect_until = now + LASTS_S

    def is_suspect(self, now: float) -> bool:
        """Tell whether our own network is in doubt."""
        return now < self._suspect_until and self.answered_at < self._suspect_until - LASTS_S

    def holds_back(self, endpoint: str, now: float) -> bool:
        """Tell whether *endpoint* is not to be tried now because of that."""
        return now < self._next_try_at and endpoint in self._failed and self.is_suspect(now)

    def tried(self, endpoint: str, now: float) -> None:
        """Note that *endpoint* is being tried."""
        if endpoint in self._failed and self.is_suspect(now):
            self._next_try_at = now + RETRY_S

    @property
    def next_try_at(self) -> float:
        """Return when a host that has failed may be tried again."""
        return self._next_try_at
