"""The status page: `status/index.html` with the state as of now filled in.

The page holds its own template, in which the browser fills in what `/status.json` says from then on: the
same structure by the same rules (`status.template`). Without JavaScript it is a plain page that reloads.
Every value is escaped: model names may be a client's text.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from proxy.edge.status.template import fill_in
from proxy.edge.status_data import Status

PAGE = Path(__file__).parent / "status" / "index.html"
TEMPLATE = ('<script type="text/x-template" id="view">', "</script>")
PLACE = "<!-- view -->"  # where the template, filled in, goes


class _Page(NamedTuple):
    """The file taken apart: `head` has values of its own, `rest` holds the template as it is."""

    head: str
    view: str
    rest: str


def render(status: Status) -> bytes:
    """Return the page."""
    page, data = _page(), msgspec.to_builtins(status)
    return "".join((fill_in(page.head, data), fill_in(page.view, data), page.rest)).encode()


@cache
def _page() -> _Page:
    text = PAGE.read_text("utf-8")
    head, _, rest = text.partition(PLACE)
    view = text.partition(TEMPLATE[0])[2].partition(TEMPLATE[1])[0]
    if not (rest and view):
        raise ValueError(f"{PAGE} has no place for its view, or no view")
    return _Page(head, view.strip(), rest)
