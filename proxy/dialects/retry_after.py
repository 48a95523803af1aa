"""How long an upstream asks us to wait, from headers, an error's details and its words.

In this order: `retry-after-ms` and Azure's `x-ms-retry-after-ms`, `retry-after` (seconds or an HTTP
date), a hint inside the body, the words of the message, and for rate limits the reset headers of
whatever has nothing remaining. Nothing is capped here; what makes no sense is no hint.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

Header = Callable[[bytes], bytes | None]

_NUMBER = re.compile(rb"\s*(\d{1,300}(?:\.\d{1,300})?)\s*", re.ASCII)
# Go's time.Duration as OpenAI and Groq print it: "6m0s", "547ms", "7.66s".
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|us|µs|ns|h|m|s))+")
_DURATION_STEP = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zµ]+)")
_WORDS = re.compile(
    r"(?:try again|retry)(?: (?:in|after))?(?: about| approximately)?:? "
    r"((?:\d+(?:\.\d+)? ?(?:milliseconds?|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|h|days?|d)\b"
    r",? ?(?:and )?"
    r"|\d+(?:\.\d+)?(?:h|m)(?=\d))+)"
)
_UNITS_S = {
    "ns": 1e-9,
    "us": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "mil": 1e-3,
    "s": 1.0,
    "sec": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "hou": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}

# (what remains, when it is full again). Resets are durations (OpenAI, Groq, Azure), instants by RFC
# 3339 (Anthropic), epoch seconds or milliseconds (OpenRouter), or plain seconds (Mistral).
_RESETS = (
    (b"x-ratelimit-remaining-requests", b"x-ratelimit-reset-requests"),
    (b"x-ratelimit-remaining-tokens", b"x-ratelimit-reset-tokens"),
    (b"x-ratelimit-remaining", b"x-ratelimit-reset"),
    (b"ratelimit-remaining", b"ratelimit-reset"),
    (b"anthropic-ratelimit-requests-remaining", b"anthropic-ratelimit-requests-reset"),
    (b"anthropic-ratelimit-tokens-remaining", b"anthropic-ratelimit-tokens-reset"),
    (b"anthropic-ratelimit-input-tokens-remaining", b"anthropic-ratelimit-input-tokens-reset"),
    (b"anthropic-ratelimit-output-tokens-remaining", b"anthropic-ratelimit-output-tokens-reset"),
)


def header_hint_s(get: Header, *, wall: float) -> float | None:
    """Return the seconds that the retry headers ask for; `wall` is the time in epoch seconds."""
    for name in (b"retry-after-ms", b"x-ms-retry-after-ms"):
        milliseconds = _number(get(name))
        if milliseconds is not None:
            return milliseconds / 1000
    value = get(b"retry-after")
    seconds = _number(value)
    return seconds if seconds is not None else _until_http_date(value, wall)


def words_hint_s(message: str) -> float | None:
    """Return the seconds that a lower-case message speaks of: "please try again in 6m0s"."""
    found = _WORDS.search(message)
    return None if found is None else _sum_of_steps(found[1])


def duration_s(text: str) -> float | None:
    """Return a duration such as "31s" or "6m0s" in seconds."""
    text = text.strip()
    return _sum_of_steps(text) if _DURATION.fullmatch(text) else None


def reset_hint_s(get: Header, *, wall: float) -> float | None:
    """Return when the last of the exhausted limits is full again, in seconds from now."""
    waits = [
        wait
        for remaining, reset in _RESETS
        if _number(get(remaining)) == 0 and (wait := _until_reset(get(reset), wall)) is not None
    ]
    return max(waits, default=None)


def _until_reset(value: bytes | None, wall: float) -> float | None:
    number = _number(value)
    if number is not None:
        if number > 1e11:
            return max(0.0, number / 1000 - wall)
        return max(0.0, number - wall) if number > 1e9 else number
    text = (value or b"").decode("latin-1").strip()
    return duration_s(text) if _DURATION.fullmatch(text) else _until_timestamp(text, wall)


def _until_timestamp(text: str, wall: float) -> float | None:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    return _seconds_until(instant, wall)


def _until_http_date(value: bytes | None, wall: float) -> float | None:
    try:
        instant = parsedate_to_datetime((value or b"").decode("latin-1"))
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return _seconds_until(instant, wall)


def _seconds_until(instant: datetime, wall: float) -> float:
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=UTC)
    return max(0.0, (instant - datetime.fromtimestamp(0, UTC)).total_seconds() - wall)


def _number(value: bytes | None) -> float | None:
    found = _NUMBER.fullmatch(value) if value is not None else None
    number = float(found[1]) if found is not None else math.inf
    return number if math.isfinite(number) else None


def _sum_of_steps(text: str) -> float:
    # The first letters tell the unit: "minutes" and "mins" are "min", "m" stays "m".
    steps = _DURATION_STEP.findall(text)
    return sum(float(number) * _UNITS_S.get(unit, _UNITS_S.get(unit[:3], 1.0)) for number, unit in steps)
