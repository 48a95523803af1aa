"""Routes: the ways to write one, brought into one form before validation, and their order.

A route is one target, a list of targets and tiers, or the long form `{targets: [...], allow: [...]}`.
What comes out is always the long form with every tier a list of `{upstream, model, weight, context}`,
so that validation knows one shape and a mistake gets one message.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from proxy.config.draft import Draft, Path, Raw
from proxy.config.problems import nearest, quote
from proxy.config.scalars import Text

WILDCARD = "*"
_MOST_WILDCARDS = 3  # each multiplies what matching may cost
_LONGEST_NAME = 256
_TARGET_KEYS = ("target", "weight", "context")


def is_pattern(name: str) -> bool:
    """Tell whether a route's name stands for many models."""
    return WILDCARD in name


def covers(pattern: str, other: str) -> bool:
    """Tell whether *pattern* matches every name that the pattern *other* matches.

    A '*' of *other* can only be met by a '*' of *pattern*.
    """
    pieces = [".*" if piece == WILDCARD else re.escape(piece) for piece in re.split(r"(\*)", pattern)]
    return re.fullmatch("".join(pieces), other, re.DOTALL) is not None


def in_matching_order(names: Iterable[str]) -> list[str]:
    """Return the names so that the first that matches is the right one, as `core.routing` has it.

    Exact names first; of patterns the longest literal prefix, of equal prefixes the longer pattern.
    """

    def rank(name: str) -> tuple[bool, int, int]:
        pattern = is_pattern(name)
        return (pattern, -name.index(WILDCARD), -len(name)) if pattern else (pattern, 0, 0)

    return sorted(names, key=rank)


def normalise_routes(draft: Draft) -> None:
    """Bring all routes of the draft into one form and into matching order."""
    routes = draft.data.get("routes")
    if not isinstance(routes, dict):
        return
    for name in list(routes):
        path: Path = ("routes", name)
        if fault := _name_fault(name):
            draft.error((*path, "<name>"), fault, at_key=True)
        routes[name] = _route(draft, path, routes[name])
    draft.data["routes"] = {name: routes[name] for name in in_matching_order(routes)}


def _name_fault(name: str) -> str | None:
    if name.count(WILDCARD) > _MOST_WILDCARDS:
        return f"a pattern has at most {_MOST_WILDCARDS} '*'"
    if len(name) > _LONGEST_NAME:
        return f"is longer than {_LONGEST_NAME} characters"
    if name != name.strip() or not name.isprintable():
        return "a route's name is a model name, without spaces around it"
    return None


def _route(draft: Draft, path: Path, raw: Raw) -> Raw:
    if draft.is_broken(path) and raw is None:
        return {"targets": []}
    if not isinstance(raw, dict):
        return {"targets": _targets(draft, path, path, raw)}
    if "targets" not in raw:
        if "target" in raw:
            draft.error(
                (*path, "targets"), "a target in braces stands in a list: write [{target: ...}]", at_key=True
            )
        else:
            draft.error(
                (*path, "targets"), "has no targets: write targets: [UPSTREAM/MODEL, ...]", at_key=True
            )
        return {**{key: raw[key] for key in raw if key not in _TARGET_KEYS}, "targets": []}
    return {**raw, "targets": _targets(draft, path, (*path, "targets"), raw["targets"])}


def _targets(draft: Draft, path: Path, source: Path, raw: Raw) -> Raw:
    """Return a route's tiers. *source* is where the list stands in the file."""
    tiers: list[Raw] = []
    items: list[tuple[Path, Raw]] = [(source, raw)]
    if isinstance(raw, list):
        items = [((*source, i), item) for i, item in enumerate(raw)]
    if raw is None or not items:
        if not draft.is_broken(source):
            draft.error(source, "has no targets", at_key=True)
        return []
    for i, (origin, item) in enumerate(items):
        tier: Path = (*path, "targets", i)
        draft.alias(tier, origin)
        inner = (
            [((*origin, j), part) for j, part in enumerate(item)]
            if isinstance(item, list)
            else [(origin, item)]
        )
        if not inner:
            draft.error(origin, "an empty tier: write at least one target into the list")
        found = [_target(draft, (*tier, j), place, part) for j, (place, part) in enumerate(inner)]
        tiers.append(list[Raw](target for target in found if target is not None))
    return tiers


def _target(draft: Draft, path: Path, source: Path, raw: Raw) -> dict[str, Raw] | None:
    draft.alias(path, source)
    if isinstance(raw, Text):
        return _split(draft, path, source, raw)
    if draft.is_broken(source):
        return None
    if not isinstance(raw, dict):
        draft.error(source, "expected a target: UPSTREAM, UPSTREAM/MODEL or {target: ..., weight: 1}")
        return None
    for key in raw:
        if key not in _TARGET_KEYS:
            meant = nearest(key, _TARGET_KEYS)
            hint = f"did you mean '{meant}'?" if meant else "write {target: UPSTREAM/MODEL, weight: 1}"
            draft.error((*source, key), f"unknown key {quote(key)}; {hint}", at_key=True)
        draft.alias((*path, key), (*source, key))
    target = raw.get("target")
    if not isinstance(target, Text):
        if draft.intact(*source):
            place = (*source, "target") if "target" in raw else source
            draft.error(place, "needs target: UPSTREAM or UPSTREAM/MODEL")
        return None
    rest: dict[str, Raw] = {key: raw[key] for key in ("weight", "context") if key in raw}
    return {**rest, **(_split(draft, path, (*source, "target"), target) or {})}


def _split(draft: Draft, path: Path, source: Path, text: Text) -> dict[str, Raw] | None:
    """Take UPSTREAM/MODEL apart at its first slash: model names may have slashes of their own."""
    upstream, slash, model = text.partition("/")
    for key in ("upstream", "model"):
        draft.alias((*path, key), source)
    if not upstream or (slash and not model) or not text.isprintable() or text != text.strip():
        draft.error(source, f"{quote(text)} is not a target: write UPSTREAM or UPSTREAM/MODEL")
        return None
    shown = text.shown.partition("/")
    split: dict[str, Raw] = {"upstream": Text(upstream, shown[0] if "$" in text.shown else None)}
    if slash:
        split["model"] = Text(model, text.shown)
    return split
