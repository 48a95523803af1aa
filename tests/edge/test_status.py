"""The status data: what is up, why, what was decided, what it saved, and the words for it."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import msgspec
import pytest

from proxy.core.events import Decision, RequestOutcome
from proxy.core.outcome import Kind, Scope
from proxy.core.target import Target, Tier
from proxy.edge.status.headline import Drill
from proxy.edge.status.past import SLOT_S, SLOTS, Span
from proxy.edge.status.words import KINDS, counted, decision_says, did, does, listed, reason_says, span_says
from proxy.edge.status_data import (
    MAX_DECISIONS,
    MAX_DETOURS,
    MAX_MOVES,
    MAX_RESCUES,
    SHOWN_REQUESTS,
    read_status,
)
from tests.edge.board import Watched, detour
from tests.edge.examples import (
    ACell,
    breaker_moved,
    decided,
    failed_over_request,
    good_request,
    request_ended,
    route,
    upstream,
)

GPT5 = Target(upstream("openai"), "gpt-5")


def test_routes_and_targets_are_listed_best_first_before_any_traffic() -> None:
    status = Watched().board.status()
    listed = {
        found.name: [(t.upstream, t.model, t.tier, t.state) for t in found.targets] for found in status.routes
    }
    assert listed == {
        "gpt-5": [("openai", "gpt-5", 0, "closed"), ("azure", "gpt-5-prod", 1, "closed")],
        "*": [("openai", "", 0, "closed")],
    }
    assert (status.version, status.ready, status.listen) == ("1.2.3", True, ["127.0.0.1:7380"])


def test_totals_count_what_failover_saved() -> None:
    watched = Watched()
    watched.later(60.0)
    watched.observe(*good_request(), *failed_over_request(), request_ended(RequestOutcome.INTERRUPTED))
    status = watched.board.status()
    assert (status.totals.requests, status.totals.saved) == (3, 1)
    assert status.totals.outcomes["interrupted"] == 1
    assert status.uptime_s == 60.0


def test_a_target_shows_its_breaker_and_why() -> None:
    cell = ACell(
        "openai",
        "gpt-5",
        "chat",
        state="open",
        reason="failure_ratio",
        numbers={"ratio": 0.61234567},
        failure_ratio=0.61234567,
        cooldown_s=3.2,
        share=0.0,
        in_flight=2,
        ttft_p50_s=0.4,
        ttft_p95_s=1.9,
    )
    found = Watched(cell).target()
    assert (found.state, found.next_probe_s, found.admitted, found.in_flight) == ("open", 3.2, 0.0, 2)
    assert found.why is not None
    assert (found.why.scope, found.why.reason, found.why.numbers) == (
        "target",
        "failure_ratio",
        {"ratio": 0.6123},
    )
    assert (found.failure_ratio, found.ttft_p50_s, found.ttft_p95_s) == (0.6123, 0.4, 1.9)


@pytest.mark.parametrize(
    ("cells", "state"),
    [
        pytest.param([], "closed", id="nothing known"),
        pytest.param([ACell("openai", "gpt-5", "chat", cooldown_s=7.0)], "resting", id="rests after a 429"),
        pytest.param([ACell("openai", scope="endpoint", state="open")], "open", id="its host is down"),
        pytest.param(
            [ACell("openai", "gpt-5", "chat", state="recovering"), ACell("openai", "gpt-5", "embeddings")],
            "recovering",
            id="the worst of its operations",
        ),
        pytest.param([ACell("openai", "other", "chat", state="open")], "closed", id="another model is down"),
    ],
)
def test_a_target_s_state_is_the_worst_it_depends_on(cells: list[ACell], state: str) -> None:
    assert Watched(*cells).target().state == state


def test_a_drained_upstream_is_shown_as_such_whatever_its_breaker_says() -> None:
    watched = Watched(ACell("openai", scope="endpoint", state="open"), drained=["openai"])
    assert watched.target().state == "drained"
    assert watched.target(index=1).state == "closed"


def test_the_share_of_traffic_is_that_of_the_last_minutes() -> None:
    watched = Watched()
    assert watched.target().share is None
    watched.observe(request_ended(), request_ended(), request_ended(), failed_over_request()[-1])
    assert (watched.target().share, watched.target(index=1).share) == (0.75, 0.25)
    watched.wall += 60.0
    assert watched.target().share == 0.75
    watched.wall += 60.0
    assert watched.target().share is None


def test_a_wildcard_target_has_the_share_of_all_its_models() -> None:
    watched = Watched()
    names = [request_ended(route="*", model=f"model-{number}") for number in range(5000)]
    watched.observe(*names, request_ended(route="*", model="m" * 100_000))
    assert watched.target("*").share == 1.0


def test_moves_are_kept_newest_first_and_bounded() -> None:
    watched = Watched()
    for number in range(MAX_MOVES + 50):
        watched.observe(breaker_moved(numbers={"failures": float(number)}))
    moves = watched.board.status().moves
    assert len(moves) == MAX_MOVES
    assert moves[0].numbers == {"failures": float(MAX_MOVES + 49)}


def test_the_same_decision_again_counts_up_one_entry() -> None:
    watched = Watched()
    for _ in range(1000):
        watched.observe(decided(Decision.SKIP), *failed_over_request())
    watched.observe(decided(Decision.HOLD, upstream="", reason="open"))
    found = [(entry.decision, entry.says, entry.count) for entry in watched.status().decisions]
    assert found == [
        ("hold", "waited for a target: its breaker is open", 1),
        ("failover", "moved from openai to azure: openai was overloaded", 1000),
    ]


def test_the_same_decision_much_later_is_news() -> None:
    watched = Watched()
    watched.observe(decided(Decision.HOLD))
    watched.wall += 61.0
    watched.observe(decided(Decision.HOLD))
    entry = watched.board.status().decisions[0]
    assert (entry.count, entry.first, entry.last) == (
        1,
        "2026-11-22T05:20:43.500Z",
        "2026-11-22T05:20:43.500Z",
    )


def test_decisions_are_bounded() -> None:
    watched = Watched()
    for number in range(MAX_DECISIONS + 50):
        watched.observe(decided(Decision.REJECT, route=f"route-{number}"))
    assert len(watched.board.status().decisions) == MAX_DECISIONS


def test_the_data_is_plain_json() -> None:
    watched = Watched(ACell("openai", "gpt-5", "chat", state="open", reason="slow", numbers={"p95": 3.0}))
    watched.observe(*failed_over_request(), breaker_moved())
    found = msgspec.json.decode(msgspec.json.encode(watched.board.status()))
    assert found["routes"][0]["targets"][0]["why"] == {
        "scope": "target",
        "reason": "slow",
        "numbers": {"p95": 3.0},
    }
    assert found["moves"][0]["from"] == "closed"
    assert found["decisions"][0]["decision"] == "failover"


def test_targets_in_one_tier_share_its_number_and_say_how_they_share_the_load() -> None:
    watched = Watched()
    tier = Tier((GPT5, Target(upstream("azure"), "x", weight=2.5)))
    watched.routes = [replace(route(), tiers=(tier,))]
    found = [(target.tier, target.balanced) for target in watched.status().routes[0].targets]
    assert found == [(0, "shares the load, weight 1"), (0, "shares the load, weight 2.5")]
    watched.routes = [replace(route(), tiers=(replace(tier, balance="least_in_flight"),))]
    assert watched.target().balanced == "shares the load by requests in flight"


def test_detours_are_told_apart_from_rescues_and_both_are_kept_from_failing() -> None:
    watched = Watched()
    watched.observe(*good_request(), *failed_over_request(), *detour())
    totals = watched.status().totals
    assert (totals.saved, totals.routed_around, totals.kept, totals.lost) == (1, 1, 2, 0)


def test_a_request_that_waited_for_the_same_upstream_was_not_routed_around_it() -> None:
    watched = Watched()
    watched.observe(replace(detour()[-1], upstream="openai"))
    status = watched.status()
    assert status.totals.kept == 0
    assert [tale.word for tale in status.tales] == ["Waited"]


def test_what_the_reason_says_already_is_not_said_twice() -> None:
    watched = Watched(ACell("openai", scope="credential", state="open", reason="unauthorized"))
    refused = breaker_moved(
        scope=Scope.CREDENTIAL, model="", operation="", reason="unauthorized", numbers={"open_s": 300.0}
    )
    watched.observe(refused)
    assert watched.target().says == "It rejects our key."
    (incident,) = watched.status().incidents
    assert incident.says == "It was cut off at once. No request was affected."
    assert incident.turns[0].says == "it rejects our key; for 5 min"


@pytest.mark.parametrize("reason", ["drained", "full", "share", "paced"])
def test_a_detour_for_reasons_of_our_own_saves_nobody(reason: str) -> None:
    watched = Watched()
    watched.observe(*detour(reason=reason))
    assert watched.status().totals.kept == 0
    assert watched.status().tales == []


def test_what_clients_felt_is_told_beside_what_they_would_have_felt() -> None:
    watched = Watched()
    for _ in range(6):
        watched.observe(*good_request())
    watched.observe(*failed_over_request(), *detour(), request_ended(RequestOutcome.UPSTREAM_ERROR))
    watched.observe(request_ended(RequestOutcome.INTERRUPTED))
    ignored = (RequestOutcome.CLIENT_ERROR, RequestOutcome.CLIENT_GONE, RequestOutcome.REJECTED)
    watched.observe(*map(request_ended, ignored))
    lately = watched.status().lately
    assert (lately.requests, lately.lost, lately.effective, lately.without) == (10, 2, 0.8, 0.6)
    watched.later(400.0)
    assert (watched.status().lately.requests, watched.status().lately.effective) == (0, None)


def test_the_chart_is_that_of_a_quarter_of_an_hour() -> None:
    watched = Watched()
    watched.observe(*good_request())
    for _ in range(SLOTS - 1):
        watched.later(SLOT_S)
    watched.observe(
        *(request_ended(wall=watched.wall) for _ in range(3)),
        request_ended(RequestOutcome.OK_FAILOVER, wall=watched.wall),
        request_ended(RequestOutcome.UPSTREAM_ERROR, wall=watched.wall),
    )
    chart = watched.status().chart
    assert [(slot.slot, slot.requests, slot.affected, slot.lost) for slot in chart.slots] == [
        (0, 1, 0, 0),
        (SLOTS - 1, 5, 2, 1),
    ]
    assert chart.peak == 5
    watched.later(SLOT_S)
    assert [slot.slot for slot in watched.status().chart.slots] == [SLOTS - 2]


@pytest.mark.parametrize(
    ("outcomes", "state", "tone", "text"),
    [
        pytest.param({}, "closed", "quiet", "All quiet.", id="nobody asks"),
        pytest.param({"ok": 5}, "closed", "fine", "Your users are fine.", id="all is well"),
        pytest.param({"ok_failover": 5}, "closed", "fine", "Your users are fine.", id="failover saves all"),
        pytest.param(
            {"ok": 999, "interrupted": 1}, "closed", "fine", "Your users are fine.", id="one in 1000"
        ),
        pytest.param(
            {"ok": 98, "upstream_error": 2},
            "closed",
            "hurt",
            "A few requests are being lost.",
            id="one in 50",
        ),
        pytest.param(
            {"ok": 8, "interrupted": 2}, "closed", "hurt", "Many requests are being lost.", id="one in 5"
        ),
        pytest.param(
            {"ok": 1, "upstream_error": 2}, "open", "hurt", "Most requests are being lost.", id="two in 3"
        ),
        pytest.param(
            {"ok": 5}, "open", "warned", "Your users are about to notice.", id="nobody is left for a route"
        ),
        pytest.param({}, "half_open", "warned", "Nobody could be answered now.", id="down, and nobody asks"),
    ],
)
def test_the_headline_says_whether_users_are_fine(
    outcomes: dict[str, int], state: str, tone: str, text: str
) -> None:
    watched = Watched(ACell("openai", scope="endpoint", state=state))
    for outcome, count in outcomes.items():
        watched.observe(*[request_ended(RequestOutcome(outcome))] * count)
    headline = watched.status().headline
    assert (headline.tone, headline.text) == (tone, text)
    if state != "closed":
        assert "No target is up for '*'." in headline.detail


def test_the_headline_s_figures() -> None:
    watched = Watched()
    watched.observe(*good_request())
    assert watched.status().headline.detail == "The one request of the last 5 min was answered."
    watched.observe(*failed_over_request(), *detour(), *good_request())
    detail = "All 4 requests of the last 5 min were answered; without Sidestep, 50% would have failed."
    assert watched.status().headline.detail == detail


def test_drills_and_drains_are_marked() -> None:
    drill = Drill("openai", "status:503", 0.5, 42.0)
    status = Watched(drained=["local", "azure"], drills=[drill]).status()
    assert [(notice.kind, notice.text) for notice in status.notices] == [
        ("drill", "50% of the attempts on openai fail on purpose (status:503), for 42 s more."),
        ("drained", "azure was taken out by hand and gets no new requests."),
        ("drained", "local was taken out by hand and gets no new requests."),
    ]
    assert (status.drills, status.drained) == ([drill], ["azure", "local"])


def test_a_target_says_why_in_words_with_what_its_incident_knows() -> None:
    numbers = {"failures": 5.0, "requests": 4.0}
    watched = Watched(
        ACell("openai", "gpt-5", "chat", state="open", reason="consecutive", numbers=numbers, cooldown_s=4.2)
    )
    watched.observe(*failed_over_request(), breaker_moved(numbers=numbers))
    found = watched.target()
    assert (found.word, found.next_probe_says) == ("Cut off", "in 4 s")
    assert found.says == "It is overloaded: 5 failures in a row, from 4 requests."
    assert watched.target(index=1).says == ""


@pytest.mark.parametrize(
    ("cell", "word", "says"),
    [
        pytest.param(ACell("openai", "gpt-5"), "Up", "", id="closed"),
        pytest.param(
            ACell("openai", "gpt-5", cooldown_s=61.0),
            "Resting",
            "It asked us to wait, 1 min 1 s more.",
            id="429",
        ),
        pytest.param(
            ACell(
                "openai",
                "gpt-5",
                state="recovering",
                share=0.25,
                reason="probe_passed",
                numbers={"seconds": 0.4},
            ),
            "Coming back",
            "A probe was answered after 0.40 s, its traffic is coming back."
            " 25% of its traffic goes there again.",
            id="recovering",
        ),
        pytest.param(
            ACell("openai", scope="credential", state="open", reason="unauthorized"),
            "Cut off",
            "It rejects our key.",
            id="a key is rejected",
        ),
        pytest.param(ACell("openai", "gpt-5", state="half_open"), "Probing", "", id="no reason is known"),
    ],
)
def test_states_in_words(cell: ACell, word: str, says: str) -> None:
    assert (Watched(cell).target().word, Watched(cell).target().says) == (word, says)


def test_the_past_of_a_target_is_the_worst_of_each_slot() -> None:
    watched = Watched(ACell("openai", "gpt-5", "chat", state="recovering"))
    watched.later(10 * SLOT_S)
    watched.observe(breaker_moved(at=watched.now))
    watched.later(2 * SLOT_S)
    watched.observe(breaker_moved("half_open", from_state="open", at=watched.now))
    watched.observe(breaker_moved("recovering", from_state="half_open", at=watched.now))
    watched.later(SLOT_S)
    found = watched.target()
    assert found.past == [Span("closed", 46, 10), Span("open", 56, 3), Span("recovering", 59, 1)]
    assert found.past_says == "cut off 45 s, coming back 15 s"
    assert watched.target(index=1).past_says == "up all the time"


def test_the_past_ends_with_what_is_seen_though_no_event_told_it() -> None:
    watched = Watched(ACell("openai", "gpt-5", "chat", state="open"))
    watched.observe(breaker_moved(at=watched.now))
    watched.later(4 * SLOT_S)
    watched.cells = [ACell("openai", "gpt-5", "chat", state="closed")]
    watched.status()
    watched.later(2 * SLOT_S)
    assert [(span.state, span.slots) for span in watched.target().past] == [("open", 5), ("closed", 2)]


def test_the_past_is_bounded_and_of_this_target_only() -> None:
    watched = Watched()
    for first, second in pairwise(["closed", "open", "half_open"] * 100):
        watched.observe(breaker_moved(second, from_state=first, at=watched.now, model="gpt-5-mini"))
        watched.later(1.0)
    watched.observe(breaker_moved(at=watched.now, enforced=False))
    assert [span.state for span in watched.target().past] == ["closed"]
    watched.later(2 * SLOTS * SLOT_S)
    watched.observe(breaker_moved(scope=Scope.ENDPOINT, model="", operation="", at=watched.now))
    assert [(span.state, span.slot) for span in watched.target().past] == [("closed", 0), ("open", SLOTS - 1)]


def test_incidents_are_told_with_their_cost_and_their_story() -> None:
    watched = Watched(ACell("openai", "gpt-5", "chat", state="open"))
    watched.observe(breaker_moved(numbers={"failures": 5.0, "requests": 5.0, "open_s": 4.0}))
    watched.observe(*failed_over_request(), *detour())
    (incident,) = watched.status().incidents
    assert (incident.title, incident.ended) == ("openai is overloaded", None)
    assert incident.says == (
        "It was cut off: 5 failures in a row, from 5 requests."
        " 2 requests affected: 1 saved after a failed attempt and 1 routed around it."
    )
    assert [(turn.word, turn.says) for turn in incident.turns] == [
        ("cut off", "gpt-5: 5 failures in a row, from 5 requests; for 4 s")
    ]
    watched.later(30.0)
    watched.cells = [ACell("openai", "gpt-5", "chat")]
    (incident,) = watched.status().incidents
    assert (incident.title, incident.seconds) == ("openai was overloaded", 30.0)
    assert incident.ended == "2026-11-22T05:20:12.500Z"


def test_a_tale_tells_who_answered_and_why() -> None:
    watched = Watched()
    watched.observe(*failed_over_request("req_1"))
    (found,) = watched.status().tales
    assert (found.word, found.tone, found.path) == ("Saved", "saved", "openai=overloaded → azure=ok")
    assert found.told == [
        "openai (gpt-5) was overloaded, after 0.10 s.",
        "azure (gpt-5-prod) answered, after 1.10 s; its first token came after 0.31 s.",
    ]
    watched.observe(*detour("req_2"))
    found = watched.status().tales[0]
    assert (found.word, found.path) == ("Routed around", "openai=open → azure=ok")
    assert found.told[0] == "openai was passed over: its breaker is open."


@pytest.mark.parametrize(
    ("outcome", "word", "end"),
    [
        ("upstream_error", "Lost", "Nobody was left: the client got an error, 502."),
        (
            "interrupted",
            "Broken off",
            "The client had a part of the answer by then, and got an error event at its end.",
        ),
        ("client_gone", "Client left", "The client left before it was over."),
        ("rejected", "Refused", "Sidestep refused it, with 502."),
        ("client_error", "Refused upstream", "That answer went to the client as it was, with 502."),
    ],
)
def test_a_tale_tells_what_the_client_got(outcome: str, word: str, end: str) -> None:
    watched = Watched()
    watched.observe(request_ended(RequestOutcome(outcome), status=502, attempts=()))
    (found,) = watched.status().tales
    assert (found.word, found.told, found.path) == (word, [end], "no attempt")


def test_many_detours_do_not_crowd_out_the_rescues() -> None:
    watched = Watched()
    watched.observe(*failed_over_request("req_saved"))
    for number in range(100):
        watched.later(1.0)
        watched.observe(*detour(f"req_{number}"))
    found = [tale.request_id for tale in watched.status().tales]
    assert len(found) == MAX_DETOURS + 1
    assert "req_saved" in found
    for number in range(100):
        watched.observe(*failed_over_request(f"req_saved_{number}"))
    assert len(watched.status().tales) == MAX_RESCUES + MAX_DETOURS


def test_the_last_requests_of_any_kind_are_listed_too() -> None:
    watched = Watched()
    for number in range(50):
        watched.observe(request_ended(request_id=f"req_{number}"))
    found = watched.status().requests
    assert [tale.request_id for tale in found[:2]] == ["req_49", "req_48"]
    assert len(found) == SHOWN_REQUESTS
    assert (found[0].word, found[0].tone) == ("Answered", "fine")


def test_the_data_is_read_back_as_it_was() -> None:
    watched = Watched(ACell("openai", "gpt-5", "chat", state="open", reason="slow", numbers={"p95": 3.0}))
    watched.observe(*failed_over_request(), *detour(), breaker_moved(at=watched.now))
    status = watched.status()
    assert read_status(msgspec.json.encode(status)) == status
    with pytest.raises(ValueError, match="malformed"):
        read_status(b"<html>")


def test_every_kind_of_ending_has_words() -> None:
    assert set(KINDS) == set(Kind)
    assert all(did(kind.value) and does(kind.value) for kind in Kind)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            reason_says("failure_ratio", {"failures": 12, "attempts": 20, "window_s": 30}),
            "12 of 20 attempts failed within 30 s",
        ),
        (reason_says("failure_ratio", {}), "failure ratio"),
        (reason_says("something_new", {"score": 1.5}), "something new (score 1.5)"),
        (decision_says("something_new", "openai", "a_reason"), "something new openai: a reason"),
        (decision_says("give_up", "", "deadline_exceeded"), "gave up: deadline exceeded"),
        (decision_says("hedge", "azure", "slow"), "asked azure too: the first was slow"),
        (did("something_new"), "ended as something new"),
        (does("something_new"), "fails: something new"),
        (counted(1, "request"), "1 request"),
        (counted(1204, "request"), "1,204 requests"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (listed([]), ""),
        (span_says(59.6), "1 min"),
        (span_says(3725), "1 h 2 min"),
        (span_says(90_000), "1 d 1 h"),
    ],
)
def test_words(said: str, expected: str) -> None:
    assert said == expected
