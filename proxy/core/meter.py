"""Counts over a sliding span, in a ring of equal slices.

Exact sums of a few slices rather than a decaying average: a tight burst and the same burst spread
out must give the same answer (linkerd2-proxy keeps its success rate so for that reason).
"""

from __future__ import annotations


class Meter:
    """How much was counted lately. Nothing expires by a timer: old slices are cleared when touched."""

    __slots__ = ("_at", "_began", "_counts", "_ends_at", "_slice_s", "_slot")

    def __init__(self, slices: int, slice_s: float) -> None:
        self._counts = [0] * slices
        self._slice_s = slice_s
        self._at = -1  # number of the slice that is being filled
        self._slot = 0  # its place in the ring
        self._ends_at = float("-inf")
        self._began = -1  # number of the first slice ever filled

    def __repr__(self) -> str:
        return f"Meter({self._counts}, slice_s={self._slice_s})"

    def add(self, now: float, count: int = 1) -> None:
        """Count *count* at *now*."""
        if now >= self._ends_at:
            self._roll(now)
        self._counts[self._slot] += count

    def total(self, now: float, span_s: float | None = None) -> int:
        """Return the count over the last *span_s* (`None`: over all slices), the running slice included."""
        self._roll(now)
        if span_s is None:
            return sum(self._counts)
        slices = min(len(self._counts), round(span_s / self._slice_s))
        return sum(self._counts[(self._at - age) % len(self._counts)] for age in range(slices))

    def rate(self, now: float, span_s: float | None = None) -> float:
        """Return counts per second over the last *span_s*, or over what has been seen if that is less."""
        total = self.total(now, span_s)
        span = len(self._counts) * self._slice_s if span_s is None else span_s
        seen = now - self._began * self._slice_s
        return total / max(self._slice_s, min(span, seen))

    def peak(self, now: float) -> float:
        """Return the highest count of one slice, per second."""
        self._roll(now)
        return max(self._counts) / self._slice_s

    def _roll(self, now: float) -> None:
        """Make the slice of *now* the running one and clear those between. Time does not go back."""
        at, size = int(now / self._slice_s), len(self._counts)
        if self._began < 0:
            self._began = self._at = at
        for passed in range(self._at + 1, min(at, self._at + size) + 1):
            self._counts[passed % size] = 0
        self._at = max(self._at, at)
        self._slot = self._at % size
        self._ends_at = (self._at + 1) * self._slice_s
