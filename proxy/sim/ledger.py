"""What happened in a played scenario: every call, every request a provider got, every breaker's move."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from proxy.core.events import BreakerMoved


class Ending(StrEnum):
    """How a call ended for the application that made it."""

    ANSWERED = "answered"
    FAILED = "failed"  # an error after all retries
    INTERRUPTED = "interrupted"  # half an answer, then an honest error
    REFUSED = "refused"  # a 4xx, passed on as it is
    GAVE_UP = "gave_up"  # the client's patience was over


@dataclass(frozen=True, slots=True)
class Call:
    """One call an application makes. `model` is the role of the route it asks for."""

    number: int
    at: float
    sidecar: int
    model: str
    operation: str
    stream: bool


@dataclass(slots=True)
class CallRecord:
    """How one call went. `first_s`: until the first token of a stream, the whole answer of others.

    Of the failed requests the `unlucky` ones had a provider that was well, but erred twice on them, or
    in the last attempt they were allowed.
    """

    call: Call
    ending: Ending = Ending.GAVE_UP
    status: int | None = None
    first_s: float | None = None
    ended_at: float = 0.0
    requests: int = 0
    failed_requests: int = 0
    unlucky: int = 0
    attempts: int = 0
    first_choice: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """One attempt as it left: to which provider, for which model, for how long, and whether as a probe."""

    at: float
    role: str
    model: str
    sidecar: int
    limit_s: float
    probe: bool


@dataclass(frozen=True, slots=True)
class Moved:
    """A breaker's move in one of the simulated proxies; `role` is the provider it is about."""

    sidecar: int
    role: str
    move: BreakerMoved


@dataclass(slots=True)
class Ledger:
    """The records of one side: with Sidestep or without."""

    records: list[CallRecord] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    moves: list[Moved] = field(default_factory=list)
    stumbles: list[float] = field(default_factory=list)  # when the preferred provider erred in health
    decisions: Counter[tuple[str, str]] = field(default_factory=Counter)
