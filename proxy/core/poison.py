"""Bodies that fail everywhere: what they meet says nothing of the targets they meet it on.

A request that crashes every server it reaches, sent again and again by its SDK, must not open one
breaker after another. A body that has failed on two targets counts no further until it succeeds; the
same body failing on one dead target a few times (a health check) counts each time.
"""

from __future__ import annotations

from collections import OrderedDict

KEPT = 1024  # bodies; those that have failed lately are the ones that come again
TARGETS = 2

TargetKey = tuple[str, str]


class Poison:
    """Which bodies, by digest, have failed where lately."""

    __slots__ = ("_failed_on",)

    def __init__(self) -> None:
        self._failed_on: OrderedDict[bytes, frozenset[TargetKey]] = OrderedDict()

    def __repr__(self) -> str:
        return f"Poison({len(self._failed_on)} bodies)"

    def __len__(self) -> int:
        return len(self._failed_on)

    def suspects(self, digest: bytes) -> bool:
        """Tell whether this body has failed on too many targets to blame another."""
        return len(self._failed_on.get(digest, ())) >= TARGETS

    def failed(self, digest: bytes, target: TargetKey) -> None:
        """Note that this body failed on *target*."""
        if not digest:
            return
        before = self._failed_on.get(digest, frozenset())
        self._failed_on[digest] = before if len(before) >= TARGETS else before | {target}
        self._failed_on.move_to_end(digest)
        if len(self._failed_on) > KEPT:
            self._failed_on.popitem(last=False)

    def succeeded(self, digest: bytes) -> None:
        """Note that this body was answered: it is as good as any."""
        if self._failed_on:
            self._failed_on.pop(digest, None)
