"""Recent requests: found by id, told in order, bounded in number and size."""

from __future__ import annotations

import msgspec

from proxy.core.events import AttemptRecord
from proxy.edge.lines import MAX_NAME
from proxy.edge.recent import MAX_FACTS, Recent
from tests.edge.examples import decided, failed_over_request, request_ended


def test_a_request_s_story_is_told_in_order() -> None:
    recent = Recent()
    for event in failed_over_request("req_9"):
        recent.observe(event)
    found = recent.find("req_9")
    assert found is not None
    assert found["running"] is False
    assert found["steps"] == [
        {"step": "decision", "decision": "select", "upstream": "openai", "reason": "first"},
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
    facts = failed_over_request("req_9")[:3]
    recent = Recent(running=lambda request_id: facts if request_id == "req_9" else None)
    found = recent.find("req_9")
    assert found is not None
    assert (found["running"], found["request"], len(found["steps"])) == (True, None, 3)
    assert recent.find("req_8") is None


def test_the_newest_come_first() -> None:
    recent = Recent()
    for number in range(5):
        recent.observe(request_ended(request_id=f"req_{number}"))
    assert [line.request_id for line in recent.latest(3)] == ["req_4", "req_3", "req_2"]


def test_only_the_last_thousand_are_kept() -> None:
    recent = Recent()
    for number in range(2500):
        recent.observe(request_ended(request_id=f"req_{number}"))
    assert len(recent.latest(10_000)) == 1000
    assert recent.find("req_1499") is None
    assert recent.find("req_1500") is not None


def test_an_unknown_id_is_found_nowhere() -> None:
    assert Recent().find("req_1") is None


def test_one_request_can_not_fill_the_memory() -> None:
    recent = Recent()
    recent.observe(request_ended(facts=(decided(),) * 1000))
    found = recent.find("req_1")
    assert found is not None
    assert len(found["steps"]) == MAX_FACTS


def test_overlong_model_names_are_not_kept() -> None:
    recent, name = Recent(), "m" * 1_000_000
    recent.observe(request_ended(model=name, attempts=(AttemptRecord("openai", name, "ok", 0.1),)))
    found = recent.find("req_1")
    assert found is not None
    assert len(found["request"].attempts[0].model) <= MAX_NAME + 3
    assert len(msgspec.json.encode(found)) < 2000
