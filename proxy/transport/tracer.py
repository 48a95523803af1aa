"""What the forwarder tells a tracer, if there is one: `edge.tracing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from proxy.core.permit import Permit


class Tracer(Protocol):
    """Something that follows requests across processes."""

    def carry(self, client: Mapping[str, str], permit: Permit, began: float) -> Mapping[str, str]:
        """Return the client's headers as the attempt of *permit* passes them on.

        *began* is when its request arrived, in monotonic seconds.
        """
        ...
