"""Run the proxy.

The configuration is found at -c, else $SIDESTEP_CONFIG, else ./sidestep.yaml, else
/etc/sidestep/sidestep.yaml, else made from the provider keys in the environment.

example:
  sidestep serve -c sidestep.yaml
  OPENAI_BASE_URL=http://127.0.0.1:7380/v1 python app.py
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from proxy.app import Options
from proxy.commands.flags import add_config, add_listeners, complain, load_settings
from proxy.run import run_proxy


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_config(parser)
    add_listeners(parser)
    parser.add_argument("--log-format", choices=("json", "text"), default="json", help="default: json")


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    loaded = load_settings(options)
    if loaded.settings is None:
        return complain(loaded)
    for warning in loaded.warnings:
        print(warning, file=sys.stderr)
    return run_proxy(
        loaded,
        Options(
            log_format=options.log_format,
            reread=lambda: load_settings(options),
            state=state_file(os.environ),
        ),
    )


def state_file(env: Mapping[str, str]) -> Path | None:
    """Return where the state is kept unless the configuration says: nowhere, if there is no home for it."""
    home = env.get("HOME")
    base = env.get("XDG_STATE_HOME") or (f"{home}/.local/state" if home else None)
    return Path(base, "sidestep", "state.db") if base else None
