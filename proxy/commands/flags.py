"""What several commands share: flags, the environment they change, loading a configuration."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from proxy.config.loader import Loaded, load


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `-c FILE`."""
    parser.add_argument("-c", "--config", metavar="FILE", help="configuration file (else: see --help)")


def add_listeners(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where to listen."""
    parser.add_argument("--listen", metavar="HOST:PORT", help="the OpenAI-compatible endpoint")
    parser.add_argument("--admin", metavar="HOST:PORT", help="status page, metrics, health")


def environment(options: argparse.Namespace) -> Mapping[str, str]:
    """Return the environment with the flags that override the file's server part."""
    env = dict(os.environ)
    for flag, name in (("listen", "SIDESTEP_LISTEN"), ("admin", "SIDESTEP_ADMIN")):
        value = getattr(options, flag, None)
        if value is not None:
            env[name] = value
    return env


def load_settings(options: argparse.Namespace) -> Loaded:
    """Load the configuration that the flags and the environment name."""
    return load(options.config, environment(options), Path.cwd())


def complain(loaded: Loaded) -> int:
    """Print the mistakes and return the exit code for them."""
    for problem in (*loaded.problems, *loaded.warnings):
        print(problem, file=sys.stderr)
    return 2
