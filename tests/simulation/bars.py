"""What every outage must show, scenario by scenario and seed by seed.

The bars are the same for all scenarios; what a scenario may do differently stands in `EXCUSES`, with
its reason. `measure` plays one scenario once and keeps the figures, not the records.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from statistics import median

from proxy.core.events import BreakerMoved
from proxy.core.target import Route, Target, Tier, UpstreamFacts
from proxy.sim.ledger import Ending, Ledger
from proxy.sim.player import Setup, play
from proxy.sim.report import Felt, Turning, felt, turning
from proxy.sim.scenario import PREFERRED, Scenario, load_scenario
from proxy.sim.scripted import NEVER, STUMBLE_S
from proxy.sim.sidecar import Sidecar
from proxy.sim.world import World

SHIPPED = Path(__file__).parents[2] / "config" / "scenarios"
SCENARIOS = tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))

LEASE_S = 30.0
CONNECT_S = 5.0
OPEN_MAX_S = 30.0
RECOVERY_S = 15.0
RETURN_MEDIAN_S = 30.0
RETURN_LIMIT_S = OPEN_MAX_S + RECOVERY_S + 5.0
HERD_LOAD = 1.25


@dataclass(frozen=True)
class Excuse:
    """Where a scenario may miss a bar, and why."""

    why: str
    may_fail: bool = False
    may_refuse: bool = False
    may_interrupt: bool = False
    return_limit_s: float = RETURN_LIMIT_S
    herd_load: float = HERD_LOAD


EXCUSES = {
    "everything_down": Excuse("nobody could have answered", may_fail=True),
    "own_network": Excuse("nobody could be reached", may_fail=True),
    "400_lies": Excuse("a 400 goes to the client as it is: CONTRACT.md section 6", may_refuse=True),
    "auth_lies": Excuse("a refused key rests for 5 minutes at first", return_limit_s=300 + RECOVERY_S + 5),
    "quota_spent": Excuse("a spent quota rests for 5 minutes at first", return_limit_s=300 + RECOVERY_S + 5),
    "429_lies": Excuse("429s without a hint rest for up to 60 s", return_limit_s=60 + RECOVERY_S + 5),
    "quiet_outage": Excuse(
        "the probe and the return wait for requests, one in five seconds", return_limit_s=RETURN_LIMIT_S + 30
    ),
    "recovery_herd_weak": Excuse(
        "a sixth of its capacity, which takes four minutes to grow, is used up by one probe from each of 300",
        return_limit_s=240 + RETURN_LIMIT_S,
        herd_load=2.2,
    ),
    "hard_outage": Excuse("what had begun when the machine died can't be saved", may_interrupt=True),
    "midstream_cuts": Excuse("what has begun can't be saved", may_interrupt=True),
}
NO_EXCUSE = Excuse("")


@dataclass
class Shut:
    """How long each target of each proxy could not be tried because its breaker said no, at worst.

    Looked at every simulated second; an attempt sent in between shows that it could be tried then.
    """

    longest_s: float = 0.0
    _since: dict[tuple[int, str, str], float] = field(default_factory=dict)
    _seen: int = 0

    def watch(self, world: World, sidecars: list[Sidecar]) -> None:
        """Look at every target of the first proxies once."""
        watched = sidecars[:20]
        sent = watched[0].ledger.sent
        for each in sent[self._seen :]:
            self._since.pop((each.sidecar, each.role, each.model), None)
        self._seen = len(sent)
        for sidecar in watched:
            for model, over in sidecar.cast.routes.items():
                for target in targets_of(over):
                    self._look(world.now, sidecar, model, target)

    def _look(self, now: float, sidecar: Sidecar, model: str, target: Target) -> None:
        key = (sidecar.number, sidecar.cast.roles[target.upstream.name], model)
        there = sidecar.pool.admits(target, "chat", now)
        if there.ok or there.reason not in ("open", "endpoint", "probe_busy"):
            self._since.pop(key, None)
            return
        since = self._since.setdefault(key, now)
        self.longest_s = max(self.longest_s, now - since)


@dataclass(frozen=True)
class Measured:
    """The figures of one play."""

    scenario: Scenario
    seed: int
    felt: Felt
    turning: Turning
    shut_s: float
    lease_s: float
    ill_again_s: float
    herd_load: float

    @property
    def excuse(self) -> Excuse:
        return EXCUSES.get(self.scenario.name, NO_EXCUSE)

    @property
    def most_attempts(self) -> float:
        """Return the bar on attempts per request: it depends on the traffic of one proxy."""
        return 1.3 if self.scenario.traffic.rate >= 5 else 1.6

    @property
    def return_s(self) -> float:
        """Return the seconds until the preferred target has its traffic again, endless if never.

        A provider that errs on a probe, or twice in a recovery, is ill again: time counts from there.
        """
        return NEVER if self.turning.return_s is None else self.turning.return_s - self.ill_again_s

    @property
    def failures(self) -> int:
        """Return the requests that failed although a target that was well could have answered."""
        return self.felt.failed_requests - self.felt.unlucky_requests

    def misses(self) -> list[str]:
        """Return the bars that this play misses, in words."""
        endings, excuse = self.felt.endings, self.excuse
        found = []
        if not excuse.may_fail:
            if self.failures:
                found.append(f"{self.failures} failed requests")
            if endings[Ending.GAVE_UP]:
                found.append(f"{endings[Ending.GAVE_UP]} clients gave up")
            if self.felt.attempts_in_trouble > self.most_attempts:
                found.append(f"{self.felt.attempts_in_trouble:.2f} attempts per request")
            if self.turning.probes_per_open > 1.0:
                found.append(f"{self.turning.probes_per_open:.2f} probes per opening")
        if endings[Ending.REFUSED] and not excuse.may_refuse:
            found.append(f"{endings[Ending.REFUSED]} refused")
        if endings[Ending.INTERRUPTED] and not excuse.may_interrupt:
            found.append(f"{endings[Ending.INTERRUPTED]} interrupted")
        if self.shut_s > self.lease_s + OPEN_MAX_S:
            found.append(f"not probeable for {self.shut_s:.0f} s with a lease of {self.lease_s:.0f} s")
        if self.return_s > excuse.return_limit_s:
            found.append(f"back after {self.return_s:.1f} s")
        if self.herd_load > excuse.herd_load:
            found.append(f"{self.herd_load:.2f} x capacity on return")
        return found


@cache
def measure(name: str, seed: int) -> Measured:
    """Play the shipped scenario *name* once against the default policies."""
    scenario = load_scenario(name, SHIPPED)
    shut = Shut()
    with uncollected():
        ledger, _ = play(scenario, setup_for(scenario), seed, watch=shut.watch)
    return Measured(
        scenario=scenario,
        seed=seed,
        felt=felt(scenario, ledger),
        turning=turning(scenario, ledger),
        shut_s=shut.longest_s,
        lease_s=max([LEASE_S] + [CONNECT_S + sent.limit_s for sent in ledger.sent if sent.probe]),
        ill_again_s=_ill_again_s(scenario, ledger),
        herd_load=load_on_return(scenario, ledger),
    )


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect garbage only at the end: looking for it again and again is a third of a play's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


def calm(hours: float, rate: float, seed: int, errors: str = "1%") -> tuple[int, int]:
    """Play a healthy provider with the usual errors for so long; return the calls and the false trips."""
    scenario = Scenario.model_validate(
        {
            "name": "calm",
            "about": "nothing is wrong",
            "duration": f"{hours}h",
            "traffic": {"rate": rate},
            "providers": {"first": {"errors": errors}, "second": {"errors": errors}},
        }
    )
    with uncollected():
        ledger, _ = play(scenario, setup_for(scenario), seed)
    return len(ledger.records), turning(scenario, ledger).opened


def median_return(measured: Iterable[Measured]) -> float:
    """Return the median seconds to the return over all plays; of a herd, its median proxy's return."""
    return median(
        each.turning.half_return_s or NEVER if each.scenario.traffic.sidecars > 1 else each.return_s
        for each in measured
    )


