"""Carrying a broken stream on, on another target. What to ask and what to skip: `dialects.resume`.

The core chooses the targets as ever. On each of them the ways to go on are tried in turn under one
permit: an answer that turns out not to be the rest of the first, and a target that refuses to be given
the beginning of its answer, are no failures of the target.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, assert_never

from proxy.core.outcome import Kind, Outcome
from proxy.core.steps import GiveUp, Try, Wait
from proxy.dialects.openai import Call
from proxy.dialects.resume import Story, Way, ask, ways_for
from proxy.transport.heartbeat import Heartbeat
from proxy.transport.relay import DIVERGED
from proxy.transport.upstream import Attempt

MAX_REFUSED = 1024  # targets that are remembered: through a wildcard, clients name their models
BROKE = frozenset({Kind.INTERRUPTED, Kind.STALLED})
REFUSALS = frozenset({Kind.REJECTED, Kind.REFUSED})  # what servers say to a prefill that they don't take


class Carrier(Protocol):
    """The request whose stream broke. An attempt that is cancelled settles itself."""

    call: Call
    heart: Heartbeat

    def next_step(self) -> Try | Wait | GiveUp:
        """Return what to do now."""
        ...

    def attempt(self, step: Try) -> Attempt:
        """Return the attempt that *step* asks for, not yet running."""
        ...

    async def exchange(self, attempt: Attempt, step: Try, call: Call | None = None) -> Outcome:
        """Run an attempt to its first decisive moment, perhaps with another call."""
        ...

    async def carry(self, attempt: Attempt) -> Outcome:
        """Relay an attempt's stream; settle it unless it has diverged."""
        ...

    def settle(self, attempt: Attempt, outcome: Outcome) -> None:
        """Take note of how an attempt ended."""
        ...

    def note_resumed(self, upstream: str, result: str) -> None:
        """Tell that the stream was resumed, or could not be."""
        ...


class Resumption:
    """One broken stream and its continuation.

    `refused` holds the targets that have refused a prefill, as (upstream, model): shared and kept.
    """

    __slots__ = ("_carrier", "_clock", "_refused", "_story")

    def __init__(
        self, carrier: Carrier, story: Story, refused: set[tuple[str, str]], clock: Callable[[], float]
    ) -> None:
        self._carrier = carrier
        self._story = story
        self._refused = refused
        self._clock = clock

    async def run(self, outcome: Outcome) -> Outcome:
        """Carry the stream on, by as many targets as it takes; return how it ended at last."""
        while outcome.kind in BROKE:
            if not self._story.can_go_on:
                self._carrier.note_resumed("", "unsafe")
                return outcome
            ended = await self._next()
            if ended is None:
                self._carrier.note_resumed("", "failed")
                return outcome
            outcome = ended
        return outcome

    async def _next(self) -> Outcome | None:
        """Return how the next attempt that went on ended, `None` if nobody does."""
        while True:
            step = self._carrier.next_step()
            match step:
                case Try():
                    outcome = await self._on(step)
                    if outcome is not None:
                        return outcome
                case Wait():
                    await asyncio.sleep(max(0.0, step.until - self._clock()))
                case GiveUp():
                    return None
                case _:
                    assert_never(step)

    async def _on(self, step: Try) -> Outcome | None:
        """Try the ways to go on with one target; return how its stream ended, if it could be joined."""
        carrier, story = self._carrier, self._story
        attempt = carrier.attempt(step)
        target = step.permit.target
        knows = attempt.upstream.prefills and target.key not in self._refused
        outcome = DIVERGED
        for way in ways_for(carrier.call, prefills=knows):
            call = ask(carrier.call, story, way)
            if call is None:
                continue
            attempt = carrier.attempt(step)
            outcome = await carrier.exchange(attempt, step, call)
            if outcome.kind is Kind.OK:
                outcome = await self._tell(attempt, way)
                if outcome is not DIVERGED:
                    return outcome
            elif way is Way.PREFILL and outcome.kind in REFUSALS:
                if len(self._refused) < MAX_REFUSED:
                    self._refused.add(target.key)
            else:
                break
        carrier.settle(attempt, outcome)
        return None

    async def _tell(self, attempt: Attempt, way: Way) -> Outcome:
        """Let the client have the rest, from where the two answers join."""
        story, name = self._story, attempt.upstream.facts.name
        story.join(way, self._carrier.heart.as_comment(f"resumed on {name}"))
        try:
            return await self._carrier.carry(attempt)
        finally:
            if story.went_on:
                self._carrier.note_resumed(name, way.value)
