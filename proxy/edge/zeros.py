"""Series that exist from the start: a counter that appears at its first event hides that event.

`rate()` sees no increase where there was no sample before, so an alert on rare events (a spent quota,
a refused key) would miss the first of them.
"""

from __future__ import annotations

from itertools import product

from proxy.core.events import RequestOutcome
from proxy.core.outcome import Kind
from proxy.edge.families import (
    ATTEMPT_DURATION,
    ATTEMPTS,
    CLIENT_RETRIES,
    EVENTS_DROPPED,
    INTERRUPTIONS,
    OVERHEAD,
    RELOADS,
    REQUESTS,
    TOKENS,
    TTFT,
    Family,
)
from proxy.edge.names import OTHER, Names
from proxy.edge.samples import Labels, Samples

# A family that would begin with more series than this begins empty: a gateway with hundreds of
# routes has traffic enough for the first event not to matter.
MAX_ZEROS = 5000

REQUEST_OUTCOMES = tuple(str(outcome) for outcome in RequestOutcome)
ATTEMPT_OUTCOMES = tuple(str(kind) for kind in Kind)


def prepare(names: Names, samples: Samples) -> None:
    """Make the counters and the small histograms of configured *names*, keeping those that exist."""
    routes = [*sorted(names.routes), OTHER]
    upstreams = sorted(names.models)
    targets = [(upstream, model) for upstream in upstreams for model in sorted(names.models[upstream])]
    _zeros(samples, REQUESTS, list(product(routes, names.served, REQUEST_OUTCOMES)))
    _zeros(samples, ATTEMPTS, [(*target, kind) for target in targets for kind in ATTEMPT_OUTCOMES])
    _zeros(samples, TOKENS, [(*target, kind) for target in targets for kind in ("input", "output")])
    _zeros(samples, CLIENT_RETRIES, [(route,) for route in routes])
    _zeros(samples, INTERRUPTIONS, list(product(upstreams, (str(Kind.INTERRUPTED), str(Kind.STALLED)))))
    _zeros(samples, EVENTS_DROPPED, list(product(upstreams, ("malformed",))))
    _zeros(samples, RELOADS, [("success",), ("failure",)])
    for family in (TTFT, ATTEMPT_DURATION):
        for upstream in upstreams:
            samples.histogram(family, (upstream,))
    for endpoint in names.served:
        samples.histogram(OVERHEAD, (endpoint,))


def _zeros(samples: Samples, family: Family, series: list[Labels]) -> None:
    if len(series) <= MAX_ZEROS:
        samples.values[family.name] |= {
            labels: 0.0 for labels in series if labels not in samples.values[family.name]
        }
