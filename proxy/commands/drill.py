"""Make a live proxy treat an upstream as failing, and tell what its clients felt.

Kinds of fault: refuse (connections are refused), status:NNN (an error of that status), hang (no answer
until the limit), slow or slow:5s (the answer comes that much later, 10 s if not said), cut (the answer
breaks off), garbage (a 200 with half an answer). The upstream itself hears nothing of attempts that
are hit, except with slow and cut. status:401, 402, 403 and 404 rest the upstream for minutes, as they
would in earnest, and other 4xx reach the clients.

The drill ends by itself; Ctrl-C ends it early. Nothing else changes: breakers recover by themselves.
The admin key, where one is needed, is read from $SIDESTEP_ADMIN_KEY. Exits 1 if no proxy answers or it
refuses.

example:
  sidestep drill openai --fault status:503 --share 50% --for 30s
  sidestep drill openai --fault hang --admin http://127.0.0.1:7381
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from threading import Event
from urllib.parse import quote

from proxy.commands.asking import AskError, add_admin, ask
from proxy.config.scalars import ratio, read_duration
from proxy.edge.status.template import percent, seconds
from proxy.edge.status.words import counted, span_says
from proxy.transport.drill import LONGEST_S
from proxy.transport.faults import KINDS, read_fault
from proxy.transport.felt import Latency, Report, read_listed, read_report

PATH = "/-/drills"
EVERY_S = 1.0
SETTLE_S, SETTLE_TIMES = 0.5, 20  # requests that it hit may take a moment longer to end
MAX_SHOWN = 12


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("upstream", metavar="UPSTREAM", help="its name in the configuration")
    parser.add_argument("--fault", metavar="KIND", required=True, type=_fault, help=KINDS.replace("%", "%%"))
    parser.add_argument(
        "--share", default=1.0, type=_share, help="of the attempts to hit, 50%% or 0.5 (default: 100%%)"
    )
    parser.add_argument(
        "--for", dest="for_s", metavar="TIME", default=60.0, type=_time, help="at most 1h (default: 60s)"
    )
    add_admin(parser)


def run(options: argparse.Namespace) -> int:
    """Start the drill, wait for its end, and print what clients felt."""
    names = ("upstream", "fault", "share", "for_s")
    asked = json.dumps({name: getattr(options, name) for name in names}).encode()
    try:
        drill = read_report(ask(options.admin, PATH, method="POST", body=asked))
        report = _await_end(options.admin, drill)
    except (AskError, ValueError) as error:
        print(f"sidestep: {error}", file=sys.stderr)
        return 1
    print("\n".join(told(report)))
    return 0


def _await_end(admin: str | None, drill: Report) -> Report:
    """Say that it runs, and return the closing report; Ctrl-C ends the drill."""
    pause = Event()
    try:
        print(_announced(drill), flush=True)
        while drill.running:
            pause.wait(max(0.05, min(drill.left_s, EVERY_S)))
            drill = _look(admin, drill)
    except KeyboardInterrupt:
        print("\nEnding it.", flush=True)
        ask(admin, f"{PATH}?upstream={quote(drill.upstream, safe='')}", method="DELETE")
        drill = _look(admin, drill)
    for _ in range(SETTLE_TIMES):
        if drill.open:
            pause.wait(SETTLE_S)
            drill = _look(admin, drill)
    return drill


def _look(admin: str | None, drill: Report) -> Report:
    """Return how the same drill stands now. Raises: AskError, if the proxy knows it no more."""
    listed = read_listed(ask(admin, PATH))
    for found in (*listed.running, *listed.ended):
        if found.id == drill.id and found.upstream == drill.upstream:
            return found
    raise AskError("the proxy knows nothing of the drill any more: it was restarted, or another one was run")


def _announced(drill: Report) -> str:
    what = "All attempts" if drill.share >= 1 else f"{percent(drill.share)} of the attempts"
    told = f"{what} on '{drill.upstream}' are made to fail ({drill.fault}) for {span_says(drill.for_s)}."
    return f"{told} Ctrl-C ends it."


def told(report: Report) -> list[str]:
    """Return what came of a drill, in plain words."""
    hit = f"{report.hit:,} of {counted(report.attempts, 'attempt')} on it made to fail"
    lines = [f"Drill on '{report.upstream}' ({report.fault}): {span_says(report.elapsed_s)}, {hit}.", ""]
    lines += [*_requests(report), "", *_latencies(report), "", *_moves(report)]
    return lines


def _requests(report: Report) -> Iterator[str]:
    total = sum(report.requests.values())
    if total == 0:
        yield "No client asked for a model of that upstream meanwhile."
        return
    hurt = report.requests["failed"] + report.requests["interrupted"]
    if hurt == 0:
        yield f"Clients felt no error: {counted(total, 'request')}."
    else:
        yield f"{hurt:,} of {counted(total, 'request')} hurt a client ({percent(hurt / total)})."
    words = {
        "ok": "answered at the first attempt",
        "ok_failover": "answered after a failed attempt",
        "failed": "failed",
        "interrupted": "broken off in mid-answer",
        "other": "otherwise ended: by the client, or refused",
    }
    yield from (f"  {report.requests[name]:>7,}  {says}" for name, says in words.items())
    if report.open:
        yield f"  {report.open:>7,}  hit and still open"


def _latencies(report: Report) -> Iterator[str]:
    yield "Wait for the first content (streams) or the whole answer:"
    yield _latency("failed over", report.failed_over)
    yield _latency("the others", report.others)
    if report.extra_p50_s is not None and report.extra_p99_s is not None:
        yield f"  {'difference':<12} p50 {_signed(report.extra_p50_s)}, p99 {_signed(report.extra_p99_s)}"


def _latency(name: str, latency: Latency) -> str:
    if latency.p50_s is None or latency.p99_s is None:
        return f"  {name:<12} none"
    return f"  {name:<12} p50 {seconds(latency.p50_s)}, p99 {seconds(latency.p99_s)}"


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'}{seconds(abs(value))}"


def _moves(report: Report) -> Iterator[str]:
    if not report.moves:
        yield "No breaker moved."
        return
    yield "Breakers:"
    for move in report.moves[:MAX_SHOWN]:
        what = " ".join(part for part in (move.scope, move.model, move.operation) if part)
        after = f"{move.after_s:.1f}"
        yield f"  after {after:>6} s  {what}: {move.from_state} -> {move.to_state} ({move.reason})"
    if len(report.moves) > MAX_SHOWN:
        yield f"  and {len(report.moves) - MAX_SHOWN} more"


def _fault(text: str) -> str:
    try:
        return str(read_fault(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _share(text: str) -> float:
    try:
        return float(ratio().read(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _time(text: str) -> float:
    try:
        for_s = read_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if not 0 < for_s <= LONGEST_S:
        raise argparse.ArgumentTypeError("must be more than nothing and at most 1h")
    return for_s
