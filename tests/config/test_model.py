"""The settings describe themselves."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.config.model import Settings
from proxy.config.policy import PolicySettings
from proxy.config.resolve import attempt_policy, breaker_policy, route_policy
from tests.config.loading import MINIMAL, settings_of

SCHEMA = Settings.model_json_schema()


@pytest.mark.parametrize("model", sorted(SCHEMA["$defs"]))
def test_every_key_is_described_where_it_is_defined(model: str) -> None:
    parts: dict[str, dict[str, Any]] = SCHEMA["$defs"][model]["properties"]
    undescribed = {name for name, part in parts.items() if "description" not in part}
    assert undescribed <= {"upstream", "model", "targets"}  # how a target is written is told by the route


def test_the_policy_has_the_keys_of_the_core_and_no_others() -> None:
    settings = settings_of(MINIMAL)
    core = [
        breaker_policy(settings, "openai"),
        route_policy(settings, "*"),
        attempt_policy(settings, "*", "openai"),
    ]
    names = {
        name.removesuffix("_s").removesuffix("_ratio")
        for policy in core
        for name in policy.__dataclass_fields__
    }
    breaker = type(settings.policy.breaker).model_fields
    ours = {name.removesuffix("_ratio") for name in (*PolicySettings.model_fields, *breaker)}
    assert ours - {"breaker", "connect"} == names
