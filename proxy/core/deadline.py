"""One request's time: the instant by which its answer must have begun (streams) or ended (others).

Three limits run from the request's arrival: the route's `deadline`, what the client asked for in
`x-sidestep-deadline`, and how long its SDK says it will wait (already less one second). The shortest
holds. Who set it matters to the breakers: an attempt cut because the client's patience was short
says nothing of the target.
"""

from __future__ import annotations

from proxy.core.value import value


@value
class Deadline:
    """When one request's time is over. `started` is monotonic; the limits are seconds from then."""

    started: float
    policy_s: float
    asked_s: float | None = None
    client_s: float | None = None

    @property
    def limit_s(self) -> float:
        """Return the shortest of the limits, never negative."""
        limit = self.policy_s
        if self.asked_s is not None and self.asked_s < limit:
            limit = self.asked_s
        if self.client_s is not None and self.client_s < limit:
            limit = self.client_s
        return max(0.0, limit)

    @property
    def at(self) -> float:
        """Return the instant at which the time is over."""
        return self.started + self.limit_s

    @property
    def is_clients(self) -> bool:
        """Tell whether the client's limit holds rather than ours."""
        return self.limit_s < self.policy_s

    def remaining(self, now: float) -> float:
        """Return the seconds left, never negative."""
        return max(0.0, self.started + self.limit_s - now)
