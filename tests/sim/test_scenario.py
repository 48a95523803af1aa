"""Scenarios as files: what they may say, and how mistakes are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.sim.scenario import (
    Fault,
    ProviderSpec,
    Scenario,
    ScenarioError,
    Waves,
    load_scenario,
    read_scenario,
)

SHIPPED = Path("config/scenarios")
WHOLE = """
about: everything at once
duration: 10m
traffic: {rate: 2, streams: 25%, models: {first: 3, second: 1}, patience: 30s, retries: 0}
providers:
  first:
    first_token: 400ms
    answer: 2s
    errors: 1%
    capacity: {0s: 10, 1m: 20}
    faults:
      - at: 1m
        lasts: 4m
        share: 80%
        onset: 1m
        fade: 30s
        models: [first]
        operations: [chat]
        fails: {502: 3, hang: 1}
        retry_after: 5s
"""


def fault(**given: object) -> Fault:
    return Fault.model_validate({"at": "10s", "lasts": "100s", "fails": {"503": 1}, **given})


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_scenario_loads_and_names_the_real_outage(path: Path) -> None:
    scenario = load_scenario(path.stem, SHIPPED)
    assert scenario.name == path.stem
    assert 10 < len(scenario.about) < 120
    assert path.read_text().startswith("# ")
    start, end = scenario.trouble
    assert 30 <= start < end < scenario.duration


def test_a_whole_scenario_is_read_with_its_units() -> None:
    scenario = read_scenario(WHOLE, "whole")
    first = scenario.spec("first")
    assert scenario.duration == 600
    assert scenario.traffic.streams == 0.25
    assert scenario.traffic.models == {"first": 3, "second": 1}
    assert first.first_token == pytest.approx(0.4)
    assert first.errors == 0.01
    assert first.faults[0].fails == {"502": 3, "hang": 1}
    assert first.faults[0].models == {"first"}
    assert scenario.trouble == (60, 300)


def test_a_provider_that_is_not_mentioned_is_healthy() -> None:
    assert read_scenario(WHOLE, "whole").spec("third") == ProviderSpec()


def test_a_scenario_is_found_by_path_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(WHOLE)
    assert load_scenario(str(file), SHIPPED).name == "mine"


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(ScenarioError, match=r"no scenario 'nope'; shipped are: .*total_502"):
        load_scenario("nope", SHIPPED)


def test_all_mistakes_are_told_at_once() -> None:
    text = """
about: wrong
duration: 10
traffic: {rate: 0, streams: half}
providers:
  frist: {}
  first:
    capacity: {1: 2}
    faults:
      - {at: 1s, lasts: 5s, fails: {explodes: 1}}
      - {at: 1s, lasts: 5s, fials: {503: 1}}
      - {at: 1s, lasts: 5s}
      - {at: 1s, lasts: 5s, onset: 4s, fade: 4s, fails: {503: 1}}
"""
    with pytest.raises(ScenarioError) as caught:
        read_scenario(text, "wrong.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 9
    for expected in (
        "wrong.yaml: duration: 10 is not a duration; write 250ms, 30s or 5m",
        "wrong.yaml: traffic.streams: 'half' is not a share; write 50% or 0.5",
        "wrong.yaml: providers.first.faults.1.fials: unknown key",
        "wrong.yaml: providers.first.faults.2: a fault needs fails, first_token, answer or cuts_open",
        "wrong.yaml: providers.first.faults.3: onset and fade together last longer than the fault",
    ):
        assert expected in lines
    assert "'frist' is not a role" in str(caught.value)
    assert "'explodes' is neither an HTTP error status nor one of refused" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[1, 2]", "a scenario is a mapping", id="a list"),
        pytest.param("a: [", "not YAML", id="not YAML"),
        pytest.param("about: x", "duration: Field required", id="nothing in it"),
    ],
)
def test_what_is_no_scenario_at_all_is_refused(text: str, message: str) -> None:
    with pytest.raises(ScenarioError, match=message):
        read_scenario(text, "x")


def test_a_fault_hits_only_while_it_lasts() -> None:
    assert [fault().share_at(now) for now in (9.9, 10.0, 109.9, 110.0)] == [0.0, 1.0, 1.0, 0.0]


def test_a_fault_grows_and_fades_in_a_line() -> None:
    slow = fault(share="80%", onset="20s", fade="40s")
    assert [slow.share_at(now) for now in (10.0, 20.0, 30.0, 69.0)] == pytest.approx([0.0, 0.4, 0.8, 0.8])
    assert slow.share_at(90.0) == pytest.approx(0.4)


def test_waves_come_and_go() -> None:
    waves = fault(waves=Waves.model_validate({"bad": "10s", "good": "20s"}))
    assert [waves.share_at(now) for now in (15.0, 25.0, 45.0, 51.0)] == [1.0, 0.0, 1.0, 0.0]


def test_capacity_goes_in_a_line_between_its_points() -> None:
    spec = read_scenario(WHOLE, "whole").spec("first")
    assert [spec.capacity_at(now) for now in (0.0, 30.0, 60.0, 90.0)] == [10, 15, 20, 20]
    assert ProviderSpec().capacity_at(5.0) is None


def test_a_scenario_without_faults_has_no_trouble() -> None:
    scenario = Scenario.model_validate({"name": "calm", "about": "calm", "duration": "1m", "providers": {}})
    assert scenario.trouble == (60.0, 60.0)
