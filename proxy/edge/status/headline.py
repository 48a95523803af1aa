"""The one sentence that everybody looks for first: are my users fine?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from proxy.edge.status.pulse import Lately
from proxy.edge.status.template import percent
from proxy.edge.status.words import counted, listed, span_says

FINE, SOME, MANY = 0.995, 0.95, 0.5  # shares of answered requests below which more and more users are hurt
GOOD = ("closed", "recovering")


class Headline(msgspec.Struct, frozen=True):
    """`text` changes only when the answer does, so that it can be read aloud; `detail` has the figures.

    `tone`: "fine", "warned" (all is answered, but a route has nobody left in reserve), "hurt", "quiet".
    """

    tone: str
    text: str
    detail: str


class Notice(msgspec.Struct, frozen=True):
    """What somebody has done by hand, or the process itself: "drill", "drained", "stopping"."""

    kind: str
    text: str


class Drill(msgspec.Struct, frozen=True):
    """A drill that runs: `share` (0..1) of the attempts on `upstream` are made to fail with `fault`."""

    upstream: str
    fault: str
    share: float
    left_s: float | None


def headline(lately: Lately, routes: Iterable[tuple[str, Sequence[str]]]) -> Headline:
    """Return the headline; *routes* are names with the states of their targets."""
    dead = [name for name, states in routes if not any(state in GOOD for state in states)]
    names = listed([f"'{name}'" for name in dead[:3]])
    gone = f" No target is up for {names}." if dead else ""
    if lately.effective is None:
        if dead:
            return Headline("warned", "Nobody could be answered now.", gone.strip())
        return Headline("quiet", "All quiet.", f"No requests in the last {span_says(lately.seconds)}.")
    detail = _detail(lately) + gone
    if lately.effective < FINE:
        return Headline("hurt", _hurt(lately.effective), detail)
    if dead:
        return Headline("warned", "Your users are about to notice.", detail)
    return Headline("fine", "Your users are fine.", detail)


def notices(drills: Iterable[Drill], drained: Iterable[str], *, ready: bool) -> list[Notice]:
    """Return what must be marked because somebody has done it, most unusual first."""
    found = [] if ready else [Notice("stopping", "Sidestep is not ready: it starts, or it stops.")]
    for drill in drills:
        left = f", for {span_says(drill.left_s)} more" if drill.left_s is not None else ""
        share = "Every attempt" if drill.share >= 1 else f"{percent(drill.share)} of the attempts"
        fails = "fails" if drill.share >= 1 else "fail"
        text = f"{share} on {drill.upstream} {fails} on purpose ({drill.fault}){left}."
        found.append(Notice("drill", text))
    found += [
        Notice("drained", f"{name} was taken out by hand and gets no new requests.")
        for name in sorted(drained)
    ]
    return found


def _hurt(effective: float) -> str:
    if effective >= SOME:
        return "A few requests are being lost."
    return "Many requests are being lost." if effective >= MANY else "Most requests are being lost."


def _detail(lately: Lately) -> str:
    span = span_says(lately.seconds)
    if lately.lost:
        text = f"{lately.lost:,} of {counted(lately.requests, 'request')} in the last {span} got no answer"
    elif lately.requests == 1:
        text = f"The one request of the last {span} was answered"
    else:
        text = f"All {lately.requests:,} requests of the last {span} were answered"
    if lately.without is not None and lately.effective is not None and lately.without < lately.effective:
        text += f"; without Sidestep, {percent(1 - lately.without)} would have failed"
    return text + "."
