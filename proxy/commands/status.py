"""Show the state of a running proxy: every route and target, incidents, requests that needed help.

The same as the status page, for a terminal. With --watch it is shown anew every two seconds.
The admin key, where one is needed, is read from $SIDESTEP_ADMIN_KEY. Exits 1 if no proxy answers.

example:
  sidestep status
  sidestep status --admin http://127.0.0.1:7381 --watch
"""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from threading import Event

from proxy.commands.asking import AskError, add_admin, ask
from proxy.commands.terminal import CLEAR, Ink, ink, paragraph, plain, screen_width, table
from proxy.edge.status.reports import IncidentReport
from proxy.edge.status.tales import Tale
from proxy.edge.status.targets import TargetStatus
from proxy.edge.status.template import count, percent, seconds
from proxy.edge.status.words import span_says
from proxy.edge.status_data import RouteStatus, Status, read_status

EVERY_S = 2.0
INCIDENTS, REQUESTS = 5, 5
HEAD = ("TARGET", "STATE", "TRAFFIC", "FAILING", "TOKEN P50", "P95", "IN FLIGHT", "NEXT PROBE", "WHY")
AT_RIGHT = range(2, 8)
STATES = {
    "closed": "green",
    "open": "red",
    "half_open": "yellow",
    "recovering": "blue",
    "resting": "magenta",
    "drained": "dim",
}
TONES = {"fine": "green", "warned": "yellow", "hurt": "red", "quiet": "", "saved": "blue", "lost": "red"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_admin(parser)
    parser.add_argument("--watch", action="store_true", help="show it again every 2 seconds, until Ctrl-C")


def run(options: argparse.Namespace) -> int:
    """Print the state, once or again and again."""
    if options.watch:
        return _watch(options.admin)
    try:
        print(_page(options.admin, ink()))
    except AskError as error:
        print(f"sidestep: {error}", file=sys.stderr)
        return 1
    return 0


def _watch(admin: str | None) -> int:
    """Print until Ctrl-C; a proxy that is away for a while may come back."""
    pause, colours = Event(), ink()
    clear = CLEAR if sys.stdout.isatty() else ""
    try:
        while True:
            try:
                page = _page(admin, colours)
            except AskError as error:
                page = f"sidestep: {error}"
            print(f"{clear}{page}\n", flush=True)
            pause.wait(EVERY_S)
    except KeyboardInterrupt:
        return 0


def _page(admin: str | None, colours: Ink) -> str:
    try:
        status = read_status(ask(admin, "/status.json"))
    except ValueError as error:
        raise AskError(f"that is not the status of a Sidestep of this version: {error}") from error
    return render(status, colours, screen_width())


def render(status: Status, colours: Ink, width: int) -> str:
    """Return the status as text."""
    lines = [
        colours("bold", colours(TONES.get(status.headline.tone, ""), status.headline.text)),
        *paragraph(plain(status.headline.detail), width, ""),
        *(f"{colours('yellow', notice.kind.upper())}: {plain(notice.text)}" for notice in status.notices),
        "",
        *_figures(status),
    ]
    for route in status.routes:
        lines += ["", colours("bold", plain(route.name)), *_route(route, colours)]
    if status.incidents:
        lines += ["", colours("bold", "incidents")]
        for incident in status.incidents[:INCIDENTS]:
            lines += _incident(incident, colours, width)
    if status.tales:
        lines += ["", colours("bold", "requests that needed help")]
        lines += table([_request(tale, colours) for tale in status.tales[:REQUESTS]])
    lines += [
        "",
        colours("dim", f"Sidestep {status.version}, up {span_says(status.uptime_s)}, {_clock(status.ts)}"),
    ]
    return "\n".join(lines)


def _figures(status: Status) -> list[str]:
    totals, lately = status.totals, status.lately
    return [
        f"answered, last {span_says(lately.seconds)}: {_or_none(lately.effective)}"
        f"   without Sidestep: {_or_none(lately.without)}   in flight: {status.in_flight:,}",
        f"since start: {totals.requests:,} requests, {totals.kept:,} kept from failing"
        f" ({totals.saved:,} saved, {totals.routed_around:,} routed around), {count(totals.lost)} lost",
    ]


def _route(route: RouteStatus, colours: Ink) -> list[str]:
    head = tuple(colours("dim", text) for text in HEAD)
    return table([head, *(_target(target, colours) for target in route.targets)], right=AT_RIGHT)


def _target(target: TargetStatus, colours: Ink) -> tuple[str, ...]:
    name = f"{target.upstream}/{target.model}" if target.model else target.upstream
    return (
        f"{target.tier + 1} {plain(name)}",
        colours(STATES.get(target.state, ""), target.word),
        _or_none(target.share),
        _or_none(target.failure_ratio),
        seconds(target.ttft_p50_s) if target.ttft_p50_s is not None else "-",
        seconds(target.ttft_p95_s) if target.ttft_p95_s is not None else "-",
        str(target.in_flight),
        target.next_probe_says.replace("–", "-"),
        plain(target.says),
    )


def _incident(incident: IncidentReport, colours: Ink, width: int) -> list[str]:
    lasted = (
        f"lasted {span_says(incident.seconds)}" if incident.ended else f"{span_says(incident.seconds)} so far"
    )
    title = plain(incident.title)
    shown = title if incident.ended else colours("red", title)
    return [
        f"  {_moment(incident.started)}  {shown}, {lasted}",
        *paragraph(plain(incident.says), width, "    "),
    ]


def _request(tale: Tale, colours: Ink) -> tuple[str, ...]:
    word = colours(TONES.get(tale.tone, ""), tale.word)
    return (_clock(tale.ts), word, tale.request_id, seconds(tale.duration_s), plain(tale.path))


def _or_none(share: float | None) -> str:
    return percent(share) if share is not None else "-"


def _clock(ts: str) -> str:
    return datetime.fromisoformat(ts).astimezone().strftime("%H:%M:%S")


def _moment(ts: str) -> str:
    return datetime.fromisoformat(ts).astimezone().strftime("%d %b %H:%M:%S")
