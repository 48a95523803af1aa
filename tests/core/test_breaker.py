"""One breaker's life, told as stories: `succeed`, `fail`, `wait`, and what became of it."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from proxy.core.breaker import TRANSITIONS, Admission, Breaker, Move, Signal, State, next_state
from proxy.core.outcome import OK, Kind, Outcome
from proxy.core.target import BreakerPolicy

SERVER_ERROR = Outcome(Kind.SERVER_ERROR, status=500)
NO_ANSWER = Outcome(Kind.NO_ANSWER)
INTERRUPTED = Outcome(Kind.INTERRUPTED)
GONE = Outcome(Kind.CLIENT_GONE)
RATE_LIMITED = Outcome(Kind.RATE_LIMITED, status=429)
PLAIN = BreakerPolicy(adaptive=False)

NEUTRAL = [
    pytest.param(Outcome(Kind.CLIENT_GONE), id="the client went away"),
    pytest.param(Outcome(Kind.CANCELLED), id="cancelled by us"),
    pytest.param(Outcome(Kind.REJECTED, status=400), id="the client's mistake"),
    pytest.param(Outcome(Kind.TOO_LARGE, status=413), id="too large"),
    pytest.param(Outcome(Kind.REFUSED, status=400), id="refused"),
    pytest.param(Outcome(Kind.STALE_CONNECTION), id="a stale connection"),
    pytest.param(Outcome(Kind.NO_ANSWER, client_cut=True), id="cut by the client's own limit"),
    pytest.param(Outcome(Kind.OVERLOADED, status=503, unready=True), id="still loading its model"),
]


class Certain(Random):
    """Chance that always gives the smallest number: the longest open time, and every turn is ours."""

    def random(self) -> float:
        return 0.0


class Unlucky(Random):
    """Chance that always gives the largest number: the shortest open time, and no turn is ours."""

    def random(self) -> float:
        return 1.0 - 2**-53


class Story:
    """A breaker, a clock, and requests that each have a name of their own."""

    def __init__(self, policy: BreakerPolicy = PLAIN, rng: Random | None = None) -> None:
        self.breaker = Breaker(policy)
        self.rng = rng or Certain()
        self.now = 1_000.0
        self.moves: list[Move] = []
        self.elsewhere: float | None = 0.02
        self._number = 0

    def wait(self, seconds: float) -> Story:
        self.now += seconds
        return self

    def admit(self, **lease: float) -> Admission | None:
        return self.breaker.admit(self.now, self.rng, **lease)

    def begin(self) -> Admission:
        admission = self.admit()
        assert admission is not None, f"refused at {self.now}: {self.breaker}"
        return admission

    def answer(self, admission: Admission, seconds: float = 0.3) -> None:
        self.moves += self.breaker.first_content(
            admission, seconds, self.now, request=self._name(), rng=self.rng, alternative=self._alternative
        )

    def end(
        self, admission: Admission, outcome: Outcome, request: str | None = None, *, poisoned: bool = False
    ) -> None:
        self.moves += self.breaker.record(
            admission,
            outcome,
            self.now,
            request=request or self._name(),
            rng=self.rng,
            committed=admission.answered,
            poisoned=poisoned,
            alternative=self._alternative,
        )

    def pass_soft_limit(self, admission: Admission) -> None:
        self.moves += self.breaker.soft_limit_passed(
            admission, self.now, request=self._name(), rng=self.rng, alternative=self._alternative
        )

    def succeed(self, times: int = 1) -> Story:
        for _ in range(times):
            admission = self.begin()
            self.answer(admission)
            self.end(admission, OK)
        return self

    def fail(self, times: int = 1, outcome: Outcome = SERVER_ERROR) -> Story:
        for _ in range(times):
            self.end(self.begin(), outcome)
        return self

    def break_off(self, times: int = 1) -> Story:
        for _ in range(times):
            admission = self.begin()
            self.answer(admission)
            self.wait(1.0)
            self.end(admission, INTERRUPTED)
        return self

    def trip(self) -> Story:
        return self.fail(5)

    def trip_and_cool_down(self) -> Story:
        return self.trip().wait(5.0)

    def recover(self) -> Story:
        return self.trip_and_cool_down().succeed()

    @property
    def state(self) -> State:
        return self.breaker.state

    @property
    def path(self) -> list[tuple[str, str]]:
        return [(move.to_state.value, move.reason) for move in self.moves]

    def _alternative(self) -> float | None:
        return self.elsewhere

    def _name(self) -> str:
        self._number += 1
        return f"request {self._number}"


# The table


@pytest.mark.parametrize(
    ("state", "signal"), [pytest.param(*p, id=f"{p[0]} {p[1].value}") for p in product(State, Signal)]
)
def test_listed_pairs_move_and_all_others_raise(state: State, signal: Signal) -> None:
    if (state, signal) in TRANSITIONS:
        assert next_state(state, signal) is TRANSITIONS[state, signal]
    else:
        with pytest.raises(KeyError):
            next_state(state, signal)


def test_every_state_can_be_left_and_reached() -> None:
    assert {before for before, _ in TRANSITIONS} == set(State)
    assert set(TRANSITIONS.values()) == set(State)


def test_a_whole_outage_walks_round_the_table() -> None:
    story = Story().trip().wait(5).fail().wait(10).succeed().wait(15).succeed()
    assert story.path == [
        ("open", "consecutive"),
        ("half_open", "cooled_down"),
        ("open", "probe_failed"),
        ("half_open", "cooled_down"),
        ("recovering", "probe_passed"),
        ("closed", "recovered"),
    ]
    assert [move.from_state for move in story.moves[1:]] == [move.to_state for move in story.moves[:-1]]
    assert all(move.enforced for move in story.moves)


# Closed


def test_a_closed_breaker_admits_everybody() -> None:
    story = Story().succeed(100)
    assert story.state is State.CLOSED
    assert story.breaker.peek(story.now)
    assert story.breaker.available_at(story.now) == story.now
    assert story.breaker.share(story.now) == 1.0
    assert story.moves == []


def test_five_failures_in_a_row_open_and_say_so() -> None:
    story = Story().trip()
    assert story.state is State.OPEN
    (move,) = story.moves
    assert (move.from_state, move.to_state, move.reason, move.at) == (
        State.CLOSED,
        State.OPEN,
        "consecutive",
        1_000.0,
    )
    assert move.numbers == {"failures": 5, "requests": 5, "open_s": 5.0}
    assert story.breaker.reason == "consecutive"
    assert story.breaker.numbers == move.numbers


@pytest.mark.parametrize("outcome", NEUTRAL)
def test_neutral_outcomes_are_neither_failures_nor_successes(outcome: Outcome) -> None:
    story = Story().fail(4)
    story.fail(1_000, outcome)
    assert story.state is State.CLOSED
    assert story.breaker.snapshot(story.now).failure_ratio == 1.0, "four of four that said anything"
    story.fail()
    assert story.state is State.OPEN, "nor do they end a run of failures"


def test_a_thousand_rate_limits_open_nothing() -> None:
    assert Story(BreakerPolicy()).fail(1_000, RATE_LIMITED).state is State.CLOSED


def test_one_bad_request_sent_a_thousand_times_opens_nothing() -> None:
    story = Story(BreakerPolicy())
    for _ in range(1_000):
        story.end(story.wait(0.1).begin(), SERVER_ERROR, poisoned=True)
    assert story.state is State.CLOSED
    assert story.moves == []


def test_one_request_in_a_retry_loop_opens_nothing() -> None:
    story = Story(BreakerPolicy())
    for _ in range(1_000):
        story.end(story.wait(0.1).begin(), SERVER_ERROR, "the same one")
    assert story.state is State.CLOSED


def test_each_attempt_is_settled_once() -> None:
    story = Story()
    admission = story.begin()
    story.end(admission, OK)
    with pytest.raises(ValueError, match="settled already"):
        story.end(admission, SERVER_ERROR)


def test_an_answer_is_counted_once_however_often_it_is_reported() -> None:
    story = Story(BreakerPolicy(consecutive=1_000))
    for _ in range(5):
        admission = story.begin()
        story.answer(admission)
        story.answer(admission)
        story.end(admission, OK)
    story.fail(4)
    assert story.state is State.CLOSED
    story.fail(1)
    assert story.breaker.numbers["attempts"] == 10


def test_an_answer_without_a_first_content_counts_too() -> None:
    story = Story()
    for _ in range(10):
        story.fail(1)
        story.end(story.begin(), OK)
        story.end(story.begin(), OK)
    assert story.state is State.CLOSED
    assert story.breaker.snapshot(story.now).failure_ratio == pytest.approx(1 / 3)


def test_five_interrupted_streams_in_a_row_open_although_each_had_a_first_content() -> None:
    story = Story().break_off(4)
    assert story.state is State.CLOSED
    story.break_off()
    assert story.state is State.OPEN
    assert story.path == [("open", "consecutive")]


def test_a_completed_stream_ends_a_run_of_interruptions() -> None:
    story = Story(BreakerPolicy(min_requests=1_000, adaptive=False))
    for _ in range(20):
        story.break_off(4).succeed()
    assert story.state is State.CLOSED


def test_streams_from_before_an_outage_that_end_well_do_not_end_a_run_of_failures() -> None:
    story = Story()
    streams = [story.begin() for _ in range(4)]
    for stream in streams:
        story.answer(stream)
    for stream in streams:
        story.fail().end(stream, OK)
    assert story.state is State.CLOSED
    story.fail()
    assert story.path[-1] == ("open", "consecutive")


def test_one_dropped_connection_that_kills_forty_streams_does_not_open() -> None:
    story = Story(BreakerPolicy())
    for _ in range(300):
        story.wait(0.1).succeed()
    streams = []
    for _ in range(40):
        streams.append(story.wait(0.1).begin())
        story.answer(streams[-1])
    for stream in streams:
        story.end(stream, INTERRUPTED)
    assert story.state is State.CLOSED


# Open


def test_an_open_breaker_admits_nobody_until_it_has_cooled_down() -> None:
    story = Story().trip()
    assert story.breaker.available_at(story.now) == story.now + 5.0
    assert story.breaker.share(story.now) == 0.0
    story.wait(4.999)
    assert not story.breaker.peek(story.now)
    assert story.admit() is None
    story.wait(0.001)
    assert story.breaker.peek(story.now)
    assert story.begin().probe


def test_asking_whether_one_might_changes_nothing() -> None:
    story = Story().trip_and_cool_down()
    for _ in range(3):
        assert story.breaker.peek(story.now)
    assert story.state is State.OPEN


def test_refused_requests_leave_no_trace() -> None:
    story = Story().trip()
    before = story.breaker.snapshot(story.now)
    assert [story.admit() for _ in range(100)] == [None] * 100
    assert story.breaker.snapshot(story.now) == before


def test_the_open_time_doubles_at_each_failed_probe_up_to_its_limit() -> None:
    story = Story().trip()
    waits = []
    for _ in range(6):
        waits.append(story.breaker.available_at(story.now) - story.now)
        story.wait(waits[-1]).fail()
    assert waits == pytest.approx([5, 10, 20, 30, 30, 30])


def test_jitter_takes_off_up_to_half_of_the_open_time() -> None:
    assert Story(rng=Certain()).trip().breaker.numbers["open_s"] == 5.0
    assert Story(rng=Unlucky()).trip().breaker.numbers["open_s"] == pytest.approx(2.5)
    times = {Story(rng=Random(seed)).trip().breaker.numbers["open_s"] for seed in range(100)}
    assert len(times) == 100
    assert all(2.5 <= time <= 5.0 for time in times)


def test_the_open_time_does_not_overflow() -> None:
    story = Story(BreakerPolicy(open_s=5.0, open_max_s=float("1e300"), adaptive=False)).trip()
    for _ in range(3_000):
        story.now = story.breaker.available_at(story.now)
        story.fail()
        assert story.breaker.numbers["open_s"] <= 5.0 * 2.0**60


def test_an_open_time_longer_than_its_limit_is_cut() -> None:
    story = Story(BreakerPolicy(open_s=60.0, open_max_s=30.0, adaptive=False)).trip()
    assert story.breaker.numbers["open_s"] == 30.0


def test_a_relapse_soon_after_recovering_waits_longer_than_the_first_time() -> None:
    story = Story().recover().wait(15).succeed().wait(60).trip()
    assert story.breaker.numbers["open_s"] == 10.0


def test_the_doublings_are_forgotten_one_by_one_while_it_stays_closed() -> None:
    story = Story().trip()
    for _ in range(3):
        story.now = story.breaker.available_at(story.now)
        story.fail()
    story.wait(30).succeed().wait(15).succeed()
    assert story.wait(299).trip().breaker.numbers["open_s"] == 30.0, "four doublings: 80 s, cut to 30 s"
    story.wait(30).succeed().wait(15).succeed()
    assert story.wait(900).trip().breaker.numbers["open_s"] == 20.0, "of five doublings, three are forgotten"
    story.wait(30).succeed().wait(15).succeed()
    assert story.wait(86_400).trip().breaker.numbers["open_s"] == 5.0


def test_a_passed_health_check_shortens_the_wait_and_closes_nothing() -> None:
    story = Story().trip()
    story.moves += story.breaker.health_check_passed(story.now + 1)
    assert story.state is State.OPEN
    assert story.wait(1).begin().probe


def test_a_health_check_changes_nothing_in_any_other_state() -> None:
    for story in (Story(), Story().recover()):
        before = story.breaker.snapshot(story.now)
        assert story.breaker.health_check_passed(story.now) == []
        assert story.breaker.snapshot(story.now) == before


# Opened from outside


@pytest.mark.parametrize("outage", ["succeed", "recover"])
def test_it_opens_for_exactly_as_long_as_it_is_told(outage: str) -> None:
    story = Story(rng=Unlucky())
    getattr(story, outage)()
    story.moves += story.breaker.trip("unauthorized", 300.0, story.now)
    assert story.state is State.OPEN
    assert story.breaker.available_at(story.now) == story.now + 300.0
    assert story.path[-1] == ("open", "unauthorized")


def test_told_again_it_keeps_the_longer_wait_and_does_not_move() -> None:
    story = Story()
    story.moves += story.breaker.trip("unauthorized", 300.0, story.now)
    story.moves += story.breaker.trip("quota_spent", 60.0, story.now)
    assert story.breaker.available_at(story.now) == story.now + 300.0
    story.moves += story.breaker.trip("quota_spent", 900.0, story.now)
    assert story.breaker.available_at(story.now) == story.now + 900.0
    assert story.path == [("open", "unauthorized")]
    assert story.breaker.reason == "quota_spent"


@pytest.mark.parametrize("told_first", [True, False])
def test_a_probe_that_opens_it_from_outside_may_be_reported_in_any_order(told_first: bool) -> None:
    story = Story()
    story.breaker.trip("unauthorized", 300.0, story.now)
    probe = story.wait(300).begin()
    if told_first:
        story.breaker.trip("unauthorized", 600.0, story.now)
    story.end(probe, Outcome(Kind.UNAUTHORIZED, status=401))
    story.breaker.trip("unauthorized", 600.0, story.now)
    assert story.state is State.OPEN
    assert story.breaker.available_at(story.now) == story.now + 600.0


# Half open


def test_there_is_one_probe_at_a_time() -> None:
    story = Story().trip_and_cool_down()
    assert story.begin().probe
    assert [story.admit() for _ in range(10)] == [None] * 10
    assert not story.breaker.peek(story.now)


def test_a_probe_passes_with_its_first_content() -> None:
    story = Story().trip_and_cool_down()
    story.answer(story.begin())
    assert story.state is State.RECOVERING
    assert story.path[-1] == ("recovering", "probe_passed")


@pytest.mark.parametrize("outcome", NEUTRAL)
def test_a_neutral_probe_gives_no_verdict_and_frees_its_lease_at_once(outcome: Outcome) -> None:
    story = Story().trip_and_cool_down()
    for _ in range(5):
        story.end(story.begin(), outcome)
        assert story.state is State.HALF_OPEN
        assert story.breaker.peek(story.now)
    assert story.begin().probe


def test_a_poisoned_probe_gives_no_verdict() -> None:
    story = Story().trip_and_cool_down()
    story.end(story.begin(), SERVER_ERROR, poisoned=True)
    assert story.state is State.HALF_OPEN
    assert story.begin().probe


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [(SERVER_ERROR, "probe_failed"), (NO_ANSWER, "probe_failed"), (RATE_LIMITED, "probe_rate_limited")],
)
def test_a_probe_fails_by_a_failure_and_by_a_429(outcome: Outcome, reason: str) -> None:
    story = Story().trip_and_cool_down().fail(1, outcome)
    assert story.state is State.OPEN
    assert story.path[-1] == ("open", reason)
    assert story.breaker.numbers["open_s"] == 10.0


def test_a_probe_without_content_at_its_soft_limit_has_failed() -> None:
    story = Story().trip_and_cool_down()
    probe = story.begin()
    story.wait(5).pass_soft_limit(probe)
    assert story.path[-1] == ("open", "probe_slow")
    story.wait(1).answer(probe)
    story.end(probe, OK)
    assert story.state is State.OPEN, "what it says later comes too late"


def test_a_probe_slower_than_the_configured_limit_has_failed() -> None:
    story = Story(BreakerPolicy(slow_after_s=2.0, adaptive=False)).trip_and_cool_down()
    probe = story.begin()
    story.wait(3).answer(probe, 3.0)
    assert story.path[-1] == ("open", "probe_slow")


def test_a_hung_probe_does_not_pin_it() -> None:
    story = Story().trip_and_cool_down()
    hung = story.begin()
    assert story.breaker.available_at(story.now) == story.now + 30.0
    assert story.wait(29.9).admit() is None
    fresh = story.wait(0.1).begin()
    assert fresh.probe
    assert story.admit() is None
    story.answer(hung)
    story.end(hung, OK)
    assert story.state is State.HALF_OPEN, "the expired probe has lost its say"
    story.answer(fresh)
    assert story.state is State.RECOVERING


def test_the_time_that_a_failed_probe_took_is_part_of_the_open_time() -> None:
    story = Story().trip_and_cool_down()
    probe = story.begin()
    story.wait(7.0).end(probe, NO_ANSWER)
    assert story.breaker.numbers["open_s"] == 3.0
    assert story.breaker.available_at(story.now) == story.now + 3.0
    probe = story.wait(3.0).begin()
    story.wait(29.0).end(probe, NO_ANSWER)
    assert story.breaker.available_at(story.now) == story.now, "it has taken longer than the open time"
    story.end(story.begin(), SERVER_ERROR)
    assert story.breaker.available_at(story.now) == story.now + 30.0


def test_the_open_time_counts_from_the_probe_that_failed_and_not_from_an_earlier_one() -> None:
    story = Story().trip_and_cool_down()
    story.begin()
    probe = story.wait(30.0).begin()
    story.wait(1.0).end(probe, SERVER_ERROR)
    assert story.breaker.available_at(story.now) == story.now + 9.0


def test_a_longer_lease_is_granted_and_a_shorter_one_is_not() -> None:
    story = Story().trip_and_cool_down()
    assert story.admit(lease_s=120.0) is not None
    assert story.breaker.available_at(story.now) == story.now + 120.0
    story = Story().trip_and_cool_down()
    assert story.admit(lease_s=1.0) is not None
    assert story.breaker.available_at(story.now) == story.now + 30.0


def test_stragglers_from_before_the_trip_are_ignored() -> None:
    story = Story()
    old = [story.begin() for _ in range(30)]
    story.trip()
    for admission in old[:10]:
        story.answer(admission)
        story.end(admission, OK)
    assert story.state is State.OPEN, "a late success does not close it"
    story.wait(5).begin()
    for admission in old[10:20]:
        story.end(admission, SERVER_ERROR)
    assert story.state is State.HALF_OPEN, "a late failure is not the probe's"
    story = Story()
    old = [story.begin() for _ in range(30)]
    story.recover().wait(15).succeed()
    for admission in old:
        story.end(admission, SERVER_ERROR)
    assert story.state is State.CLOSED


# Recovering


def test_recovering_begins_with_one_request_at_a_time() -> None:
    story = Story(rng=Unlucky()).trip_and_cool_down().succeed()
    story.wait(1)
    first = story.begin()
    assert story.admit() is None
    story.answer(first)
    second = story.begin()
    assert story.admit() is None
    story.end(second, GONE)
    assert story.begin() is not None


def test_a_request_lost_while_recovering_blocks_nobody_for_long() -> None:
    story = Story().recover()
    story.begin()
    assert story.admit() is None
    assert story.wait(3.75).admit() is not None


def test_the_share_doubles_until_all_of_the_traffic_is_back() -> None:
    story = Story().recover()
    shares = [story.breaker.share(story.now + quarter * 3.75) for quarter in range(5)]
    assert shares == pytest.approx([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1])


def test_the_share_is_what_is_admitted() -> None:
    story = Story(rng=Random(7)).trip_and_cool_down()
    story.succeed().wait(7.5)
    admitted = sum(story.admit() is not None for _ in range(4_000))
    assert admitted == pytest.approx(1_000, rel=0.1)


def test_after_the_recovery_it_is_closed() -> None:
    story = Story().recover().wait(14.9).succeed()
    assert story.state is State.RECOVERING
    story.wait(0.1).succeed()
    assert story.state is State.CLOSED
    assert story.path[-1] == ("closed", "recovered")


def test_a_recovery_without_traffic_ends_when_somebody_looks() -> None:
    story = Story().recover().wait(3_600)
    assert story.breaker.snapshot(story.now).state is State.CLOSED
    assert [move.reason for move in story.breaker.take_moves()] == ["recovered"]
    assert story.breaker.take_moves() == []


def test_one_failure_while_recovering_halves_the_share() -> None:
    story = Story().recover().wait(7.5)
    before = story.breaker.share(story.now)
    story.fail()
    assert story.state is State.RECOVERING
    assert story.breaker.share(story.now) == pytest.approx(before / 2)


def test_two_failures_while_recovering_open_it_again_for_longer() -> None:
    story = Story().recover().wait(7.5).fail().succeed().fail()
    assert story.state is State.OPEN
    assert story.path[-1] == ("open", "relapsed")
    assert story.breaker.numbers["open_s"] == 10.0


def test_the_odd_failure_of_a_busy_healthy_target_holds_nothing_up() -> None:
    story = Story().recover().wait(7.5)
    before = story.breaker.share(story.now)
    for _ in range(20):
        story.succeed(49).fail()
    assert story.state is State.RECOVERING
    assert story.breaker.share(story.now) == before


def test_a_target_that_dies_late_in_a_busy_recovery_is_seen_by_the_detectors() -> None:
    story = Story().recover().wait(7.5).succeed(500).fail(5)
    assert story.path[-1] == ("open", "consecutive")


def test_slow_attempts_while_recovering_count_as_failures() -> None:
    story = Story().recover().wait(7.5)
    first, second = story.begin(), story.begin()
    story.pass_soft_limit(first)
    assert story.state is State.RECOVERING
    story.end(first, NO_ANSWER)
    assert story.state is State.RECOVERING, "one attempt is one strike"
    story.pass_soft_limit(second)
    assert story.path[-1] == ("open", "relapsed")


def test_a_recovery_of_no_length_gives_everything_back_after_the_probe() -> None:
    story = Story(BreakerPolicy(recovery_s=0.0, adaptive=False)).recover()
    assert story.breaker.share(story.now) == 1.0
    assert story.succeed().state is State.CLOSED


def test_the_old_evidence_is_forgotten_when_the_probe_has_passed() -> None:
    story = Story()
    story.fail(4).succeed(11).trip()
    assert story.breaker.snapshot(story.now).failure_ratio == pytest.approx(9 / 20), "shown while it is open"
    story.wait(5).succeed()
    assert story.breaker.snapshot(story.now).failure_ratio is None


# Slowness


def test_attempts_past_their_soft_limit_open_it_while_they_still_run() -> None:
    story = Story(BreakerPolicy())
    for _ in range(60):
        story.wait(1).succeed()
    for _ in range(6):
        story.wait(1).pass_soft_limit(story.begin())
    assert story.state is State.OPEN
    assert story.breaker.reason == "slow"


def test_slowness_opens_nothing_where_there_is_nobody_else() -> None:
    story = Story(BreakerPolicy())
    story.elsewhere = None
    for _ in range(200):
        admission = story.wait(1).begin()
        story.pass_soft_limit(admission)
        story.answer(admission)
        story.end(admission, OK)
    assert story.state is State.CLOSED
    assert story.breaker.snapshot(story.now).slow_ratio == 1.0


def test_first_contents_beyond_the_configured_limit_are_slow() -> None:
    story = Story(BreakerPolicy(slow_after_s=2.0, adaptive=False))
    for _ in range(10):
        admission = story.begin()
        story.answer(admission, 2.5)
        story.end(admission, OK)
    assert story.state is State.OPEN
    assert story.breaker.reason == "slow_ratio"
    assert story.breaker.numbers["slow"] == 10


def test_a_configured_limit_is_not_anticipated_by_the_adaptive_one() -> None:
    story = Story(BreakerPolicy(slow_after_s=30.0))
    for _ in range(20):
        admission = story.begin()
        story.wait(10).pass_soft_limit(admission)
        story.answer(admission, 10.0)
        story.end(admission, OK)
    assert story.state is State.CLOSED
    assert story.breaker.snapshot(story.now).slow_ratio == 0.0


def test_a_slow_attempt_is_counted_once_for_all_that_is_said_of_it() -> None:
    story = Story(BreakerPolicy(adaptive=False, consecutive=1_000, failure_ratio=1.0))
    story.succeed(1)
    for _ in range(3):
        admission = story.begin()
        story.pass_soft_limit(admission)
        story.pass_soft_limit(admission)
        story.end(admission, NO_ANSWER)
    assert story.breaker.snapshot(story.now).slow_ratio == pytest.approx(3 / 4)


def test_attempts_that_never_answer_are_slow_as_well_as_failed() -> None:
    story = Story(BreakerPolicy(adaptive=False, consecutive=1_000)).succeed(5).fail(4, NO_ANSWER)
    snapshot = story.breaker.snapshot(story.now)
    assert (snapshot.failure_ratio, snapshot.slow_ratio) == (pytest.approx(4 / 9), pytest.approx(4 / 9))


# Against the rules


def test_the_least_bad_is_let_in_and_its_success_counts_as_a_probe() -> None:
    story = Story().trip()
    admission = story.breaker.admit_anyway(story.now, story.rng)
    assert not admission.probe
    story.answer(admission)
    assert story.path[1:] == [("half_open", "answered"), ("recovering", "probe_passed")]


@pytest.mark.parametrize("outcome", [SERVER_ERROR, RATE_LIMITED, GONE])
def test_the_least_bad_failing_changes_nothing(outcome: Outcome) -> None:
    story = Story().trip()
    until = story.breaker.available_at(story.now)
    for _ in range(20):
        story.end(story.breaker.admit_anyway(story.now, story.rng), outcome)
    assert story.state is State.OPEN
    assert story.breaker.available_at(story.now) == until


def test_the_least_bad_does_not_disturb_a_probe() -> None:
    story = Story().trip_and_cool_down()
    probe = story.begin()
    story.end(story.breaker.admit_anyway(story.now, story.rng), SERVER_ERROR)
    assert story.admit() is None
    story.end(probe, SERVER_ERROR)
    assert story.state is State.OPEN


# Modes


def test_observing_detects_and_reports_but_refuses_nobody() -> None:
    story = Story(BreakerPolicy(mode="observe", adaptive=False)).trip()
    assert story.path == [("open", "consecutive")]
    assert not story.moves[0].enforced
    assert story.state is State.CLOSED
    assert story.breaker.peek(story.now)
    assert story.breaker.share(story.now) == 1.0
    assert story.breaker.available_at(story.now) == story.now
    snapshot = story.breaker.snapshot(story.now)
    assert (snapshot.state, snapshot.detected, snapshot.opens_until) == (State.CLOSED, State.OPEN, None)


def test_observing_moves_as_often_as_enforcing_would() -> None:
    """An hour of a dead target at ten requests per second is some probes, not 36,000 trips."""

    def dead_for_an_hour(mode: str) -> list[tuple[str, str]]:
        story = Story(BreakerPolicy(mode=mode), rng=Random(3))
        while story.now < 4_600.0:
            admission = story.wait(0.1).admit()
            if admission is not None:
                assert not (admission.probe and mode == "observe"), "a probe would get shorter limits"
                story.end(admission, SERVER_ERROR)
        return story.path

    assert dead_for_an_hour("observe") == dead_for_an_hour("enforce")
    assert len(dead_for_an_hour("observe")) < 400


def test_observing_sees_the_recovery_too() -> None:
    story = Story(BreakerPolicy(mode="observe"), rng=Random(3)).trip().succeed(10)
    for _ in range(300):
        story.wait(0.1).succeed()
    assert story.path == [
        ("open", "consecutive"),
        ("half_open", "cooled_down"),
        ("recovering", "probe_passed"),
        ("closed", "recovered"),
    ]


def test_switched_off_it_neither_counts_nor_refuses() -> None:
    story = Story(BreakerPolicy(mode="off")).fail(1_000)
    assert story.breaker.trip("unauthorized", 300.0, story.now) == []
    assert story.succeed().state is State.CLOSED
    assert story.moves == []
    assert story.breaker.snapshot(story.now).failure_ratio is None


def test_with_every_detector_disabled_it_never_trips() -> None:
    never = 10**9
    policy = BreakerPolicy(consecutive=never, min_requests=never, adaptive=False)
    assert Story(policy).fail(2_000).state is State.CLOSED


def test_another_policy_is_followed_in_the_state_it_is_in() -> None:
    story = Story().trip()
    story.breaker.adopt(BreakerPolicy(open_s=1.0, mode="observe"))
    assert story.state is State.CLOSED
    story.breaker.adopt(BreakerPolicy(open_s=1.0, consecutive=2))
    assert story.state is State.OPEN
    story.wait(5).succeed().wait(15).succeed()
    assert story.fail(2).state is State.OPEN


def test_the_same_policy_again_disturbs_nothing() -> None:
    story = Story().fail(4)
    story.breaker.adopt(BreakerPolicy(adaptive=False))
    assert story.fail().state is State.OPEN


# What there is to see


def test_a_snapshot_tells_the_state_and_why() -> None:
    story = Story(BreakerPolicy()).succeed(5).fail(5)
    snapshot = story.breaker.snapshot(story.now)
    assert snapshot.state is snapshot.detected is State.OPEN
    assert snapshot.reason == "consecutive"
    assert snapshot.numbers["failures"] == 5
    assert snapshot.failure_ratio == 0.5
    assert snapshot.slow_ratio == 0.0
    assert snapshot.share == 0.0
    assert snapshot.opens_until == story.now + 5.0
    assert snapshot.figures.keys() == {"score", "slow_score", "threshold", "baseline", "rate_per_s"}


def test_an_unused_breaker_has_measured_nothing() -> None:
    snapshot = Breaker(BreakerPolicy()).snapshot(1_000.0)
    assert (snapshot.failure_ratio, snapshot.slow_ratio, snapshot.share) == (None, None, 1.0)
    assert snapshot.reason == ""


def test_its_repr_tells_its_state() -> None:
    assert repr(Story().trip().breaker).startswith("<Breaker open generation=1 consecutive {'failures': 5")


def test_it_stays_small_however_much_it_sees() -> None:
    """Many different requests, slow and failing and lost, must not add up."""
    story = Story(BreakerPolicy(consecutive=10**9, min_requests=10**9, adaptive=False))
    story.elsewhere = None

    def size() -> int:
        seen: set[int] = set()

        def measure(thing: object) -> int:
            if id(thing) in seen or isinstance(thing, type):
                return 0
            seen.add(id(thing))
            held = list(getattr(thing, "__dict__", {}).values())
            held += [
                getattr(thing, name) for name in getattr(type(thing), "__slots__", ()) if hasattr(thing, name)
            ]
            held += list(thing) if isinstance(thing, (list, tuple, set)) else []
            held += [*thing, *thing.values()] if isinstance(thing, dict) else []
            return 1 + sum(measure(part) for part in held)

        return measure(story.breaker)

    def live() -> None:
        for number in range(3_000):
            admission = story.wait(0.01).admit()
            if admission is not None:
                story.pass_soft_limit(admission)
                if number % 3:
                    story.end(admission, SERVER_ERROR)

    live()
    once = size()
    live()
    assert story.state is State.CLOSED
    assert size() <= once + 50, "but for numbers that are objects of their own"
    assert once < 500
