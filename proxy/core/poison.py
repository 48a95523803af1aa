"""Bodies that fail everywhere: what they meet says nothing of the targets they meet it on.

A request that crashes every server it reaches, sent again and again by its client, must not open one
breaker after another. A body that has failed on two targets counts no further until it succeeds, and
on one target it counts again only if nothing else was answered there since it last failed: a health
check that fails a few times in a row on one dead target counts each time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

KEPT = 1024  # bodies; those that have failed lately are the ones that come again
TARGETS = 2

TargetKey = tuple[str, str]


class _Failed(NamedTuple):
    """When a body last failed on a target, in which request, and whether that did not count."""

    at: float
    request: str
    poisoned: bool


class Poison:
    """Which bodies, by digest, have failed where lately."""

    __slots__ = ("_failed_on",)

    def __init__(self) -> None:
        self._failed_on: OrderedDict[bytes, dict[TargetKey, _Failed]] = OrderedDict()

    def __repr__(self) -> str:
        return f"Poison({len(self._failed_on)} bodies)"

    def __len__(self) -> int:
        return len(self._failed_on)

    def suspects(self, digest: bytes) -> bool:
        """Tell whether this body has failed on too many targets to blame another."""
        return len(self._failed_on.get(digest, ())) >= TARGETS

    def repeats(self, digest: bytes, target: TargetKey, request: str, answered_at: float) -> bool:
        """Tell whether this body failed on *target* in an earlier request, and others were answered since.

        A request's own retry counts as its first attempt did.
        """
        failed = self._failed_on.get(digest, {}).get(target)
        if failed is None:
            return False
        return failed.poisoned if failed.request == request else answered_at > failed.at

    def failed(
        self, digest: bytes, target: TargetKey, request: str, now: float, *, poisoned: bool = False
    ) -> None:
        """Note that this body failed on *target*; *poisoned* says that it did not count."""
        if not digest:
            return
        targets = self._failed_on.setdefault(digest, {})
        if target in targets or len(targets) < TARGETS:
            targets[target] = _Failed(now, request, poisoned)
        self._failed_on.move_to_end(digest)
        if len(self._failed_on) > KEPT:
            self._failed_on.popitem(last=False)

    def succeeded(self, digest: bytes) -> None:
        """Note that this body was answered: it is as good as any."""
        if self._failed_on:
            self._failed_on.pop(digest, None)
