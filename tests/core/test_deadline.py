from __future__ import annotations

import pytest

from proxy.core.deadline import Deadline


@pytest.mark.parametrize(
    ("limits", "limit_s", "is_clients"),
    [
        pytest.param({}, 600.0, False, id="the policy's alone"),
        pytest.param({"asked_s": 20.0}, 20.0, True, id="the header shortens"),
        pytest.param({"asked_s": 900.0}, 600.0, False, id="the header does not lengthen"),
        pytest.param({"client_s": 59.0}, 59.0, True, id="the SDK's read timeout shortens"),
        pytest.param({"asked_s": 20.0, "client_s": 5.0}, 5.0, True, id="the shortest of all holds"),
        pytest.param({"asked_s": -1.0}, 0.0, True, id="a negative one is over at once"),
    ],
)
def test_the_shortest_limit_holds(limits: dict[str, float], limit_s: float, *, is_clients: bool) -> None:
    deadline = Deadline(started=100.0, policy_s=600.0, **limits)
    assert deadline.limit_s == limit_s
    assert deadline.at == 100.0 + limit_s
    assert deadline.is_clients is is_clients


def test_what_remains_counts_down_to_nothing() -> None:
    deadline = Deadline(started=100.0, policy_s=10.0)
    assert [deadline.remaining(now) for now in (100.0, 104.0, 110.0, 200.0)] == [10.0, 6.0, 0.0, 0.0]
