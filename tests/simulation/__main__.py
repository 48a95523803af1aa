"""Every outage with many seeds: `python -m tests.simulation [--seeds 50] [SCENARIO ...]`, or `make sim`.

Prints a table of the worst and the middle of what the seeds gave, then every missed bar. Exits 1 if
there is one.
"""

from __future__ import annotations

import argparse
import sys
from statistics import median

from tests.simulation.bars import SCENARIOS, Measured, measure, median_return

HEADINGS = (
    "scenario",
    "answered",
    "failed",
    "cut",
    "att/req",
    "ttft p99",
    "shift",
    "back",
    "worst",
    "probes",
    "misses",
)
WIDTHS = (26, 10, 8, 6, 9, 10, 8, 8, 8, 8, 8)


def main() -> int:
    """Play everything that was asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", default=list(SCENARIOS))
    parser.add_argument("--seeds", type=int, default=50)
    asked = parser.parse_args()
    print(_line(HEADINGS))
    missed: list[str] = []
    for name in asked.scenarios:
        played = [measure(name, seed) for seed in range(1, asked.seeds + 1)]
        print(_line(_row(name, played)), flush=True)
        missed += [f"{name}, seed {each.seed}: {miss}" for each in played for miss in each.misses()]
        measure.cache_clear()
    for miss in missed:
        print(miss)
    print(f"{len(missed)} bars missed")
    return 1 if missed else 0


def _row(name: str, played: list[Measured]) -> tuple[str, ...]:
    felt = [each.felt for each in played]
    return (
        name,
        f"{min(side.availability for side in felt):.2%}",
        f"{sum(side.failed_requests for side in felt)}",
        f"{median(side.endings['interrupted'] for side in felt):.0f}",
        f"{max(side.attempts_in_trouble for side in felt):.2f}",
        f"{median(side.first_token_p99_s for side in felt):.1f} s",
        _seconds(median(each.turning.shift_s or 1e9 for each in played)),
        _seconds(median_return(played)),
        _seconds(max(each.return_s for each in played)),
        f"{max(each.turning.probes_per_open for each in played):.2f}",
        f"{sum(bool(each.misses()) for each in played)}",
    )


def _seconds(value: float) -> str:
    return "-" if value >= 1e9 else f"{value:.1f} s"


def _line(cells: tuple[str, ...]) -> str:
    first, *rest = zip(cells, WIDTHS, strict=True)
    return f"{first[0]:<{first[1]}}" + "".join(f"{cell:>{width}}" for cell, width in rest)


if __name__ == "__main__":
    sys.exit(main())
