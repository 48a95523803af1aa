"""A request's way in words: who was asked, what became of it, who answered."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from proxy.edge.lines import AttemptLine, RequestLine
from proxy.edge.status.words import did, skipped_says

# What became of the request, and in which tone: "fine", "saved", "lost", "quiet".
ENDINGS = {
    "ok": ("Answered", "fine"),
    "ok_failover": ("Saved", "saved"),
    "client_error": ("Refused upstream", "quiet"),
    "upstream_error": ("Lost", "lost"),
    "interrupted": ("Broken off", "lost"),
    "client_gone": ("Client left", "quiet"),
    "rejected": ("Refused", "quiet"),
}
ROUTED_AROUND, WAITED = ("Routed around", "saved"), ("Waited", "saved")

Skips = Sequence[tuple[str, str]]  # upstream, reason


class Tale(msgspec.Struct, frozen=True):
    """One request. `path` is "openai=overloaded → azure-eu=ok"; `told` are its steps as sentences."""

    request_id: str
    ts: str
    route: str
    endpoint: str
    stream: bool
    outcome: str
    word: str
    tone: str
    status: int
    path: str
    told: list[str]
    ttft_s: float | None
    duration_s: float
    client: str


def tale(line: RequestLine, skips: Skips = ()) -> Tale:
    """Return the tale of an ended request; *skips* are the targets that were passed over."""
    word, tone = ENDINGS.get(line.outcome, (line.outcome, "quiet"))
    if skips and line.outcome == "ok":
        word, tone = ROUTED_AROUND if is_detour(line.outcome, line.upstream, skips) else WAITED
    return Tale(
        request_id=line.request_id,
        ts=line.ts,
        route=line.route,
        endpoint=line.endpoint,
        stream=line.stream,
        outcome=line.outcome,
        word=word,
        tone=tone,
        status=line.status,
        path=_path(line, skips),
        told=_told(line, skips),
        ttft_s=line.ttft_s,
        duration_s=line.duration_s,
        client=line.client,
    )


def is_detour(outcome: str, upstream: str, skips: Skips) -> bool:
    """Tell whether a request was answered at once by another than those it was sent past.

    One that was answered by the same upstream after all has waited until it was back.
    """
    return outcome == "ok" and bool(skips) and all(upstream != skipped for skipped, _ in skips)


def attempt_says(attempt: AttemptLine) -> str:
    """Return how an attempt ended: "openai (gpt-5) was overloaded, after 0.10 s"."""
    name = f"{attempt.upstream} ({attempt.model})" if attempt.model else attempt.upstream
    return f"{name} {did(attempt.outcome)}, after {attempt.seconds:.2f} s"


def _path(line: RequestLine, skips: Skips) -> str:
    steps = [f"{upstream}={reason}" for upstream, reason in skips]
    steps += [f"{attempt.upstream}={attempt.outcome}" for attempt in line.attempts]
    return " → ".join(steps) or "no attempt"


def _told(line: RequestLine, skips: Skips) -> list[str]:
    return [
        *(f"{upstream} was passed over: {skipped_says(reason)}." for upstream, reason in skips),
        *(f"{attempt_says(attempt)}{_first_token(line, attempt)}." for attempt in line.attempts),
        *ending_says(line.outcome, line.status),
    ]


def _first_token(line: RequestLine, attempt: AttemptLine) -> str:
    if line.ttft_s is None or attempt.outcome != "ok" or attempt.upstream != line.upstream:
        return ""
    return f"; its first token came after {line.ttft_s:.2f} s"


def ending_says(outcome: str, status: int) -> list[str]:
    """Return what the client got, where that was not simply an answer."""
    match outcome:
        case "upstream_error":
            return [f"Nobody was left: the client got an error, {status}."]
        case "interrupted":
            return ["The client had a part of the answer by then, and got an error event at its end."]
        case "client_gone":
            return ["The client left before it was over."]
        case "rejected":
            return [f"Sidestep refused it, with {status}."]
        case "client_error":
            return [f"That answer went to the client as it was, with {status}."]
        case _:
            return []
