"""The tables that ship with Sidestep: what is known of each provider, and which models are the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from proxy.config.addresses import endpoint_of

_PACKAGE = Path(__file__).resolve().parents[1]


class ProviderRow(BaseModel):
    """One row of providers.yaml: what need not be said in every configuration."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str
    key_env: str | None = None
    keyless: bool = False
    auth: str = "bearer"
    dialect: str = "openai"
    hosts: tuple[str, ...] = ()
    endpoints: tuple[str, ...] | None = None
    lacks: frozenset[str] = frozenset()
    reasoning: bool = False
    drop: tuple[str, ...] = ()
    rename: dict[str, str] = {}
    models: tuple[str, ...] = ()

    @property
    def is_example(self) -> bool:
        """Tell whether everybody's base_url is another one (a resource or region is part of it)."""
        return "{" in self.base_url

    def serves(self, host: str) -> bool:
        """Tell whether *host* is this provider's."""
        suffixes = tuple(suffix for suffix in self.hosts if suffix.startswith("."))
        return host in self.hosts or host.endswith(suffixes)


@cache
def providers() -> dict[str, ProviderRow]:
    """Return the shipped rows by name."""
    return {name: ProviderRow.model_validate(row) for name, row in shipped("providers.yaml").items()}


def provider_of(url: str) -> str | None:
    """Return the name of the provider whose host *url* has."""
    _, host, _ = endpoint_of(url)
    return next((name for name, row in providers().items() if row.serves(host)), None)


def shipped(name: str) -> dict[str, Any]:
    """Return a shipped table."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    table: dict[str, Any] = yaml.load(shipped_path(name).read_text("utf-8"), Loader=loader)
    return table


def shipped_path(name: str) -> Path:
    """Return where a shipped file or folder lies: in the installed package or, in a checkout, in config/."""
    inside = _PACKAGE / "_shipped" / name
    return inside if inside.exists() else _PACKAGE.parent / "config" / name
