"""What clients felt of a drill, as data: counted while it runs, told when it is over."""

from __future__ import annotations

import random

import msgspec

from proxy.core.events import BreakerMoved, RequestEnded, RequestOutcome

MAX_MOVES = 100
MAX_WAITS = 10_000  # of each sort: beyond it every request has the same chance to be among them
ANSWERED = frozenset({"ok", "interrupted", "stalled"})  # attempts whose answer the client got to see

_AS_TOLD = {
    RequestOutcome.OK: "ok",
    RequestOutcome.OK_FAILOVER: "ok_failover",
    RequestOutcome.UPSTREAM_ERROR: "failed",
    RequestOutcome.INTERRUPTED: "interrupted",
}


class Latency(msgspec.Struct, frozen=True):
    """Seconds until the first content of a stream or a whole answer; `None` if there were none."""

    count: int
    p50_s: float | None
    p99_s: float | None


class Move(msgspec.Struct, frozen=True):
    """A move of one of the upstream's breakers, `after_s` from the drill's beginning."""

    after_s: float
    scope: str
    model: str
    operation: str
    from_state: str = msgspec.field(name="from")
    to_state: str = msgspec.field(name="to")
    reason: str = ""


class Report(msgspec.Struct, frozen=True):
    """A drill and what came of it so far.

    `requests` counts by outcome ("ok", "ok_failover", "failed", "interrupted", "other") those on the
    upstream's routes that began and ended while it ran, and all that it hit; `open` are hit and have not
    ended yet. `attempts` on the upstream began while it ran, `hit` of them were made to fail. `extra_p50_s`
    and `extra_p99_s`: how much longer those that were failed over took than the others.
    """

    id: int
    upstream: str
    fault: str
    share: float
    for_s: float
    elapsed_s: float
    left_s: float
    running: bool
    requests: dict[str, int]
    open: int
    attempts: int
    hit: int
    failed_over: Latency
    others: Latency
    extra_p50_s: float | None
    extra_p99_s: float | None
    moves: list[Move]


class Listed(msgspec.Struct, frozen=True):
    """What `/-/drills` shows: the drills that run, and the last of each upstream that has ended."""

    running: list[Report]
    ended: list[Report]


def read_report(data: bytes) -> Report:
    """Return the report in what POST answers. Raises: ValueError."""
    return msgspec.json.decode(data, type=Report)


def read_listed(data: bytes) -> Listed:
    """Return what GET answers. Raises: ValueError."""
    return msgspec.json.decode(data, type=Listed)


class Felt:
    """Counts what happens to requests; its memory is bounded."""

    def __init__(self, rng: random.Random) -> None:
        self.requests = dict.fromkeys((*_AS_TOLD.values(), "other"), 0)
        self.moves: list[Move] = []
        self.failed_over = _Waits(rng)
        self.others = _Waits(rng)

    def request_ended(self, event: RequestEnded) -> None:
        """Count a request."""
        told = _AS_TOLD.get(event.outcome, "other")
        self.requests[told] += 1
        if told == "ok_failover":
            self.failed_over.add(wait_s(event))
        elif told == "ok":
            self.others.add(wait_s(event))

    def breaker_moved(self, event: BreakerMoved, after_s: float) -> None:
        """Keep a move, if it is among the first."""
        if len(self.moves) < MAX_MOVES:
            names = (str(event.scope), event.model, event.operation)
            states = (event.from_state, event.to_state, event.reason)
            self.moves.append(Move(round(after_s, 3), *names, *states))


def wait_s(event: RequestEnded) -> float:
    """Return how long the client of an answered request waited for a stream's first content, or for all."""
    if event.ttft_s is None:
        return event.duration_s
    answering = next(
        (at for at, attempt in enumerate(event.attempts) if attempt.outcome in ANSWERED), len(event.attempts)
    )
    streamed_s = sum(attempt.seconds for attempt in event.attempts[answering:])
    return min(event.duration_s, max(0.0, event.duration_s - streamed_s) + event.ttft_s)


def extra(more: float | None, less: float | None) -> float | None:
    """Return by how much one figure is above the other, if there are both."""
    return round(more - less, 4) if more is not None and less is not None else None


class _Waits:
    """A sample of waits, all alike likely to be in it (Vitter's algorithm R)."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._seen = 0
        self._kept: list[float] = []

    def add(self, seconds: float) -> None:
        """Take one more."""
        self._seen += 1
        if len(self._kept) < MAX_WAITS:
            self._kept.append(seconds)
        elif (at := self._rng.randrange(self._seen)) < MAX_WAITS:
            self._kept[at] = seconds

    def latency(self) -> Latency:
        """Return the count and the quantiles (nearest rank)."""
        kept = sorted(self._kept)
        if not kept:
            return Latency(0, None, None)
        p50, p99 = (kept[min(len(kept) - 1, int(len(kept) * share))] for share in (0.5, 0.99))
        return Latency(self._seen, round(p50, 4), round(p99, 4))
