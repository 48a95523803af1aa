"""Run the comparison and print it as a Markdown table. It takes about two minutes and ends by itself."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shlex
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.bench import load, systems
from tests.bench.systems import System

Start = Callable[[Path], AbstractContextManager[System]]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    repetitions: int = 5
    requests: int = 10_000
    paced_requests: int = 4_000
    serial_requests: int = 2_000
    stream_events: int = 400
    open_streams: int = 1_000
    slow_events: int = 100


QUICK = Size(
    repetitions=1,
    requests=640,
    paced_requests=320,
    serial_requests=100,
    stream_events=50,
    open_streams=50,
    slow_events=10,
)


@dataclass(frozen=True)
class Row:
    """One line of the table. `budget` is the most the proxy may have, as a number or as times nginx's."""

    name: str
    key: str
    digits: int = 2
    budget: float | None = None
    times: bool = False
    ratio: bool = True


ROWS = [
    Row("CPU ms per 1,000 requests, as fast as possible", "request_cpu", 1, budget=5.5, times=True),
    Row("CPU ms per 1,000 requests, 1,000 per second", "paced_cpu", 1, budget=5.5, times=True),
    Row("requests per second, 32 connections", "rate", 0),
    Row("added p50 at one connection, ms", "added_p50"),
    Row("added p99 at one connection, ms", "added_p99"),
    Row("CPU ms per 1,000 events, 50 streams of 100/s", "event_cpu", 1, budget=3, times=True),
    Row("resident memory idle, MiB", "idle_mib", 1, budget=60),
    Row("KB per open stream, 1,000 streams", "stream_kb", 1, budget=60),
    Row("longest silence in 1,000 streams of 10/s, s", "silence_s", budget=1),
    Row("start-up until ready, s", "start_up_s", budget=1.5),
]


async def measure(system: System, direct: load.Figures, size: Size) -> dict[str, float]:
    """Measure one freshly started system: memory first, while it is untouched."""
    await load.read_streams(system.stream_port, streams=20, events=20, gap_ms=10)
    idle_kb = system.resident_kb()
    streams = await load.open_streams(system.stream_port, streams=size.open_streams)
    stream_kb = (system.resident_kb() - idle_kb) / len(streams)
    for stream in streams:
        stream.transport.abort()

    await load.ask(system.port, connections=32, requests=320)
    before = system.cpu_s()
    many = await load.ask(system.port, connections=32, requests=size.requests)
    request_cpu = (system.cpu_s() - before) / len(many.latencies_s)

    before = system.cpu_s()
    calm = await load.ask_paced(system.port, connections=32, requests=size.paced_requests, rate=1000)
    paced_cpu = (system.cpu_s() - before) / len(calm.latencies_s)

    serial = await load.ask(system.port, connections=1, requests=size.serial_requests)

    before = system.cpu_s()
    paced = await load.read_streams(system.stream_port, streams=50, events=size.stream_events, gap_ms=10)
    event_cpu = (system.cpu_s() - before) / paced.events
    slow = await load.read_streams(
        system.stream_port, streams=size.open_streams, events=size.slow_events, gap_ms=100
    )
    return {
        "request_cpu": request_cpu * 1e6,
        "paced_cpu": paced_cpu * 1e6,
        "rate": len(many.latencies_s) / many.seconds,
        "added_p50": serial.percentile_ms(0.5) - direct.percentile_ms(0.5),
        "added_p99": serial.percentile_ms(0.99) - direct.percentile_ms(0.99),
        "event_cpu": event_cpu * 1e6,
        "idle_mib": idle_kb / 1024,
        "stream_kb": stream_kb,
        "silence_s": slow.longest_gap_s,
        "start_up_s": system.start_up_s,
    }


async def compare(size: Size, command: list[str]) -> dict[str, list[dict[str, float]]]:
    """Measure the systems in turn, so that a noisy minute meets both."""
    results: dict[str, list[dict[str, float]]] = {"nginx": [], "sidestep": []}
    with systems.mock() as (primary, spare):
        starts: dict[str, Start] = {
            "nginx": lambda directory: systems.nginx(directory, primary),
            "sidestep": lambda directory: systems.proxy(directory, primary, spare, command),
        }
        for number in range(size.repetitions):
            for name, start in starts.items():
                print(f"measuring {name}, {number + 1} of {size.repetitions}", file=sys.stderr)
                direct = await load.ask(primary, connections=1, requests=size.serial_requests)
                with tempfile.TemporaryDirectory() as directory, start(Path(directory)) as system:
                    results[name].append(await measure(system, direct, size))
    return results


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Return the medians as a Markdown table, ratios to nginx's, and whether each budget is kept."""
    lines = ["| | nginx | sidestep | ratio | budget |", "|---|---:|---:|---:|---|"]
    for row in ROWS:
        theirs, ours = (
            statistics.median(result[row.key] for result in results[name]) for name in ("nginx", "sidestep")
        )
        ratio = ours / theirs if theirs > 0 else float("nan")
        lines.append(
            f"| {row.name} | {theirs:,.{row.digits}f} | {ours:,.{row.digits}f} "
            f"| {f'{ratio:.1f} ×' if ratio == ratio else '–'} | {_budget(row, ours, ratio)} |"
        )
    return "\n".join(lines)


def _budget(row: Row, ours: float, ratio: float) -> str:
    if row.budget is None:
        return ""
    kept = (ratio if row.times else ours) <= row.budget
    return f"≤ {row.budget:g}{' × nginx' if row.times else ''}: {'kept' if kept else 'BROKEN'}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="once, and little of it: only to see it work")
    parser.add_argument(
        "--command", default=f"{sys.executable} -m proxy serve --log-format json",
        help="how to start the proxy; '-c FILE' is added",
    )  # fmt: skip
    arguments = parser.parse_args()
    if shutil.which("nginx") is None:
        sys.exit("nginx is needed to compare with (on Debian: apt install nginx)")
    if len(systems.CORES) < 2:
        sys.exit("two cores are needed: one for the load, one for the system under test")

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(16_384, hard) if hard > 0 else 16_384, hard))
    os.sched_setaffinity(0, {systems.LOAD_CORE})
    size = QUICK if arguments.quick else Size()
    results = uvloop.run(compare(size, shlex.split(arguments.command)))
    print(table(results))
    print(
        f"\nMedians of {size.repetitions}; {len(systems.CORES)} cores, {platform.machine()}, "
        f"Python {platform.python_version()}. Request 1.5 KB, answer 0.5 KB, events of 188 bytes; plain HTTP "
        "on loopback; load and mock on one core, the system under test on another. Where a system outruns "
        "the load, requests per second are the load's own limit."
    )


if __name__ == "__main__":
    main()
