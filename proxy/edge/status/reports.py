"""Incidents as the page, `/status.json` and `sidestep status` tell them."""

from __future__ import annotations

import msgspec

from proxy.edge.incidents import Incident, Turn
from proxy.edge.lines import DIGITS, Stamp
from proxy.edge.status.words import CAUSES, counted, did, does, listed, reason_says, span_says

DONE = {
    "open": "cut off",
    "half_open": "probed",
    "recovering": "coming back",
    "closed": "back",
}


class TurnReport(msgspec.Struct, frozen=True):
    """One move of a breaker: when, to which state, and why in words."""

    ts: str
    state: str
    word: str
    says: str


class IncidentReport(msgspec.Struct, frozen=True):
    """One incident. `title` says who did what, `says` what was done about it and what that cost.

    Requests: `affected` met it, `saved` were answered after a failed attempt, `routed_around` were sent
    elsewhere at once, `lost` got an error. `ended` is null while it lasts.
    """

    id: str
    upstream: str
    cause: str
    models: list[str]
    started: str
    ended: str | None
    seconds: float
    title: str
    says: str
    affected: int
    saved: int
    routed_around: int
    lost: int
    openings: int
    kinds: dict[str, int]
    enforced: bool
    cut_short: bool
    turns: list[TurnReport]


def report(incident: Incident, wall: float) -> IncidentReport:
    """Return the report of an incident as of *wall* (Unix time)."""
    stamp = Stamp()
    ended = incident.ended
    return IncidentReport(
        id=incident.id,
        upstream=incident.upstream,
        cause=incident.cause,
        models=incident.models,
        started=stamp.of(incident.started),
        ended=stamp.of(ended) if ended is not None else None,
        seconds=round((ended if ended is not None else wall) - incident.started, 1),
        title=_title(incident),
        says=_says(incident),
        affected=incident.affected,
        saved=incident.saved,
        routed_around=incident.routed_around,
        lost=incident.lost,
        openings=incident.openings,
        kinds=incident.kinds,
        enforced=incident.enforced,
        cut_short=incident.cut_short,
        turns=[_turn(turn, stamp) for turn in incident.turns],
    )


def _title(incident: Incident) -> str:
    if incident.ended is None:
        return f"{incident.upstream} {does(incident.cause)}"
    return f"{incident.upstream} {did(incident.cause)}"


def _says(incident: Incident) -> str:
    sentences = [_done(incident), *_others(incident), _cost(incident)]
    if incident.cut_short:
        sentences.append("Sidestep was stopped while it lasted.")
    return " ".join(sentences)


def _done(incident: Incident) -> str:
    first = incident.turns[0] if incident.turns else None
    if not incident.enforced:
        return "Nothing was done about it: the breaker only observes."
    if first is None:
        return "It was cut off."
    reason = reason_says(first.reason, first.numbers)
    if reason == f"it {does(incident.cause)}":  # the title says so already
        return (
            "It was cut off at once."
            if incident.openings < 2
            else f"It was cut off {incident.openings} times."
        )
    if incident.openings < 2:
        return f"It was cut off: {reason}."
    return f"It was cut off {incident.openings} times, at first because of this: {reason}."


def _others(incident: Incident) -> list[str]:
    """Name the other ways in which its attempts failed, the commonest first."""
    others = sorted((-count, kind) for kind, count in incident.kinds.items() if kind != incident.cause)
    if not others or incident.cause not in CAUSES:
        return []
    return [f"It also {listed([f'{did(kind)} ({-count}×)' for count, kind in others[:3]])}."]


def _cost(incident: Incident) -> str:
    if not incident.affected:
        return "No request was affected."
    ends = [
        f"{count:,} {what}"
        for count, what in (
            (incident.saved, "saved after a failed attempt"),
            (incident.routed_around, "routed around it"),
            (incident.lost, "lost"),
        )
        if count
    ]
    return f"{counted(incident.affected, 'request')} affected{': ' + listed(ends) if ends else ''}."


def _turn(turn: Turn, stamp: Stamp) -> TurnReport:
    numbers = {name: round(value, DIGITS) for name, value in turn.numbers.items()}
    says = reason_says(turn.reason, numbers)
    if turn.state == "open" and (open_s := numbers.get("open_s")) is not None:
        says += f"; for {span_says(open_s)}"
    where = f"{turn.model}: " if turn.model else ""
    word = DONE.get(turn.state, turn.state)
    return TurnReport(ts=stamp.of(turn.at), state=turn.state, word=word, says=f"{where}{says}")
