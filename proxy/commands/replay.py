"""Play an outage against a configuration, in simulated time.

Prints what clients would have felt with and without Sidestep: availability, time to first token,
attempts per request, load on each provider, time to shift and to return. SCENARIO is the name of a
shipped scenario or the path of a file; your upstreams play its providers in the order of the first
route.

example:
  sidestep replay total_502 -c sidestep.yaml
  sidestep replay recovery_herd -c sidestep.yaml --plot outage.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from proxy.commands.flags import add_config, complain, load_settings
from proxy.config.providers import shipped_path
from proxy.config.resolve import core_routes, upstream_facts
from proxy.sim.player import Setup
from proxy.sim.plot import PlotError, draw
from proxy.sim.replay import replay
from proxy.sim.scenario import ScenarioError, load_scenario


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("scenario", metavar="SCENARIO", help="name of a shipped scenario, or a file")
    add_config(parser)
    parser.add_argument("--plot", metavar="FILE.png", type=Path, help="draw it too (needs matplotlib)")
    parser.add_argument("--seed", type=int, default=1, help="another seed is another day (default: 1)")


def run(options: argparse.Namespace) -> int:
    """Play it, print the report, draw the plot."""
    loaded = load_settings(options)
    settings = loaded.settings
    if settings is None:
        return complain(loaded)
    facts = tuple(upstream_facts(settings, name) for name in settings.upstreams)
    try:
        scenario = load_scenario(options.scenario, shipped_path("scenarios"))
        played = replay(scenario, Setup(core_routes(settings), facts), seed=options.seed)
        print(played.text())
        if options.plot is not None:
            draw(played, options.plot)
    except (ScenarioError, PlotError) as error:
        print(f"sidestep replay: {error}", file=sys.stderr)
        return 2
    return 0
