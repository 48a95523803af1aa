"""The reasons that the core gives, for the series that exist before the first of them is heard.

The core owns these words; `tests/edge/test_metrics.py` holds this list against what it says. A word that
is missing here costs no more than the first event of its series.
"""

from __future__ import annotations

from proxy.core.outcome import RULES, Kind, Next
from proxy.core.target import BreakerMode, RoutePolicy
from proxy.dialects.resume import Way

# Why a target is passed over or waited for (`core.asking.availability`).
UNAVAILABLE = (
    "open", "endpoint", "cooldown", "credential", "overloaded", "probe_busy", "full", "drained", "network",
    "paced", "share",
)  # fmt: skip
USUAL = ("open", "endpoint", "cooldown", "credential")
# ... and which of these the least bad target may have had (`core.asking.BAD_BUT_USABLE`).
LEAST_BAD = ("open", "endpoint", "probe_busy", "overloaded")

SELECTED = ("first", "next", "probe")
RETRIED = ("reset", "server_error", "overloaded", "connect_failed", "stale_connection")
GIVEN_UP = ("upstream_error", "no_upstream_available", "deadline_exceeded", "rate_limit_exceeded")
RELAYED = ("rejected", "refused", "too_large", "model_missing")

# How a broken stream was carried on (`dialects.resume.Way`), or that it was not.
RESUMED = (*(way.value for way in Way), "unsafe", "failed")

# What opens a target's breaker, and what then moves it on (`core.detectors`, `core.breaker`).
DETECTED = ("consecutive", "failure_ratio", "slow_ratio", "adaptive", "slow", "partial")
RELAPSED = ("probe_failed", "probe_slow", "probe_rate_limited", "relapsed")
ON_THE_WAY = (("half_open", "cooled_down"), ("recovering", "probe_passed"), ("closed", "recovered"))

# The moves of each scope's breakers, as (state it comes to, reason). A host is not slow, and a key is
# only ever refused.
MOVES: dict[str, tuple[tuple[str, str], ...]] = {
    "target": (*(("open", reason) for reason in (*DETECTED, "model_missing", *RELAPSED)), *ON_THE_WAY),
    "endpoint": (
        *(("open", reason) for reason in ("consecutive", "failure_ratio", "adaptive", *RELAPSED)),
        *ON_THE_WAY,
    ),
    "credential": (*(("open", reason) for reason in ("quota_spent", "unauthorized")), *ON_THE_WAY),
}

# The value of the label `enforced` by a breaker's mode; one that is off makes no move.
ENFORCED: dict[BreakerMode, str] = {"enforce": "true", "observe": "false"}

_LEAVING = frozenset({Next.OTHER, Next.SAME_ONCE, Next.LARGER})
_FAILED_OVER = tuple(str(kind) for kind in Kind if RULES[kind].next in _LEAVING)


def failed_over(policy: RoutePolicy) -> tuple[str, ...]:
    """Return the endings after which a route's request goes to another target."""
    return (*_FAILED_OVER, str(Kind.REFUSED)) if policy.on_refusal == "failover" else _FAILED_OVER


def broken_off(policy: RoutePolicy) -> tuple[str, ...]:
    """Return the endings after which a route's stream is resumed on another target."""
    return (str(Kind.INTERRUPTED), str(Kind.STALLED)) if policy.midstream == "resume" else ()
