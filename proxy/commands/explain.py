"""Tell where a request for MODEL would go, or what happened to one request.

With MODEL: the targets that would be tried, in order, and why each is in, out or last, by the
configuration (found as `sidestep serve` finds it). With --admin too: by the configuration of the
running proxy, unless -c names another, and with the state that each target is in now.

With --request ID: each attempt of that request, its outcome, its time, and what was decided. The id
is in the answer's x-request-id, in the log, and on the status page.

The admin key, where one is needed, is read from $SIDESTEP_ADMIN_KEY. Exits 1 if there is no such
route or request, or no proxy answers; 2 if the question or the configuration is wrong.

example:
  sidestep explain gpt-5 -c sidestep.yaml
  sidestep explain gpt-5 --admin http://127.0.0.1:7381
  sidestep explain --request req_1f3a9c4e12 --admin http://127.0.0.1:7381
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from proxy.commands.asking import AskError, add_admin
from proxy.commands.explain_request import explain_request
from proxy.commands.explain_route import Asked, UnknownError, explain_route, running_settings
from proxy.commands.flags import add_config, complain
from proxy.config.loader import load
from proxy.dialects.endpoints import every_endpoint


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", metavar="MODEL", nargs="?", help="the model that a client would ask for")
    what.add_argument("--request", metavar="ID", help="the id of a request that the proxy still remembers")
    add_config(parser)
    parser.add_argument(
        "--endpoint", default="chat/completions", metavar="PATH", help="default: chat/completions"
    )
    add_admin(parser)


def run(options: argparse.Namespace) -> int:
    """Print the explanation."""
    try:
        if options.request is not None:
            lines = explain_request(options.request, options.admin)
        else:
            return _explain_model(options)
    except (AskError, UnknownError) as error:
        return _fail(str(error), 1)
    print("\n".join(lines))
    return 0


def _explain_model(options: argparse.Namespace) -> int:
    endpoint = options.endpoint.strip("/").removeprefix("v1/")
    operations = {found.label: found.operation for found in every_endpoint()}
    if endpoint not in operations:
        return _fail(f"no such endpoint: '{options.endpoint}'; write it as chat/completions or embeddings", 2)
    is_live = options.admin is not None
    if is_live and options.config is None:
        loaded = running_settings(options.admin)
    else:
        # Not `load_settings`: there, --admin says where to listen.
        loaded = load(options.config, os.environ, Path.cwd())
    if loaded.settings is None:
        return complain(loaded)
    asked = Asked(options.model, endpoint, operations[endpoint], loaded.source)
    print("\n".join(explain_route(loaded.settings, asked, options.admin if is_live else None)))
    return 0


def _fail(message: str, code: int) -> int:
    print(f"sidestep explain: {message}", file=sys.stderr)
    return code
