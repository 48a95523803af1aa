"""Rolling counts: exact within the span, gone after it, the same however the writes were spread."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.window import Counts, RecentRequests, RollingWindow


def test_an_empty_window_counts_nothing_and_divides_by_nothing() -> None:
    counts = RollingWindow(30.0).counts(1_000.0)
    assert counts == Counts(0, 0, 0)
    assert (counts.failure_ratio, counts.slow_ratio) == (0.0, 0.0)


def test_successes_failures_and_slow_attempts_are_counted() -> None:
    window = RollingWindow(30.0)
    window.success(100.0)
    window.add(101.0, attempts=1, failures=1)
    window.add(102.0, attempts=1, slow=1)
    window.success(103.0)
    counts = window.counts(103.0)
    assert counts == Counts(4, 1, 1)
    assert (counts.failure_ratio, counts.slow_ratio) == (0.25, 0.25)


def test_a_count_leaves_with_its_bucket() -> None:
    window = RollingWindow(30.0, buckets=10)
    window.success(100.0)
    assert window.counts(128.9).attempts == 1
    assert window.counts(129.0).attempts == 0


def test_reading_after_a_long_silence_finds_nothing_without_anything_having_run() -> None:
    window = RollingWindow(30.0)
    for second in range(30):
        window.add(100.0 + second, attempts=1, failures=1)
    assert window.counts(100_000.0) == Counts(0, 0, 0)
    window.success(100_000.0)
    assert window.counts(100_000.0) == Counts(1, 0, 0)


def test_a_burst_and_the_same_burst_spread_out_count_the_same() -> None:
    burst, spread = RollingWindow(30.0), RollingWindow(30.0)
    for number in range(20):
        burst.add(119.0, attempts=1, failures=number % 2)
        spread.add(100.0 + number, attempts=1, failures=number % 2)
    assert burst.counts(119.0) == spread.counts(119.0) == Counts(20, 10, 0)


def test_what_is_bad_never_outnumbers_the_attempts() -> None:
    """Ten requests hang: they are known to be slow long before they are attempts that ended."""
    window = RollingWindow(30.0)
    window.add(100.0, slow=10)
    assert window.counts(100.0) == Counts(10, 0, 10)


def test_a_clock_that_steps_back_a_little_is_no_disaster() -> None:
    window = RollingWindow(30.0)
    window.success(103.1)
    window.success(102.9)
    assert window.counts(103.1).attempts == 2


def test_clearing_forgets_everything() -> None:
    window = RollingWindow(30.0)
    window.add(100.0, attempts=5, failures=3, slow=1)
    window.clear()
    assert window.counts(100.0) == Counts(0, 0, 0)


def test_the_latest_reach_back_until_there_are_enough() -> None:
    window = RollingWindow(600.0, buckets=60)
    for ten_seconds in range(60):
        window.add(ten_seconds * 10.0, attempts=10, failures=1)
    assert window.latest(599.0, 30.0).attempts == 40  # the bucket that has just begun, and 30 s before it
    assert window.latest(599.0, 30.0, attempts=100).attempts == 100
    assert window.latest(599.0, 30.0, attempts=5_000) == Counts(600, 60, 0)


@pytest.mark.parametrize(("span_s", "buckets"), [(0.0, 10), (-1.0, 10), (30.0, 0)])
def test_an_impossible_window_is_refused(span_s: float, buckets: int) -> None:
    with pytest.raises(ValueError, match="a positive span"):
        RollingWindow(span_s, buckets)


@given(
    steps=st.lists(st.tuples(st.integers(0, 40_000), st.booleans()), max_size=60),
    asked_later=st.integers(0, 40_000),
)
def test_a_window_agrees_with_a_list_of_everything(
    steps: Sequence[tuple[int, bool]], asked_later: int
) -> None:
    """In whole milliseconds, with buckets of three seconds: the exact counts of the last ten buckets."""
    window, seen, now = RollingWindow(30.0, buckets=10), [], 0
    for step, failed in steps:
        now += step
        window.add(now / 1000, attempts=1, failures=failed)
        seen.append((now, failed))
    now += asked_later
    kept = [failed for at, failed in seen if at // 3000 > now // 3000 - 10]
    assert window.counts(now / 1000) == Counts(len(kept), sum(kept), 0)


def test_the_same_request_failing_again_and_again_is_one() -> None:
    requests = RecentRequests()
    for second in range(100):
        requests.add("one", 100.0 + second)
    assert requests.since(100.0) == 1


def test_different_requests_are_counted_up_to_three_and_by_their_last_failure() -> None:
    requests = RecentRequests()
    for second, name in enumerate("abcda"):
        requests.add(name, 100.0 + second)
    assert requests.since(100.0) == 3
    assert requests.since(103.5) == 1
    assert requests.since(104.5) == 0
    requests.clear()
    assert requests.since(0.0) == 0
