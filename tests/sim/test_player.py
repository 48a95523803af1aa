"""The player: the forwarder's loop in virtual time."""

from __future__ import annotations

import pytest

from proxy.core.target import AttemptPolicy, Route, Target, Tier, UpstreamFacts
from proxy.sim.ledger import Ending, Ledger
from proxy.sim.player import Setup, play
from proxy.sim.scenario import Scenario
from proxy.sim.sidecar import Sidecar
from proxy.sim.world import World


def upstream(name: str) -> UpstreamFacts:
    return UpstreamFacts(name=name, endpoint=f"https://{name}.test", credentials=(name,), fate=name)


def setup(**policy: float) -> Setup:
    upstreams = (upstream("up1"), upstream("up2"))
    attempts = AttemptPolicy(**policy)  # type: ignore[arg-type]
    tiers = tuple(Tier((Target(upstream=facts, model="m", policy=attempts),)) for facts in upstreams)
    return Setup((Route(name="m", tiers=tiers),), upstreams)


def scenario(fault: dict[str, object] | None, **more: object) -> Scenario:
    first: dict[str, object] = {"errors": "0%"}
    if fault is not None:
        first["faults"] = [{"at": "30s", "lasts": "30s", **fault}]
    return Scenario.model_validate(
        {
            "name": "x",
            "about": "x",
            "duration": "120s",
            "traffic": {"rate": 4, **more},
            "providers": {"first": first, "second": {"errors": "0%"}},
        }
    )


def endings(ledger: Ledger) -> set[Ending]:
    return {record.ending for record in ledger.records}


def test_in_health_everything_goes_once_to_the_first() -> None:
    ledger, _ = play(scenario(None), setup(), seed=1)
    assert {(r.ending, r.attempts, r.first_choice) for r in ledger.records} == {(Ending.ANSWERED, 1, "first")}
    assert {sent.role for sent in ledger.sent} == {"first"}


def test_an_attempt_that_is_not_answered_in_its_limit_is_made_elsewhere() -> None:
    hanging = scenario({"fails": {"hang": 1}}, streams="100%")
    ledger, _ = play(hanging, setup(first_token_s=2.0), seed=1)
    moved = [record for record in ledger.records if record.attempts == 2]
    assert endings(ledger) == {Ending.ANSWERED}
    assert moved
    assert all(2.0 < (record.first_s or 0.0) < 8.0 for record in moved)


def test_connecting_has_a_limit_of_its_own() -> None:
    ledger, _ = play(scenario({"fails": {"unreachable": 1}}, streams="100%"), setup(), seed=1)
    waits = [record.first_s or 0.0 for record in ledger.records if record.attempts == 2]
    assert 5.0 < min(waits) < 7.0


def test_requests_that_hang_when_their_target_opens_are_evacuated_long_before_their_limit() -> None:
    hanging = scenario({"fails": {"hang": 1}}, streams="100%")
    ledger, _ = play(hanging, setup(first_token_s=60.0), seed=1)
    assert endings(ledger) == {Ending.ANSWERED}
    assert max(record.first_s or 0.0 for record in ledger.records) < 30.0
    assert any(decision == "evacuate" for decision, _ in ledger.decisions)


def test_a_stream_that_breaks_is_interrupted_and_others_are_not() -> None:
    ledger, _ = play(scenario({"fails": {"cut": 1}}), setup(), seed=1)
    broken = [record for record in ledger.records if record.ending is Ending.INTERRUPTED]
    assert broken
    assert all(record.call.stream for record in broken)
    assert endings(ledger) == {Ending.ANSWERED, Ending.INTERRUPTED}


def test_what_is_under_way_when_the_machine_dies_is_cut() -> None:
    ledger, _ = play(scenario({"fails": {"refused": 1}, "cuts_open": True}, streams="100%"), setup(), seed=1)
    broken = [record for record in ledger.records if record.ending is Ending.INTERRUPTED]
    assert broken
    assert {record.ended_at for record in broken} == {30.0}


@pytest.mark.parametrize("ill", ["hang", "cut", "503", "refused", "429"])
def test_nothing_is_left_open_when_all_is_over_even_if_clients_have_left(ill: str) -> None:
    seen: list[Sidecar] = []

    def watch(world: World, sidecars: list[Sidecar]) -> None:
        seen[:] = sidecars

    ledger, _ = play(scenario({"fails": {ill: 1}}, patience="3s"), setup(), seed=1, watch=watch)
    assert Ending.ANSWERED in endings(ledger)
    assert [seen[0].pool.in_flight(name) for name in ("up1", "up2")] == [0, 0]


def test_a_model_beyond_the_configured_routes_is_played_on_the_last() -> None:
    asked = scenario(None, models={"first": 1, "fourth": 1})
    ledger, _ = play(asked, setup(), seed=1)
    assert endings(ledger) == {Ending.ANSWERED}
    assert {record.call.model for record in ledger.records} == {"first", "fourth"}


def test_each_proxy_of_many_learns_for_itself() -> None:
    ledger, _ = play(scenario({"fails": {"503": 1}}, rate=1, sidecars=5), setup(), seed=1)
    assert {moved.sidecar for moved in ledger.moves if moved.move.to_state == "open"} == set(range(5))
