"""Validate a configuration and print its effective routes.

Every mistake is printed as FILE:LINE:COL: error: KEY: message. Exits 0, or 2 on any error.

example:
  sidestep check -c sidestep.yaml
"""

from __future__ import annotations

import argparse

from proxy.commands.flags import add_config, load_settings
from proxy.config.report import render_check


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    add_config(parser)


def run(options: argparse.Namespace) -> int:
    """Print what is wrong, then what is in effect."""
    loaded = load_settings(options)
    print(render_check(loaded), end="")
    return 0 if loaded.settings is not None else 2
