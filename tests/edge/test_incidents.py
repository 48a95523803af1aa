"""Incidents: who failed, why, since when, and what it cost the clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.core.events import Decision, RequestOutcome
from proxy.core.outcome import OK, Kind, Outcome, Scope
from proxy.edge.incident_log import IncidentLog
from proxy.edge.incidents import MAX_INCIDENTS, MAX_TURNS, MERGE_S, Incident, Incidents
from proxy.store.store import IncidentRow, Store
from tests.edge.examples import WALL, ACell, attempt_ended, breaker_moved, decided, request_ended
from tests.fakes.proxy import running_proxy
from tests.fakes.upstream import FakeUpstream, Reply

OVERLOADED = Outcome(Kind.OVERLOADED, status=503)


class Story:
    """Incidents, told as one tells a story: what happens, one second after the other."""

    def __init__(self) -> None:
        self.incidents = Incidents()
        self.wall = WALL
        self._requests = 0

    def later(self, seconds: float) -> Story:
        self.wall += seconds
        return self

    def fails(self, outcome: Outcome = OVERLOADED, *, trips: bool = False, **of: Any) -> str:
        """A request's attempt fails; its breaker may open because of it. Returns the request's id."""
        self._requests += 1
        request_id = f"req_{self._requests}"
        if trips:
            self.moves("open", **{name: of[name] for name in of if name != "number"})
        self.incidents.attempt_ended(attempt_ended(outcome, request_id=request_id, **of), self.wall)
        return request_id

    def answers(self, **of: Any) -> None:
        self.incidents.attempt_ended(attempt_ended(OK, request_id="req_good", **of), self.wall)

    def is_passed_over(self, reason: str = "open", upstream: str = "openai") -> str:
        self._requests += 1
        request_id = f"req_{self._requests}"
        event = decided(Decision.SKIP, request_id=request_id, upstream=upstream, reason=reason)
        self.incidents.decided(event, self.wall)
        return request_id

    def ends(self, request_id: str, outcome: RequestOutcome, upstream: str = "azure") -> None:
        event = request_ended(outcome, request_id=request_id, upstream=upstream)
        self.incidents.request_ended(event, self.wall)

    def moves(self, to_state: str, from_state: str = "closed", **of: Any) -> None:
        self.incidents.moved(breaker_moved(to_state, from_state=from_state, **of), self.wall)

    def outage(self, outcome: Outcome = OVERLOADED, *, seconds: float = 30.0, **of: Any) -> None:
        """Five failures, the opening, and the way back."""
        for number in range(5):
            self.ends(self.fails(outcome, trips=number == 4, **of), RequestOutcome.OK_FAILOVER)
        self.later(seconds)
        self.comes_back(**of)

    def comes_back(self, **of: Any) -> None:
        self.moves("half_open", "open", reason="cooled_down", **of)
        self.moves("recovering", "half_open", reason="probe_passed", **of)
        self.moves("closed", "recovering", reason="recovered", **of)

    def all(self) -> list[Incident]:
        return self.incidents.all()

    def only(self) -> Incident:
        (incident,) = self.all()
        return incident


def costs(incident: Incident) -> tuple[int, int, int, int]:
    return (incident.affected, incident.saved, incident.routed_around, incident.lost)


def test_an_outage_is_one_incident_from_its_first_failure_to_the_return() -> None:
    story = Story()
    began = story.wall
    story.fails()
    for _ in range(3):
        story.later(1.0).fails()
    story.later(1.0).fails(trips=True)
    story.later(10.0).comes_back()
    incident = story.only()
    assert (incident.upstream, incident.cause, incident.models) == ("openai", "overloaded", ["gpt-5"])
    assert (incident.started, incident.ended) == (began, began + 14.0)
    assert incident.kinds == {"overloaded": 5}
    assert [turn.state for turn in incident.turns] == ["open", "half_open", "recovering", "closed"]
    assert incident.turns[0].numbers == {"failures": 5.0}


def test_nothing_that_opens_no_breaker_is_an_incident() -> None:
    story = Story()
    for _ in range(100):
        story.fails()
        story.answers()
    story.is_passed_over("cooldown")
    assert story.all() == []
    assert not story.incidents.changed()


def test_requests_are_saved_routed_around_lost_or_gone() -> None:
    story = Story()
    before = [story.fails(trips=number == 3) for number in range(4)]
    endings = (RequestOutcome.OK_FAILOVER, RequestOutcome.UPSTREAM_ERROR, RequestOutcome.CLIENT_GONE)
    for request_id, outcome in zip(before, endings, strict=False):
        story.ends(request_id, outcome)
    passed = [story.is_passed_over() for _ in range(3)]
    story.ends(passed[0], RequestOutcome.OK)
    story.ends(passed[1], RequestOutcome.OK_FAILOVER)
    story.ends(passed[2], RequestOutcome.INTERRUPTED)
    assert costs(story.only()) == (7, 1, 2, 2)
    story.ends(before[3], RequestOutcome.OK_FAILOVER)
    assert costs(story.only()) == (7, 2, 2, 2)


def test_a_request_that_waited_until_the_upstream_was_back_was_not_routed_around_it() -> None:
    story = Story()
    story.fails(trips=True)
    story.ends(story.is_passed_over(), RequestOutcome.OK, upstream="openai")
    assert costs(story.only()) == (2, 0, 0, 0)


def test_a_request_that_fails_twice_is_affected_once() -> None:
    story = Story()
    for number in range(3):
        story.fails(trips=number == 2)
    event = attempt_ended(OVERLOADED, request_id="req_1", number=2)
    story.incidents.attempt_ended(event, story.wall)
    story.ends("req_1", RequestOutcome.OK_FAILOVER)
    assert costs(story.only()) == (3, 1, 0, 0)
    assert story.only().kinds == {"overloaded": 4}


def test_requests_that_ended_before_the_opening_belong_to_it() -> None:
    story = Story()
    story.outage()
    assert costs(story.only()) == (5, 5, 0, 0)


def test_old_failures_with_answers_since_then_do_not() -> None:
    story = Story()
    story.fails(Outcome(Kind.MALFORMED))
    story.later(31.0).answers()
    began = story.later(1.0).wall
    story.fails()
    story.answers()
    story.later(5.0).fails(trips=True)
    assert (story.only().started, story.only().affected) == (began, 2)


def test_a_quiet_outage_begins_with_its_first_failure_however_long_ago() -> None:
    story = Story()
    story.answers()
    began = story.later(60.0).wall
    story.fails()
    for _ in range(3):
        story.later(300.0).fails()
    story.later(300.0).fails(trips=True)
    assert story.only().started == began


@pytest.mark.parametrize(
    ("facts", "outcome", "cause"),
    [
        pytest.param({}, Outcome(Kind.NO_ANSWER), "no_answer", id="as its attempts end"),
        pytest.param({"reason": "slow_ratio"}, OVERLOADED, "slow", id="slowness has no ending of its own"),
        pytest.param(
            {"scope": Scope.CREDENTIAL, "reason": "quota_spent", "model": "", "operation": ""},
            OVERLOADED,
            "quota_spent",
            id="a spent quota",
        ),
        pytest.param(
            {"scope": Scope.ENDPOINT, "model": "", "operation": ""},
            Outcome(Kind.RESET),
            "connect_failed",
            id="a host that can not be reached",
        ),
        pytest.param({"reason": "model_missing"}, OVERLOADED, "model_missing", id="a missing model"),
    ],
)
def test_the_cause(facts: dict[str, Any], outcome: Outcome, cause: str) -> None:
    story = Story()
    story.fails(outcome)
    story.moves("open", **facts)
    story.fails(outcome)
    assert story.only().cause == cause


def test_the_cause_is_the_commonest_ending() -> None:
    story = Story()
    story.fails(Outcome(Kind.RESET))
    story.fails()
    story.fails(trips=True)
    assert story.only().cause == "overloaded"
    assert story.only().kinds == {"reset": 1, "overloaded": 2}


def test_a_breaker_that_opens_at_the_first_failure_knows_its_cause() -> None:
    story = Story()
    story.fails(Outcome(Kind.NO_ANSWER), trips=True)
    assert story.only().cause == "no_answer"


def test_one_that_opens_without_any_evidence_is_merely_failing() -> None:
    story = Story()
    story.moves("open")
    assert story.only().cause == "failing"


def test_flapping_is_one_incident() -> None:
    story = Story()
    for _ in range(5):
        story.outage(seconds=10.0)
        story.later(MERGE_S)
    incident = story.only()
    assert (incident.openings, incident.affected) == (5, 25)
    assert incident.ended == WALL + 50.0 + 4 * MERGE_S


def test_the_same_failure_much_later_is_another_incident() -> None:
    story = Story()
    story.outage()
    story.later(MERGE_S + 1.0).outage()
    assert [incident.openings for incident in story.all()] == [1, 1]
    assert story.all()[0].started > story.all()[1].started


def test_another_cause_or_another_upstream_is_another_incident() -> None:
    story = Story()
    story.outage(seconds=1.0)
    story.outage(Outcome(Kind.NO_ANSWER), seconds=1.0)
    story.outage(seconds=1.0, upstream="azure")
    found = {(incident.upstream, incident.cause) for incident in story.all()}
    assert found == {("openai", "overloaded"), ("openai", "no_answer"), ("azure", "overloaded")}


def test_models_that_fail_together_are_one_incident_until_the_last_is_back() -> None:
    story = Story()
    for model in ("gpt-5", "gpt-5-mini"):
        for number in range(3):
            story.fails(trips=number == 2, model=model)
    story.later(10.0).comes_back(model="gpt-5")
    assert story.only().ended is None
    story.later(10.0).comes_back(model="gpt-5-mini")
    assert story.only().ended == WALL + 20.0
    assert story.only().models == ["gpt-5", "gpt-5-mini"]


def test_models_behind_one_label_are_counted() -> None:
    """Through a wildcard route many models are "other": the incident lasts until all of them are back."""
    story = Story()
    story.fails(trips=True, model="other")
    story.fails(trips=True, model="other")
    story.comes_back(model="other")
    assert story.only().ended is None
    story.comes_back(model="other")
    assert story.only().ended is not None


def test_a_sibling_s_failure_belongs_to_no_incident() -> None:
    story = Story()
    story.fails(trips=True)
    story.fails(model="gpt-5-mini")
    story.fails(upstream="azure", model="gpt-5-prod")
    assert story.only().affected == 1


def test_a_rate_limit_belongs_to_an_incident_that_goes_on_and_begins_none() -> None:
    story = Story()
    limited = Outcome(Kind.RATE_LIMITED, status=429)
    story.fails(limited)
    story.fails(trips=True)
    story.fails(limited)
    assert story.only().kinds == {"overloaded": 1, "rate_limited": 1}
    assert story.only().affected == 2


@pytest.mark.parametrize("reason", ["drained", "full", "paced", "share"])
def test_passing_over_for_reasons_of_our_own_affects_nobody(reason: str) -> None:
    story = Story()
    story.fails(trips=True)
    story.is_passed_over(reason)
    assert story.only().affected == 1


def test_what_came_back_without_a_word_is_over() -> None:
    """A recovery without traffic, or a reload that removed the upstream, causes no event."""
    story = Story()
    story.fails(trips=True)
    key = ("target", "openai", "gpt-5", "chat")
    story.incidents.reconcile({key: "recovering"}, story.wall)
    assert story.only().ended is None
    story.incidents.reconcile({key: "closed"}, story.later(20.0).wall)
    assert story.only().ended == WALL + 20.0
    story.later(5.0).comes_back()  # the event comes with the next request: no news any more
    assert story.only().ended == WALL + 20.0


def test_a_breaker_that_only_observes_is_not_over_because_it_looks_closed() -> None:
    story = Story()
    story.fails()
    story.moves("open", enforced=False)
    story.incidents.reconcile({("target", "openai", "gpt-5", "chat"): "closed"}, story.wall)
    assert (story.only().ended, story.only().enforced) == (None, False)
    story.incidents.reconcile({}, story.wall)
    assert story.only().ended is not None


def test_memory_is_bounded() -> None:
    story = Story()
    for number in range(MAX_INCIDENTS + 20):
        story.outage(upstream=f"upstream-{number}")
    story.later(1000.0)
    for _ in range(100):
        story.outage(seconds=1.0)
    assert len(story.all()) == MAX_INCIDENTS
    assert len(story.all()[0].turns) == MAX_TURNS
    assert story.all()[0].turns[0].state == "open"
    assert story.all()[0].turns[-1].state == "closed"


def test_what_changed_is_told_once() -> None:
    story = Story()
    story.fails(trips=True)
    assert [incident.affected for incident in story.incidents.changed()] == [1]
    assert story.incidents.changed() == []
    story.fails()
    assert [incident.affected for incident in story.incidents.changed()] == [2]


class Watched:
    """An `IncidentLog` with a store in a file, and timers that a test lets ring."""

    def __init__(self, path: Path | None) -> None:
        self.warnings: list[str] = []
        self.store = Store(path, self.warnings.append)
        self.timers: list[tuple[float, Any]] = []
        self.now, self.wall = 100.0, WALL
        self.log = IncidentLog(
            lambda: self.now, lambda: self.wall, self.store, lambda s, call: self.timers.append((s, call))
        )

    async def __aenter__(self) -> Watched:
        await self.store.open()
        await self.log.restore()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.log.save()
        await self.store.close()


def open_cell() -> ACell:
    return ACell("openai", "gpt-5", "chat", state="open")


async def test_incidents_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    async with Watched(path) as first:
        first.log.observe(breaker_moved(at=90.0))
        first.log.observe(attempt_ended(OVERLOADED))
        first.log.observe(request_ended(RequestOutcome.OK_FAILOVER))
    async with Watched(path) as second:
        (incident,) = second.log.incidents([open_cell()])
        assert (incident.cause, incident.saved) == ("overloaded", 1)
        assert (incident.ended, incident.cut_short) == (WALL, True)
        second.log.observe(breaker_moved())
        second.log.observe(attempt_ended(OVERLOADED))
        (incident,) = second.log.incidents([open_cell()])
        assert (incident.ended, incident.cut_short, incident.affected) == (None, False, 2)


async def test_a_move_that_was_found_late_is_told_with_its_own_time() -> None:
    async with Watched(None) as watched:
        watched.log.observe(breaker_moved(at=88.0))
        assert watched.log.incidents([open_cell()])[0].turns[0].at == WALL - 12.0


async def test_a_thousand_failures_are_one_write() -> None:
    async with Watched(None) as watched:
        watched.log.observe(breaker_moved())
        for number in range(1000):
            watched.log.observe(attempt_ended(OVERLOADED, request_id=f"req_{number}"))
        assert len(watched.timers) == 1
        watched.timers[0][1]()
        assert len(await watched.store.incidents(10)) == 1
        watched.log.observe(attempt_ended(OVERLOADED))
        assert len(watched.timers) == 2


async def test_what_another_version_wrote_is_left_out() -> None:
    async with Watched(None) as watched:
        good = Incident("a-openai-slow", "openai", "slow", WALL, WALL)
        rows = [b"not json", b'{"id": 7}', msgspec.json.encode(good)]
        watched.store.keep_incidents([IncidentRow(str(n), WALL, data) for n, data in enumerate(rows)])
        await watched.log.restore()
        assert [incident.id for incident in watched.log.incidents([])] == ["a-openai-slow"]


def test_without_a_store_it_works_all_the_same() -> None:
    log = IncidentLog(lambda: 100.0, lambda: WALL)
    log.observe(attempt_ended())
    log.observe(decided())
    log.observe(breaker_moved())
    log.observe(decided(Decision.SKIP, request_id="req_2", reason="open"))
    log.save()
    assert log.incidents([open_cell()])[0].affected == 1


TEXT = 'upstreams: {a: {base_url: "%s"}, b: {base_url: "%s"}}\nroutes: {m: [a, b]}\n'


async def test_a_proxy_tells_of_the_incidents_of_its_former_lives(tmp_path: Path) -> None:
    async with FakeUpstream(Reply(503)) as bad, FakeUpstream(Reply()) as good:
        text, state = TEXT % (bad.base_url, good.base_url), f"state: {tmp_path}/deep/state.db"
        async with running_proxy(text, tmp_path, server=state) as proxy:
            for _ in range(8):
                async with proxy.chat() as answer:
                    assert answer.status == 200
            (incident,) = (await proxy.status())["incidents"]
            assert (incident["title"], incident["ended"]) == ("a is overloaded", None)
            cost = {name: incident[name] for name in ("affected", "saved", "routed_around", "lost")}
            assert cost == {"affected": 8, "saved": 5, "routed_around": 3, "lost": 0}
        async with running_proxy(text, tmp_path, server=state) as proxy:
            (incident,) = (await proxy.status())["incidents"]
            assert incident["title"] == "a was overloaded"
            assert incident["says"].endswith("Sidestep was stopped while it lasted.")
            assert {name: incident[name] for name in cost} == cost


async def test_a_proxy_whose_state_can_not_be_kept_says_so_and_works(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with FakeUpstream(Reply(503)) as bad, FakeUpstream(Reply()) as good:
        state = f"state: {tmp_path}/file/state.db"
        async with running_proxy(TEXT % (bad.base_url, good.base_url), tmp_path, server=state) as proxy:
            for _ in range(6):
                async with proxy.chat() as answer:
                    assert answer.status == 200
            assert len((await proxy.status())["incidents"]) == 1
        lines = proxy.log.read_text().splitlines()
    notes = [line for line in map(msgspec.json.decode, lines) if line["event"] == "note"]
    assert [note["level"] for note in notes] == ["warning"]
    assert "in memory only" in notes[0]["message"]
