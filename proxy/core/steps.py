"""What a request is told to do next."""

from __future__ import annotations

from typing import Literal

from proxy.core.permit import Permit
from proxy.core.value import value


@value
class Timeouts:
    """The limits of one attempt, in seconds.

    `head_s` runs from the request sent to the first content (streams) or to the head (others); passing
    `soft_s` without it is to be reported. `client_cut`: `head_s` was shortened so far by the request's own
    time that its passing says nothing of the target.
    """

    connect_s: float
    head_s: float
    stall_s: float
    soft_s: float
    client_cut: bool


@value
class Try:
    """Make an attempt, on a new connection if that is said.

    After `hedge_after_s` without content ask `next_hedge`.
    """

    permit: Permit
    timeouts: Timeouts
    fresh_connection: bool = False
    hedge_after_s: float | None = None


@value
class Wait:
    """Ask again at `until`."""

    until: float
    reason: Literal["backoff", "patience", "hold"]


@value
class GiveUp:
    """End the request with this error; or relay the answer that `relay_permit`'s attempt got, as it is."""

    status: int
    code: str
    message: str
    retry_after_s: float | None = None
    should_retry: bool | None = None
    relay_permit: int | None = None

    @property
    def relay(self) -> bool:
        """Tell whether an upstream's own answer is to be relayed."""
        return self.relay_permit is not None


Step = Try | Wait | GiveUp
