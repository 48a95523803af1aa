"""What happened to one request, told from what the proxy still remembers of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from proxy.commands.asking import AskError, NotFoundError, ask
from proxy.commands.terminal import plain
from proxy.core.outcome import Kind
from proxy.edge.status.tales import ENDINGS, ending_says
from proxy.edge.status.words import decision_says, did

Step = dict[str, Any]


def explain_request(request_id: str, admin: str | None) -> list[str]:
    """Return the lines that tell of the request. Raises: AskError."""
    try:
        found = json.loads(ask(admin, f"/-/requests/{quote(request_id, safe='')}"))
        return list(_lines(found))
    except NotFoundError as error:
        raise AskError(
            f"no request '{plain(request_id)}' among the last that the proxy remembers; "
            "an older one may be in its log"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise AskError(f"that is no answer of this version of Sidestep: {error!r}") from error


def _lines(found: dict[str, Any]) -> Iterator[str]:
    request = found["request"]
    yield _head(found["request_id"], request)
    if request is not None:
        yield _summary(request)
    yield ""
    yield from _story(found["steps"], request["attempts"] if request is not None else [])
    if request is None:
        yield "     ... it still runs"
    else:
        yield from (f"     {line}" for line in ending_says(request["outcome"], request["status"]))


def _story(steps: list[Step], attempts: list[Step]) -> Iterator[str]:
    """Tell the steps; *attempts* are those that count, in the order of their ends, with their models."""
    first_tokens = {step["upstream"]: step["seconds"] for step in steps if step["step"] == "first_token"}
    counted = iter(attempts)
    decision = ""
    for step in steps:
        if step["step"] == "ended":
            attempt = next(counted, None) if step["outcome"] != Kind.STALE_CONNECTION else None
            yield _attempt(step, attempt["model"] if attempt else "", first_tokens.get(step["upstream"]))
        elif step["step"] == "decision":
            decision = step["decision"]
            if decision != "failover":  # told by the step after it, which knows from where
                yield f"     {plain(decision_says(decision, step['upstream'], step['reason']))}"
        elif step["step"] == "failover" and decision == "failover":
            yield f"     {plain(decision_says(decision, step['to'], step['reason'], step['from']))}"


def _head(request_id: str, request: Step | None) -> str:
    if request is None:
        return f"{plain(request_id)} is still running"
    word, _ = ENDINGS.get(request["outcome"], (request["outcome"], ""))
    return f"{plain(request_id)}: {word.lower()} ({request['outcome']}, {request['status'] or 'no status'})"


def _summary(request: Step) -> str:
    kind = ", streamed" if request["stream"] else ""
    by = f" by {request['upstream']}/{request['model']}" if request["upstream"] else ""
    first = f", first token after {request['ttft_s']:.2f} s" if request["ttft_s"] is not None else ""
    client = f", for {request['client']}" if request["client"] else ""
    return plain(
        f"{request['ts']}  {request['endpoint']}{kind} on route {request['route']}{client}:"
        f" {request['duration_s']:.2f} s{first}{by}"
    )


def _attempt(step: Step, model: str, first_token_s: float | None) -> str:
    kind = step["outcome"]
    name = f"{step['upstream']}/{model}" if model else step["upstream"]
    token = f", first token after {first_token_s:.2f} s" if first_token_s and kind == "ok" else ""
    details = [kind, f"HTTP {step['status']}" if step["status"] else "", step["code"] or ""]
    shown = ", ".join(dict.fromkeys(filter(None, details)))
    return plain(f"{step['number']:>3}. {step['seconds']:7.2f} s  {name} {did(kind)}{token} ({shown})")
