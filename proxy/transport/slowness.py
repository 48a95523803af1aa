"""Attempts that have passed their soft limit: evidence of slowness, and evacuation if their target opened.

One sweep over all running attempts instead of a timer for each: nearly every attempt ends long before
its soft limit, and setting and cancelling a timer for it would cost more than looking now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from proxy.core.outcome import Kind, Outcome
from proxy.transport.upstream import Attempt

SWEEP_S = 0.25
RECHECK_S = 1.0  # how often a slow attempt asks whether its target has opened
EVACUATED = Outcome(Kind.NO_ANSWER, code="evacuated")


class Owner(Protocol):
    """The request that an attempt belongs to."""

    def soft_limit_passed(self, attempt: Attempt) -> float | None:
        """Report that *attempt* is slow; return when to abandon it, None to go on."""
        ...


class SlowWatch:
    """Looks after running attempts; its timer runs only while there are any."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._attempts: dict[Attempt, tuple[Owner, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, attempt: Attempt, owner: Owner, at: float) -> None:
        """Watch *attempt*, whose soft limit passes at *at*."""
        self._attempts[attempt] = (owner, at)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def discard(self, attempt: Attempt) -> None:
        """Watch it no longer."""
        self._attempts.pop(attempt, None)

    def _sweep(self) -> None:
        self._timer = None
        now = self._clock()
        for attempt, (owner, at) in tuple(self._attempts.items()):
            if at <= now:
                leave_at = owner.soft_limit_passed(attempt)
                now = self._clock()  # "at once" is never earlier than when it was said
                if leave_at is not None and leave_at <= now:
                    attempt.force(EVACUATED)
                else:
                    next_at = min(leave_at or now + RECHECK_S, now + RECHECK_S)
                    self._attempts[attempt] = (owner, next_at)
        if self._attempts:
            self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
