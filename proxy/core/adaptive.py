"""The detector that needs no tuning: right at 0.1 and at 50 requests per second.

A minimum count is blind at the low end (100 calls are 17 minutes at 0.1 per second), and a fixed
threshold false-trips at the high end. Three ideas make it independent of traffic:

1. **Evidence adds up** (Page's CUSUM). A failure adds ln(p1/p0) to a score, a success takes
   ln((1-p0)/(1-p1)) from it, never below zero: the score is the log of how much likelier a broken
   target explains what was seen since the score was last zero.
2. **The threshold grows with the rate**: h = ln(rate x 1 day) + 1, in 8..18. The mean run between
   false alarms of a CUSUM is at least e^h samples, so more samples a day ask for a higher h.
3. **Normal is learnt**: p0 follows the target's own share of failures over the last hour, and the
   learning pauses while the score is high, so that an outage is not learnt as normal.

One second of evidence adds at most a third of h: a blip shorter than three ticks, or one dropped connection
that takes forty streams with it, cannot trip it alone. The score of slowness has the same form with
fixed p0 and p1. Beside them stands the lower end of Wilson's interval over the latest results, for a
partial failure which the score comes to take for normal.

Time is cut into ticks of one second; what happens in a tick is only counted, and added to the
scores when the next one begins or when something bad asks for the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, inf, log, sqrt

from proxy.core.window import Counts, RollingWindow

FALSE_ALARM_S = 86_400.0  # a day between false alarms, by a bound that real traffic beats many times over
RATE_TAU_S = 300.0
SCORE_TAU_S = 600.0
TICK_SHARE = 0.34  # of the threshold; a little over a third, for the score fades between three ticks
BASELINE_TAU_S = 3_600.0
PRIOR_ATTEMPTS, PRIOR_FAILURES = 200.0, 2.0  # what is believed of a target never seen: 1 % failures
HISTORY_S, HISTORY_BUCKETS = 600.0, 60
LATEST, LATEST_S = 100, 30.0  # Wilson looks at the latest 100 results, and at 30 seconds at least


@dataclass(frozen=True, slots=True)
class Weights:
    """What one bad result adds to a score, and what one good result adds (a negative number)."""

    bad: float
    good: float


def weights(p0: float, p1: float) -> Weights:
    """Return the log likelihood ratios of "p1 of the results are bad" against "p0 are"."""
    return Weights(log(p1 / p0), log((1 - p1) / (1 - p0)))


SLOW = weights(0.05, 0.50)


def wilson_lower(bad: int, total: int, z: float = 3.0) -> float:
    """Return the lower end of Wilson's score interval for the share of bad results."""
    if total == 0:
        return 0.0
    share, z2 = bad / total, z * z
    middle = share + z2 / (2 * total)
    spread = z * sqrt((share * (1 - share) + z2 / (4 * total)) / total)
    return max(0.0, (middle - spread) / (1 + z2 / total))


def smoothed(counts: Counts) -> float:
    """Return a share of failures fit for comparing targets: 2 % where nothing is known."""
    return (counts.failures + 0.4) / (counts.attempts + 20)


class Score:
    """One cumulative sum. `rose_at` is when it last left zero: the evidence for it is younger.

    `bad` counts this tick's bad results.
    """

    __slots__ = ("_carried", "_forgiven", "bad", "rose_at")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start again from nothing."""
        self._carried = self._forgiven = 0.0
        self.bad = 0
        self.rose_at = inf

    @property
    def is_zero(self) -> bool:
        """Return whether nothing bad has been seen that good results did not outweigh."""
        return not self._carried and not self.bad

    def add_bad(self, now: float) -> None:
        """Count a bad result in this tick."""
        if self.is_zero:
            self.rose_at = now
        self.bad += 1

    def forgive(self, amount: float) -> None:
        """Take something back in this tick, if there is anything to take it from."""
        if not self.is_zero:
            self._forgiven += amount

    def now(self, attempts: int, per: Weights, threshold: float) -> float:
        """Return the score with this tick's results, of which *attempts* is the number."""
        gained = self.bad * per.bad + (attempts - self.bad) * per.good - self._forgiven
        return max(0.0, self._carried + min(threshold * TICK_SHARE, gained))

    def end_tick(self, score: float, threshold: float, gap_s: float) -> None:
        """Carry the *score* of the tick that ended over a gap. Above the threshold nothing piles up."""
        self._carried = min(threshold, score) * exp(-gap_s / SCORE_TAU_S) if score else 0.0
        self._forgiven = 0.0
        self.bad = 0


