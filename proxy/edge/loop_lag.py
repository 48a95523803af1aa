"""How late the event loop runs its timers: the one number that tells an overloaded process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PERIOD_S = 0.5


class LoopLag:
    """Measures while entered; `seconds` is the worst lateness since it was last read."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due = 0.0
        self._worst_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to measure."""
        self._due = self._clock() + PERIOD_S
        self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._tick)

    def stop(self) -> None:
        """End it."""
        if self._timer is not None:
            self._timer.cancel()

    def seconds(self) -> float:
        """Return the worst lateness since the last call, in seconds."""
        worst, self._worst_s = self._worst_s, 0.0
        return worst

    def _tick(self) -> None:
        # The loop's timers count whole milliseconds: what is below one is not lateness.
        late = self._clock() - self._due
        if late > 0.001:
            self._worst_s = max(self._worst_s, late)
        self.start()
