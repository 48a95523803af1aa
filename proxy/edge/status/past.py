"""The last quarter of an hour of each target, from the moves of its breakers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable

import msgspec

from proxy.core.events import BreakerMoved
from proxy.edge.families import STATES
from proxy.edge.status.words import span_says, state_word

SLOTS, SLOT_S = 60, 15.0
MAX_MOVES = 64  # of one cell; a breaker can hardly move more often in a quarter of an hour
MAX_CELLS = 500  # of one upstream

Cell = tuple[str, str, str, str]  # scope, upstream, model, operation


class Span(msgspec.Struct, frozen=True):
    """Slots in a row with one state; `slot` counts from the oldest, which is 0."""

    state: str
    slot: int
    slots: int


class Past:
    """Which state each breaker was in, and when; *since* is the Unix time before which nothing is known."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._moves: dict[str, dict[Cell, deque[tuple[float, str]]]] = {}  # by upstream

    def moved(self, event: BreakerMoved, wall: float) -> None:
        """Keep a move; what a breaker only observes does not count."""
        if event.enforced:
            cell = (event.scope.value, event.upstream, event.model, event.operation)
            self._note(cell, event.to_state, wall)

    def seen(self, cell: Cell, state: str, wall: float) -> None:
        """Note a state that was come to without an event, such as a recovery without traffic."""
        moves = self._moves.get(cell[1], {}).get(cell)
        if moves is not None and moves[-1][1] != state:
            self._note(cell, state, wall)

    def of(self, upstream: str, model: str, wall: float) -> list[Span]:
        """Return a target's states, the worst of each slot, as of *wall*."""
        known = self._moves.get(upstream, {})
        concerned = [moves for (_, _, label, _), moves in known.items() if label in (model, "")]
        first = max(0, SLOTS - 1 - (_slot(wall) - _slot(self._since)))
        worst = [0] * SLOTS
        for moves in concerned:
            _overlay(worst, moves, wall)
        return _spans([STATES[state] for state in worst[first:]], first)

    def _note(self, cell: Cell, state: str, wall: float) -> None:
        known = self._moves.setdefault(cell[1], {})
        if cell not in known and len(known) >= MAX_CELLS:
            known.pop(next(iter(known)))
        known.setdefault(cell, deque(maxlen=MAX_MOVES)).append((wall, state))


def past_says(spans: Iterable[Span]) -> str:
    """Return what a strip shows, in words: "cut off 2 min, coming back 15 s"."""
    times: Counter[str] = Counter()
    for span in spans:
        if span.state != "closed":
            times[span.state] += span.slots
    told = [f"{state_word(state).lower()} {span_says(slots * SLOT_S)}" for state, slots in times.items()]
    return ", ".join(told) or "up all the time"


def _overlay(worst: list[int], moves: Collection[tuple[float, str]], wall: float) -> None:
    """Raise each slot to the worst state that a cell was in during it; before its first move: closed."""
    now, state, at = _slot(wall), 0, None
    for when, name in moves:
        slot = SLOTS - 1 - (now - _slot(when))
        _raise(worst, at, slot, state)
        state, at = STATES.index(name) if name in STATES else 0, slot
    _raise(worst, at, SLOTS - 1, state)


def _raise(worst: list[int], start: int | None, end: int, state: int) -> None:
    """Raise the slots from *start* to *end*, both included: a state that ends within a slot was in it."""
    if start is not None and state:
        for slot in range(max(0, start), min(SLOTS - 1, end) + 1):
            worst[slot] = max(worst[slot], state)


def _slot(wall: float) -> int:
    return int(wall // SLOT_S)


def _spans(states: list[str], first: int) -> list[Span]:
    spans: list[Span] = []
    for slot, state in enumerate(states, start=first):
        if spans and spans[-1].state == state:
            spans[-1] = msgspec.structs.replace(spans[-1], slots=spans[-1].slots + 1)
        else:
            spans.append(Span(state, slot, 1))
    return spans
