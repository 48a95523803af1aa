"""The cells as observers see them: for metrics, the status page and `explain`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from proxy.core.breaker import Breaker, State
from proxy.core.cells import TargetCell, UpstreamCell
from proxy.core.outcome import Scope
from proxy.core.register import Register
from proxy.core.value import value

# From best to worst: of models that share a label, the worst is shown.
SEVERITY = (State.CLOSED, State.RECOVERING, State.HALF_OPEN, State.OPEN)


@value
class TargetSnapshot:
    """One cell as it stands.

    `model` is a label (configured names only); it and `operation` are empty for endpoint and credential
    cells, which are shown once for each upstream that uses them. Ratios are over `breaker.window`, `None`
    where nothing was measured. `cooldown_s` is the time until the cell may be tried again, whatever the
    reason; `share` the part of its traffic that it lets through. `figures` are the adaptive detector's.
    """

    scope: Scope
    upstream: str
    model: str
    operation: str
    state: State
    detected: State
    reason: str
    numbers: Mapping[str, float]
    figures: Mapping[str, float]
    failure_ratio: float | None
    slow_ratio: float | None
    cooldown_s: float
    share: float
    in_flight: int
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    drained: bool = False


def snapshots(register: Register, now: float) -> tuple[TargetSnapshot, ...]:
    """Return all cells, upstream by upstream, each label once."""
    return tuple(
        snapshot for upstream in register.upstreams.values() for snapshot in _of(register, upstream, now)
    )


def _of(register: Register, upstream: UpstreamCell, now: float) -> Iterator[TargetSnapshot]:
    yield _whole(Scope.ENDPOINT, upstream, upstream.endpoint.breaker, now)
    yield max(
        (_whole(Scope.CREDENTIAL, upstream, key.breaker, now) for key in upstream.credentials), key=_badness
    )
    worst: dict[tuple[str, str], TargetSnapshot] = {}
    for cell in register.targets_of(upstream.facts.name):
        snapshot = _target(cell, now)
        key = (cell.label, cell.operation)
        if key not in worst or _badness(snapshot) > _badness(worst[key]):
            worst[key] = snapshot
    yield from worst.values()


def _badness(snapshot: TargetSnapshot) -> tuple[int, float]:
    return SEVERITY.index(snapshot.state), snapshot.cooldown_s


def _whole(scope: Scope, upstream: UpstreamCell, breaker: Breaker, now: float) -> TargetSnapshot:
    seen = breaker.snapshot(now)
    return TargetSnapshot(
        scope=scope,
        upstream=upstream.facts.name,
        model="",
        operation="",
        state=seen.state,
        detected=seen.detected,
        reason=seen.reason,
        numbers=seen.numbers,
        figures=seen.figures,
        failure_ratio=seen.failure_ratio,
        slow_ratio=seen.slow_ratio,
        cooldown_s=max(0.0, seen.opens_until - now) if seen.opens_until is not None else 0.0,
        share=seen.share,
        in_flight=upstream.in_flight,
        drained=upstream.is_drained,
    )


def _target(cell: TargetCell, now: float) -> TargetSnapshot:
    shown = _whole(Scope.TARGET, cell.upstream, cell.breaker, now)
    ttft = cell.latencies.ttft
    return replace(
        shown,
        model=cell.label,
        operation=cell.operation,
        cooldown_s=max(shown.cooldown_s, cell.rest.left(now), min(key.quota.left(now) for key in cell.keys)),
        in_flight=cell.in_flight,
        ttft_p50_s=ttft.p50,
        ttft_p95_s=ttft.p95,
    )
