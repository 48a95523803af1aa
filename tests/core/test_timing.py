from __future__ import annotations

import random

from proxy.core.outcome import OK
from proxy.core.permit import Permit
from proxy.core.pool import Pool
from proxy.core.target import AttemptPolicy, Target
from proxy.core.timing import usual_timeouts
from tests.core.given import NOW, a_call, a_target

CALL = a_call(stream=True)
PLAIN = a_target("a")
HASTY = a_target("a", policy=AttemptPolicy(first_token_s=2.0, stall_s=7.0))


def permit_of(pool: Pool, target: Target, now: float = NOW) -> Permit:
    permit = pool.try_acquire(target, CALL, 1, now)
    assert permit is not None
    return permit


def test_they_are_worked_out_anew_when_the_target_has_become_slower() -> None:
    pool = Pool([PLAIN.upstream], random.Random(1))
    permit = permit_of(pool, PLAIN)
    cold = usual_timeouts(permit, CALL)
    assert (cold.head_s, cold.soft_s) == (60.0, 20.0)
    assert usual_timeouts(permit_of(pool, PLAIN), CALL) is cold
    for number in range(64):
        permit = permit_of(pool, PLAIN, NOW + number)
        pool.first_content(permit, 8.0, NOW + number)
        pool.settle(permit, OK, NOW + number)
    warm = usual_timeouts(permit_of(pool, PLAIN, NOW + 70.0), CALL)
    assert (warm.head_s, warm.soft_s) == (48.0, 24.0)


def test_each_route_has_its_own_though_the_target_is_the_same() -> None:
    pool = Pool([PLAIN.upstream], random.Random(1))
    for _ in range(2):
        plain, hasty = (usual_timeouts(permit_of(pool, target), CALL) for target in (PLAIN, HASTY))
        assert (plain.head_s, plain.stall_s) == (60.0, 60.0)
        assert (hasty.head_s, hasty.stall_s) == (2.0, 7.0)


def test_those_of_a_probe_are_not_kept() -> None:
    pool = Pool([PLAIN.upstream], random.Random(1))
    permit = permit_of(pool, PLAIN)
    permit.probe = True
    assert usual_timeouts(permit, CALL).head_s == 20.0
    permit.probe = False
    assert usual_timeouts(permit, CALL).head_s == 60.0
