"""Print how soon rules see an outage and how often they see one that is not there, as Markdown tables.

    python -m tests.bench.detection              about half a minute of CPU
    python -m tests.bench.detection --thorough   about three quarters of an hour: months of healthy traffic

Ours is the real breaker. The others are the rules of well-known proxies and libraries with their
defaults, retold from their sources and simulated in the same way (`tests/simulation/detection.py`).
It ends by itself; the seeds are fixed, so the same version prints the same table.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from tests.simulation.detection import (
    HEALTHY,
    PATIENCE_S,
    RATES,
    RULES,
    Detection,
    Rule,
    detect,
    false_trips,
)

SHARES = (1.0, 0.5, 0.25, 0.12)
SEED = 20
# Simulated days of healthy traffic at each rate.
QUICK_DAYS = (60.0, 10.0, 1.0, 0.2)
THOROUGH_DAYS = (420.0, 90.0, 90.0, 90.0)
NONE_SEEN = 3.0  # no event in n days: with 95 % confidence the true rate is below 3/n per day


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=60, help="outages per cell of the table (default 60)")
    parser.add_argument("--thorough", action="store_true", help="200 outages per cell, months of health")
    chosen = parser.parse_args()
    trials = 200 if chosen.thorough else chosen.trials
    print(f"Median seconds from the beginning of an outage to the trip, {trials} outages each, at")
    print(f"{' / '.join(f'{rate:g}' for rate in RATES)} requests per second. In brackets: the share not seen")
    print(f"within {PATIENCE_S / 60:.0f} minutes, or begun when the rule had tripped already; – where it is")
    print("more than half.\n")
    print_table([f"{share:.0%} fail" for share in SHARES], lambda make: detections(make, trials))
    print(f"\nTrips of a healthy upstream ({HEALTHY:.0%} errors), in so many simulated days:\n")
    long = THOROUGH_DAYS if chosen.thorough else QUICK_DAYS
    heads = [f"{rate:g}/s, {days:g} days" for rate, days in zip(RATES, long, strict=True)]
    print_table(heads, lambda make: healths(make, long))
    bounds = " / ".join(f"{30 * NONE_SEEN / days:.1f}" for days in long)
    print(f"\nWhere none was seen, there are with 95 % confidence fewer than {bounds} in 30 days.")


def print_table(heads: list[str], cells: Callable[[Callable[[], Rule]], list[str]]) -> None:
    """Print a table with a line for each rule, as soon as each line is known."""
    print(f"| rule | {' | '.join(heads)} |")
    print(f"|---|{'---|' * len(heads)}")
    for name, make in RULES.items():
        print(f"| {name} | {' | '.join(cells(make))} |", flush=True)


def detections(make: Callable[[], Rule], trials: int) -> list[str]:
    """Return a cell for each share of failures, with one figure for each rate."""
    rows = [[detect(make, rate, share, trials=trials, seed=SEED) for rate in RATES] for share in SHARES]
    return [" / ".join(figure(detection) for detection in row) for row in rows]


def figure(detection: Detection) -> str:
    """Return a median with the share of outages that was missed."""
    if detection.missed > 0.5:
        return "–"
    digits = 0 if detection.median_s >= 20 else 1
    missed = f" ({detection.missed:.0%})" if detection.missed >= 0.01 else ""
    return f"{detection.median_s:.{digits}f}{missed}"


def healths(make: Callable[[], Rule], long: tuple[float, ...]) -> list[str]:
    """Return the number of false trips for each rate."""
    return [str(false_trips(make, rate, days, seed=SEED)) for rate, days in zip(RATES, long, strict=True)]


if __name__ == "__main__":
    main()
