"""What trips a breaker, detector by detector, and what does not."""

from __future__ import annotations

from math import exp, log

import pytest

from proxy.core.adaptive import Adaptive, smoothed, weights, wilson_lower
from proxy.core.detectors import Consecutive, Detectors, Finding
from proxy.core.target import BreakerPolicy
from proxy.core.window import Counts

NEVER = 10**6
ALONE = BreakerPolicy(consecutive=NEVER, min_requests=NEVER, slow_ratio=2.0)
"""A policy under which only the adaptive detector can find anything."""


def nobody() -> None:
    """There is no other target."""


def a_better_one() -> float:
    """There is a target that fails two times in a hundred."""
    return 0.02


class Traffic:
    """Tells detectors a story, one request after the other; each has a name of its own."""

    def __init__(self, policy: BreakerPolicy, alternative=nobody) -> None:
        self.detectors = Detectors(policy)
        self.alternative = alternative
        self.now = 1_000.0
        self.number = 0

    def succeed(self, times: int = 1, every_s: float = 0.0) -> None:
        for _ in range(times):
            self.now += every_s
            self.detectors.success(self.now)
            self.detectors.completed()

    def fail(self, times: int = 1, every_s: float = 0.0, request: str | None = None) -> Finding | None:
        finding = None
        for _ in range(times):
            self.now += every_s
            self.number += 1
            name = request or str(self.number)
            finding = finding or self.detectors.failure(
                self.now, name, self.alternative, began=None, late=False
            )
        return finding

    def begin(self) -> float:
        self.detectors.success(self.now)
        return self.now

    def interrupt(self, began: float) -> Finding | None:
        self.number += 1
        name = str(self.number)
        return self.detectors.failure(self.now, name, self.alternative, began=began, late=True)

    def slow(self, times: int = 1, every_s: float = 0.0, request: str | None = None) -> Finding | None:
        finding = None
        for _ in range(times):
            self.now += every_s
            self.number += 1
            finding = finding or self.detectors.slow(self.now, request or str(self.number))
        return finding


# In a row


def test_the_fifth_failure_in_a_row_is_the_one_too_many() -> None:
    traffic = Traffic(BreakerPolicy(adaptive=False))
    assert traffic.fail(4) is None
    assert traffic.fail() == Finding("consecutive", {"failures": 5, "requests": 5})


def test_one_success_ends_a_run_of_failures() -> None:
    traffic = Traffic(BreakerPolicy(min_requests=NEVER, adaptive=False))
    for _ in range(20):
        assert traffic.fail(4, every_s=2.0) is None
        traffic.succeed(5, every_s=2.0)


@pytest.mark.parametrize(
    ("names", "trips"),
    [
        pytest.param("a" * 1000, False, id="one request, a thousand times"),
        pytest.param("ab" * 500, False, id="two requests in turns"),
        pytest.param("aaabc", True, id="three requests, one of them insistent"),
        pytest.param("baaaaaaaac", True, id="the second one long ago in the same run"),
    ],
)
def test_a_run_needs_failures_of_three_different_requests(names: str, trips: bool) -> None:
    traffic = Traffic(BreakerPolicy(min_requests=NEVER, adaptive=False))
    findings = [traffic.fail(request=name, every_s=0.5) for name in names]
    assert any(findings) is trips


@pytest.mark.parametrize("consecutive", [1, 2])
def test_a_shorter_run_asks_for_fewer_different_requests(consecutive: int) -> None:
    traffic = Traffic(BreakerPolicy(consecutive=consecutive, adaptive=False))
    assert traffic.fail(consecutive - 1) is None
    assert traffic.fail() is not None


def test_five_streams_that_break_one_after_the_other_are_a_run() -> None:
    """Each of them had a first content, which would have ended a run of plain failures."""
    run, findings = Consecutive(limit=5, needed=3), []
    for number in range(5):
        began = 10.0 * number
        run.success()
        findings.append(run.failure(began + 5, str(number), began))
    assert findings[:4] == [None] * 4
    assert findings[4] == Finding("consecutive", {"failures": 5, "requests": 5})


def test_a_stream_that_completes_ends_a_run_of_interruptions() -> None:
    run = Consecutive(limit=5, needed=3)
    for number in range(40):
        run.success()
        assert run.failure(10.0 * number + 5, str(number), began=10.0 * number) is None
        if number % 4 == 3:
            run.completed()


