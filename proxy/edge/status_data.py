"""What the status page shows, as data: who is up, why, what was decided, what it saved.

`StatusBoard` keeps a little from the events (counts, a timeline, who answered lately) and joins it
with the pool's cells when asked. `/status.json`, the page and `sidestep status` show the same data.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from proxy.core.events import BreakerMoved, Decided, Decision, Event, RequestEnded, RequestOutcome
from proxy.core.target import Route, Target
from proxy.edge.families import STATES
from proxy.edge.lines import DIGITS, BreakerLine, Stamp, breaker_line
from proxy.edge.observers import Handlers
from proxy.edge.traffic import Traffic
from proxy.edge.views import Cell

MAX_MOVES = 200
MAX_DECISIONS = 100
QUIET = frozenset({Decision.SELECT, Decision.SKIP})  # every request has them; they are no news
SAME_S = 60.0  # the same decision within this time is one entry, counted


class Why(msgspec.Struct, frozen=True):
    """Why a target is in its state: the breaker's reason, its figures, and which cell says so."""

    scope: str
    reason: str
    numbers: dict[str, float]


class TargetStatus(msgspec.Struct, frozen=True):
    """One target of a route. Ratios and shares are 0..1; `model` is empty where the name is passed on.

    `state` is `drained`, a breaker's state (the worst of the cells the target depends on), or
    `resting` for a closed one that cools down. `share` is its part of the route's recent answers,
    `admitted` the part of its traffic that a recovering breaker lets through.
    """

    upstream: str
    model: str
    tier: int
    weight: float
    state: str
    why: Why | None
    failure_ratio: float | None
    slow_ratio: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    share: float | None
    admitted: float
    in_flight: int
    cooldown_s: float
    next_probe_s: float | None


class RouteStatus(msgspec.Struct, frozen=True):
    """One route and its targets, best first."""

    name: str
    targets: list[TargetStatus]


class Totals(msgspec.Struct, frozen=True):
    """Requests since the start; `saved` are those that a failover answered."""

    requests: int
    saved: int
    outcomes: dict[str, int]


class DecisionEntry(msgspec.Struct):
    """The same decision for one or more requests in a row."""

    first: str
    last: str
    route: str
    upstream: str
    decision: str
    reason: str
    count: int
    last_wall: float = msgspec.field(name="last_unix")


class Status(msgspec.Struct, frozen=True):
    """All of it."""

    version: str
    ts: str
    uptime_s: float
    ready: bool
    listen: list[str]
    totals: Totals
    routes: list[RouteStatus]
    moves: list[BreakerLine]
    decisions: list[DecisionEntry]


def _none() -> tuple[()]:
    return ()


@dataclass(frozen=True, slots=True)
class Sources:
    """What the board reads when it is asked; `drained` names upstreams."""

    version: str
    routes: Callable[[], Iterable[Route]]
    cells: Callable[[], Iterable[Cell]]
    clock: Callable[[], float]
    wall: Callable[[], float]
    ready: Callable[[], bool]
    drained: Callable[[], Collection[str]] = _none
    listen: Callable[[], Iterable[str]] = _none


