"""How long one attempt gets, before the request's own time is looked at."""

from __future__ import annotations

from typing import NamedTuple

from proxy.core.limits import limits_of, stall_s
from proxy.core.permit import Permit
from proxy.core.steps import Timeouts
from proxy.core.target import CallFacts, Target


class _Kept(NamedTuple):
    """What was worked out for a target; its `Latency` forgets it when the 95th percentile changes."""

    target: Target
    usual: Timeouts


def usual_timeouts(permit: Permit, call: CallFacts) -> Timeouts:
    """Return the limits of *permit*'s attempt as its target has been lately."""
    target, latency = permit.target, permit.latency
    kept = latency.derived
    if isinstance(kept, _Kept) and kept.target is target and not permit.probe:
        return kept.usual
    hard, soft = limits_of(call, target, latency, probe=permit.probe)
    usual = Timeouts(target.upstream.connect_s, hard, stall_s(call, target), soft, False)
    if not permit.probe:
        latency.derived = _Kept(target, usual)
    return usual
