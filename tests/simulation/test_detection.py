"""The bars for breakers: outages are seen soon, health is not mistaken for one, and targets come back.

All of it in simulated time with fixed seeds. `python -m tests.bench.detection` prints the whole table,
beside the rules of others, and runs longer.
"""

from __future__ import annotations

import random
from statistics import median

import pytest

from proxy.core.breaker import Breaker, State
from proxy.core.target import BreakerPolicy
from tests.simulation.detection import RATES, Ours, detect, false_trips
from tests.simulation.returning import come_back, herd

# Median seconds to see an outage: what a volume-scaled CUSUM alone reaches in a simulation like this.
REFERENCE = {
    1.00: (49, 6.3, 3.0, 3.0),
    0.50: (115, 13, 3.1, 3.0),
    0.25: (325, 38, 6.1, 3.1),
}
POLICY = BreakerPolicy()
LATEST_RETURN_S = POLICY.open_max_s + POLICY.recovery_s + 5


@pytest.mark.parametrize(
    ("share", "rate", "reference_s"),
    [
        pytest.param(share, rate, reference, id=f"{share:.0%} of {rate:g} per second")
        for share, row in REFERENCE.items()
        for rate, reference in zip(RATES, row, strict=True)
    ],
)
def test_an_outage_is_seen_as_soon_as_the_traffic_allows(
    share: float, rate: float, reference_s: float
) -> None:
    detection = detect(Ours, rate, share, trials=200 if rate < 1 else 60, seed=1)
    assert detection.median_s <= 1.25 * reference_s
    assert detection.missed < 0.10


@pytest.mark.parametrize("rate", [10.0, 50.0])
def test_one_failure_in_eight_is_seen_if_somebody_does_better(rate: float) -> None:
    assert detect(Ours, rate, 0.12, trials=20, seed=1).median_s < 60
    assert detect(lambda: Ours(alternative=0.12), rate, 0.12, trials=10, seed=1).missed > 0


@pytest.mark.parametrize(("rate", "days"), [(0.1, 60.0), (1.0, 6.0), (10.0, 0.6), (50.0, 0.12)])
def test_a_healthy_target_is_left_alone(rate: float, days: float) -> None:
    """Half a million requests at each rate; the benchmark runs for longer, to bound it by the month."""
    assert false_trips(Ours, rate, days, seed=1) == 0


def test_a_target_that_goes_silent_is_left_soon_after_its_soft_limit() -> None:
    """Nothing ever fails, nothing ever ends: what is known is that attempts passed their soft limit."""
    waits = []
    for seed in range(40):
        rng = random.Random(seed)
        breaker, now = Breaker(POLICY), 1_000.0
        begun, onset, number = [], 1_300.0, 0
        while breaker.state is State.CLOSED:
            now += rng.expovariate(1.0)
            number += 1
            admission = breaker.admit(now, rng)
            assert admission is not None
            if now < onset:
                breaker.first_content(admission, 0.5, now, request=str(number), rng=rng)
                continue
            begun.append(admission)
            while begun and begun[0].at + 5.0 <= now:
                breaker.soft_limit_passed(
                    begun.pop(0), now, request=str(number), rng=rng, alternative=lambda: 0.02
                )
        waits.append(now - onset)
    assert median(waits) < 15.0, "half of the shortest limit for a first token"


@pytest.mark.parametrize("rate", [1.0, 10.0, 50.0])
def test_a_healed_target_is_used_again_within_half_a_minute(rate: float) -> None:
    returns = [come_back(rate, outage_s=300.0 + seed, seed=seed) for seed in range(60 if rate < 50 else 10)]
    assert median(way.full_s for way in returns) <= 30
    assert max(way.full_s - way.longest_gap_s for way in returns) <= LATEST_RETURN_S


def test_at_six_requests_a_minute_the_first_answer_is_back_within_half_a_minute() -> None:
    returns = [come_back(0.1, outage_s=600.0 + seed, seed=seed) for seed in range(200)]
    assert median(way.first_s for way in returns) <= 30
    assert max(way.first_s - way.longest_gap_s for way in returns) <= POLICY.open_max_s


@pytest.mark.parametrize("rate", [10.0, 50.0])
def test_the_usual_errors_of_a_healed_target_do_not_keep_it_away(rate: float) -> None:
    seeds = range(40 if rate < 50 else 12)
    returns = [come_back(rate, outage_s=300.0, seed=seed, errors=0.01) for seed in seeds]
    assert median(way.full_s for way in returns) <= 30


def test_a_dead_target_is_probed_once_in_an_open_period() -> None:
    way = come_back(10.0, outage_s=3_600.0, seed=1)
    assert way.probes <= 3_600.0 / (POLICY.open_max_s / 2) + 4


@pytest.mark.parametrize(("proxies", "rate"), [(300, 1.0), (30, 10.0)])
def test_proxies_that_return_together_do_not_overload_their_target(proxies: int, rate: float) -> None:
    result = herd(proxies, rate, lambda now: float(not 20 <= now < 80), end_s=150.0, seed=1)
    assert result.peak_load <= 1.25
    assert result.closed == 1.0


def test_the_same_seed_gives_the_same_story() -> None:
    assert come_back(1.0, outage_s=120.0, seed=5) == come_back(1.0, outage_s=120.0, seed=5)
    assert detect(Ours, 1.0, 0.5, trials=3, seed=5) == detect(Ours, 1.0, 0.5, trials=3, seed=5)
