"""A world in virtual time: a heap of (time, order, action), and nothing that waits for real.

Two actions at the same instant run in the order in which they were scheduled, so that the same seed
gives the same story. Simulated days pass in seconds; nothing here reads a clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

Action = Callable[[], None]


class World:
    """Virtual time, seeded chance, and a trace of what happened (kept only if asked for)."""

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        self.now = 0.0
        self.trace: list[tuple[object, ...]] = []
        self._keep_trace = keep_trace
        self._seed = seed
        self._order = 0
        self._heap: list[tuple[float, int, Action]] = []

    def rng(self, name: str) -> Random:
        """Return a source of chance of its own for *name*: drawing from one doesn't shift another."""
        return Random(f"{self._seed}/{name}")

    def at(self, when: float, action: Action) -> None:
        """Run *action* at *when*; what lies in the past runs next."""
        self._order += 1
        heapq.heappush(self._heap, (max(when, self.now), self._order, action))

    def after(self, seconds: float, action: Action) -> None:
        """Run *action* in *seconds*."""
        self.at(self.now + seconds, action)

    def note(self, *what: object) -> None:
        """Add a line to the trace."""
        if self._keep_trace:
            self.trace.append((round(self.now, 6), *what))

    def run(self) -> None:
        """Let time pass until nothing is left to happen."""
        heap = self._heap
        while heap:
            self.now, _, action = heapq.heappop(heap)
            action()
