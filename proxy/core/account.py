"""The account of one request: its attempts so far, and its decisions as events."""

from __future__ import annotations

from proxy.core.events import (
    AttemptEnded,
    AttemptRecord,
    Decided,
    Decision,
    Event,
    FailedOver,
)
from proxy.core.exhaustion import Blocked
from proxy.core.outcome import Kind, Outcome
from proxy.core.permit import Permit

# Endings that are nobody's failure.
BLAMELESS = frozenset({Kind.OK.value, Kind.CANCELLED.value, Kind.CLIENT_GONE.value})


class Account:
    """What can be told of one request. A stale connection's replacement is no attempt of its own."""

    __slots__ = ("_answering", "_records", "_request_id", "_route", "_skipped")

    def __init__(self, request_id: str, route: str) -> None:
        self._request_id = request_id
        self._route = route
        self._records: list[AttemptRecord] = []
        self._answering: tuple[Permit, float] | None = None
        self._skipped: set[tuple[str, str]] | None = None

    @property
    def attempts(self) -> tuple[AttemptRecord, ...]:
        """Return the attempts in the order of their ends; the one that is answering comes last."""
        if self._answering is None:
            return tuple(self._records)
        permit, at = self._answering
        return (*self._records, _record(permit, Kind.OK, at))

    @property
    def has_failures(self) -> bool:
        """Tell whether an attempt has failed."""
        return any(record.outcome not in BLAMELESS for record in self._records)

    @property
    def is_answering(self) -> bool:
        """Tell whether an attempt has become the answer."""
        return self._answering is not None

    def path(self) -> str:
        """Return the attempts in one line: "openai=overloaded, azure-eu=ok"."""
        return ", ".join(f"{record.upstream}={record.outcome}" for record in self.attempts)

    def answering(self, permit: Permit, now: float) -> None:
        """Note that this attempt has become the answer."""
        self._answering = (permit, now)

    def ended(self, permit: Permit, outcome: Outcome, now: float) -> Event:
        """Note how an attempt ended; return the event."""
        if self._answering is not None and self._answering[0] is permit:
            self._answering = None
        record = _record(permit, outcome.kind, now)
        if outcome.kind is not Kind.STALE_CONNECTION:
            self._records.append(record)
        return AttemptEnded(
            self._request_id,
            record.upstream,
            permit.target.label,
            permit.operation,
            permit.number,
            outcome,
            record.seconds,
        )

    def decided(self, decision: Decision, upstream: str, reason: str) -> Event:
        """Return a decision as an event; *upstream* is empty where it concerns none."""
        return Decided(self._request_id, self._route, upstream, decision, reason)

    def skipped(self, blocked: Blocked) -> list[Event]:
        """Return, once for each target, that it was passed over, and why."""
        told = self._skipped = self._skipped or set()
        new = [(target, found) for target, found in blocked if target.key not in told]
        told.update(target.key for target, _ in new)
        return [self.decided(Decision.SKIP, target.upstream.name, found.reason) for target, found in new]

    def moved(self, last: Permit, permit: Permit, outcome: Outcome) -> Event:
        """Return the event that the request moves from one target to another, because of an *outcome*."""
        before, after = last.target.upstream.name, permit.target.upstream.name
        return FailedOver(self._request_id, self._route, before, after, outcome.kind.value)


def _record(permit: Permit, kind: Kind, at: float) -> AttemptRecord:
    target = permit.target
    return AttemptRecord(target.upstream.name, target.model or "", kind.value, at - permit.issued_at)
