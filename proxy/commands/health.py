"""Exit 0 if the proxy is live and ready, else 1.

example:
  sidestep health --admin http://127.0.0.1:7381
"""

from __future__ import annotations

import argparse
import os
import sys
from http.client import HTTPException
from urllib.request import ProxyHandler, build_opener

TIMEOUT_S = 3.0
DEFAULT = "127.0.0.1:7381"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--admin", metavar="URL", help="the admin listener (default: $SIDESTEP_ADMIN or 127.0.0.1:7381)"
    )


def run(options: argparse.Namespace) -> int:
    """Ask `/healthz` once."""
    url = admin_url(options.admin or os.environ.get("SIDESTEP_ADMIN") or DEFAULT)
    opener = build_opener(ProxyHandler({}))  # never through an egress proxy of the environment
    try:
        with opener.open(f"{url}/healthz", timeout=TIMEOUT_S) as answer:
            ready = answer.status == 200
    except (OSError, HTTPException, ValueError) as error:
        print(f"not ready: {error}", file=sys.stderr)
        return 1
    return 0 if ready else 1


def admin_url(text: str) -> str:
    """Return the base URL that HOST:PORT or a URL means; 0.0.0.0 means this machine."""
    url = text if "://" in text else f"http://{text}"
    return url.rstrip("/").replace("://0.0.0.0:", "://127.0.0.1:").replace("://[::]:", "://[::1]:")