def test_requests_that_a_success_has_excused_are_not_among_the_three() -> None:
    run = Consecutive(limit=3, needed=3)
    run.failure(1.0, "broke", began=0.0)
    run.failure(2.0, "failed", began=None)
    run.success()
    assert run.failure(3.0, "again", began=None) is None
    assert run.failure(4.0, "again", began=None) is None, "three failures of two requests"
    assert run.failure(5.0, "third", began=None) is not None


def test_interruptions_and_failures_make_one_run() -> None:
    """Nothing has come through whole: neither a failure nor a break ends what the other began."""
    run = Consecutive(limit=3, needed=3)
    run.success()
    assert run.failure(1.0, "a", began=0.0) is None
    assert run.failure(2.0, "b", began=None) is None
    assert run.failure(3.0, "c", began=None) is not None


def test_forty_streams_that_break_together_are_one_break() -> None:
    """One dropped connection, or one restart of something upstream: it happens to healthy targets."""
    run = Consecutive(limit=5, needed=3)
    for _ in range(40):
        run.success()
    assert not any(run.failure(100.0 + number / 1000, str(number), began=number) for number in range(40))
    run.success()
    later = [run.failure(101.0 + n, f"next {n}", began=100.5 + n) for n in range(4)]
    assert [finding is not None for finding in later] == [False, False, False, True]


# The share of failures


def test_half_of_ten_attempts_failing_trips() -> None:
    traffic = Traffic(BreakerPolicy(consecutive=NEVER, adaptive=False))
    traffic.succeed(5)
    assert traffic.fail(4) is None
    finding = traffic.fail()
    assert finding is not None
    assert finding.reason == "failure_ratio"
    assert finding.numbers == {"failures": 5, "attempts": 10, "ratio": 0.5, "window_s": 30.0}


def test_fewer_attempts_than_the_minimum_say_nothing() -> None:
    traffic = Traffic(BreakerPolicy(consecutive=NEVER, adaptive=False))
    assert traffic.fail(9) is None


def test_failures_leave_the_window() -> None:
    traffic = Traffic(BreakerPolicy(consecutive=NEVER, adaptive=False))
    assert traffic.fail(9) is None
    traffic.now += 31.0
    assert traffic.fail(9) is None


def test_one_request_in_a_loop_does_not_make_a_share() -> None:
    traffic = Traffic(BreakerPolicy(consecutive=NEVER, adaptive=False))
    assert traffic.fail(500, request="poison", every_s=0.05) is None
    traffic.now += 0.05
    assert traffic.fail(1) is None
    assert traffic.fail(1) is not None


def test_streams_that_all_break_are_a_share_of_one_not_of_a_half() -> None:
    traffic = Traffic(BreakerPolicy(consecutive=NEVER, adaptive=False))
    began = [traffic.begin() for _ in range(10)]
    findings = [traffic.interrupt(at) for at in began]
    assert traffic.detectors.counts(traffic.now) == Counts(10, 10, 0)
    assert [finding is not None for finding in findings] == [False] * 4 + [True] * 6


def test_two_thresholds_crossed_together_are_charged_to_the_first() -> None:
    traffic = Traffic(BreakerPolicy(consecutive=5, min_requests=5, failure_ratio=0.5))
    assert traffic.fail(4) is None
    finding = traffic.fail()
    assert finding is not None
    assert finding.reason == "consecutive"


# Adaptive: the scores


@pytest.mark.parametrize(("rate_per_s", "threshold"), [(0.1, 10.1), (1.0, 12.4), (10.0, 14.7), (50.0, 16.3)])
def test_the_threshold_grows_with_the_logarithm_of_the_rate(rate_per_s: float, threshold: float) -> None:
    adaptive = Adaptive()
    for number in range(int(600 * rate_per_s)):
        adaptive.success(1_000.0 + number / rate_per_s)
    assert adaptive.rate_per_s == pytest.approx(rate_per_s, rel=0.1)
    assert adaptive.threshold == pytest.approx(threshold, abs=0.15)


def test_the_rate_is_right_after_a_few_seconds() -> None:
    adaptive = Adaptive()
    for number in range(500):
        adaptive.success(1_000.0 + number / 50)
    assert adaptive.rate_per_s == pytest.approx(50, rel=0.1)


def test_failures_and_successes_weigh_as_their_likelihoods() -> None:
    per = weights(0.025, 0.30)
    assert per.bad == pytest.approx(log(12))
    assert per.good == pytest.approx(log(0.7 / 0.975))
    adaptive = Adaptive()
    adaptive.failure(1_000.0)
    assert adaptive.hard_score() == pytest.approx(per.bad)
    adaptive.success(1_000.5)
    assert adaptive.hard_score() == pytest.approx(per.bad + per.good)


