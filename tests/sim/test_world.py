"""Virtual time."""

from __future__ import annotations

from proxy.sim.world import World


def test_actions_run_in_the_order_of_time_then_of_scheduling() -> None:
    world = World(1)
    ran: list[str] = []
    world.at(2.0, lambda: ran.append("later"))
    world.at(1.0, lambda: ran.append("first"))
    world.at(1.0, lambda: ran.append("second"))
    world.run()
    assert ran == ["first", "second", "later"]
    assert world.now == 2.0


def test_actions_may_schedule_actions_and_time_never_goes_back() -> None:
    world = World(1)
    seen: list[float] = []

    def late() -> None:
        world.at(0.5, lambda: seen.append(world.now))
        world.after(3.0, lambda: seen.append(world.now))

    world.at(1.0, late)
    world.run()
    assert seen == [1.0, 4.0]


def test_each_name_has_a_chance_of_its_own() -> None:
    one, other = World(7), World(7)
    one.rng("clients").random()
    assert one.rng("providers").random() == other.rng("providers").random()
    assert World(8).rng("providers").random() != other.rng("providers").random()


def test_a_trace_is_kept_only_if_asked_for() -> None:
    silent, kept = World(1), World(1, keep_trace=True)
    for world in (silent, kept):
        world.note("sent", "first")
    assert silent.trace == []
    assert kept.trace == [(0.0, "sent", "first")]
