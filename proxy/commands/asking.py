"""Asking the admin listener of a running proxy."""

from __future__ import annotations

import argparse
import json
import os
from http.client import HTTPException
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from proxy.commands.health import DEFAULT, admin_url

TIMEOUT_S = 5.0
KEY = "SIDESTEP_ADMIN_KEY"
LARGEST = 16 * 1024 * 1024


class AskError(Exception):
    """There is no answer that can be used; the message says why, and what to do about it."""


class NotFoundError(AskError):
    """The proxy answers, but knows no such thing."""


def add_admin(parser: argparse.ArgumentParser) -> None:
    """Add `--admin URL`."""
    parser.add_argument(
        "--admin",
        metavar="URL",
        help=f"the admin listener (default: $SIDESTEP_ADMIN or {DEFAULT}); its key is read from ${KEY}",
    )


def ask(admin: str | None, path: str, *, method: str = "GET", body: bytes | None = None) -> bytes:
    """Return what the admin listener answers to a request for *path*. Raises: AskError."""
    url = admin_url(admin or os.environ.get("SIDESTEP_ADMIN") or DEFAULT)
    key = os.environ.get(KEY, "")
    opener = build_opener(ProxyHandler({}))  # never through an egress proxy of the environment
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        request = Request(f"{url}{path}", data=body, headers=headers, method=method)
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            told: bytes = answer.read(LARGEST)
    except HTTPError as error:
        raise _refused(error, url) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise AskError(f"no proxy answers at {url}: {reason}") from error
    return told


def _refused(error: HTTPError, url: str) -> AskError:
    if error.code == 401:
        return AskError(f"{url} needs the admin key: set {KEY}")
    if error.code == 403:
        return AskError(f"{url} refuses us (403): on loopback it answers to localhost only")
    if error.code == 404:
        return NotFoundError(f"{url} knows nothing of it (404)")
    if error.code == 400 and (said := _said(error)):
        return AskError(said)
    return AskError(f"{url} answers {error.code}: is it the admin listener of a Sidestep?")


def _said(error: HTTPError) -> str:
    """Return the message of an answer in OpenAI's shape, empty if it is something else."""
    try:
        return str(json.loads(error.read(LARGEST))["error"]["message"])
    except (OSError, HTTPException, ValueError, LookupError, TypeError):
        return ""