class Adaptive:
    """Scores of failures and of slowness, the learnt rate and baseline, and the latest results.

    An attempt is counted once, by `success` or by `failure`. What turns out later about a success
    (`failure(late=True)`) or is known before the end (`slow`) adds to what is bad, not to the number.
    """

    __slots__ = (
        "_attempts",
        "_base_attempts",
        "_base_failures",
        "_born",
        "_failures",
        "_history",
        "_rate",
        "_tick",
        "_tick_end",
        "hard",
        "sluggish",
    )

    def __init__(self) -> None:
        self.hard = Score()
        self.sluggish = Score()
        self._history = RollingWindow(HISTORY_S, HISTORY_BUCKETS)
        self._born: int | None = None
        self._tick = 0
        self._tick_end = -inf
        self._attempts = self._failures = 0
        self._rate = 0.0
        self._base_attempts = self._base_failures = 0.0

    def success(self, now: float) -> None:
        """Count an attempt that did well."""
        if now >= self._tick_end:
            self._turn_to(int(now))
        self._attempts += 1

    def failure(self, now: float, *, late: bool = False) -> None:
        """Count a failed attempt, or (*late*) that one counted as a success failed after all."""
        if now >= self._tick_end:
            self._turn_to(int(now))
        self.hard.add_bad(now)
        self._failures += 1
        self._attempts += not late

    def slow(self, now: float) -> None:
        """Count that an attempt is slow; the attempt itself is counted when it is decided."""
        if now >= self._tick_end:
            self._turn_to(int(now))
        self.sluggish.add_bad(now)

    def redeem(self, now: float) -> None:
        """Give back half of a slow attempt's weight: it did well in the end, and has just been counted."""
        if now >= self._tick_end:
            self._turn_to(int(now))
        self.sluggish.forgive(SLOW.bad / 2 + SLOW.good)

    @property
    def rate_per_s(self) -> float:
        """Return the learnt rate of results, corrected for the time it has had to learn."""
        if self._born is None:
            return 0.0
        age_s = self._tick - self._born + 1
        return (self._rate + self._attempts / RATE_TAU_S) / (1 - exp(-age_s / RATE_TAU_S))

    @property
    def baseline(self) -> float:
        """Return the learnt share of failures."""
        return (self._base_failures + PRIOR_FAILURES) / (self._base_attempts + PRIOR_ATTEMPTS)

    @property
    def threshold(self) -> float:
        """Return h: the score that trips."""
        return min(max(log(max(self.rate_per_s, 1e-9) * FALSE_ALARM_S) + 1, 8.0), 18.0)

    def hard_score(self) -> float:
        """Return the score of failures."""
        if self.hard.is_zero:
            return 0.0
        p0 = min(max(1.5 * self.baseline + 0.01, 0.02), 0.10)
        p1 = min(max(4 * p0, 0.30), 0.60)
        return self.hard.now(self._attempts, weights(p0, p1), self.threshold)

    def slow_score(self) -> float:
        """Return the score of slowness."""
        if self.sluggish.is_zero:
            return 0.0
        # What is slow may not be decided yet, and so not be among the attempts.
        return self.sluggish.now(max(self._attempts, self.sluggish.bad), SLOW, self.threshold)

    def latest(self, now: float) -> Counts:
        """Return the latest results: at least 100 or as many as there were in ten minutes."""
        kept = self._history.latest(now, LATEST_S, LATEST - self._attempts)
        attempts, failures = kept.attempts + self._attempts, kept.failures + self._failures
        return Counts(max(attempts, failures), failures, 0)

    def clear(self) -> None:
        """Forget the evidence, not what was learnt of rate and baseline."""
        self.hard.clear()
        self.sluggish.clear()
        self._history.clear()
        self._attempts = self._failures = 0

    def _turn_to(self, tick: int) -> None:
        if self._born is None:
            self._born = self._tick = tick
        gap_s = float(tick - self._tick)
        self._end_tick(gap_s)
        fade = exp(-gap_s / BASELINE_TAU_S)
        self._base_attempts *= fade
        self._base_failures *= fade
        self._rate *= exp(-gap_s / RATE_TAU_S)
        self._attempts = self._failures = 0
        self._tick = tick
        self._tick_end = tick + 1.0

    def _end_tick(self, gap_s: float) -> None:
        learning = True
        if not (self.hard.is_zero and self.sluggish.is_zero):
            threshold, hard = self.threshold, self.hard_score()
            learning = hard < threshold / 2
            self.hard.end_tick(hard, threshold, gap_s)
            self.sluggish.end_tick(self.slow_score(), threshold, gap_s)
        if learning:
            self._base_attempts += self._attempts
            self._base_failures += self._failures
        self._rate += self._attempts / RATE_TAU_S
        self._history.add(float(self._tick), attempts=self._attempts, failures=self._failures)
