"""Recent requests: found by id, told in order, bounded in number and size."""

from __future__ import annotations

import msgspec

from proxy.core.events import AttemptRecord, AttemptStarted
from proxy.core.outcome import Kind, Outcome
from proxy.edge.lines import MAX_NAME
from proxy.edge.recent import MAX_FACTS, MAX_RUNNING, Recent
from tests.edge.examples import attempt_ended, decided, failed_over_request, request_ended


def test_a_request_s_story_is_told_in_order() -> None:
    recent = Recent()
    for event in failed_over_request("req_9"):
        recent.observe(event)
    found = recent.find("req_9")
    assert found is not None
    assert found["running"] is False
    assert found["steps"] == [
        {"step": "decision", "decision": "select", "upstream": "openai", "reason": "first"},
        {"step": "attempt", "number": 1, "upstream": "openai", "model": "gpt-5", "probe": False},
        {
            "step": "ended",
            "number": 1,
            "upstream": "openai",
            "outcome": "overloaded",
            "status": 503,
            "code": "overloaded",
            "seconds": 0.1,
        },
        {"step": "decision", "decision": "failover", "upstream": "azure", "reason": "overloaded"},
        {"step": "failover", "from": "openai", "to": "azure", "reason": "overloaded"},
        {"step": "attempt", "number": 2, "upstream": "azure", "model": "gpt-5-prod", "probe": False},
        {"step": "first_token", "upstream": "azure", "seconds": 0.31},
        {
            "step": "ended",
            "number": 2,
            "upstream": "azure",
            "outcome": "ok",
            "status": 200,
            "code": None,
            "seconds": 1.1,
        },
    ]
    assert found["request"].outcome == "ok_failover"
    assert [attempt.outcome for attempt in found["request"].attempts] == ["overloaded", "ok"]


def test_a_running_request_can_be_looked_up() -> None:
    recent = Recent()
    for event in failed_over_request("req_9")[:3]:
        recent.observe(event)
    found = recent.find("req_9")
    assert found is not None
    assert (found["running"], found["request"], len(found["steps"])) == (True, None, 3)


def test_the_newest_come_first() -> None:
    recent = Recent()
    for number in range(5):
        recent.observe(request_ended(request_id=f"req_{number}"))
    assert [line.request_id for line in recent.latest(3)] == ["req_4", "req_3", "req_2"]


def test_only_the_last_thousand_are_kept() -> None:
    recent = Recent()
    for number in range(2500):
        recent.observe(decided(request_id=f"req_{number}"))
        recent.observe(request_ended(request_id=f"req_{number}"))
    assert len(recent.latest(10_000)) == 1000
    assert recent.find("req_1499") is None
    assert recent.find("req_1500") is not None


def test_an_unknown_id_is_found_nowhere() -> None:
    assert Recent().find("req_1") is None


def test_one_request_can_not_fill_the_memory() -> None:
    recent = Recent()
    for _ in range(1000):
        recent.observe(decided())
    found = recent.find("req_1")
    assert found is not None
    assert len(found["steps"]) == MAX_FACTS


def test_requests_that_never_end_are_forgotten_at_last() -> None:
    recent = Recent()
    for number in range(MAX_RUNNING + 1):
        recent.observe(decided(request_id=f"req_{number}"))
    assert recent.find("req_0") is None
    assert recent.find("req_1") is not None


def test_an_attempt_that_ends_after_its_request_is_told_with_it() -> None:
    recent = Recent()
    recent.observe(decided())
    recent.observe(request_ended())
    recent.observe(attempt_ended(Outcome(Kind.CANCELLED)))
    found = recent.find("req_1")
    assert found is not None
    assert found["running"] is False
    assert found["steps"][-1]["outcome"] == "cancelled"


def test_overlong_model_names_are_not_kept() -> None:
    recent, name = Recent(), "m" * 1_000_000
    recent.observe(AttemptStarted("req_1", "openai", name, 1, probe=False))
    recent.observe(request_ended(model=name, attempts=(AttemptRecord("openai", name, "ok", 0.1),)))
    found = recent.find("req_1")
    assert found is not None
    assert len(found["request"].attempts[0].model) <= MAX_NAME + 3
    assert len(msgspec.json.encode(found)) < 2000
