"""Whether this process lives and may be sent requests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Health:
    """Set by the application: `ready` once configuration is loaded and the endpoint listens.

    It says nothing of upstreams: a proxy whose upstreams are all down is still the only one there
    to say so, and taking it out of service would turn a bad answer into none.
    """

    ready: bool = False
    draining: bool = False

    @property
    def is_ready(self) -> bool:
        """Return whether new requests are welcome."""
        return self.ready and not self.draining
