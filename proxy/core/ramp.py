"""The way back: the share of its traffic that a recovering target gets."""

from __future__ import annotations

from random import Random

FIRST_SHARE = 1 / 16  # below twice this it is one request at a time, which at low rates is more
PAID_BY = 8  # so many good answers pay for one strike


class Ramp:
    """A share that doubles from `FIRST_SHARE` to all in `recovery_s`, held back by failures.

    A failure costs a strike, and so many good answers pay for one, also in advance. With strikes above
    zero a failure halves the share, above one it ends the recovery. So one failure halves and a second
    one reopens; but the odd failures of a healthy target that gets fifty requests a second do neither,
    or it would never come back. What begins to fail late, on credit, is seen by the detectors.
    """

    __slots__ = ("_began", "recovery_s", "strikes")

    def __init__(self, recovery_s: float) -> None:
        self.recovery_s = recovery_s
        self.strikes = 0.0
        self._began = 0.0

    def start(self, now: float) -> None:
        """Begin with one request at a time."""
        self.strikes = 0.0
        self._began = now

    def share(self, now: float) -> float:
        """Return the share of traffic that may pass, 0..1."""
        elapsed_s = now - self._began
        if elapsed_s >= self.recovery_s:
            return 1.0
        return float(FIRST_SHARE ** (1 - elapsed_s / self.recovery_s))

    def admits(self, now: float, rng: Random, *, busy: bool) -> bool:
        """Return whether it is this request's turn; *busy* says that the last one is undecided yet."""
        share = self.share(now)
        return not busy if share < 2 * FIRST_SHARE else rng.random() < share

    def success(self) -> None:
        """Pay for a part of a strike."""
        self.strikes -= 1 / PAID_BY

    def failure(self, now: float) -> bool:
        """Count a strike; return whether that ends the recovery."""
        self.strikes += 1
        if self.strikes > 0:
            self._began = min(now, self._began + self.recovery_s / 4)
        return self.strikes > 1
