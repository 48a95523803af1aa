"""The page's templates: a small part of Mustache, filled in here and, by the same rules, in the browser.

`{{name}}` is a value, escaped; `{{a.b}}` looks into it (`{{a.0}}` into a list), `{{.}}` is the item itself,
and a name that is not found there is looked for further out. `{{name|filter}}` shows it as one of
`FILTERS` does.
`{{#name}}…{{/name}}` is shown for each item of a list, or once for a value that is there;
`{{^name}}…{{/name}}` if there is none. Nothing, false, 0, "" and [] are none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from html import escape
from math import floor
from typing import Any, NamedTuple, TypeAlias

from proxy.edge.status.words import span_says

_TAG = re.compile(r"\{\{([#^/]?)([\w.]+)(?:\|(\w+))?\}\}")

Filter = Callable[[Any], str]
Part: TypeAlias = "str | Tag"


class Tag(NamedTuple):
    """A value (`kind` is empty) or a section with what is inside it."""

    kind: str
    name: str
    filter: str
    inner: list[Part]


def fill_in(template: str, data: Mapping[str, object]) -> str:
    """Return *template* with the values of *data*, which is plain data."""
    return _fill_in(_parts(template), [data])


@cache
def _parts(template: str) -> list[Part]:
    """Return the template taken apart. Raises ValueError for sections that are not closed in order."""
    levels: list[tuple[str, list[Part]]] = [("", [])]
    at = 0
    for found in _TAG.finditer(template):
        kind, name, filtered = found[1], found[2], found[3] or ""
        name_open, parts = levels[-1]
        parts.append(template[at : found.start()])
        at = found.end()
        if kind == "/":
            if name != name_open or len(levels) == 1:
                raise ValueError(f"'{name}' is closed where '{name_open}' is open")
            levels.pop()
            continue
        tag = Tag(kind, name, filtered, [])
        parts.append(tag)
        if kind:
            levels.append((name, tag.inner))
    if len(levels) > 1:
        raise ValueError(f"'{levels[-1][0]}' is not closed")
    return [*levels[0][1], template[at:]]


def _fill_in(parts: Sequence[Part], scopes: list[object]) -> str:
    return "".join([part if isinstance(part, str) else _tag(part, scopes) for part in parts])


def _tag(tag: Tag, scopes: list[object]) -> str:
    found = _look_up(tag.name, scopes)
    if not tag.kind:
        return escape(_shown(found, tag.filter))
    if tag.kind == "^":
        return "" if found else _fill_in(tag.inner, scopes)
    if isinstance(found, list):
        return "".join([_fill_in(tag.inner, [*scopes, item]) for item in found])
    return _fill_in(tag.inner, [*scopes, found]) if found else ""


def _look_up(name: str, scopes: list[object]) -> object:
    if name == ".":
        return scopes[-1]
    first, *rest = name.split(".")
    found: object = None
    for scope in reversed(scopes):
        if isinstance(scope, Mapping) and first in scope:
            found = scope[first]
            break
    for step in rest:
        found = _inside(found, step)
    return found


def _inside(found: object, step: str) -> object:
    if isinstance(found, Mapping):
        return found.get(step)
    if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
        return found[int(step)]
    return None


def _shown(found: object, filtered: str) -> str:
    if filtered:
        return "–" if found is None else FILTERS[filtered](found)
    if isinstance(found, bool):
        return "true" if found else "false"
    return "" if found is None else str(found)


def percent(share: float) -> str:
    """Return a share of 1 without ever rounding something to nothing, or almost all to all."""
    if 0 < share < 0.01:
        return "<1%"
    if 0.99 < share < 1:
        return f"{min(floor(share * 1000) / 10, 99.9):.1f}%"
    return f"{floor(share * 100 + 0.5)}%"


def seconds(length: float) -> str:
    """Return a length of time as short as its size allows."""
    if length < 1:
        return f"{floor(length * 1000 + 0.5)} ms"
    return f"{floor(length * 10 + 0.5) / 10:.1f} s" if length < 10 else span_says(length)


def count(number: float) -> str:
    """Return a whole number in groups of three digits."""
    return f"{floor(number):,}"


def clock(ts: str) -> str:
    """Return the time of day of an RFC 3339 timestamp; the browser shows it in its own time zone."""
    return ts[11:19]


def moment(ts: str) -> str:
    """Return day and time of an RFC 3339 timestamp."""
    return f"{int(ts[8:10])} {MONTHS[int(ts[5:7]) - 1]}, {clock(ts)}"


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
FILTERS: Mapping[str, Filter] = {
    "percent": percent,
    "seconds": seconds,
    "span": span_says,
    "count": count,
    "clock": clock,
    "moment": moment,
}
