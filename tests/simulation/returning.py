"""How targets come back: one breaker after an outage, and three hundred of them at the same time."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.breaker import Admission, Breaker, State
from proxy.core.outcome import OK, Kind, Outcome
from proxy.core.target import BreakerPolicy

FAILED = Outcome(Kind.OVERLOADED, status=503)
LATENCY_S = 0.5


@dataclass(frozen=True, slots=True)
class Return:
    """Seconds from the healing to the first good answer and to all of the traffic; probes in between."""

    first_s: float
    full_s: float
    longest_gap_s: float
    probes: int


@dataclass(frozen=True, slots=True)
class Herd:
    """What many proxies did to one target: its highest load per second, and the share that came back."""

    peak_load: float
    closed: float


def come_back(rate: float, *, outage_s: float, seed: int, errors: float = 0.0) -> Return:
    """Let everything fail for *outage_s*, then heal; answers come at once."""
    rng = random.Random(f"{seed} {rate}")
    breaker, now, gap = Breaker(BreakerPolicy()), 1_000.0, 0.0
    healed_at = now + outage_s
    first_at, probes, number = math.inf, 0, 0
    while now < healed_at or breaker.snapshot(now).state is not State.CLOSED:
        wait = rng.expovariate(rate)
        now, number = now + wait, number + 1
        gap = max(gap, wait) if now > healed_at else 0.0
        admission = breaker.admit(now, rng)
        if admission is None:
            continue
        probes += admission.probe
        if now < healed_at or rng.random() < errors:
            breaker.record(admission, FAILED, now, request=str(number), rng=rng)
        else:
            first_at = min(first_at, now)
            breaker.first_content(admission, LATENCY_S, now, request=str(number), rng=rng)
            breaker.record(admission, OK, now, request=str(number), rng=rng)
    return Return(first_at - healed_at, now - healed_at, gap, probes)


def herd(
    proxies: int, rate: float, capacity_at: Callable[[float], float], *, end_s: float, seed: int
) -> Herd:
    """Let many proxies send to one target that serves *capacity_at(now)* of their whole traffic.

    What exceeds the capacity of a second is refused. Refused requests go elsewhere, they do not return.
    """
    rng = random.Random(seed)
    breakers = [(Breaker(BreakerPolicy()), random.Random(f"{seed} {number}")) for number in range(proxies)]
    load: Counter[int] = Counter()
    queue: list[tuple[float, int, int, Admission | None, bool]] = [
        (rng.expovariate(rate), number, number, None, False) for number in range(proxies)
    ]
    heapq.heapify(queue)
    number = proxies
    while queue[0][0] < end_s:
        now, _, which, admission, served = heapq.heappop(queue)
        breaker, chance = breakers[which]
        number += 1
        name = str(number)
        if admission is None:
            heapq.heappush(queue, (now + rng.expovariate(rate), number, which, None, False))
            admission = breaker.admit(now, chance)
            if admission is not None:
                load[int(now)] += 1
                served = load[int(now)] <= capacity_at(now) * proxies * rate
                heapq.heappush(queue, (now + LATENCY_S, -number, which, admission, served))
            continue
        if served:
            breaker.first_content(admission, LATENCY_S, now, request=name, rng=chance)
        breaker.record(admission, OK if served else FAILED, now, request=name, rng=chance)
    closed = sum(breaker.snapshot(end_s).state is State.CLOSED for breaker, _ in breakers)
    peak = max(
        seen / (proxies * rate * capacity_at(second)) for second, seen in load.items() if capacity_at(second)
    )
    return Herd(peak, closed / proxies)