class StatusBoard:
    """Keeps what the status page needs of past events, in bounded memory."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._started = sources.clock()
        self._stamp = Stamp()
        self._outcomes = dict.fromkeys(RequestOutcome, 0)
        self._traffic = Traffic()
        self._moves: deque[BreakerLine] = deque(maxlen=MAX_MOVES)
        self._decisions: OrderedDict[tuple[str, ...], DecisionEntry] = OrderedDict()
        self.handlers: Handlers = {
            RequestEnded: self._request_ended,
            Decided: self._decided,
            BreakerMoved: self._breaker_moved,
        }

    def observe(self, event: Event) -> None:
        """Keep what the page will need of an event."""
        handler = self.handlers.get(type(event))
        if handler is not None:
            handler(event)

    def status(self) -> Status:
        """Return the state of everything as of now."""
        sources, wall = self._sources, self._sources.wall()
        cells = _by_upstream(sources.cells())
        outcomes = {str(outcome): count for outcome, count in self._outcomes.items()}
        return Status(
            version=sources.version,
            ts=self._stamp.of(wall),
            uptime_s=round(sources.clock() - self._started, 1),
            ready=sources.ready(),
            listen=list(sources.listen()),
            totals=Totals(sum(outcomes.values()), outcomes[RequestOutcome.OK_FAILOVER], outcomes),
            routes=[self._route(route, cells, wall) for route in sources.routes()],
            moves=list(reversed(self._moves)),
            decisions=list(reversed(self._decisions.values())),
        )

    def _route(self, route: Route, cells: Mapping[str, list[Cell]], wall: float) -> RouteStatus:
        shares = self._traffic.shares(route, wall)
        drained = self._sources.drained()
        return RouteStatus(
            route.name,
            [
                target_status(
                    target,
                    tier,
                    cells.get(target.upstream.name, []),
                    shares.get((target.upstream.name, target.label), 0.0) if shares else None,
                    drained=target.upstream.name in drained,
                )
                for tier, found in enumerate(route.tiers)
                for target in found.targets
            ],
        )

    def _request_ended(self, event: RequestEnded) -> None:
        self._outcomes[event.outcome] += 1
        if event.upstream:
            self._traffic.answered(event.route, event.upstream, event.model, event.wall)

    def _breaker_moved(self, event: BreakerMoved) -> None:
        self._moves.append(breaker_line(event, self._stamp.of(self._sources.wall())))

    def _decided(self, event: Decided) -> None:
        """Keep news; the same decision again within a minute only counts up its entry."""
        if event.decision in QUIET:
            return
        wall = self._sources.wall()
        ts = self._stamp.of(wall)
        key = (event.route, event.upstream, event.decision, event.reason)
        entry = self._decisions.pop(key, None)
        if entry is None or wall - entry.last_wall > SAME_S:
            entry = DecisionEntry(ts, ts, *key, 0, wall)
        entry.last, entry.last_wall = ts, wall
        entry.count += 1
        self._decisions[key] = entry
        if len(self._decisions) > MAX_DECISIONS:
            self._decisions.popitem(last=False)


def _by_upstream(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.upstream, []).append(cell)
    return found


def target_status(
    target: Target, tier: int, cells: Iterable[Cell], share: float | None, *, drained: bool
) -> TargetStatus:
    """Join the cells of the target's upstream: its own, and those that concern the whole upstream."""
    own = [cell for cell in cells if cell.model == target.label]
    all_cells = [*own, *(cell for cell in cells if not cell.model)]
    worst = max(all_cells, key=_badness, default=None)
    cooldown_s = max((cell.cooldown_s for cell in all_cells), default=0.0)
    state = "drained" if drained else _state(worst, cooldown_s)
    return TargetStatus(
        upstream=target.upstream.name,
        model=target.model or "",
        tier=tier,
        weight=target.weight,
        state=state,
        why=_why(worst),
        failure_ratio=_worst_of(cell.failure_ratio for cell in own),
        slow_ratio=_worst_of(cell.slow_ratio for cell in own),
        ttft_p50_s=_worst_of(cell.ttft_p50_s for cell in own),
        ttft_p95_s=_worst_of(cell.ttft_p95_s for cell in own),
        share=share,
        admitted=min((cell.share for cell in all_cells), default=1.0),
        in_flight=sum(cell.in_flight for cell in own),
        cooldown_s=round(cooldown_s, DIGITS),
        next_probe_s=round(cooldown_s, DIGITS) if state == "open" else None,
    )


def _badness(cell: Cell) -> tuple[int, float]:
    return (STATES.index(cell.state) if cell.state in STATES else 0, cell.cooldown_s)


def _state(worst: Cell | None, cooldown_s: float) -> str:
    state = worst.state if worst is not None else "closed"
    return "resting" if state == "closed" and cooldown_s > 0 else state


def _why(cell: Cell | None) -> Why | None:
    if cell is None or not cell.reason:
        return None
    numbers = {name: round(value, DIGITS) for name, value in cell.numbers.items()}
    return Why(cell.scope, cell.reason, numbers)


def _worst_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(max(known), DIGITS) if known else None
