"""Gauges: read from the running parts when a scrape asks, never kept up to date in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from proxy.edge.families import (
    ATTEMPTS_IN_FLIGHT,
    BREAKER_STATE,
    CONNECTIONS,
    COOLDOWN,
    DRILLS_ACTIVE,
    FAILURE_RATIO,
    LOOP_LAG,
    REQUESTS_IN_FLIGHT,
    RETRY_BUDGET,
    SLOW_RATIO,
    STATES,
    STREAMS_IN_FLIGHT,
    Family,
)
from proxy.edge.names import Names, Words, chain
from proxy.edge.samples import Samples
from proxy.edge.views import Cell

SCOPES = ("endpoint", "target", "credential")
# What targets of a route that has served nothing yet are shown for.
FIRST_OPERATION = "chat"


@dataclass(frozen=True, slots=True)
class Gauges:
    """Where to read the gauges; each is asked once per scrape.

    `attempts_in_flight` and `drills` are counts by upstream, `retry_budgets` ratios by route.
    """

    cells: Callable[[], Iterable[Cell]] = tuple
    attempts_in_flight: Callable[[], Mapping[str, int]] = dict
    retry_budgets: Callable[[], Mapping[str, float]] = dict
    drills: Callable[[], Mapping[str, int]] = dict
    requests_in_flight: Callable[[], int] = int
    streams_in_flight: Callable[[], int] = int
    connections: Callable[[], int] = int
    loop_lag_s: Callable[[], float] = float

    def read(self, names: Names, words: Words, samples: Samples) -> None:
        """Put the gauges as they stand now into *samples*."""
        _by_name(samples, ATTEMPTS_IN_FLIGHT, names.models, self.attempts_in_flight())
        _by_name(samples, RETRY_BUDGET, names.routes, self.retry_budgets(), missing=1.0)
        _by_name(samples, DRILLS_ACTIVE, names.models, self.drills())
        samples.values[REQUESTS_IN_FLIGHT.name] = {(): self.requests_in_flight()}
        samples.values[STREAMS_IN_FLIGHT.name] = {(): self.streams_in_flight()}
        samples.values[CONNECTIONS.name] = {(): self.connections()}
        samples.values[LOOP_LAG.name] = {(): self.loop_lag_s()}
        _cells(tuple(self.cells()), names, words, samples)


def _by_name(
    samples: Samples, family: Family, names: Iterable[str], found: Mapping[str, float], missing: float = 0.0
) -> None:
    samples.values[family.name] = {(name,): found.get(name, missing) for name in names}


def _cells(cells: Sequence[Cell], names: Names, words: Words, samples: Samples) -> None:
    whole = product(("endpoint", "credential"), names.models, ("",), ("",))
    of_targets = (("target", *target) for target in _awaited(cells, names, words))
    samples.values[BREAKER_STATE.name] = dict.fromkeys((*whole, *of_targets), 0.0)
    targets = [(upstream, model) for upstream, models in names.models.items() for model in models]
    for family in (FAILURE_RATIO, SLOW_RATIO, COOLDOWN):
        samples.values[family.name] = dict.fromkeys(targets, 0.0)
    for cell in cells:
        _cell(cell, names, words, samples)


def _awaited(cells: Sequence[Cell], names: Names, words: Words) -> Iterator[tuple[str, str, str]]:
    """Return the targets that have no cell of their own before they are used, which the second may never be.

    A route's targets are all shown for every operation that one of them has served.
    """
    served: dict[tuple[str, str], set[str]] = {}
    for cell in cells:
        if cell.scope == "target":
            served.setdefault((cell.upstream, cell.model), set()).add(words.word("operation", cell.operation))
    for route in names.table:
        targets = chain(route)
        operations = set().union(*(served.get(target, ()) for target in targets)) or {FIRST_OPERATION}
        yield from ((*target, operation) for target in targets for operation in operations)


def _cell(cell: Cell, names: Names, words: Words, samples: Samples) -> None:
    """Fold one cell in: models may share a label, and operations share a target's ratios."""
    upstream = names.upstream(cell.upstream)
    model = names.model(upstream, cell.model)
    if cell.scope in SCOPES and cell.state in STATES:
        labels = (str(cell.scope), upstream, model, words.word("operation", cell.operation))
        samples.fold(BREAKER_STATE, labels, STATES.index(cell.state))
    if cell.scope == "target":
        samples.fold(FAILURE_RATIO, (upstream, model), cell.failure_ratio or 0.0)
        samples.fold(SLOW_RATIO, (upstream, model), cell.slow_ratio or 0.0)
    # A cell without a model is its whole upstream's, and rests all models there.
    for label in (model,) if model else names.models.get(upstream, ()):
        samples.fold(COOLDOWN, (upstream, label), cell.cooldown_s)