def _ill_again_s(scenario: Scenario, ledger: Ledger) -> float:
    """Return how long after the outage the preferred provider's own errors last reopened it; 0 if never."""
    if scenario.traffic.sidecars > 1:
        return 0.0
    _, end = scenario.trouble
    honest = [
        moved.move.at
        for moved in ledger.moves
        if moved.role == PREFERRED and moved.move.at > end and _is_explained(moved.move, ledger.stumbles)
    ]
    return honest[-1] - end if honest else 0.0


def _is_explained(move: BreakerMoved, stumbles: list[float]) -> bool:
    """Tell whether errors of a healthy provider are why a recovery ended: one of a probe, two of a ramp."""
    at = move.at
    if move.reason == "probe_failed":
        return any(at - 2 * STUMBLE_S <= stumble <= at for stumble in stumbles)
    in_ramp = sum(at - RECOVERY_S - 5 <= stumble <= at for stumble in stumbles)
    return move.reason == "relapsed" and in_ramp >= 2


def load_on_return(scenario: Scenario, ledger: Ledger) -> float:
    """Return the preferred provider's busiest five seconds after its outage, in capacities; 0 without one."""
    spec = scenario.spec(PREFERRED)
    if spec.capacity is None:
        return 0.0
    _, end = scenario.trouble
    slots = Counter(
        int((sent.at - end) / 5) for sent in ledger.sent if sent.role == PREFERRED and sent.at >= end
    )
    loads = (count / 5 / (spec.capacity_at(end + slot * 5 + 2.5) or 1.0) for slot, count in slots.items())
    return max(loads, default=0.0)


def setup_for(scenario: Scenario, providers: int = 2) -> Setup:
    """Return the configuration that outages are played against: every default, two routes, one tier each.

    There are as many providers as the scenario breaks, and one more.
    """
    count = max(providers, len(scenario.providers) + 1)
    if EXCUSES.get(scenario.name, NO_EXCUSE).may_fail:
        count = providers  # nobody is left
    upstreams = tuple(upstream(f"up{number}") for number in range(1, count + 1))
    routes = tuple(route(name, upstreams) for name in ("main", "mini"))
    return Setup(routes, upstreams)


def upstream(name: str, **given: object) -> UpstreamFacts:
    """Return an upstream on a host, with a key, and of a fate of its own."""
    facts = {"endpoint": f"https://{name}.test:443", "credentials": (f"{name} key",), "fate": name}
    return UpstreamFacts(name=name, **{**facts, **given})  # type: ignore[arg-type]


def route(name: str, upstreams: Iterable[UpstreamFacts]) -> Route:
    """Return a route over *upstreams*, best first."""
    return Route(name=name, tiers=tuple(Tier((Target(upstream=facts, model=name),)) for facts in upstreams))


def targets_of(over: Route) -> list[Target]:
    """Return every target of a route, best first."""
    return [target for tier in over.tiers for target in tier.targets]


def rng(seed: int = 1) -> Random:
    """Return seeded chance."""
    return Random(seed)
