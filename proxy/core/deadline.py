"""One request's time: the instant by which its answer must have begun (streams) or ended (others).

Three limits run from the request's arrival: the route's `deadline`, what the client asked for in
`x-sidestep-deadline`, and how long its SDK says it will wait (already less one second). The shortest
holds. Who set it matters to the breakers: an attempt cut because the client's patience was short
says nothing of the target.
"""

from __future__ import annotations


class Deadline:
    """When one request's time is over.

    `started` and `at` are monotonic; `limit_s`, the shortest of the limits and never negative, lies
    between them. `is_clients`: the client's limit holds rather than ours, which is `policy_s`.
    """

    __slots__ = ("at", "is_clients", "limit_s", "policy_s", "started")

    def __init__(
        self, started: float, policy_s: float, asked_s: float | None = None, client_s: float | None = None
    ) -> None:
        limit_s = policy_s
        if asked_s is not None and asked_s < limit_s:
            limit_s = asked_s
        if client_s is not None and client_s < limit_s:
            limit_s = client_s
        self.started = started
        self.policy_s = policy_s
        self.limit_s = limit_s if limit_s > 0.0 else 0.0
        self.at = started + self.limit_s
        self.is_clients = self.limit_s < policy_s

    def __repr__(self) -> str:
        return f"Deadline(started={self.started}, limit_s={self.limit_s}, is_clients={self.is_clients})"

    def remaining(self, now: float) -> float:
        """Return the seconds left, never negative."""
        left = self.at - now
        return left if left > 0.0 else 0.0
