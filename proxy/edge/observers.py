"""Hand each event to those who want it, by one lookup of its type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from proxy.core.events import Event

Handlers = Mapping[type, Callable[[Any], None]]


class Observer(Protocol):
    """Something that wants events of some types."""

    @property
    def handlers(self) -> Handlers:
        """Return what to call for each type of event; other types are not of interest."""


def compose(observers: Iterable[Observer]) -> Callable[[Event], None]:
    """Return one function for all *observers*, called in their order.

    A request causes half a dozen events; asking four observers about each costs more than the few
    that are interested do.
    """
    table: dict[type, tuple[Callable[[Any], None], ...]] = {}
    for observer in observers:
        for kind, handler in observer.handlers.items():
            table[kind] = (*table.get(kind, ()), handler)
    find = table.get

    def observe(event: Event) -> None:
        for handler in find(type(event), ()):
            handler(event)

    return observe