def test_the_score_never_falls_below_zero() -> None:
    adaptive = Adaptive()
    for number in range(1_000):
        adaptive.success(1_000.0 + number)
    adaptive.failure(2_000.0)
    assert adaptive.hard_score() == pytest.approx(log(12), rel=0.1)


def test_one_second_of_failures_adds_a_third_of_the_threshold_at_most() -> None:
    traffic = Traffic(ALONE)
    traffic.succeed(2_000, every_s=0.1)
    traffic.now = float(int(traffic.now)) + 1.0
    assert traffic.fail(40) is None, "one dropped connection has taken forty streams with it"
    traffic.now += 1.0
    assert traffic.fail(40) is None
    traffic.now += 1.0
    finding = traffic.fail(40)
    assert finding is not None
    assert finding.reason == "adaptive"
    assert finding.numbers["score"] >= finding.numbers["threshold"]


def test_old_evidence_fades() -> None:
    adaptive = Adaptive()
    adaptive.failure(1_000.0)
    before = adaptive.hard_score()
    adaptive.failure(1_600.0)
    assert adaptive.hard_score() == pytest.approx(before * exp(-1) + before, rel=0.1)


def test_an_outage_is_not_learnt_as_normal() -> None:
    adaptive = Adaptive()
    for number in range(200):
        adaptive.success(1_000.0 + number)
    for number in range(20):
        adaptive.failure(1_300.0 + number)
    learnt = adaptive.baseline
    for number in range(500):
        adaptive.failure(1_400.0 + number)
    assert adaptive.baseline < 0.02
    assert adaptive.baseline == pytest.approx(learnt, rel=0.2)


def test_a_target_that_always_fails_a_little_is_judged_by_its_own_habit() -> None:
    adaptive = Adaptive()
    for number in range(6_000):
        if number % 25 == 0:
            adaptive.failure(1_000.0 + number)
        else:
            adaptive.success(1_000.0 + number)
    assert adaptive.baseline == pytest.approx(0.04, abs=0.005)
    adaptive.failure(7_000.0)
    assert adaptive.hard_score() < log(12) * 0.7, "a failure weighs less where failures are usual"


def test_the_adaptive_score_sees_one_failure_in_four() -> None:
    traffic = Traffic(ALONE)
    traffic.succeed(600, every_s=1.0)
    findings = []
    for _ in range(60):
        traffic.succeed(3, every_s=0.25)
        findings.append(traffic.fail(every_s=0.25))
    assert any(findings[:20])


def test_the_adaptive_score_needs_three_different_requests() -> None:
    traffic = Traffic(ALONE)
    traffic.succeed(600, every_s=1.0)
    assert traffic.fail(500, request="poison", every_s=0.3) is None
    traffic.succeed(80, every_s=0.3)
    assert traffic.detectors.figures()["score"] == 0.0, "nothing has piled up above the threshold"
    assert traffic.fail(1, every_s=0.3) is None


def test_without_adaptive_only_the_plain_rules_find_anything() -> None:
    policy = BreakerPolicy(consecutive=NEVER, min_requests=NEVER, adaptive=False)
    traffic = Traffic(policy, a_better_one)
    assert traffic.fail(100, every_s=1.0) is None
    assert traffic.slow(100, every_s=1.0) is None


def test_a_success_that_broke_later_weighs_as_a_failure_alone() -> None:
    broken, failed = Adaptive(), Adaptive()
    broken.success(1_000.0)
    broken.failure(1_000.5, late=True)
    failed.failure(1_000.5)
    assert broken.hard_score() == pytest.approx(failed.hard_score())


def test_clearing_forgets_the_evidence_and_keeps_what_was_learnt() -> None:
    adaptive = Adaptive()
    for number in range(600):
        adaptive.success(1_000.0 + number)
    adaptive.failure(1_600.0)
    rate, baseline = adaptive.rate_per_s, adaptive.baseline
    adaptive.clear()
    assert adaptive.hard_score() == 0.0
    assert adaptive.latest(1_600.0) == Counts(0, 0, 0)
    assert adaptive.rate_per_s == pytest.approx(rate, rel=0.01)
    assert adaptive.baseline == baseline


# Adaptive: partial failure


