"""The policy: how patient, how stubborn, how quick to give up. Defaults live here, once.

Durations are in seconds, ratios in 0..1. Which key may be set where is the shape of the three classes:
a key that a class does not have is refused there.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from proxy.config.scalars import choice, count, duration, flag, ratio

Flag = Annotated[bool, flag()]
Seconds = Annotated[float, duration()]
PositiveSeconds = Annotated[float, duration(least=0.001)]
AutoSeconds = Annotated[float | None, duration(least=0.001, words=("auto",))]
Share = Annotated[float, ratio()]

_T = TypeVar("_T")
# A section that is there but empty ("policy:") is as good as one that is not there.
Section = Annotated[_T, BeforeValidator(lambda raw: {} if raw is None else raw)]


class Frozen(BaseModel):
    """The base of all settings: no change after validation, no unknown keys, no values in errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class BreakerSettings(Frozen):
    """When a target is cut off and how it comes back."""

    window: PositiveSeconds = Field(default=30.0, description="Rolling window over which ratios are taken.")
    failure_ratio: Share = Field(default=0.5, description="Opens at this share of failures in the window.")
    min_requests: Annotated[int, count(least=1)] = Field(
        default=10, description="Attempts in the window below which no ratio opens it."
    )
    consecutive: Annotated[int, count(least=1)] = Field(
        default=5, description="Opens at this many failures in a row, of at least 3 different requests."
    )
    slow_after: Annotated[float | None, duration(least=0.001, null=True)] = Field(
        default=None, description="An attempt whose first token takes longer is slow; null = adaptive."
    )
    slow_ratio: Share = Field(default=0.8, description="Opens at this share of slow attempts.")
    adaptive: Flag = Field(default=True, description="The self-tuning detector too, for any traffic.")
    mode: Annotated[Literal["enforce", "observe", "off"], choice("enforce", "observe", "off")] = Field(
        default="enforce", description="observe = detect, count and log, but never act."
    )
    open: PositiveSeconds = Field(default=5.0, description="First open time; doubles at each failed probe.")
    open_max: PositiveSeconds = Field(default=30.0, description="Longest open time.")
    recovery: Seconds = Field(
        default=15.0, description="Time in which traffic returns after a good probe; 0s = all of it at once."
    )


class _AttemptKeys(Frozen):
    """Set globally, for an upstream, or for a route."""

    first_token: AutoSeconds = Field(
        default=None, description="Streams: from request sent to first content; auto = 6 x p95, 30s to 120s."
    )
    response: AutoSeconds = Field(
        default=None,
        description="Non-streams: from request sent to head; auto = 6 x p95, 120s to 600s.",
    )
    stall: PositiveSeconds = Field(default=60.0, description="Longest silence in a response that has begun.")
    same_target_retries: Annotated[int, count(least=0, most=10)] = Field(
        default=1, description="Quick second tries on a healthy target; 0 = none."
    )
    backoff: Seconds = Field(
        default=0.25, description="Before a same-target retry, doubled each time, full jitter; 0s = at once."
    )


class _ConnectKeys(Frozen):
    """Set globally or for an upstream."""

    connect: PositiveSeconds = Field(default=5.0, description="DNS + TCP + TLS of one attempt.")
    breaker: Section[BreakerSettings] = Field(default=BreakerSettings(), description="The circuit breaker.")


class _RouteKeys(Frozen):
    """Set globally or for a route."""

    deadline: PositiveSeconds = Field(
        default=600.0,
        description="All attempts together, until the answer begins (streams) or ends.",
    )
    max_attempts: Annotated[int, count(least=1, most=100)] = Field(
        default=4, description="Attempts for one request over all targets; 1 = no failover."
    )
    retry_budget: Annotated[float, ratio(zero=True)] = Field(
        default=0.2, description="Same-target retries and hedges as a share of requests, plus 1 per second."
    )
    patience: Seconds = Field(
        default=0.0, description="Wait this long on a rate-limited target rather than fail over; 0s = never."
    )
    hold: Seconds = Field(
        default=10.0, description="When no target is available, wait up to this long for one; 0s = never."
    )
    hedge: Annotated[float | Literal["p95"] | None, duration(least=0.001, words=("off", "p95"))] = Field(
        default=None, description="Start a second attempt elsewhere when the first has no token by then."
    )
    midstream: Annotated[Literal["error", "resume"], choice("error", "resume")] = Field(
        default="error", description="When a begun stream breaks: a clean error event, or continue elsewhere."
    )
    on_refusal: Annotated[Literal["relay", "failover"], choice("relay", "failover")] = Field(
        default="relay", description="Content-policy refusals: to the client, or to the next target."
    )
    keepalive: Annotated[float, duration(least=1.0)] = Field(
        default=15.0, description="SSE comment to the client while a begun stream is silent; at least 1s."
    )
    early_keepalive: Annotated[float | None, duration(least=1.0, words=("off",))] = Field(
        default=None, description="Send head and comments to a client that still waits for content."
    )


class UpstreamPolicy(_AttemptKeys, _ConnectKeys):
    """The policy keys that an upstream may set."""


class RoutePolicySettings(_AttemptKeys, _RouteKeys):
    """The policy keys that a route may set."""


class PolicySettings(_AttemptKeys, _ConnectKeys, _RouteKeys):
    """All policy keys, for everything that does not say otherwise."""
