"""Every shipped outage, five seeds each, against the whole core with its default policies."""

from __future__ import annotations

import pytest

from proxy.sim.ledger import Ending
from proxy.sim.player import play
from proxy.sim.scenario import load_scenario
from tests.simulation.bars import (
    EXCUSES,
    OPEN_MAX_S,
    RETURN_LIMIT_S,
    RETURN_MEDIAN_S,
    SCENARIOS,
    SHIPPED,
    Measured,
    calm,
    measure,
    median_return,
    setup_for,
)

SEEDS = (1, 2, 3, 4, 5)
NEVER_FAIL = [name for name in SCENARIOS if name not in EXCUSES or not EXCUSES[name].may_fail]
LATE = [name for name, excuse in EXCUSES.items() if excuse.return_limit_s > RETURN_LIMIT_S]


def played(name: str) -> list[Measured]:
    return [measure(name, seed) for seed in SEEDS]


def every(names: list[str] | tuple[str, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", names)


@every(NEVER_FAIL)
def test_no_client_fails_while_a_healthy_target_exists(name: str) -> None:
    assert [each.failures for each in played(name)] == [0] * len(SEEDS)
    assert [each.felt.endings[Ending.GAVE_UP] for each in played(name)] == [0] * len(SEEDS)


@every(SCENARIOS)
def test_only_what_had_begun_is_interrupted_and_only_a_400_is_refused(name: str) -> None:
    for each in played(name):
        assert each.excuse.may_interrupt or each.felt.endings[Ending.INTERRUPTED] == 0
        assert each.excuse.may_refuse or each.felt.endings[Ending.REFUSED] == 0


@every(NEVER_FAIL)
def test_attempts_stay_near_the_number_of_requests(name: str) -> None:
    for each in played(name):
        assert each.felt.attempts_in_trouble <= each.most_attempts


@every(SCENARIOS)
def test_nothing_is_shut_for_longer_than_a_lease_and_the_longest_open_time(name: str) -> None:
    assert [each.shut_s for each in played(name) if each.shut_s > each.lease_s + OPEN_MAX_S] == []


@every(SCENARIOS)
def test_the_preferred_target_is_back_within_the_longest_open_time_and_the_recovery(name: str) -> None:
    assert [each.return_s for each in played(name) if each.return_s > each.excuse.return_limit_s] == []


def test_the_preferred_target_is_back_in_half_a_minute_by_the_median() -> None:
    usual = [each for name in SCENARIOS if name not in LATE for each in played(name)]
    assert median_return(usual) <= RETURN_MEDIAN_S


@every(NEVER_FAIL)  # where everything is down, bodies fail everywhere, and such a probe says nothing
def test_an_open_target_gets_one_probe_for_each_time_it_opens(name: str) -> None:
    assert max(each.turning.probes_per_open for each in played(name)) <= 1.0


@every(["recovery_herd", "recovery_herd_weak", "metastable_tail"])
def test_a_target_that_comes_back_is_not_knocked_down_again(name: str) -> None:
    assert [each.herd_load for each in played(name) if each.herd_load > each.excuse.herd_load] == []


@every(["one_model", "one_op_dead"])
def test_siblings_stay_where_they_are(name: str) -> None:
    scenario = load_scenario(name, SHIPPED)
    ledger, _ = play(scenario, setup_for(scenario), seed=1)
    fault = scenario.spec("first").faults[0]
    siblings = [r for r in ledger.records if not fault.concerns(r.call.model, r.call.operation)]
    assert {record.first_choice for record in siblings} == {"first"}


def test_nothing_opens_in_a_hundred_calm_hours() -> None:
    calls, opened = calm(hours=100, rate=0.1, seed=1)
    assert calls > 35_000
    assert opened == 0


def test_the_same_seed_tells_the_same_story() -> None:
    scenario = load_scenario("brown_out", SHIPPED)
    traces = [play(scenario, setup_for(scenario), seed, keep_trace=True)[1].trace for seed in (1, 1, 2)]
    assert traces[0] == traces[1]
    assert traces[0] != traces[2]
    assert len(traces[0]) > 1000


@every(["everything_down", "own_network"])
def test_an_outage_of_everything_ends_when_it_ends(name: str) -> None:
    scenario = load_scenario(name, SHIPPED)
    ledger, _ = play(scenario, setup_for(scenario), seed=1)
    _, end = scenario.trouble
    assert {record.ending for record in ledger.records if record.call.at >= end} == {Ending.ANSWERED}
