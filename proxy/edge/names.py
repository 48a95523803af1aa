"""Which label values metrics may carry: configured names, and the words of our own code.

A label made from what a client or an upstream sends would let either create series without end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from proxy.core.target import BreakerMode, Route

OTHER = "other"
WORD = re.compile(r"[a-z0-9][a-z0-9 _./-]{0,47}\Z")
MAX_WORDS = 96  # of one label; the reasons that there are come to about 55


@dataclass(frozen=True, slots=True)
class Names:
    """The names that configuration gives.

    `endpoints` are all labels of the table of operations, `served` those whose series exist from the
    start. `models` holds the model labels of each upstream, `modes` how its breakers act. `table` has the
    routes themselves.
    """

    routes: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()
    served: tuple[str, ...] = ()
    models: Mapping[str, frozenset[str]] = field(default_factory=dict)
    modes: Mapping[str, BreakerMode] = field(default_factory=dict)
    table: tuple[Route, ...] = ()

    def route(self, name: str) -> str:
        """Return *name* if a route is called so, else "other"."""
        return str(name) if name in self.routes else OTHER

    def endpoint(self, name: str) -> str:
        """Return *name* if an endpoint is called so, else "other"."""
        return str(name) if name in self.endpoints else OTHER

    def upstream(self, name: str) -> str:
        """Return *name* if an upstream is called so or none is meant, else "other"."""
        return str(name) if name in self.models or not name else OTHER

    def model(self, upstream: str, name: str) -> str:
        """Return *name* if *upstream* has a model of that label or none is meant, else "other"."""
        return str(name) if not name or name in self.models.get(upstream, ()) else OTHER


def names_of(
    routes: Iterable[Route],
    upstreams: Iterable[str],
    endpoints: Iterable[str],
    served: Iterable[str] = ("chat/completions", "completions", "embeddings"),
) -> Names:
    """Collect the names of a configuration."""
    models: dict[str, set[str]] = {name: set() for name in upstreams}
    modes: dict[str, BreakerMode] = {}
    table = tuple(routes)
    for route in table:
        for tier in route.tiers:
            for target in tier.targets:
                models.setdefault(target.upstream.name, set()).add(target.label)
                modes[target.upstream.name] = target.upstream.breaker.mode
    return Names(
        routes=frozenset(route.name for route in table),
        endpoints=frozenset(endpoints) | frozenset(served),
        served=tuple(served),
        models={name: frozenset(found) for name, found in models.items()},
        modes=modes,
        table=table,
    )


def chain(route: Route) -> tuple[tuple[str, str], ...]:
    """Return a route's targets in order, each once, as (upstream, model label)."""
    targets = (target for tier in route.tiers for target in tier.targets)
    return tuple(dict.fromkeys((target.upstream.name, target.label) for target in targets))


class Words:
    """The words that our own code brings (reasons, results): learnt as they are heard, but bounded.

    They can not be listed here without repeating other rooms' knowledge. The bound keeps a mistake,
    say an upstream's message taken for a reason, from becoming a series each time.
    """

    def __init__(self) -> None:
        self._known: dict[str, set[str]] = {}

    def word(self, label: str, text: str) -> str:
        """Return *text* if it is short, plain and among the first `MAX_WORDS` of *label*, else "other"."""
        known = self._known.setdefault(label, set())
        if text in known or not text:
            return str(text)
        if len(known) >= MAX_WORDS or not WORD.match(text):
            return OTHER
        known.add(str(text))
        return str(text)
