"""The effective configuration as plain data, with secrets masked, and its hash."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

from proxy.config.model import Settings, TargetSettings
from proxy.config.resolve import lacks


def masked(settings: Settings) -> dict[str, Any]:
    """Return the configuration as plain data, as a file would say it, with secrets masked."""
    data: dict[str, Any] = {"server": settings.server.model_dump(mode="json"), "upstreams": {}, "routes": {}}
    for name, upstream in settings.upstreams.items():
        section = upstream.model_dump(mode="json", exclude_none=True)
        section["policy"] = upstream.policy.model_dump(mode="json", exclude_unset=True)
        section["lacks"] = sorted(lacks(upstream))
        if upstream.passthrough:
            section["api_key"] = "passthrough"
        data["upstreams"][name] = section
    for name, route in settings.routes.items():
        section = route.model_dump(mode="json", exclude={"targets", "policy"}, exclude_none=True)
        section["targets"] = [[_target(target) for target in tier] for tier in route.targets]
        section["policy"] = route.policy.model_dump(mode="json", exclude_unset=True)
        data["routes"][name] = section
    return data | {"policy": settings.policy.model_dump(mode="json")}


def config_hash(settings: Settings) -> str:
    """Return a short hash that changes when anything but a secret changes."""
    text = json.dumps(masked(settings), sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:12]


def _target(target: TargetSettings) -> dict[str, Any]:
    data = target.model_dump(mode="json", exclude={"upstream", "model"}, exclude_none=True)
    return {"target": str(target), **data}
