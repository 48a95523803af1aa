"""Plays a scenario: simulated clients, simulated proxies with the whole real core, scripted providers.

Everything happens in one `World`, so that the same seed gives the same story.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from proxy.core.target import Route, UpstreamFacts
from proxy.sim.clients import Direct, SdkCall, Send, arrivals
from proxy.sim.ledger import Call, Ledger
from proxy.sim.scenario import PREFERRED, ROLES, Scenario
from proxy.sim.scripted import ScriptedProvider
from proxy.sim.sidecar import Cast, Sidecar
from proxy.sim.world import World

Watch = Callable[[World, list[Sidecar]], None]


@dataclass(frozen=True, slots=True)
class Setup:
    """The configuration under test: what `app` makes of the settings. Routes in their written order."""

    routes: tuple[Route, ...]
    upstreams: tuple[UpstreamFacts, ...]

    def roles(self) -> dict[str, str]:
        """Return the role of each upstream: those of the first route in its order, then the others.

        Upstreams beyond the roles that a scenario can name are healthy in all of them.
        """
        names = [
            target.upstream.name for route in self.routes for tier in route.tiers for target in tier.targets
        ]
        names += [upstream.name for upstream in self.upstreams]
        ordered = dict.fromkeys(names)
        more = (f"number {number}" for number in range(len(ROLES) + 1, len(ordered) + 1))
        return dict(zip(ordered, (*ROLES, *more), strict=False))

    def route_of(self, role: str) -> Route:
        """Return the route that a scenario's model stands for; the last one if there are fewer."""
        return self.routes[min(ROLES.index(role), len(self.routes) - 1)]


def play(
    scenario: Scenario, setup: Setup, seed: int, *, keep_trace: bool = False, watch: Watch | None = None
) -> tuple[Ledger, World]:
    """Play *scenario* through simulated proxies; *watch* is called every simulated second."""
    world = World(seed, keep_trace=keep_trace)
    ledger = Ledger()
    roles = setup.roles()
    cast = Cast(
        upstreams=setup.upstreams,
        routes={role: setup.route_of(role) for role in scenario.traffic.models},
        roles=roles,
        providers=_providers(world, scenario, roles.values()),
        patience_s=scenario.traffic.patience,
    )
    sidecars = [Sidecar(world, cast, ledger, number) for number in range(scenario.traffic.sidecars)]
    if watch is not None:
        _watch(world, sidecars, watch, scenario.duration)
    _feed(world, scenario, ledger, [sidecar.send for sidecar in sidecars])
    ledger.stumbles += cast.providers[PREFERRED].stumbles
    return ledger, world


def play_direct(scenario: Scenario, seed: int) -> Ledger:
    """Play *scenario* with the SDK alone, talking to the first provider."""
    world = World(seed)
    ledger = Ledger()
    direct = Direct(world, _providers(world, scenario, [PREFERRED])[PREFERRED], ledger)
    _feed(world, scenario, ledger, [direct.send] * scenario.traffic.sidecars)
    return ledger


def _providers(world: World, scenario: Scenario, roles: Iterable[str]) -> dict[str, ScriptedProvider]:
    providers = {
        role: ScriptedProvider(role, scenario.spec(role), world.rng(f"provider {role}")) for role in roles
    }
    for provider in providers.values():
        for fault in provider.spec.faults:
            if fault.cuts_open:
                world.at(fault.at, partial(provider.cut, fault.share))
    return providers


def _feed(world: World, scenario: Scenario, ledger: Ledger, sends: list[Send]) -> None:
    """Let every call arrive in its turn, and let the world run until all of them are over."""
    traffic = scenario.traffic
    rng = world.rng("clients")
    calls = arrivals(traffic, scenario.duration, world.rng("arrivals"))

    def arrive(call: Call) -> None:
        sdk_call = SdkCall(world, call, traffic, sends[call.sidecar], rng)
        ledger.records.append(sdk_call.record)
        schedule_next()
        sdk_call.start()

    def schedule_next() -> None:
        call = next(calls, None)
        if call is not None:
            world.at(call.at, lambda: arrive(call))

    schedule_next()
    world.run()


def _watch(world: World, sidecars: list[Sidecar], watch: Watch, until: float) -> None:
    def look() -> None:
        watch(world, sidecars)
        if world.now < until:
            world.after(1.0, look)

    world.after(1.0, look)
