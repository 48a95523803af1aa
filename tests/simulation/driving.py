"""One proxy's core, asked request by request: for stories in which it matters who sends what.

`Proxy.ask` is the forwarder's loop without time passing inside an attempt; `fate` says how each ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from proxy.core.budget import Budgets
from proxy.core.deadline import Deadline
from proxy.core.events import BreakerMoved, Event
from proxy.core.failover import Failover
from proxy.core.outcome import OK, Outcome
from proxy.core.permit import Permit
from proxy.core.pool import Pool
from proxy.core.steps import GiveUp, Try, Wait
from proxy.core.target import CallFacts, Route, UpstreamFacts

Fate = Callable[[Permit], Outcome]


@dataclass(frozen=True)
class Asked:
    """How a request went: the upstreams tried, in order, and the error if it ended in one."""

    tried: tuple[str, ...]
    ending: GiveUp | None


@dataclass
class Proxy:
    """A core over *routes*; time passes with `wait` and inside `ask` only where it is told to wait."""

    routes: dict[str, Route]
    upstreams: tuple[UpstreamFacts, ...]
    now: float = 1000.0
    events: list[Event] = field(default_factory=list)
    asked: int = 0

    def __post_init__(self) -> None:
        self.rng = Random(5)
        self.pool = Pool(self.upstreams, self.rng)
        self._budgets = Budgets()

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def opened(self) -> list[BreakerMoved]:
        """Return every move to open so far."""
        return [each for each in self.events if isinstance(each, BreakerMoved) and each.to_state == "open"]

    def ask(
        self, model: str, fate: Fate, *, digest: bytes | None = None, took_s: float = 0.5, **facts: object
    ) -> Asked:
        """Carry one request to its end; each attempt takes *took_s* and ends as *fate* says."""
        self.asked += 1
        name = f"request {self.asked}"
        call = CallFacts(
            request_id=name,
            model=model,
            endpoint="chat/completions",
            operation="chat",
            digest=name.encode() if digest is None else digest,
            **facts,  # type: ignore[arg-type]
        )
        route = self.routes[model]
        deadline = Deadline(self.now, route.policy.deadline_s)
        failover = Failover(call, route, self.pool, self._budgets.of(route), deadline, self.rng)
        ending = self._run(failover, fate, took_s)
        self.events += failover.close(self.now)
        return Asked(tuple(record.upstream for record in failover.attempts), ending)

    def _run(self, failover: Failover, fate: Fate, took_s: float) -> GiveUp | None:
        while True:
            step, events = failover.next_step(self.now)
            self.events += events
            match step:
                case Try(permit=permit):
                    outcome = fate(permit)
                    self.wait(took_s)
                    if outcome is OK:
                        self.events += failover.first_content(permit, took_s, self.now)
                    self.events += failover.settle(permit, outcome, self.now, committed=outcome is OK)
                    if outcome is OK or outcome.rule.next.value == "nobody":
                        return None
                case Wait(until=until):
                    self.now = until
                case GiveUp():
                    return step
