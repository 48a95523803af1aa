"""One target of a route: what the cells it depends on, the incidents and the past say of it together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from proxy.core.target import Target
from proxy.edge.families import STATES
from proxy.edge.incidents import Incident
from proxy.edge.lines import DIGITS
from proxy.edge.status.past import Past, Span, past_says
from proxy.edge.status.words import did, does, reason_says, span_says, state_word
from proxy.edge.views import Cell


class Why(msgspec.Struct, frozen=True):
    """Why a target is in its state: the breaker's reason, its figures, and which cell says so."""

    scope: str
    reason: str
    numbers: dict[str, float]


class TargetStatus(msgspec.Struct, frozen=True):
    """One target of a route. Ratios and shares are 0..1; `model` is empty where the name is passed on.

    `state` is `drained`, a breaker's state (the worst of the cells the target depends on), or
    `resting` for a closed one that cools down; `word` is the same in plain words, and `says` is `why` as a
    sentence, with the incident that goes on. `share` is its part of the route's recent answers, `admitted`
    the part of its traffic that a recovering breaker lets through. `balanced` says how it shares its
    tier, empty if it is alone there. `past` is the last quarter of an hour.
    """

    upstream: str
    model: str
    tier: int
    weight: float
    state: str
    word: str
    why: Why | None
    says: str
    failure_ratio: float | None
    slow_ratio: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None
    share: float | None
    admitted: float
    in_flight: int
    cooldown_s: float
    next_probe_s: float | None
    next_probe_says: str
    balanced: str
    past: list[Span]
    past_says: str


class Known(NamedTuple):
    """What is known of all targets, as of `wall`; `incidents` are those that go on."""

    cells: Mapping[str, Sequence[Cell]]
    drained: Collection[str]
    incidents: Sequence[Incident]
    past: Past
    wall: float


def cells_by_upstream(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Return the cells of each upstream."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(cell.upstream, []).append(cell)
    return found


def target_status(
    target: Target, tier: int, known: Known, share: float | None, *, balanced: str = ""
) -> TargetStatus:
    """Join the cells of the target's upstream: its own, and those that concern the whole upstream."""
    upstream = target.upstream.name
    cells = known.cells.get(upstream, ())
    own = [cell for cell in cells if cell.model == target.label]
    all_cells = [*own, *(cell for cell in cells if not cell.model)]
    worst = max(all_cells, key=_badness, default=None)
    cooldown_s = round(max((cell.cooldown_s for cell in all_cells), default=0.0), DIGITS)
    state = "drained" if upstream in known.drained else _state(worst, cooldown_s)
    why = _why(worst) if state not in ("closed", "resting", "drained") else None
    admitted = min((cell.share for cell in all_cells), default=1.0)
    past = known.past.of(upstream, target.label, known.wall)
    return TargetStatus(
        upstream=upstream,
        model=target.model or "",
        tier=tier,
        weight=target.weight,
        state=state,
        word=state_word(state),
        why=why,
        says=_says(state, why, _cause(known.incidents, upstream, target.label), admitted, cooldown_s),
        failure_ratio=_worst_of(cell.failure_ratio for cell in own),
        slow_ratio=_worst_of(cell.slow_ratio for cell in own),
        ttft_p50_s=_worst_of(cell.ttft_p50_s for cell in own),
        ttft_p95_s=_worst_of(cell.ttft_p95_s for cell in own),
        share=share,
        admitted=admitted,
        in_flight=sum(cell.in_flight for cell in own),
        cooldown_s=cooldown_s,
        next_probe_s=cooldown_s if state == "open" else None,
        next_probe_says=_next_probe(state, cooldown_s),
        balanced=balanced,
        past=past,
        past_says=past_says(past),
    )


def _badness(cell: Cell) -> tuple[int, float]:
    return (STATES.index(cell.state) if cell.state in STATES else 0, cell.cooldown_s)


def _state(worst: Cell | None, cooldown_s: float) -> str:
    state = worst.state if worst is not None else "closed"
    return "resting" if state == "closed" and cooldown_s > 0 else state


def _why(cell: Cell | None) -> Why | None:
    if cell is None or not cell.reason:
        return None
    numbers = {name: round(value, DIGITS) for name, value in cell.numbers.items()}
    return Why(cell.scope, cell.reason, numbers)


def _cause(incidents: Iterable[Incident], upstream: str, label: str) -> str:
    """Return the cause of the incident that concerns a target, empty if there is none."""
    for incident in incidents:
        concerned = not incident.models or label in incident.models
        if incident.upstream == upstream and concerned:
            return incident.cause
    return ""


def _says(state: str, why: Why | None, cause: str, admitted: float, cooldown_s: float) -> str:
    """Return why a target is in its state: "It is overloaded: the last probe failed."."""
    if state == "closed":
        return ""
    if state == "drained":
        return "Taken out by hand."
    if state == "resting":
        return f"It asked us to wait, {span_says(cooldown_s)} more."
    happens = f"it {did(cause) if state == 'recovering' else does(cause)}" if cause else ""
    reason = reason_says(why.reason, why.numbers) if why is not None else ""
    text = ": ".join(dict.fromkeys(filter(None, (happens, reason))))
    text = text[:1].upper() + text[1:] + "." if text else ""
    if state == "recovering" and 0 < admitted < 1:
        text += f" {admitted:.0%} of its traffic goes there again."
    return text.strip()


def _next_probe(state: str, cooldown_s: float) -> str:
    if state != "open":
        return "–"
    return f"in {span_says(cooldown_s)}" if cooldown_s > 0.5 else "now"


def _worst_of(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(max(known), DIGITS) if known else None
