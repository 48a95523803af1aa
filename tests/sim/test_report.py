"""Figures from records."""

from __future__ import annotations

import math

import pytest

from proxy.core.events import BreakerMoved
from proxy.core.outcome import Scope
from proxy.sim.ledger import Call, CallRecord, Ending, Ledger, Moved, Sent
from proxy.sim.report import felt, percentile, turning
from proxy.sim.scenario import Scenario


def scenario(**fault: object) -> Scenario:
    broken = {"at": "100s", "lasts": "100s", "fails": {"503": 1}, **fault}
    return Scenario.model_validate(
        {
            "name": "x",
            "about": "x",
            "duration": "300s",
            "traffic": {"rate": 1},
            "providers": {"first": {"faults": [broken]}},
        }
    )


def record(at: float, choice: str = "first", **given: object) -> CallRecord:
    call = Call(number=int(at), at=at, sidecar=0, model="first", operation="chat", stream=True)
    fields: dict[str, object] = {"ending": Ending.ANSWERED, "requests": 1, "attempts": 1, "first_s": 1.0}
    return CallRecord(call, first_choice=choice, ended_at=at + 2, **{**fields, **given})  # type: ignore[arg-type]


def story(away_from: float, away_until: float) -> Ledger:
    """A call each second; those within the two times go to the second provider first."""
    return Ledger(
        records=[
            record(float(at), "second" if away_from <= at < away_until else "first") for at in range(300)
        ]
    )


def sent(at: float, role: str = "first", *, probe: bool = False) -> Sent:
    return Sent(at, role, "first", 0, 30.0, probe)


def moved(at: float, to_state: str, *, role: str = "first", enforced: bool = True) -> Moved:
    move = BreakerMoved(at, Scope.TARGET, "up1", "main", "chat", "closed", to_state, "x", {}, enforced)
    return Moved(0, role, move)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        pytest.param([3.0, 1.0, 2.0], 0.5, 2.0, id="median"),
        pytest.param(list(range(1, 101)), 0.99, 99, id="p99 of a hundred"),
        pytest.param([7.0], 0.99, 7.0, id="of one"),
    ],
)
def test_percentiles_are_nearest_ranks(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_the_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 0.5))


def test_clients_are_counted_by_how_their_calls_ended() -> None:
    ledger = Ledger(
        records=[
            record(1.0),
            record(2.0, ending=Ending.FAILED, first_s=None, requests=3, failed_requests=3, attempts=6),
            record(150.0, attempts=3),
        ],
        sent=[sent(1.2), sent(1.9), sent(2.0, "second")],
    )
    counted = felt(scenario(), ledger)
    assert counted.availability == pytest.approx(2 / 3)
    assert counted.endings[Ending.FAILED] == 1
    assert (counted.requests, counted.attempts, counted.failed_requests) == (5, 10, 3)
    assert counted.attempts_per_request == 2.0
    assert counted.attempts_in_trouble == 3.0
    assert counted.load == {"first": 2, "second": 1}
    assert counted.peak_load == {"first": 2, "second": 1}
    assert counted.first_token_p50_s == 1.0
    assert math.isnan(counted.answer_p50_s)


def test_the_shift_is_timed_from_the_fault_and_the_return_from_its_end() -> None:
    turned = turning(scenario(), story(away_from=104, away_until=222))
    # A stretch of ten calls may hold one that went the other way.
    assert (turned.shift_s, turned.half_return_s, turned.return_s) == (3.0, 17.0, 21.0)


def test_a_shift_that_did_not_happen_has_no_time() -> None:
    turned = turning(scenario(), story(away_from=0, away_until=0))
    assert (turned.shift_s, turned.return_s) == (None, 0.0)


def test_a_return_that_did_not_happen_has_no_time() -> None:
    assert turning(scenario(), story(away_from=104, away_until=300)).return_s is None


def test_calls_that_the_fault_does_not_concern_say_nothing_of_the_shift() -> None:
    assert turning(scenario(models=["second"]), story(away_from=104, away_until=222)).shift_s is None


def test_probes_are_counted_for_each_enforced_opening_of_the_preferred_provider() -> None:
    ledger = Ledger(
        moves=[
            moved(101.0, "open"),
            moved(110.0, "half_open"),
            moved(111.0, "open"),
            moved(112.0, "open", role="second"),
            moved(113.0, "open", enforced=False),
        ],
        sent=[sent(110.0, probe=True), sent(112.0, "second", probe=True), sent(113.0)],
    )
    turned = turning(scenario(), ledger)
    assert (turned.opened, turned.probes, turned.probes_per_open) == (2, 1, 0.5)
