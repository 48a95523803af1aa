"""What clients do must not be blamed on targets, nor one target's trouble on its siblings."""

from __future__ import annotations

import pytest

from proxy.core.events import BreakerMoved
from proxy.core.outcome import OK, Kind, Outcome, Scope
from proxy.core.permit import Permit
from tests.simulation.bars import route, upstream
from tests.simulation.driving import Proxy

BROKEN = Outcome(Kind.SERVER_ERROR, status=500)
DEAD_KEY = Outcome(Kind.UNAUTHORIZED, status=401, code="invalid_api_key")
MISSING = Outcome(Kind.MODEL_MISSING, status=404, code="model_not_found")
POISON = b"the body that breaks every server"


def proxy(*names: str, models: tuple[str, ...] = ("main",), **first: object) -> Proxy:
    """A core whose first upstream may be given facts of its own."""
    upstreams = tuple(upstream(name, **(first if at == 0 else {})) for at, name in enumerate(names))
    return Proxy({model: route(model, upstreams) for model in models}, upstreams)


def always(outcome: Outcome) -> object:
    return lambda permit: outcome


def on(name: str, outcome: Outcome) -> object:
    return lambda permit: outcome if permit.target.upstream.name == name else OK


@pytest.mark.parametrize("others", [pytest.param(0, id="alone"), pytest.param(4, id="among other requests")])
def test_one_bad_request_sent_a_thousand_times_opens_nothing(others: int) -> None:
    core = proxy("up1", "up2")
    for _ in range(1000):
        assert core.ask("main", always(BROKEN), digest=POISON).ending is not None
        for _ in range(others):
            assert core.ask("main", always(OK)).tried == ("up1",)
        core.wait(0.3)
    assert core.opened() == []


def test_one_client_that_retries_a_thousand_times_opens_nothing_where_there_is_one_target() -> None:
    core = proxy("up1")
    for retry in range(1000):
        core.ask("main", always(BROKEN), digest=POISON, client_retry=retry)
        core.wait(0.5)
    assert core.opened() == []


def test_a_health_check_that_fails_on_a_dead_target_opens_it_within_a_few() -> None:
    core = proxy("up1", "up2")
    checks = 0
    while not core.opened():
        checks += 1
        core.ask("main", on("up1", BROKEN), digest=b"ping")
        core.wait(10.0)
    assert checks <= 6
    assert {move.upstream for move in core.opened()} == {"up1"}


@pytest.mark.parametrize(
    "outcome",
    [
        pytest.param(Outcome(Kind.CLIENT_GONE), id="the client hangs up"),
        pytest.param(Outcome(Kind.NO_ANSWER, client_cut=True), id="the client's own limit passes"),
        pytest.param(Outcome(Kind.CANCELLED), id="we cancel it"),
        pytest.param(Outcome(Kind.REJECTED, status=400), id="the request is refused"),
        pytest.param(Outcome(Kind.REFUSED, status=400, code="content_filter"), id="its content is refused"),
        pytest.param(
            Outcome(Kind.TOO_LARGE, status=400, code="context_length_exceeded"), id="it is too long"
        ),
    ],
)
def test_a_thousand_endings_that_are_nobodys_fault_open_nothing(outcome: Outcome) -> None:
    core = proxy("up1", "up2")
    for _ in range(1000):
        core.ask("main", always(outcome), took_s=2.0)
        core.wait(0.1)
    assert core.opened() == []


def test_a_thousand_kept_connections_that_were_dead_open_nothing() -> None:
    core = proxy("up1", "up2")
    for _ in range(1000):
        endings = iter((Outcome(Kind.STALE_CONNECTION), OK))
        assert core.ask("main", lambda permit, endings=endings: next(endings)).tried == ("up1",)
    assert core.opened() == []


def test_two_dead_keys_do_not_condemn_a_model() -> None:
    core = proxy("up1", "up2", credentials=("good", "bad", "worse"))

    def fate(permit: Permit) -> Outcome:
        return DEAD_KEY if permit.credential in ("bad", "worse") else OK

    answered = [core.ask("main", fate).tried[-1] for _ in range(100)]
    assert answered[10:] == ["up1"] * 90
    assert {(move.scope, move.upstream) for move in core.opened()} == {(Scope.CREDENTIAL, "up1")}
    assert len(core.opened()) == 2


def test_when_the_only_keys_are_dead_the_next_upstream_answers_until_they_live_again() -> None:
    core = proxy("up1", "up2", credentials=("bad", "worse"))
    assert {core.ask("main", on("up1", DEAD_KEY)).tried[-1] for _ in range(50)} == {"up2"}
    core.wait(301.0)
    assert core.ask("main", always(OK)).tried == ("up1",)
    core.wait(20.0)
    assert core.ask("main", always(OK)).tried == ("up1",)
    assert {move.scope for move in core.events if isinstance(move, BreakerMoved)} == {Scope.CREDENTIAL}


@pytest.mark.parametrize("outcome", [pytest.param(MISSING, id="missing"), pytest.param(BROKEN, id="broken")])
def test_one_dead_model_does_not_condemn_its_provider(outcome: Outcome) -> None:
    core = proxy("up1", "up2", models=("main", "mini"))
    for _ in range(100):
        assert core.ask("main", on("up1", outcome)).tried[-1] == "up2"
        assert core.ask("mini", always(OK)).tried == ("up1",)
        core.wait(0.2)
    assert {(move.scope, move.model) for move in core.opened()} == {(Scope.TARGET, "main")}
