from __future__ import annotations

from proxy.core.hold import GRACE_S, Line, Lines
from proxy.core.pacing import Pace, Slots, evacuation_rate, ramp_rate, shift_rate


def test_the_first_to_wait_is_the_first_to_go() -> None:
    line = Line()
    for name in "abc":
        line.join(name, 105.0)
    assert [line.ahead(name, 100.0) for name in "abc"] == [0, 1, 2]
    assert line.ahead("new", 100.0) == 3


def test_who_keeps_waiting_keeps_the_place() -> None:
    line = Line()
    line.join("a", 101.0)
    line.join("b", 101.0)
    line.join("a", 102.0)
    assert [line.ahead(name, 101.0) for name in "ab"] == [0, 1]


def test_who_leaves_makes_way() -> None:
    line = Line()
    for name in "abc":
        line.join(name, 105.0)
    line.leave("a")
    line.leave("nobody")
    assert line.ahead("b", 100.0) == 0
    assert len(line) == 2


def test_who_left_without_a_word_blocks_nobody() -> None:
    line = Line()
    line.join("gone", 101.0)
    line.join("b", 110.0)
    assert line.ahead("b", 101.0 + GRACE_S) == 1
    assert line.ahead("b", 101.1 + GRACE_S) == 0
    assert repr(line) == "Line(['b'])"


def test_who_comes_late_but_first_is_still_first() -> None:
    line = Line()
    line.join("late", 101.0)
    line.join("b", 110.0)
    assert line.ahead("late", 200.0) == 0


def test_an_empty_line_is_forgotten() -> None:
    lines = Lines()
    lines.join("gpt", "r1", 101.0)
    assert lines.of("gpt") is not None
    lines.leave("gpt", "r1")
    lines.leave("gpt", "r1")
    assert lines.of("gpt") is None


def test_a_pace_lets_its_rate_go_in_any_second() -> None:
    pace = Pace()
    went = []
    for tick in range(300):
        now = 100.0 + tick / 100
        while pace.room(now, 5.0) >= 1.0:
            pace.take(now)
            went.append(now)
    assert len(went) == 15
    assert max(sum(at <= other < at + 0.9 for other in went) for at in went) == 5


def test_a_pace_has_room_at_once_when_its_rate_rises() -> None:
    pace = Pace()
    for _ in range(5):
        pace.take(100.0)
    assert pace.room(100.0, 5.0) == 0.0
    assert pace.room(100.0, 40.0) == 35.0


def test_those_behind_are_ready_later() -> None:
    pace = Pace()
    for _ in range(5):
        pace.take(100.0)
    assert [round(pace.ready_at(100.0, 5.0, ahead), 3) for ahead in (0, 1, 4)] == [100.2, 100.4, 101.0]


def test_slots_are_a_rate_apart() -> None:
    slots = Slots()
    assert [slots.take(100.0, 4.0) for _ in range(3)] == [100.0, 100.25, 100.5]
    assert slots.take(200.0, 4.0) == 200.0


def test_rates_have_floors() -> None:
    assert shift_rate(0.0, 0.0) == 5.0
    assert shift_rate(2.0, 10.0) == 16.0
    assert ramp_rate(0.25, 40.0) == 10.0
    assert ramp_rate(0.25, 0.1) == 1.0
    assert evacuation_rate(0.1) == 2.0
    assert evacuation_rate(10.0) == 20.0
