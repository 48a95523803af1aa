"""What the rest of the proxy knows of traces: nothing of OpenTelemetry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from proxy.edge.observers import Handlers
from proxy.transport.tracer import Tracer


@dataclass(frozen=True, slots=True)
class Peer:
    """What spans tell of an upstream: who runs it (a row of providers.yaml), and where it is."""

    provider: str | None
    host: str
    port: int


class Traces(Tracer, Protocol):
    """Spans of requests and their attempts. `peer_of` finds an upstream by its name."""

    peer_of: Callable[[str], Peer | None]

    @property
    def handlers(self) -> Handlers:
        """Return what to call for each type of event."""

    async def close(self) -> None:
        """Send what is left, for a short while."""
