"""What requests felt of upstreams lately: of these failures an incident is made when a breaker opens."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from proxy.core.events import AttemptEnded, BreakerMoved

FRESH_S = 30.0  # failures this old still belong to an opening, although there were answers between
MAX_TRAIL = 256

Owner = TypeVar("Owner")
End = Literal["", "saved", "routed_around", "lost"]


@dataclass(slots=True, eq=False)
class Felt(Generic[Owner]):
    """What one request felt of one upstream; `kind` is empty if that was only passed over.

    `end` is how the request ended, once it `has_ended`. `incident` is what it was counted in.
    """

    at: float
    kind: str = ""
    end: End = ""
    has_ended: bool = False
    incident: Owner | None = None


class Evidence(Generic[Owner]):
    """The failures since the last good answer of each target, and those of the last half minute."""

    def __init__(self) -> None:
        self._trails: dict[tuple[str, str, str], deque[Felt[Owner]]] = {}

    def __bool__(self) -> bool:
        return bool(self._trails)

    def add(self, event: AttemptEnded, felt: Felt[Owner]) -> None:
        """Keep a failure."""
        self._trails.setdefault(_place(event), deque(maxlen=MAX_TRAIL)).append(felt)

    def answered(self, event: AttemptEnded, wall: float) -> None:
        """After a good answer only fresh failures are evidence of anything."""
        trail = self._trails.get(_place(event))
        if trail is None:
            return
        while trail and trail[0].at < wall - FRESH_S:
            trail.popleft()
        if not trail:
            del self._trails[_place(event)]

    def take(self, event: BreakerMoved) -> list[Felt[Owner]]:
        """Take out the failures that led to an opening: of one target, or of all that its upstream has."""
        own = (event.upstream, event.model, event.operation)
        places = [
            place
            for place in self._trails
            if place == own or (not event.model and place[0] == event.upstream)
        ]
        return [felt for place in places for felt in self._trails.pop(place)]


def _place(event: AttemptEnded) -> tuple[str, str, str]:
    return (event.upstream, event.model, event.operation)
