"""How long one attempt may take: its hard limit, and the soft one at which it counts as slow.

Both follow the target's own 95th percentile (`latency`). Past the soft limit an attempt is evidence
of slowness and may be moved elsewhere; past the hard one it has failed. A probe has only the soft
limit, so that a probe into a black hole costs its client little.

| | soft | soft, cold | hard (auto) | hard, cold |
|---|---|---|---|---|
| stream, to first content | 3 x p95, at least 5 s | 20 s | 6 x p95 in 30..120 s | 60 s |
| stream, reasoning | 3 x p95, at least 5 s | 60 s | 300 s | 300 s |
| other, to the answer | 3 x p95, at least 5 s | 60 s | 6 x p95 in 120..600 s | 300 s |
| other, reasoning | 3 x p95, at least 5 s | 120 s | 6 x p95 in 120..600 s | 600 s |

Cold hard limits are generous for answers that come whole: a long generation that is cut teaches
nothing, is paid for twice, and would be cut again elsewhere; 300 s still leaves the next target half
of the default deadline.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.core.latency import Latency
from proxy.core.target import CallFacts, Target

SOFT_FLOOR_S = 5.0
SOFT_COLD_S = {(True, False): 20.0, (True, True): 60.0, (False, False): 60.0, (False, True): 120.0}
HARD_COLD_S = {(True, False): 60.0, (True, True): 300.0, (False, False): 300.0, (False, True): 600.0}
HARD_REASONING_STREAM_S = 300.0
STALL_REASONING_S = 300.0


class Limits(NamedTuple):
    """Seconds from the request sent to its first content (streams) or its answer (others)."""

    hard_s: float
    soft_s: float


def limits_of(call: CallFacts, target: Target, latency: Latency, *, probe: bool = False) -> Limits:
    """Return the limits of one attempt of *call* on *target*, as the target has been lately."""
    kind = (call.stream, is_reasoning(call, target))
    p95 = latency.p95
    soft = target.upstream.breaker.slow_after_s
    if soft is None:
        soft = max(SOFT_FLOOR_S, 3.0 * p95) if p95 is not None else SOFT_COLD_S[kind]
    hard = target.policy.first_token_s if call.stream else target.policy.response_s
    if hard is None:
        hard = _adaptive_hard_s(kind, p95)
    return Limits(min(hard, soft) if probe else hard, soft)


def is_reasoning(call: CallFacts, target: Target) -> bool:
    """Tell whether a long silence before the first token is to be expected."""
    return call.reasoning or target.upstream.reasoning


def stall_s(call: CallFacts, target: Target) -> float:
    """Return the longest silence allowed inside a response that has begun, in seconds."""
    stall = target.policy.stall_s
    return max(stall, STALL_REASONING_S) if is_reasoning(call, target) else stall


def _adaptive_hard_s(kind: tuple[bool, bool], p95: float | None) -> float:
    stream, reasoning = kind
    if stream and reasoning:
        return HARD_REASONING_STREAM_S
    if p95 is None:
        return HARD_COLD_S[kind]
    low, high = (30.0, 120.0) if stream else (120.0, 600.0)
    return min(high, max(low, 6.0 * p95))
