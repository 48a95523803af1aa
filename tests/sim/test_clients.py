"""Simulated applications: when they ask, and when their SDK asks again."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from proxy.core.outcome import Kind, Outcome
from proxy.sim.clients import Direct, Exchange, Reply, SdkCall, arrivals, reply_to
from proxy.sim.ledger import Call, CallRecord, Ending, Ledger
from proxy.sim.scenario import ProviderSpec, Traffic
from proxy.sim.scripted import ScriptedProvider
from proxy.sim.world import World

CALL = Call(number=0, at=0.0, sidecar=0, model="first", operation="chat", stream=True)
FAILED = Reply(Ending.FAILED, 503)


class Scripted:
    """A proxy that answers each request with the next reply of a script, one second later; `None` never."""

    def __init__(self, world: World, *replies: Reply | None) -> None:
        self.asked_at: list[float] = []
        self.abandoned = 0
        self._world = world
        self._replies = list(replies)

    def send(self, record: CallRecord, first: Callable[[], None], done: Callable[[Reply], None]) -> Exchange:
        reply = self._replies[len(self.asked_at)]
        self.asked_at.append(self._world.now)
        if reply is not None:
            self._world.after(1.0, lambda: self._answer(reply, first, done))
        return self

    def abandon(self) -> None:
        self.abandoned += 1

    def _answer(self, reply: Reply, first: Callable[[], None], done: Callable[[Reply], None]) -> None:
        if reply.ending is Ending.ANSWERED:
            first()
        done(reply)


def call(*replies: Reply | None, **traffic: object) -> tuple[CallRecord, Scripted]:
    world = World(1)
    proxy = Scripted(world, *replies)
    sdk_call = SdkCall(world, CALL, Traffic.model_validate(traffic), proxy.send, Random(1))
    sdk_call.start()
    world.run()
    return sdk_call.record, proxy


def direct(**spec: object) -> CallRecord:
    world = World(1)
    ledger = Ledger()
    provider = ScriptedProvider("first", ProviderSpec.model_validate({"errors": "0%", **spec}), Random(2))
    sdk_call = SdkCall(world, CALL, Traffic(), Direct(world, provider, ledger).send, Random(1))
    sdk_call.start()
    for fault in provider.spec.faults:
        if fault.cuts_open:
            world.at(fault.at, lambda: provider.cut(1.0))
    world.run()
    assert len(ledger.sent) == sdk_call.record.attempts
    return sdk_call.record


def test_arrivals_are_a_poisson_stream_of_every_sidecar() -> None:
    traffic = Traffic.model_validate(
        {
            "rate": 2,
            "sidecars": 5,
            "models": {"first": 3, "second": 1},
            "operations": {"embeddings": 1, "chat": 1},
        }
    )
    calls = list(arrivals(traffic, 200.0, Random(4)))
    assert len(calls) == pytest.approx(2000, rel=0.1)
    assert [each.at for each in calls] == sorted(each.at for each in calls)
    assert {each.sidecar for each in calls} == set(range(5))
    assert sum(each.model == "first" for each in calls) == pytest.approx(1500, rel=0.1)
    assert not any(each.stream for each in calls if each.operation == "embeddings")


def test_the_sdk_retries_twice_with_growing_delays() -> None:
    record, proxy = call(FAILED, FAILED, FAILED)
    assert (record.ending, record.requests, record.failed_requests) == (Ending.FAILED, 3, 3)
    first, second, third = proxy.asked_at
    assert 0.375 <= second - first - 1.0 <= 0.5
    assert 0.75 <= third - second - 1.0 <= 1.0


def test_an_answer_ends_the_call() -> None:
    record, _ = call(FAILED, Reply(Ending.ANSWERED, 200))
    assert (record.ending, record.requests, record.failed_requests) == (Ending.ANSWERED, 2, 1)
    assert record.first_s == record.ended_at


def test_a_hint_to_wait_is_obeyed() -> None:
    _, proxy = call(Reply(Ending.FAILED, 429, retry_after_s=9.0), Reply(Ending.ANSWERED, 200))
    assert proxy.asked_at[1] == pytest.approx(10.0)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(Reply(Ending.FAILED, 503, should_retry=False), id="told not to"),
        pytest.param(Reply(Ending.REFUSED, 400), id="a bad request"),
        pytest.param(Reply(Ending.FAILED, 200, in_band=True), id="an error inside a 200"),
        pytest.param(Reply(Ending.INTERRUPTED, 200), id="broken after it began"),
    ],
)
def test_some_endings_are_not_retried(reply: Reply) -> None:
    record, _ = call(reply)
    assert (record.ending, record.requests) == (reply.ending, 1)


def test_a_client_that_loses_patience_hangs_up_and_tries_again() -> None:
    record, proxy = call(None, Reply(Ending.ANSWERED, 200), patience="10s")
    assert proxy.abandoned == 1
    assert 10.0 < proxy.asked_at[1] < 11.0
    assert (record.ending, record.requests) == (Ending.ANSWERED, 2)


def test_a_reply_that_comes_at_once_ends_the_call_only_once() -> None:
    world = World(1)

    def refuse(record: CallRecord, first: Callable[[], None], done: Callable[[Reply], None]) -> Exchange:
        done(FAILED)
        return Scripted(world)

    sdk_call = SdkCall(world, CALL, Traffic(), refuse, Random(1))
    sdk_call.start()
    world.run()
    record = sdk_call.record
    assert (record.ending, record.requests, record.failed_requests) == (Ending.FAILED, 3, 3)
    assert record.ended_at < 3


def test_a_hanging_provider_costs_the_sdk_alone_all_its_patience() -> None:
    record = direct(faults=[{"at": "0s", "lasts": "1h", "fails": {"hang": 1}}])
    assert (record.ending, record.attempts) == (Ending.GAVE_UP, 3)
    assert record.ended_at > 360


def test_the_sdk_alone_gets_its_answer_from_a_healthy_provider() -> None:
    record = direct(spread=0, first_token="1s", answer="2s")
    assert (record.ending, record.attempts) == (Ending.ANSWERED, 1)
    assert record.first_s == pytest.approx(1.0)
    assert record.ended_at == pytest.approx(3.0)


def test_the_sdk_alone_sees_a_cut_stream_as_interrupted() -> None:
    record = direct(spread=0, answer="60s", faults=[{"at": "5s", "lasts": "1s", "cuts_open": True}])
    assert record.ending is Ending.INTERRUPTED


@pytest.mark.parametrize(
    ("outcome", "ending", "retried"),
    [
        pytest.param(Outcome(Kind.SERVER_ERROR, status=500), Ending.FAILED, True, id="500"),
        pytest.param(Outcome(Kind.RATE_LIMITED, status=429), Ending.FAILED, True, id="429"),
        pytest.param(Outcome(Kind.CONNECT_FAILED), Ending.FAILED, True, id="refused"),
        pytest.param(Outcome(Kind.UNAUTHORIZED, status=401), Ending.REFUSED, False, id="401"),
        pytest.param(Outcome(Kind.SERVER_ERROR, status=200, in_band=True), Ending.FAILED, False, id="blank"),
    ],
)
def test_the_sdk_reads_the_providers_own_errors(outcome: Outcome, ending: Ending, retried: bool) -> None:
    reply = reply_to(outcome)
    assert (reply.ending, reply.is_retried) == (ending, retried)
