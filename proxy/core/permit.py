"""Leave to make one attempt, and what is said when there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from proxy.core.breaker import Admission
from proxy.core.budget import RetryBudget
from proxy.core.cells import Key, TargetCell
from proxy.core.latency import Latency
from proxy.core.target import Target


class Availability(NamedTuple):
    """Whether a target may be tried now; if not, why, and when at the earliest.

    Reasons: drained, credential (a refused key), cooldown (a rate limit), network, endpoint, open,
    probe_busy, overloaded (its own Retry-After), full, paced.
    """

    ok: bool
    reason: str
    at: float


class Shift(NamedTuple):
    """Load that goes where it does not normally go: paced by its route's arrivals.

    `held`: the request has waited for this; while a target recovers, its turn replaces chance.
    """

    arrivals: RetryBudget
    held: bool


@dataclass(slots=True, eq=False)
class Permit:
    """Leave for one attempt, to be settled exactly once.

    `least_bad`: given against the rules, because nobody was available. The rest, from `cell` on, is the
    pool's own business.
    """

    id: int
    target: Target
    operation: str
    request_id: str
    number: int
    probe: bool
    issued_at: float
    cell: TargetCell
    key: Key
    latency: Latency
    admission: Admission
    endpoint_admission: Admission | None
    credential_admission: Admission | None
    others: Sequence[Target] = ()
    least_bad: bool = False
    is_settled: bool = False

    @property
    def credential(self) -> str:
        """Return the name of the key to use, empty where none is needed."""
        return self.key.credential.name
