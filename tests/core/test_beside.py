"""A second attempt beside the first: hedges, and the evacuation of what waits on a target that opened."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.core.outcome import OK, Kind, Outcome
from proxy.core.steps import GiveUp, Try
from proxy.core.target import AttemptPolicy, RoutePolicy
from tests.core.given import OVERLOADED, REFUSED_TO_CONNECT, TOUCHY, Given, a_route, a_target

QUICK = {"breaker": TOUCHY}
A, B, C = (a_target(name, facts=QUICK) for name in "abc")


def hedging(hedge: Any = 2.0, *, requests: int = 100, **policy: Any) -> Given:
    """Return a route that hedges, with enough requests behind it to have earned some hedges."""
    given = Given(a_route(A, B, C, policy=RoutePolicy(hedge=hedge, **policy)))
    for _ in range(requests):
        request = given.request(stream=True)
        request.attempt(OK, after_s=0.2)
        request.close()
    return given


def test_a_slow_attempt_is_hedged_on_the_next_target() -> None:
    given = hedging()
    request = given.request(stream=True)
    first = request.try_()
    assert first.hedge_after_s == 2.0
    hedge, events = request.failover.next_hedge(given.now + 2.0)
    assert hedge is not None
    assert hedge.permit.target.upstream.name == "b"
    assert hedge.permit.number == 2
    assert hedge.hedge_after_s is None
    request.events += events
    assert request.decisions()[-1] == ("hedge", "b", "slow")


def test_the_loser_of_a_hedge_is_cancelled_without_blame() -> None:
    given = hedging()
    request = given.request(stream=True)
    first = request.try_()
    hedge, _ = request.failover.next_hedge(given.now)
    assert hedge is not None
    request.failover.first_content(hedge.permit, 0.3, given.now)
    request.settle(first.permit, Outcome(Kind.CANCELLED))
    assert request.failover.path() == "a=cancelled, b=ok"
    request.settle(hedge.permit, OK, committed=True)
    assert not request.failover.saved
    assert given.pool.in_flight("a") == given.pool.in_flight("b") == 0


def test_when_both_fail_the_third_is_tried() -> None:
    given = hedging()
    request = given.request(stream=True)
    first = request.try_()
    hedge, _ = request.failover.next_hedge(given.now)
    assert hedge is not None
    request.settle(first.permit, OVERLOADED)
    with pytest.raises(RuntimeError):
        request.step()
    request.settle(hedge.permit, OVERLOADED)
    assert request.attempt(OK) == "c"


def test_hedging_at_the_95th_percentile_waits_for_fifty_samples() -> None:
    assert hedging("p95", requests=49).request(stream=True).try_().hedge_after_s is None
    assert hedging("p95", requests=50).request(stream=True).try_().hedge_after_s == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        pytest.param(hedging(None), {}, id="where it is off"),
        pytest.param(hedging(), {"replayable": False}, id="for a create"),
        pytest.param(hedging(), {"pinned": "a"}, id="without another target"),
    ],
)
def test_no_hedge_is_offered(given: Given, changes: dict[str, Any]) -> None:
    assert given.request(stream=True, **changes).try_().hedge_after_s is None


def test_no_hedge_when_the_second_choice_is_not_closed() -> None:
    given = hedging()
    given.open("b")
    request = given.request(stream=True)
    request.try_()
    assert request.failover.next_hedge(given.now) == (None, [])


def test_no_hedge_without_leave_from_the_budget() -> None:
    given = hedging(requests=1)
    request = given.request(stream=True)
    request.try_()
    assert request.failover.next_hedge(given.now) == (None, [])


def test_no_second_hedge() -> None:
    given = hedging()
    request = given.request(stream=True)
    request.try_()
    assert request.failover.next_hedge(given.now)[0] is not None
    assert request.failover.next_hedge(given.now) == (None, [])


def test_no_hedge_of_an_answer_that_has_begun_or_ended() -> None:
    given = hedging()
    request = given.request(stream=True)
    step = request.try_()
    request.failover.first_content(step.permit, 0.1, given.now)
    assert request.failover.next_hedge(given.now) == (None, [])
    request.settle(step.permit, OK)
    assert request.failover.next_hedge(given.now) == (None, [])


def test_no_hedge_beyond_the_attempts_that_are_left() -> None:
    given = hedging(max_attempts=1)
    request = given.request(stream=True)
    request.try_()
    assert request.failover.next_hedge(given.now) == (None, [])


def slow_then_open(given: Given, outcome: Outcome = OVERLOADED) -> None:
    given.open("a", outcome=outcome)


def test_a_slow_attempt_on_a_healthy_target_goes_on() -> None:
    given = Given(a_route(A, B))
    request = given.request(stream=True)
    step = request.try_()
    assert request.failover.soft_limit_passed(step.permit, given.now + 20.0) == (None, [])


@pytest.mark.parametrize("outcome", [OVERLOADED, REFUSED_TO_CONNECT], ids=["the target", "its host"])
def test_a_slow_attempt_leaves_a_target_that_has_opened(outcome: Outcome) -> None:
    given = Given(a_route(A, B))
    request = given.request(stream=True)
    step = request.try_()
    slow_then_open(given, outcome)
    given.now += 1.0
    at, events = request.failover.soft_limit_passed(step.permit, given.now)
    request.events += events
    assert at == given.now
    assert request.decisions()[-1] == ("evacuate", "a", "consecutive")
    request.settle(step.permit, Outcome(Kind.NO_ANSWER, code="evacuated"))
    assert request.attempt(OK) == "b"


def test_asked_again_the_time_to_leave_is_the_same_and_told_once() -> None:
    given = Given(a_route(A, B))
    first, second = given.request(stream=True), given.request(stream=True)
    steps = [first.try_(), second.try_()]
    slow_then_open(given)
    first.failover.soft_limit_passed(steps[0].permit, given.now)
    at, events = second.failover.soft_limit_passed(steps[1].permit, given.now)
    assert at is not None
    assert at > given.now
    assert len(events) == 1
    assert second.failover.soft_limit_passed(steps[1].permit, given.now) == (at, [])


def test_an_evacuation_is_paced_at_twice_the_arrivals() -> None:
    given = Given(a_route(A, B))
    requests = [given.request(stream=True) for _ in range(60)]
    for request in requests:
        request.try_()
        given.now += 0.1
    waiting = [(request, next(iter(request.failover._running.values()))) for request in requests]
    slow_then_open(given)
    times = [request.failover.soft_limit_passed(permit, given.now)[0] for request, permit in waiting]
    assert None not in times
    span = max(at for at in times if at is not None) - given.now
    assert span == pytest.approx(60 / 20, rel=0.1)


def test_nobody_leaves_for_nowhere() -> None:
    given = Given(a_route(A, B))
    given.open("b")
    request = given.request(stream=True)
    step = request.try_()
    slow_then_open(given)
    assert request.failover.soft_limit_passed(step.permit, given.now)[0] is None


def test_a_time_to_leave_is_taken_back_when_there_is_nowhere_to_go_any_more() -> None:
    given = Given(a_route(A, B))
    request = given.request(stream=True)
    step = request.try_()
    slow_then_open(given)
    assert request.failover.soft_limit_passed(step.permit, given.now)[0] is not None
    given.pool.drain("b")
    assert request.failover.soft_limit_passed(step.permit, given.now)[0] is None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"replayable": False}, id="a create"),
        pytest.param({"pinned": "a"}, id="a pinned request"),
    ],
)
def test_some_can_not_leave(changes: dict[str, Any]) -> None:
    given = Given(a_route(A, B))
    request = given.request(stream=True, **changes)
    step = request.try_()
    slow_then_open(given)
    assert request.failover.soft_limit_passed(step.permit, given.now)[0] is None


def test_a_probe_stays_until_it_is_answered_or_its_limit_passes() -> None:
    given = Given(a_route(A, B))
    slow_then_open(given)
    given.now = given.pool.admits(A, "chat", given.now).at
    request = given.request(stream=True)
    probe = request.try_()
    assert probe.permit.probe
    assert request.failover.soft_limit_passed(probe.permit, given.now + 20.0)[0] is None
    assert given.state("a") == "open"


def test_slow_streams_open_their_target_before_their_hard_limit() -> None:
    facts = {"breaker": TOUCHY.__class__(consecutive=1000)}
    slow = a_target("a", facts=facts, policy=AttemptPolicy(first_token_s=120.0))
    given = Given(a_route(slow, a_target("b", facts=facts)))
    requests = [given.request(stream=True) for _ in range(20)]
    steps = []
    for request in requests:
        steps.append(request.try_())
        given.now += 1.0
    given.now += 20.0
    left = 0
    for request, step in zip(requests, steps, strict=True):
        at, events = request.failover.soft_limit_passed(step.permit, given.now)
        request.events += events
        left += at is not None
        given.now += 1.0
    assert given.state("a") == "open"
    assert left > 0


def test_a_hedge_that_runs_is_rescue_enough() -> None:
    given = hedging()
    request = given.request(stream=True)
    first = request.try_()
    assert request.failover.next_hedge(given.now)[0] is not None
    slow_then_open(given)
    assert request.failover.soft_limit_passed(first.permit, given.now)[0] is None
    assert isinstance(given.request(stream=True).step(), Try)
    request.close()
    assert not isinstance(given.request(stream=True).step(), GiveUp)
