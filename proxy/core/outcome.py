"""How an attempt ended, and what that means: the one table.

Read by breaker, failover, metrics and the error writer alike; nobody else knows what a status
means. `dialects.errors` reads wire shapes into an `Outcome`; from there on there is only this.
"""

from __future__ import annotations

from enum import Enum, StrEnum

from proxy.core.value import value


class Kind(StrEnum):
    """The classes of ending. The value is the metrics label."""

    OK = "ok"
    CONNECT_FAILED = "connect_failed"
    STALE_CONNECTION = "stale_connection"
    RESET = "reset"
    OVERLOADED = "overloaded"
    SERVER_ERROR = "server_error"
    IN_BAND_ERROR = "in_band_error"
    MALFORMED = "malformed"
    NO_ANSWER = "no_answer"
    RATE_LIMITED = "rate_limited"
    QUOTA_SPENT = "quota_spent"
    UNAUTHORIZED = "unauthorized"
    MODEL_MISSING = "model_missing"
    TOO_LARGE = "too_large"
    REFUSED = "refused"
    REJECTED = "rejected"
    INTERRUPTED = "interrupted"
    STALLED = "stalled"
    CLIENT_GONE = "client_gone"
    CANCELLED = "cancelled"
    UNCLASSIFIED = "unclassified"


class Verdict(Enum):
    """What an outcome says of the cell it is charged to."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"


class Scope(StrEnum):
    """Which cell an outcome is charged to."""

    ENDPOINT = "endpoint"
    TARGET = "target"
    CREDENTIAL = "credential"
    QUOTA = "quota"


class Next(Enum):
    """What may be tried after an outcome, while nothing is committed."""

    DONE = "done"  # the answer goes to the client
    FRESH = "fresh"  # same target, fresh connection, once, blameless
    SAME_ONCE = "same_once"  # one quick retry if the target is otherwise healthy, else another
    OTHER = "other"  # another target
    LARGER = "larger"  # another model with a larger context, never the same model again
    CLIENT = "client"  # relay the upstream's answer as it is
    NOBODY = "nobody"  # there is no one left to answer


@value
class Rule:
    """One row of the table. `opens` means: opens its cell at once, whatever the detectors say."""

    verdict: Verdict
    scope: Scope
    next: Next
    rests: bool = False
    opens: bool = False


_F, _N = Verdict.FAILURE, Verdict.NEUTRAL

RULES: dict[Kind, Rule] = {
    Kind.OK: Rule(Verdict.SUCCESS, Scope.TARGET, Next.DONE),
    Kind.CONNECT_FAILED: Rule(_F, Scope.ENDPOINT, Next.OTHER),
    Kind.STALE_CONNECTION: Rule(_N, Scope.TARGET, Next.FRESH),
    Kind.RESET: Rule(_F, Scope.TARGET, Next.SAME_ONCE),
    Kind.OVERLOADED: Rule(_F, Scope.TARGET, Next.OTHER, rests=True),
    Kind.SERVER_ERROR: Rule(_F, Scope.TARGET, Next.SAME_ONCE),
    Kind.IN_BAND_ERROR: Rule(_F, Scope.TARGET, Next.OTHER),
    Kind.MALFORMED: Rule(_F, Scope.TARGET, Next.OTHER),
    Kind.NO_ANSWER: Rule(_F, Scope.TARGET, Next.OTHER),
    Kind.RATE_LIMITED: Rule(_N, Scope.QUOTA, Next.OTHER, rests=True),
    Kind.QUOTA_SPENT: Rule(_F, Scope.CREDENTIAL, Next.OTHER, rests=True, opens=True),
    Kind.UNAUTHORIZED: Rule(_F, Scope.CREDENTIAL, Next.OTHER, rests=True, opens=True),
    Kind.MODEL_MISSING: Rule(_F, Scope.TARGET, Next.OTHER, rests=True, opens=True),
    Kind.TOO_LARGE: Rule(_N, Scope.TARGET, Next.LARGER),
    Kind.REFUSED: Rule(_N, Scope.TARGET, Next.CLIENT),
    Kind.REJECTED: Rule(_N, Scope.TARGET, Next.CLIENT),
    Kind.INTERRUPTED: Rule(_F, Scope.TARGET, Next.NOBODY),
    Kind.STALLED: Rule(_F, Scope.TARGET, Next.NOBODY),
    Kind.CLIENT_GONE: Rule(_N, Scope.TARGET, Next.NOBODY),
    Kind.CANCELLED: Rule(_N, Scope.TARGET, Next.NOBODY),
    Kind.UNCLASSIFIED: Rule(_F, Scope.TARGET, Next.OTHER),
}


@value
class Outcome:
    """How one attempt ended.

    `status` is the upstream's HTTP status, if a head came. `code` is a recognised error code or one
    of our own short reasons ("tls", "dns", "refused", "html", "empty"): an enumeration, never free
    text from an upstream. `retry_after_s` is the upstream's hint, uncapped. `in_band`: the error
    came inside a 200. `unready`: the target is not up yet (llama.cpp's "Loading model"): not a
    failure, try elsewhere. `client_cut`: our limit was shortened by the client's own: neutral.
    """

    kind: Kind
    status: int | None = None
    code: str | None = None
    retry_after_s: float | None = None
    in_band: bool = False
    unready: bool = False
    client_cut: bool = False

    @property
    def rule(self) -> Rule:
        """Return the table's row for this outcome's kind."""
        return RULES[self.kind]

    @property
    def verdict(self) -> Verdict:
        """Return what this outcome says of its cell."""
        neutral = self.unready or self.client_cut
        return Verdict.NEUTRAL if neutral else RULES[self.kind].verdict


OK = Outcome(Kind.OK, status=200)
