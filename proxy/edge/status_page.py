"""The status page without JavaScript: the status data as plain tables that reload themselves.

Every value goes through `html.escape`: model names may be a client's text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from proxy.edge.lines import BreakerLine
from proxy.edge.status_data import DecisionEntry, RouteStatus, Status, TargetStatus, Totals, Why

RELOAD_S = 5
STYLE = """
:root { color-scheme: light dark; --line: #8885; --good: #2a7; --warn: #c80; --bad: #d33; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; white-space: nowrap; }
td.why { white-space: normal; }
td.number, th.number { text-align: right; }
.closed { color: var(--good); } .open { color: var(--bad); font-weight: 600; }
.half_open, .recovering, .resting, .drained { color: var(--warn); }
"""
TARGET_HEAD = (
    "Target",
    "State",
    "Why",
    "Failures",
    "Slow",
    "First token p50",
    "p95",
    "Traffic",
    "In flight",
    "Next try",
)
TEXT_COLUMNS = 3  # of the table of targets; figures follow


def render(status: Status) -> bytes:
    """Return the page."""
    body = [
        f"<h1>Sidestep {escape(status.version)}</h1>",
        _summary(status),
        *(_route(route) for route in status.routes),
        _section("Breaker moves", ("When", "Where", "Change", "Why"), map(_move, status.moves)),
        _section(
            "Decisions", ("Last", "Route", "Upstream", "Decision", "Count"), map(_decision, status.decisions)
        ),
    ]
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{RELOAD_S}">'
        f"<title>Sidestep</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )
    return page.encode()


def _summary(status: Status) -> str:
    state = "ready" if status.ready else "not ready"
    where = ", ".join(map(escape, status.listen))
    return (
        f"<p>{state}, up {_span(status.uptime_s)}{f', listening on {where}' if where else ''}. "
        f"{_totals(status.totals)} As of <time>{escape(status.ts)}</time>.</p>"
    )


def _totals(totals: Totals) -> str:
    others = ", ".join(f"{escape(name)} {count}" for name, count in totals.outcomes.items() if count)
    return f"{totals.requests} requests, <strong>{totals.saved} saved by failover</strong>" + (
        f" ({others})." if others else "."
    )


def _route(route: RouteStatus) -> str:
    head = "".join(f'<th scope="col"{_numeric(index)}>{text}</th>' for index, text in enumerate(TARGET_HEAD))
    rows = "\n".join(map(_target, route.targets))
    return (
        f'<h2>{escape(route.name)}</h2>\n<div class="wide"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _target(target: TargetStatus) -> str:
    name = f"{target.upstream}/{target.model}" if target.model else target.upstream
    figures = (
        _percent(target.failure_ratio),
        _percent(target.slow_ratio),
        _seconds(target.ttft_p50_s),
        _seconds(target.ttft_p95_s),
        _percent(target.share),
        str(target.in_flight),
        _seconds(target.cooldown_s) if target.cooldown_s else "",
    )
    state = escape(target.state)
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="{state}">{state.replace("_", "-")}</td>'
        f'<td class="why">{_why(target.why)}</td>'
        + "".join(f'<td class="number">{figure}</td>' for figure in figures)
        + "</tr>"
    )


def _why(why: Why | None) -> str:
    if why is None:
        return ""
    return escape(f"{why.scope}: {_reason(why.reason, why.numbers)}")


def _reason(reason: str, numbers: dict[str, float]) -> str:
    figures = ", ".join(f"{name} {value:g}" for name, value in numbers.items())
    return f"{reason} ({figures})" if figures else reason


def _section(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    if not body:
        return f"<h2>{title}</h2>\n<p>None yet.</p>"
    columns = "".join(f'<th scope="col">{text}</th>' for text in head)
    return (
        f'<h2>{title}</h2>\n<div class="wide"><table>\n<thead><tr>{columns}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def _move(move: BreakerLine) -> tuple[str, ...]:
    where = " ".join(filter(None, (move.scope, move.upstream, move.model, move.operation)))
    change = f"{move.from_state} → {move.to_state}{'' if move.enforced else ' (observed only)'}"
    return (move.ts, where, change, _reason(move.reason, move.numbers))


def _decision(entry: DecisionEntry) -> tuple[str, ...]:
    return (entry.last, entry.route, entry.upstream, f"{entry.decision}: {entry.reason}", str(entry.count))


def _numeric(column: int) -> str:
    return ' class="number"' if column >= TEXT_COLUMNS else ""


def _percent(ratio: float | None) -> str:
    return f"{ratio:.0%}" if ratio is not None else ""


def _seconds(seconds: float | None) -> str:
    return f"{seconds:.2f} s" if seconds is not None else ""


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
