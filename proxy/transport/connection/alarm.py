"""A timer that is set anew far more often than it goes off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LATE_S = 0.005  # being late by this is cheaper than setting the timer anew


class Alarm:
    """Calls a function once `at` (loop time) has come; putting `at` off, or to `None`, costs nothing.

    The loop's timer is armed only where it would go off too late. When it goes off too early it is armed
    for the rest, and when nothing is due any more it stays off until `set`.
    """

    __slots__ = ("_goes_off", "_loop", "_timer", "_timer_at", "at")

    def __init__(self, loop: asyncio.AbstractEventLoop, goes_off: Callable[[], None]) -> None:
        self.at: float | None = None
        self._loop = loop
        self._goes_off = goes_off
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def set(self, at: float) -> None:
        """Go off at *at* and not before."""
        self.at = at
        if self._timer is None:
            self._arm(at)
        elif at < self._timer_at - LATE_S:
            self._timer.cancel()
            self._arm(at)

    def cancel(self) -> None:
        """Go off no more, and leave no timer behind."""
        self.at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        self._timer_at = at
        self._timer = self._loop.call_at(at, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.at is None:
            return
        if self._loop.time() < self.at - LATE_S:
            self._arm(self.at)
        else:
            self.at = None
            self._goes_off()
