"""Draft to settings: pydantic's errors as our problems, and what can be saved of a faulty draft.

The checks that follow need settings to look at even if a value somewhere is wrong. So each wrong value
is reported, taken out, and validation goes on with the rest until it passes.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from proxy.config.draft import Draft, Path
from proxy.config.model import (
    CapabilitySettings,
    ClientKey,
    ParamSettings,
    RouteSettings,
    ServerSettings,
    Settings,
    UpstreamSettings,
)
from proxy.config.policy import BreakerSettings, PolicySettings, RoutePolicySettings, UpstreamPolicy
from proxy.config.problems import nearest, quote
from proxy.config.providers import providers

_MODELS: dict[tuple[str, ...], type[BaseModel]] = {
    (): Settings,
    ("server",): ServerSettings,
    ("server", "client_keys", "*"): ClientKey,
    ("upstreams", "*"): UpstreamSettings,
    ("upstreams", "*", "params"): ParamSettings,
    ("upstreams", "*", "capabilities"): CapabilitySettings,
    ("upstreams", "*", "policy"): UpstreamPolicy,
    ("upstreams", "*", "policy", "breaker"): BreakerSettings,
    ("routes", "*"): RouteSettings,
    ("routes", "*", "policy"): RoutePolicySettings,
    ("policy",): PolicySettings,
    ("policy", "breaker"): BreakerSettings,
}
_MOST_ROUNDS = 16  # each removes a level at least, and the settings have six


def validate(draft: Draft) -> Settings:
    """Return the settings, or what is left of them without the values that were wrong (and reported)."""
    data: dict[str, Any] = draft.data
    for attempt in range(_MOST_ROUNDS):
        try:
            return Settings.model_validate(data)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False)
        paths: list[Path] = [tuple(fault["loc"]) for fault in faults]
        if attempt == 0:
            data = _copy(draft.data)  # the checks still need all of it
            for fault, path in zip(faults, paths, strict=True):
                _report(draft, path, fault["type"], str(fault.get("ctx", {}).get("error", "")), paths)
        for path in sorted(paths, key=_last_first, reverse=True):
            _take_out(data, path)
    return Settings()


def _copy(raw: Any) -> Any:
    if isinstance(raw, dict):
        return {key: _copy(value) for key, value in raw.items()}
    return [_copy(value) for value in raw] if isinstance(raw, list) else raw


def _last_first(path: Path) -> tuple[tuple[bool, str | int], ...]:
    return tuple((isinstance(step, int), step) for step in path)


def _take_out(data: Any, path: Path) -> None:
    """Remove the value at *path*; a value that is missing or not reachable takes its parent with it."""
    parent = data
    for i, step in enumerate(path):
        inside = (isinstance(parent, dict) and step in parent) or (
            isinstance(parent, list) and isinstance(step, int) and step < len(parent)
        )
        if not inside:
            _take_out(data, path[:-1] if i == len(path) - 1 else path[:i])
            return
        if i == len(path) - 1:
            del parent[step]
        else:
            parent = parent[step]


def _report(draft: Draft, path: Path, kind: str, message: str, others: list[Path]) -> None:
    if draft.is_broken(path):
        return
    if kind == "missing":
        _report_missing(draft, path, others)
    elif kind == "extra_forbidden":
        draft.error(path, _unknown(path, hint=draft.may_hint), at_key=True)
    elif kind.startswith(("model", "dict", "mapping")):
        draft.error(path, "expected a mapping (KEY: VALUE lines)")
    elif kind.startswith(("tuple", "list")):
        draft.error(path, "expected a list, such as [a, b]")
    else:
        draft.error(path, message or "is not understood")


def _report_missing(draft: Draft, path: Path, others: list[Path]) -> None:
    """Report a required key, unless it is there, misspelt, and therefore reported already."""
    parent, key = path[:-1], str(path[-1])
    strays = [str(other[-1]) for other in others if other[:-1] == parent and other != path]
    if any(nearest(stray, known_keys(parent)) == key for stray in strays) or draft.is_broken(
        (*parent, "provider")
    ):
        return
    label = f"{draft.spot(parent).label}.{key}"
    draft.error(path, f"is required{_example(draft, parent, key)}", at_key=True, label=label)


def _example(draft: Draft, parent: Path, key: str) -> str:
    if key != "base_url":
        return ""
    upstreams = draft.data.get("upstreams")
    raw = upstreams.get(str(parent[-1])) if isinstance(upstreams, dict) else None
    row = providers().get(str(raw.get("provider"))) if isinstance(raw, dict) else None
    if row is None:
        return f": a URL, or provider: with one of {', '.join(providers())}"
    return f" with this provider, such as {row.base_url}"


def _unknown(path: Path, *, hint: bool) -> str:
    parent, key = path[:-1], str(path[-1])
    message = f"unknown key {quote(key)}"
    if key in PolicySettings.model_fields or key.startswith("breaker."):
        return _misplaced(parent, key)
    known = known_keys(parent)
    meant = nearest(key, known) if hint else None
    if meant:
        return f"{message}; did you mean '{meant}'?"
    return f"{message}; known here: {', '.join(known)}" if hint else message


def _misplaced(parent: Path, key: str) -> str:
    """Say where a policy key may stand."""
    places = ["globally"]
    name = key.partition(".")[0]
    if name in UpstreamPolicy.model_fields:
        places.append("for an upstream")
    if name in RoutePolicySettings.model_fields:
        places.append("for a route")
    if key != name:
        return f"write it as breaker: {{{key.partition('.')[2]}: ...}}"
    if parent and parent[-1] == "policy":
        return f"can not be set here, only {' or '.join(places)}"
    return f"a policy key, set {' or '.join(places)} under policy:"


def known_keys(path: Path) -> list[str]:
    """Return the keys that the mapping at *path* may have."""
    model = _model_at(path)
    return list(model.model_fields) if model else []


def _model_at(path: Path) -> type[BaseModel] | None:
    return next((model for shape, model in _MODELS.items() if _fits(path, shape)), None)


def _fits(path: Path, shape: tuple[str, ...]) -> bool:
    return len(path) == len(shape) and all(
        want in {"*", step} for step, want in zip(path, shape, strict=True)
    )
