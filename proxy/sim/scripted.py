"""Providers that follow a scenario's script: asked at an instant, they tell what an attempt would come to.

The outcomes are those that `transport` and `dialects` make of the same behaviour on a real wire.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from proxy.core.outcome import Kind, Outcome
from proxy.sim.scenario import Fault, ProviderSpec

NEVER = math.inf
STUMBLED = Outcome(Kind.SERVER_ERROR, status=500, code="stumbled")  # an error of a healthy provider
STUMBLE_S = 0.15
OVERLOAD_S = 0.05  # how fast a provider above its capacity says no
REFUSAL_S = 0.002

_OK = Outcome(Kind.OK, status=200)
_BY_STATUS = {
    400: Outcome(Kind.REJECTED, status=400),
    401: Outcome(Kind.UNAUTHORIZED, status=401, code="invalid_api_key"),
    402: Outcome(Kind.QUOTA_SPENT, status=402),
    403: Outcome(Kind.UNAUTHORIZED, status=403, code="invalid_api_key"),
    404: Outcome(Kind.MODEL_MISSING, status=404, code="model_not_found"),
    413: Outcome(Kind.TOO_LARGE, status=413),
    429: Outcome(Kind.RATE_LIMITED, status=429),
    498: Outcome(Kind.OVERLOADED, status=498),
    503: Outcome(Kind.OVERLOADED, status=503, code="server_is_overloaded"),
    529: Outcome(Kind.OVERLOADED, status=529, code="overloaded_error"),
}
_OVERLOADED = _BY_STATUS[503]


@dataclass(frozen=True, slots=True)
class Fate:
    """What an attempt comes to if nobody cuts it short; seconds from sending.

    Before `first_s` nothing usable comes. A good answer begins at `first_s` and ends at `end_s`;
    `INTERRUPTED` breaks at `end_s`, `STALLED` falls silent then; any other outcome is known at `first_s`.
    """

    outcome: Outcome
    first_s: float
    end_s: float


class ScriptedProvider:
    """One provider of a scenario, shared by all simulated proxies and clients."""

    def __init__(self, role: str, spec: ProviderSpec, rng: Random) -> None:
        self.role = role
        self.spec = spec
        self.stumbles: list[float] = []  # when it erred although nothing was wrong
        self._rng = rng
        self._credit = 0.0
        self._credited_at = 0.0
        self._cuts = any(fault.cuts_open for fault in spec.faults)
        self._under_way: dict[int, Callable[[], None]] = {}
        self._places = 0
        self._ills: dict[int, tuple[list[str], list[float]]] = {
            id(fault): (list(fault.fails), list(fault.fails.values())) for fault in spec.faults
        }

    def answer(self, now: float, model: str, operation: str, *, stream: bool) -> Fate:
        """Receive a request at *now*; *model* is the role of the route it is for."""
        fault = self._fault(now, model, operation)
        if fault is not None and fault.fails:
            names, weights = self._ills[id(fault)]
            return self._fail(fault, self._rng.choices(names, weights)[0], stream=stream)
        if not self._has_room(now):
            return Fate(_OVERLOADED, OVERLOAD_S, OVERLOAD_S)
        if self._rng.random() < self.spec.errors:
            self.stumbles.append(now)
            return Fate(STUMBLED, STUMBLE_S, STUMBLE_S)
        return self._succeed(fault, operation, stream=stream)

    def enter(self, cut: Callable[[], None]) -> int:
        """Note an exchange under way, which a fault may *cut*; the place returned is for `leave`."""
        self._places += 1
        if self._cuts:
            self._under_way[self._places] = cut
        return self._places

    def leave(self, place: int) -> None:
        """Forget an exchange; leaving twice is harmless."""
        self._under_way.pop(place, None)

    def cut(self, share: float) -> None:
        """Cut the given share of everything under way."""
        for end in tuple(self._under_way.values()):
            if self._rng.random() < share:
                end()

    def _fault(self, now: float, model: str, operation: str) -> Fault | None:
        for fault in self.spec.faults:
            if fault.concerns(model, operation):
                share = fault.share_at(now)
                if share and (share >= 1.0 or self._rng.random() < share):
                    return fault
        return None

    def _has_room(self, now: float) -> bool:
        """Take from a bucket that fills at the capacity and holds one second of it."""
        capacity = self.spec.capacity_at(now)
        if capacity is None:
            return True
        self._credit = min(capacity, self._credit + capacity * (now - self._credited_at))
        self._credited_at = now
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True

    def _succeed(self, fault: Fault | None, operation: str, *, stream: bool) -> Fate:
        first_s = self._time((fault.first_token if fault else None) or self.spec.first_token)
        if operation == "embeddings":
            return Fate(_OK, first_s, first_s)
        more_s = self._time((fault.answer if fault else None) or self.spec.answer)
        if stream:
            return Fate(_OK, first_s, first_s + more_s)
        return Fate(_OK, first_s + more_s, first_s + more_s)

    def _fail(self, fault: Fault, ill: str, *, stream: bool) -> Fate:
        if ill in ("cut", "stall"):
            return self._break(ill, self._succeed(fault, "chat", stream=True), stream=stream)
        if ill in _AT_ONCE:
            return Fate(_AT_ONCE[ill], REFUSAL_S, REFUSAL_S)
        if ill in _NEVER:
            return Fate(_NEVER[ill], NEVER, NEVER)
        if ill == "error_event" and not stream:
            ill = "503"
        outcome = _ANSWERS.get(ill) or _of_status(int(ill))
        if fault.retry_after is not None:
            outcome = replace(outcome, retry_after_s=fault.retry_after)
        seconds = self._time(fault.fails_in)
        return Fate(outcome, seconds, seconds)

    def _break(self, ill: str, whole: Fate, *, stream: bool) -> Fate:
        """Break an answer somewhere after its beginning; one that is not streamed was not committed."""
        at = whole.first_s + self._rng.random() * (whole.end_s - whole.first_s)
        if stream:
            return Fate(
                Outcome(Kind.INTERRUPTED if ill == "cut" else Kind.STALLED, status=200), whole.first_s, at
            )
        if ill == "cut":
            return Fate(Outcome(Kind.RESET, code="body"), at, at)
        return Fate(Outcome(Kind.NO_ANSWER), NEVER, NEVER)

    def _time(self, median: float) -> float:
        return median * math.exp(self.spec.spread * self._rng.gauss(0.0, 1.0))


_AT_ONCE = {
    "refused": Outcome(Kind.CONNECT_FAILED, code="refused"),
    "dns": Outcome(Kind.CONNECT_FAILED, code="dns"),
    "tls": Outcome(Kind.CONNECT_FAILED, code="tls"),
    "reset": Outcome(Kind.RESET, code="head"),
}
_NEVER = {
    "unreachable": Outcome(Kind.CONNECT_FAILED, code="timeout"),
    "hang": Outcome(Kind.NO_ANSWER),
}
_ANSWERS = {
    "html": Outcome(Kind.SERVER_ERROR, status=502, code="html"),
    "blank": Outcome(Kind.SERVER_ERROR, status=200, code="empty", in_band=True),
    "half_json": Outcome(Kind.MALFORMED, status=200, in_band=True),
    "error_event": Outcome(Kind.OVERLOADED, status=200, code="server_is_overloaded", in_band=True),
    "quota": Outcome(Kind.QUOTA_SPENT, status=429, code="insufficient_quota"),
}


def _of_status(status: int) -> Outcome:
    known = _BY_STATUS.get(status)
    if known is not None:
        return known
    return Outcome(Kind.SERVER_ERROR if status >= 500 else Kind.REJECTED, status=status)
