"""Waiting lines: who gets the next permit when there are fewer permits than requests.

A request that finds no target available joins its route's line, and while permits are scarce (one
probe, a share of the traffic, the last free slots) only the front of the line may take one: the first
to wait is the first to go, and a new arrival does not overtake. Requests ask again by themselves; the
line only knows their order. Whoever has not asked for a while has left without saying so and is
forgotten, so that nobody can block a line.
"""

from __future__ import annotations

from collections import OrderedDict

GRACE_S = 2.0  # a waiter that is this late to ask again does not hold up the others


class Line:
    """One route's waiting requests in the order of their arrival."""

    __slots__ = ("_number", "_waiting")

    def __init__(self) -> None:
        self._number = 0
        self._waiting: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"Line({list(self._waiting)})"

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self, request_id: str, asks_at: float) -> None:
        """Wait, or keep waiting in the same place; the request will ask again at *asks_at*."""
        place = self._waiting.get(request_id)
        if place is None:
            self._number += 1
        self._waiting[request_id] = (place[0] if place is not None else self._number, asks_at)

    def leave(self, request_id: str) -> None:
        """Go, with a permit or without. Whoever is not in the line may leave too."""
        self._waiting.pop(request_id, None)

    def ahead(self, request_id: str, now: float) -> int:
        """Return how many are to go first, at most: some between may have left already."""
        waiting = self._waiting
        while waiting:
            first, (number, asks_at) = next(iter(waiting.items()))
            if first == request_id or asks_at + GRACE_S >= now:
                place = waiting.get(request_id)
                return place[0] - number if place is not None else len(waiting)
            del waiting[first]
        return 0


class Lines:
    """The waiting lines of all routes; those in which nobody waits do not exist."""

    __slots__ = ("_by_route",)

    def __init__(self) -> None:
        self._by_route: dict[str, Line] = {}

    def __repr__(self) -> str:
        return f"Lines({self._by_route})"

    def of(self, route: str) -> Line | None:
        """Return the route's line, `None` if nobody waits."""
        return self._by_route.get(route)

    def join(self, route: str, request_id: str, asks_at: float) -> None:
        """Wait in the route's line, or keep the place in it."""
        self._by_route.setdefault(route, Line()).join(request_id, asks_at)

    def leave(self, route: str, request_id: str) -> None:
        """Leave the route's line, wherever in it."""
        line = self._by_route.get(route)
        if line is not None:
            line.leave(request_id)
            if not line:
                del self._by_route[route]
