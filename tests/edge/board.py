"""A status board that a test can watch: over cells and times that the test sets."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.core.events import AttemptRecord, Decision, Event
from proxy.edge.incident_log import IncidentLog
from proxy.edge.recent import Recent
from proxy.edge.status.headline import Drill
from proxy.edge.status.targets import TargetStatus
from proxy.edge.status_data import Sources, Status, StatusBoard
from tests.edge.examples import WALL, ACell, attempt_ended, decided, request_ended, route, wildcard


class Watched:
    """A board over cells and times that a test sets, with the incidents and the recent requests."""

    def __init__(self, *cells: ACell, drained: Iterable[str] = (), drills: Iterable[Drill] = ()) -> None:
        self.wall = WALL
        self.now = 10.0
        self.cells = list(cells)
        self.routes = [route(), wildcard()]
        self.recent = Recent()
        self.incidents = IncidentLog(lambda: self.now, lambda: self.wall)
        self.board = StatusBoard(
            Sources(
                version="1.2.3",
                routes=lambda: self.routes,
                cells=lambda: self.cells,
                clock=lambda: self.now,
                wall=lambda: self.wall,
                ready=lambda: True,
                drained=lambda: tuple(drained),
                listen=lambda: ["127.0.0.1:7380"],
                in_flight=lambda: 3,
                incidents=self.incidents.incidents,
                requests=self.recent.latest,
                drills=lambda: drills,
            )
        )

    def observe(self, *events: Event) -> None:
        for event in events:
            for observer in (self.recent, self.board, self.incidents):
                observer.observe(event)

    def later(self, seconds: float) -> None:
        self.wall += seconds
        self.now += seconds

    def status(self) -> Status:
        return self.board.status()

    def target(self, name: str = "gpt-5", index: int = 0) -> TargetStatus:
        found = next(found for found in self.board.status().routes if found.name == name)
        return found.targets[index]


def detour(request_id: str = "req_3", reason: str = "open") -> list[Event]:
    """A request that is sent past its first target."""
    facts: list[Event] = [
        decided(Decision.SKIP, request_id=request_id, reason=reason),
        decided(request_id=request_id, upstream="azure", reason="next"),
        attempt_ended(request_id=request_id, upstream="azure", model="gpt-5-prod"),
    ]
    ended = request_ended(
        request_id=request_id,
        upstream="azure",
        model="gpt-5-prod",
        attempts=(AttemptRecord("azure", "gpt-5-prod", "ok", 0.4),),
        wall=WALL + 1.0,
        facts=facts,
    )
    return [*facts, ended]
