"""The table of metric families (CONTRACT.md, section 8): add a row here to add a metric.

Raw state is kept per family in plain dictionaries keyed by the tuple of label values (`samples`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram", "info", "state"]
Merge = Literal["sum", "max", "min"]

# To 600 s, the timeout of the SDKs; OpenTelemetry's end at 82 s.
DURATION_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
# Finer where people notice; to 300 s, the first-token limit of reasoning models.
TTFT_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
OVERHEAD_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25)

# From best to worst: where several cells or processes share a series, the worst state is shown.
STATES = ("closed", "recovering", "half_open", "open")


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family.

    `name` is without a counter's `_total` and an info's `_info`. A `state` is a gauge whose value
    indexes `STATES`, exposed as one series per state of which one is 1. `merge` says how the values
    of several processes become one.
    """

    name: str
    help: str
    kind: Kind
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    merge: Merge = "sum"


def _counter(name: str, text: str, *labels: str) -> Family:
    return Family(f"sidestep_{name}", text, "counter", labels)


def _gauge(name: str, text: str, *labels: str, merge: Merge = "sum") -> Family:
    return Family(f"sidestep_{name}", text, "gauge", labels, merge=merge)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Family:
    return Family(f"sidestep_{name}", text, "histogram", labels, buckets)


REQUESTS = _counter("requests", "Requests by how they ended for the client.", "route", "endpoint", "outcome")
REQUEST_DURATION = _histogram(
    "request_duration_seconds",
    "Time from a request's head to the end of its answer.",
    DURATION_BUCKETS,
    "route",
    "endpoint",
)
TTFT = _histogram(
    "time_to_first_token_seconds",
    "Streams: time from an attempt being sent to its first content.",
    TTFT_BUCKETS,
    "upstream",
)
OVERHEAD = _histogram(
    "overhead_seconds",
    "Time spent in the proxy itself before the first attempt was sent.",
    OVERHEAD_BUCKETS,
    "endpoint",
)
ATTEMPTS = _counter("attempts", "Attempts on upstreams by how they ended.", "upstream", "model", "outcome")
ATTEMPT_DURATION = _histogram(
    "attempt_duration_seconds", "Time from an attempt's start to its end.", DURATION_BUCKETS, "upstream"
)
DECISIONS = _counter(
    "decisions", "What was decided for requests, and why.", "route", "upstream", "decision", "reason"
)
FAILOVERS = _counter(
    "failovers", "Requests that moved to another upstream, and why.", "route", "from", "to", "reason"
)
BREAKER_STATE = Family(
    "sidestep_breaker_state",
    "State of each breaker: the series of its state is 1, the others 0.",
    "state",
    ("scope", "upstream", "model", "operation"),
    merge="max",
)
BREAKER_TRANSITIONS = _counter(
    "breaker_transitions",
    "Changes of breakers' states; enforced is false where a breaker only observes.",
    "scope",
    "upstream",
    "model",
    "operation",
    "to",
    "reason",
    "enforced",
)
FAILURE_RATIO = _gauge(
    "failure_ratio",
    "Share of failed attempts in the breaker's window.",
    "upstream",
    "model",
    merge="max",
)
SLOW_RATIO = _gauge(
    "slow_ratio", "Share of slow attempts in the breaker's window.", "upstream", "model", merge="max"
)
COOLDOWN = _gauge(
    "cooldown_seconds", "Time until a target may be tried again.", "upstream", "model", merge="max"
)
RETRY_BUDGET = _gauge("retry_budget_ratio", "Share of the retry budget that is left.", "route", merge="min")
INTERRUPTIONS = _counter(
    "stream_interruptions", "Streams that broke after content had reached the client.", "upstream", "reason"
)
EVENTS_DROPPED = _counter(
    "stream_events_dropped", "Malformed events left out of streams.", "upstream", "reason"
)
RESUMES = _counter("stream_resumes", "Broken streams continued elsewhere, or not.", "route", "result")
TOKENS = _counter("tokens", "Tokens as upstreams reported them.", "upstream", "model", "type")
CLIENT_RETRIES = _counter("client_retries", "Requests that a client's SDK says are its own retries.", "route")
REQUESTS_IN_FLIGHT = _gauge("requests_in_flight", "Requests being served.")
STREAMS_IN_FLIGHT = _gauge("streams_in_flight", "Streamed answers being served.")
CONNECTIONS = _gauge("connections", "Open client connections.")
ATTEMPTS_IN_FLIGHT = _gauge("attempts_in_flight", "Attempts being made.", "upstream")
RATELIMIT_REMAINING = _gauge(
    "ratelimit_remaining",
    "What an upstream last said is left of a limit.",
    "upstream",
    "resource",
    merge="min",
)
LOOP_LAG = _gauge("event_loop_lag_seconds", "How late the event loop runs its timers.", merge="max")
RELOADS = _counter("config_reloads", "Reloads of the configuration.", "result")
RELOADED_AT = _gauge(
    "config_last_reload_success_timestamp_seconds", "When the configuration was last loaded.", merge="min"
)
CONFIG_INFO = Family("sidestep_config", "The configuration in use.", "info", ("hash",), merge="max")
DRILLS_ACTIVE = _gauge("drills_active", "Drills that run against an upstream.", "upstream", merge="max")
BUILD_INFO = Family("sidestep_build", "The version that runs.", "info", ("version",), merge="max")

FAMILIES = (
    REQUESTS,
    REQUEST_DURATION,
    TTFT,
    OVERHEAD,
    ATTEMPTS,
    ATTEMPT_DURATION,
    DECISIONS,
    FAILOVERS,
    BREAKER_STATE,
    BREAKER_TRANSITIONS,
    FAILURE_RATIO,
    SLOW_RATIO,
    COOLDOWN,
    RETRY_BUDGET,
    INTERRUPTIONS,
    EVENTS_DROPPED,
    RESUMES,
    TOKENS,
    CLIENT_RETRIES,
    REQUESTS_IN_FLIGHT,
    STREAMS_IN_FLIGHT,
    CONNECTIONS,
    ATTEMPTS_IN_FLIGHT,
    RATELIMIT_REMAINING,
    LOOP_LAG,
    RELOADS,
    RELOADED_AT,
    CONFIG_INFO,
    DRILLS_ACTIVE,
    BUILD_INFO,
)
