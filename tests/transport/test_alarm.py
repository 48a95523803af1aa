"""The timer that is put off for nothing."""

from __future__ import annotations

import asyncio
from typing import Any

from proxy.transport.connection.alarm import Alarm
from tests.transport.connection.lab import HandLoop


def an_alarm() -> tuple[Any, Alarm, list[float]]:
    loop: Any = HandLoop()
    gone_off: list[float] = []
    return loop, Alarm(loop, lambda: gone_off.append(loop.now)), gone_off


async def test_putting_it_off_sets_no_new_timer() -> None:
    loop, alarm, gone_off = an_alarm()
    for at in range(10, 1000):
        alarm.set(float(at))
    assert len(loop.timers) == 1
    loop.fire()  # too early: it is armed for the rest
    assert gone_off == []
    loop.fire()
    assert gone_off == [999.0]
    assert loop.timers == []


async def test_an_earlier_time_counts_at_once() -> None:
    loop, alarm, gone_off = an_alarm()
    alarm.set(100.0)
    alarm.set(5.0)
    (first, _, handle), (second, _, _) = loop.timers
    assert (first, handle.cancelled(), second) == (100.0, True, 5.0)
    loop.timers.pop(0)
    loop.fire()
    assert gone_off == [5.0]


async def test_when_nothing_is_due_any_more_it_stays_off() -> None:
    loop, alarm, gone_off = an_alarm()
    alarm.set(10.0)
    alarm.at = None
    loop.fire()
    assert (gone_off, loop.timers) == ([], [])


async def test_cancelled_it_leaves_no_timer_behind() -> None:
    real = asyncio.get_running_loop()
    gone_off: list[int] = []
    alarm = Alarm(real, lambda: gone_off.append(1))
    alarm.set(real.time())
    alarm.cancel()
    await asyncio.sleep(0.01)
    assert gone_off == []