@pytest.mark.parametrize(
    ("bad", "total", "z", "bound"),
    [
        pytest.param(0, 0, 3.0, 0.0, id="nothing is known"),
        pytest.param(0, 100, 3.0, 0.0, id="nothing has failed"),
        pytest.param(50, 100, 1.96, 0.4038, id="half, at 95 percent"),
        pytest.param(25, 100, 3.0, 0.1447, id="a quarter, as far as a hundred results can tell"),
        pytest.param(100, 100, 3.0, 0.9174, id="everything"),
    ],
)
def test_wilsons_lower_bound(bad: int, total: int, z: float, bound: float) -> None:
    assert wilson_lower(bad, total, z) == pytest.approx(bound, abs=0.0005)


def partial_failure(alternative) -> Finding | None:
    """One failure in six, at three requests per second, of a target that has always been so."""
    traffic = Traffic(ALONE, alternative)
    for _ in range(400):
        traffic.succeed(5, every_s=0.33)
        finding = traffic.fail(every_s=0.33)
        if finding is not None:
            return finding
    return None


def test_a_partial_failure_is_left_for_a_target_that_is_clearly_better() -> None:
    finding = partial_failure(a_better_one)
    assert finding is not None
    assert finding.reason == "partial"
    assert finding.numbers["lower_bound"] > 0.08
    assert finding.numbers["alternative"] == 0.02


@pytest.mark.parametrize(
    "alternative", [pytest.param(nobody, id="nobody"), pytest.param(lambda: 0.12, id="one that is no better")]
)
def test_a_partial_failure_is_no_reason_to_go_nowhere_better(alternative) -> None:
    assert partial_failure(alternative) is None


def test_the_latest_results_are_a_hundred_or_as_many_as_ten_minutes_had() -> None:
    adaptive = Adaptive()
    for number in range(1_000):
        adaptive.success(1_000.0 + number)
    assert adaptive.latest(2_000.0).attempts == pytest.approx(100, abs=10)
    rare = Adaptive()
    for number in range(100):
        rare.success(1_000.0 + 20 * number)
    assert rare.latest(3_000.0).attempts == pytest.approx(30, abs=1)


def test_an_unknown_target_counts_as_failing_two_in_a_hundred() -> None:
    assert smoothed(Counts(0, 0, 0)) == pytest.approx(0.02)
    assert smoothed(Counts(100, 1, 0)) == pytest.approx(1.4 / 120)


# Slowness


def test_four_slow_attempts_in_five_trip() -> None:
    traffic = Traffic(BreakerPolicy(adaptive=False))
    traffic.succeed(2)
    traffic.detectors.success(traffic.now)
    assert traffic.slow(7) is None
    traffic.succeed(7)
    finding = traffic.slow()
    assert finding is not None
    assert finding.reason == "slow_ratio"
    assert finding.numbers == {"slow": 8, "attempts": 10, "ratio": 0.8, "window_s": 30.0}


def test_requests_that_hang_count_as_slow_before_any_of_them_ends() -> None:
    traffic = Traffic(BreakerPolicy(adaptive=False))
    assert traffic.slow(9) is None
    assert traffic.slow() is not None


def test_the_score_of_slowness_needs_no_volume() -> None:
    traffic = Traffic(BreakerPolicy(min_requests=NEVER))
    traffic.succeed(60, every_s=10.0)
    finding = traffic.slow(6, every_s=10.0)
    assert finding is not None
    assert finding.reason == "slow"
    assert finding.numbers["slow_score"] >= finding.numbers["threshold"]


def test_one_request_that_is_always_slow_is_a_long_prompt() -> None:
    traffic = Traffic(BreakerPolicy())
    assert traffic.slow(200, every_s=1.0, request="the whole of Proust") is None


def test_a_slow_attempt_that_does_well_in_the_end_gives_half_back() -> None:
    adaptive = Adaptive()
    adaptive.slow(1_000.0)
    assert adaptive.slow_score() == pytest.approx(log(10))
    adaptive.success(1_002.0)
    adaptive.redeem(1_002.0)
    assert adaptive.slow_score() == pytest.approx(log(10) / 2, rel=0.01)


def test_what_is_given_back_is_no_credit_for_later() -> None:
    adaptive = Adaptive()
    adaptive.success(1_000.0)
    adaptive.redeem(1_000.0)
    adaptive.slow(1_001.0)
    assert adaptive.slow_score() == pytest.approx(log(10))


def test_another_policy_keeps_what_was_learnt() -> None:
    traffic = Traffic(BreakerPolicy())
    traffic.succeed(600, every_s=1.0)
    before = traffic.detectors.figures()
    traffic.detectors.adopt(BreakerPolicy(consecutive=2, window_s=10.0))
    assert traffic.detectors.figures() == before
    assert traffic.fail(2) is not None
