"""Scripted providers: what an attempt comes to."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from proxy.core.outcome import Kind
from proxy.sim.scenario import ILLS, ProviderSpec
from proxy.sim.scripted import NEVER, STUMBLED, Fate, ScriptedProvider


def provider(**given: object) -> ScriptedProvider:
    spec = ProviderSpec.model_validate({"errors": "0%", **given})
    return ScriptedProvider("first", spec, Random(3))


def broken(ill: str, **more: object) -> ScriptedProvider:
    return provider(faults=[{"at": "0s", "lasts": "10s", "fails": {ill: 1}, **more}])


def ask(asked: ScriptedProvider, now: float = 1.0, operation: str = "chat", *, stream: bool = True) -> Fate:
    return asked.answer(now, "first", operation, stream=stream)


@pytest.mark.parametrize(
    ("ill", "kind", "status"),
    [
        pytest.param("500", Kind.SERVER_ERROR, 500, id="500"),
        pytest.param("530", Kind.SERVER_ERROR, 530, id="530"),
        pytest.param("503", Kind.OVERLOADED, 503, id="503"),
        pytest.param("529", Kind.OVERLOADED, 529, id="529"),
        pytest.param("429", Kind.RATE_LIMITED, 429, id="429"),
        pytest.param("400", Kind.REJECTED, 400, id="400"),
        pytest.param("401", Kind.UNAUTHORIZED, 401, id="401"),
        pytest.param("404", Kind.MODEL_MISSING, 404, id="404"),
        pytest.param("422", Kind.REJECTED, 422, id="422"),
        pytest.param("quota", Kind.QUOTA_SPENT, 429, id="quota"),
        pytest.param("html", Kind.SERVER_ERROR, 502, id="html"),
        pytest.param("blank", Kind.SERVER_ERROR, 200, id="blank"),
        pytest.param("half_json", Kind.MALFORMED, 200, id="half json"),
        pytest.param("error_event", Kind.OVERLOADED, 200, id="error event"),
        pytest.param("refused", Kind.CONNECT_FAILED, None, id="refused"),
        pytest.param("unreachable", Kind.CONNECT_FAILED, None, id="unreachable"),
        pytest.param("reset", Kind.RESET, None, id="reset"),
        pytest.param("hang", Kind.NO_ANSWER, None, id="hang"),
        pytest.param("cut", Kind.INTERRUPTED, 200, id="cut"),
        pytest.param("stall", Kind.STALLED, 200, id="stall"),
    ],
)
def test_each_ill_has_the_outcome_that_the_wire_would_give(ill: str, kind: Kind, status: int | None) -> None:
    outcome = ask(broken(ill)).outcome
    assert (outcome.kind, outcome.status) == (kind, status)


@pytest.mark.parametrize("ill", ILLS)
def test_every_ill_can_befall_streams_and_others(ill: str) -> None:
    assert ask(broken(ill), stream=True).outcome.kind is not Kind.OK
    assert ask(broken(ill), stream=False).outcome.kind is not Kind.OK


def test_an_answer_that_is_not_streamed_is_never_committed_before_it_breaks() -> None:
    assert ask(broken("cut"), stream=False).outcome.kind is Kind.RESET
    assert ask(broken("stall"), stream=False).first_s == NEVER


def test_a_cut_stream_begins_and_breaks_before_its_end() -> None:
    fate = ask(broken("cut"))
    assert 0 < fate.first_s < fate.end_s < NEVER


def test_times_spread_around_their_medians() -> None:
    asked = provider(first_token="2s")
    times = sorted(ask(asked).first_s for _ in range(1001))
    assert times[500] == pytest.approx(2.0, rel=0.1)
    assert times[950] == pytest.approx(2.0 * 1.93, rel=0.2)


def test_an_answer_not_streamed_is_there_when_it_is_complete() -> None:
    fate = ask(provider(first_token="1s", answer="9s", spread=0), stream=False)
    assert fate.first_s == fate.end_s == pytest.approx(10.0)


def test_only_the_named_model_and_operation_are_hit() -> None:
    sick = broken("503", models=["second"], operations=["images"])
    assert sick.answer(1.0, "second", "images", stream=False).outcome.kind is Kind.OVERLOADED
    assert sick.answer(1.0, "first", "images", stream=False).outcome.kind is Kind.OK
    assert sick.answer(1.0, "second", "chat", stream=False).outcome.kind is Kind.OK


def test_a_share_of_the_requests_is_hit() -> None:
    sick = broken("503", share="25%")
    kinds = Counter(ask(sick).outcome.kind for _ in range(2000))
    assert kinds[Kind.OVERLOADED] == pytest.approx(500, abs=80)


def test_above_its_capacity_it_is_overloaded() -> None:
    small = provider(capacity=10)
    kinds = Counter(ask(small, 5.0 + number / 40).outcome.kind for number in range(400))
    assert kinds[Kind.OK] == pytest.approx(110, abs=2)  # ten seconds, and one second's credit


def test_slowness_changes_the_times_and_nothing_else() -> None:
    slow = provider(spread=0, faults=[{"at": "0s", "lasts": "10s", "first_token": "30s"}])
    fate = ask(slow)
    assert fate.outcome.kind is Kind.OK
    assert fate.first_s == pytest.approx(30.0)


def test_a_retry_hint_comes_with_the_refusal() -> None:
    assert ask(broken("429", retry_after="7s")).outcome.retry_after_s == 7.0


def test_what_is_under_way_can_be_cut_until_it_leaves() -> None:
    sick = broken("refused", cuts_open=True)
    cut: list[str] = []
    gone = sick.enter(lambda: cut.append("gone"))
    sick.enter(lambda: cut.append("open"))
    sick.leave(gone)
    sick.leave(gone)
    sick.cut(1.0)
    assert cut == ["open"]


def test_a_healthy_provider_errs_now_and_then_and_that_is_noted() -> None:
    human = provider(errors="10%")
    outcomes = [ask(human, float(number)).outcome for number in range(1000)]
    assert outcomes.count(STUMBLED) == len(human.stumbles) == pytest.approx(100, abs=30)
