"""What cells remember beside their breakers: rests, keys, the network, poison, and the register of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from proxy.core.breaker import Breaker
from proxy.core.cells import CredentialCell, Rest
from proxy.core.network import Network
from proxy.core.poison import KEPT, Poison
from proxy.core.register import WILD_KEPT, Register
from proxy.core.target import BreakerPolicy, Target
from tests.core.given import a_route, a_target, an_upstream


@pytest.mark.parametrize(
    ("hint_s", "rest_s"),
    [
        pytest.param(7.5, 7.5, id="as long as asked for"),
        pytest.param(0.0, 1.0, id="not at all: one second"),
        pytest.param(-3.0, 1.0, id="negative: one second"),
        pytest.param(86_400.0, 300.0, id="a day: five minutes"),
        pytest.param(None, 5.0, id="no hint: five seconds"),
    ],
)
def test_a_rest_is_as_long_as_asked_for_within_reason(hint_s: float | None, rest_s: float) -> None:
    rest = Rest()
    rest.begin(hint_s, 100.0, 100.0)
    assert rest.left(100.0) == rest_s


def test_without_a_hint_rests_double_up_to_a_minute() -> None:
    rest, now, rests = Rest(), 100.0, []
    for _ in range(6):
        rest.begin(None, now, now)
        rests.append(rest.left(now))
        now = rest.until
    assert rests == [5.0, 10.0, 20.0, 40.0, 60.0, 60.0]


def test_a_success_makes_the_next_rest_short_again() -> None:
    rest = Rest()
    rest.begin(None, 100.0, 100.0)
    rest.begin(None, 110.0, 110.0)
    rest.over()
    rest.begin(None, 130.0, 130.0)
    assert rest.left(130.0) == 5.0


def test_ten_refusals_at_once_are_one_rest() -> None:
    rest = Rest()
    for number in range(10):
        rest.begin(None, 99.0, 100.0 + number / 10)
    assert rest.until == pytest.approx(105.9)


def test_a_later_short_rest_does_not_end_a_longer_one() -> None:
    rest = Rest()
    rest.begin(200.0, 100.0, 100.0)
    rest.begin(1.0, 101.0, 101.0)
    assert rest.until == 300.0


def test_a_refused_key_stays_out_for_five_ten_then_fifteen_minutes() -> None:
    cell = CredentialCell("k", Breaker(BreakerPolicy()))
    assert [cell.next_open_s(float(now)) for now in range(4)] == [300.0, 600.0, 900.0, 900.0]


def test_two_hosts_that_fail_at_once_put_our_own_network_in_doubt() -> None:
    network = Network()
    network.failed("a", 100.0)
    assert not network.is_suspect(100.0)
    network.failed("b", 105.0)
    assert network.is_suspect(105.0)


def test_one_host_alone_never_does() -> None:
    network = Network()
    for now in range(100, 200):
        network.failed("a", float(now))
        assert not network.is_suspect(float(now))


def test_hosts_that_fail_far_apart_do_not_either() -> None:
    network = Network()
    network.failed("a", 100.0)
    network.failed("b", 110.1)
    assert not network.is_suspect(110.1)


def test_an_answer_in_between_or_afterwards_clears_the_doubt() -> None:
    network = Network()
    network.failed("a", 100.0)
    network.answered_at = 101.0
    network.failed("b", 102.0)
    assert not network.is_suspect(102.0)
    network.failed("a", 103.0)
    assert network.is_suspect(103.0)
    network.answered_at = 103.5
    assert not network.is_suspect(104.0)


def test_in_doubt_the_hosts_that_failed_are_tried_once_a_second_in_all_and_the_others_freely() -> None:
    network = Network()
    network.failed("a", 100.0)
    network.failed("b", 100.0)
    assert not network.holds_back("a", 100.0)
    network.tried("a", 100.0)
    assert network.holds_back("a", 100.5)
    assert network.holds_back("b", 100.5)
    assert not network.holds_back("c", 100.5)
    assert not network.holds_back("b", 101.0)


def test_a_doubt_that_nothing_renews_ends() -> None:
    network = Network()
    network.failed("a", 100.0)
    network.failed("b", 100.0)
    assert network.is_suspect(129.9)
    assert not network.is_suspect(130.0)


def test_a_body_that_failed_on_two_targets_is_suspected() -> None:
    poison = Poison()
    poison.failed(b"x", ("a", "m"), "r1", 100.0)
    poison.failed(b"x", ("a", "m"), "r2", 101.0)
    assert not poison.suspects(b"x")
    poison.failed(b"x", ("b", "m"), "r2", 102.0)
    assert poison.suspects(b"x")
    poison.succeeded(b"x")
    assert not poison.suspects(b"x")


def test_a_body_without_a_digest_is_never_suspected() -> None:
    poison = Poison()
    poison.failed(b"", ("a", "m"), "r1", 100.0)
    poison.failed(b"", ("b", "m"), "r2", 101.0)
    assert not poison.suspects(b"")
    assert not poison.repeats(b"", ("a", "m"), "r3", answered_at=102.0)


def test_only_so_many_bodies_are_remembered() -> None:
    poison = Poison()
    for number in range(2 * KEPT):
        poison.failed(b"%d" % number, ("a", "m"), f"r{number}", 100.0)
    assert len(poison) == KEPT


def test_a_body_repeats_itself_where_others_were_answered_since_it_failed() -> None:
    poison = Poison()
    target = ("a", "m")
    assert not poison.repeats(b"x", target, "r1", answered_at=99.0)
    poison.failed(b"x", target, "r1", 100.0)
    assert not poison.repeats(b"x", target, "r2", answered_at=99.0), "nobody was answered since"
    assert not poison.repeats(b"x", target, "r1", answered_at=101.0), "its own retry"
    assert poison.repeats(b"x", target, "r2", answered_at=101.0)
    poison.failed(b"x", target, "r2", 102.0, poisoned=True)
    assert poison.repeats(b"x", target, "r2", answered_at=101.0), "a retry counts as its first attempt did"


def wild(name: str, model: str) -> Target:
    return a_target(name, model, wildcard=True)


def test_a_flood_of_unknown_models_makes_one_cell() -> None:
    register = Register([an_upstream("a")])
    cells = {register.find(wild("a", f"m{number}"), "chat") for number in range(1000)}
    assert len(cells) == 1
    assert len(register) == 1


def test_a_wildcards_model_gets_a_cell_of_its_own_when_it_has_succeeded() -> None:
    register = Register([an_upstream("a")])
    target = wild("a", "llama")
    shared = register.find(target, "chat")
    assert shared is not None
    register.prove(target, shared)
    own = register.find(target, "chat")
    assert own is not None
    assert own is not shared
    assert (own.model, own.label) == ("llama", "other")
    assert register.find(wild("a", "other"), "chat") is shared


def test_proven_models_are_bounded_and_the_least_recently_used_goes_first() -> None:
    register = Register([an_upstream("a")])
    for number in range(WILD_KEPT):
        target = wild("a", f"m{number}")
        shared = register.find(target, "chat")
        assert shared is not None
        register.prove(target, shared)
    kept = register.find(wild("a", "m0"), "chat")
    newcomer = wild("a", "new")
    shared = register.find(newcomer, "chat")
    assert shared is not None
    register.prove(newcomer, shared)
    assert len(register) == WILD_KEPT + 1
    assert register.find(wild("a", "m0"), "chat") is kept
    assert register.find(wild("a", "m1"), "chat") is shared


def test_a_model_that_is_configured_later_keeps_its_cell_and_gets_its_name() -> None:
    register = Register([an_upstream("a")])
    target = wild("a", "llama")
    shared = register.find(target, "chat")
    assert shared is not None
    register.prove(target, shared)
    own = register.find(target, "chat")
    configured = register.find(a_target("a", "llama"), "chat")
    assert configured is own
    assert configured is not None
    assert (configured.label, configured.is_wild) == ("llama", False)


def test_a_reload_carries_state_over_by_name() -> None:
    register = Register([an_upstream("a"), an_upstream("b")])
    cell, gone = register.find(a_target("a"), "chat"), register.find(a_target("b"), "chat")
    assert cell is not None
    assert gone is not None
    key = cell.keys[0]
    register.update([an_upstream("a", max_concurrency=3), an_upstream("c")])
    assert register.find(a_target("a"), "chat") is cell
    assert cell.upstream.facts.max_concurrency == 3
    assert cell.keys[0].quota is key.quota
    assert register.find(a_target("b"), "chat") is None
    assert list(register.upstreams) == ["a", "c"]


def test_a_reload_that_moves_an_upstream_to_another_host_asks_that_hosts_breaker() -> None:
    register = Register([an_upstream("a")])
    cell = register.find(a_target("a"), "chat")
    assert cell is not None
    before = cell.upstream.endpoint
    register.update([an_upstream("a", endpoint="https://elsewhere:443")])
    assert cell.upstream.endpoint is not before
    assert cell.upstream.endpoint.upstreams == ["a"]


def test_a_reload_with_another_key_begins_with_a_clean_one() -> None:
    register = Register([an_upstream("a")])
    cell = register.find(a_target("a"), "chat")
    assert cell is not None
    cell.keys[0].quota.begin(300.0, 100.0, 100.0)
    register.update([an_upstream("a", credentials=("new",))])
    assert [key.credential.name for key in cell.keys] == ["new"]
    assert cell.keys[0].quota.left(100.0) == 0.0


def test_a_reload_drops_the_cells_of_targets_that_no_route_has_any_more() -> None:
    register = Register([an_upstream("a")])
    kept, dropped = a_target("a", "m"), a_target("a", "old")
    cell = register.find(kept, "chat")
    register.find(dropped, "chat")
    register.find(wild("a", "x"), "chat")
    register.update([an_upstream("a")], [a_route(kept)])
    assert len(register) == 2
    assert register.find(kept, "chat") is cell


def test_a_route_without_a_model_keeps_the_cell_named_after_it() -> None:
    register = Register([an_upstream("a")])
    unnamed = a_target("a", None)
    cell = register.find(unnamed.named("gpt-5"), "chat")
    register.update([an_upstream("a")], [a_route(unnamed, name="gpt-5")])
    assert register.find(unnamed.named("gpt-5"), "chat") is cell


def test_upstreams_on_one_host_share_its_cell_and_with_one_key_that_keys() -> None:
    shared = {"endpoint": "https://host:443", "credentials": ("k",)}
    register = Register([an_upstream("a", **shared), an_upstream("b", **shared)])
    a, b = register.upstreams["a"], register.upstreams["b"]
    assert a.endpoint is b.endpoint
    assert a.credentials == b.credentials
    assert a.endpoint.upstreams == ["a", "b"]


def test_upstreams_without_a_key_do_not_share_a_credential() -> None:
    register = Register([replace(an_upstream(name), credentials=()) for name in "ab"])
    a, b = register.upstreams["a"], register.upstreams["b"]
    assert a.credentials[0] is not b.credentials[0]
