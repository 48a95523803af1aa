"""Settings from the environment alone: the keys that are set make upstreams, tables make routes.

The result is the text of a configuration file. It is loaded like any other, so what `sidestep check`
prints as a file to start from is exactly what runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from proxy.config.addresses import is_loopback
from proxy.config.policy import PolicySettings
from proxy.config.providers import ProviderRow, providers, shipped

# In the order in which they are preferred where nothing else decides.
_ORDER = (
    "openai",
    "azure",
    "openrouter",
    "anthropic",
    "gemini",
    "groq",
    "mistral",
    "deepseek",
    "together",
    "fireworks",
    "xai",
    "ollama",
)
# Who gets models of unknown names: those without names of their own, the local one first.
_CATCH_ALL = ("ollama", "openrouter", "groq", "together", "fireworks")
_MOST_TARGETS = PolicySettings.model_fields["max_attempts"].default
_OLLAMA_HOST = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::(?P<port>[0-9]{1,5}))?/?",
    re.ASCII,
)
_OLLAMA_PORT = "11434"
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*", re.ASCII)
_YES = {"1", "true", "yes", "on"}

Routes = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Discovery:
    """A configuration file made from the environment, and what the start-up log should add."""

    text: str
    notes: tuple[str, ...]


def discover(env: Mapping[str, str]) -> Discovery | None:
    """Return what the environment gives, or None if it holds no provider's key."""
    upstreams = {name: lines for name in _ORDER if (lines := _upstream(name, env))}
    if not upstreams:
        return None
    table = shipped("equivalents.yaml")
    equivalents = env.get("SIDESTEP_EQUIVALENTS", "").lower() in _YES
    models: dict[str, dict[str, str]] = table["models"]
    routes = _model_routes(models, table["equivalents"] if equivalents else {}, set(upstreams))
    routes |= _pattern_routes(list(upstreams))
    notes = _missing(models, set(upstreams), env)
    if not equivalents and len(upstreams) > 1:
        notes.append("SIDESTEP_EQUIVALENTS=1 would let comparable models of other companies stand in")
    return Discovery(_render(upstreams, routes), tuple(notes))


def _upstream(name: str, env: Mapping[str, str]) -> list[str]:
    """Return the lines of an upstream's section, empty if the environment does not give it."""
    row = providers()[name]
    if name == "ollama":
        return _ollama(env.get("OLLAMA_HOST", "").strip())
    if not row.key_env or not env.get(row.key_env):
        return []
    key = f"api_key: ${{{row.key_env}}}"
    if name == "azure":
        endpoint = env.get("AZURE_OPENAI_ENDPOINT", "")
        return ["provider: azure", f"base_url: {_azure_url(endpoint)}", key] if endpoint else []
    if name == "openai" and env.get("SIDESTEP_OPENAI_BASE_URL"):
        return ["base_url: ${SIDESTEP_OPENAI_BASE_URL}", key]
    return [f"provider: {name}", key]


def _azure_url(endpoint: str) -> str:
    """Complete the resource's address, which may be given with or without the API's path."""
    path = "" if endpoint.rstrip("/").endswith("/openai/v1") else "openai/v1"
    slash = "" if endpoint.endswith("/") or not path else "/"
    return f"${{AZURE_OPENAI_ENDPOINT}}{slash}{path}"


def _ollama(written: str) -> list[str]:
    """Read OLLAMA_HOST as Ollama does: a host, a port, both, or a URL; 0.0.0.0 is where it listens."""
    found = _OLLAMA_HOST.fullmatch(written)
    if not written or not found:
        return []
    host = found["host"] or "127.0.0.1"
    host = "127.0.0.1" if host in {"0.0.0.0", "[::]"} else host
    scheme = found["scheme"] or "http"
    port = found["port"] or ({"https": "443", "http": "80"}[scheme] if found["scheme"] else _OLLAMA_PORT)
    lines = ["provider: ollama", f"base_url: {scheme}://{host}:{port}/v1"]
    if scheme == "http" and not is_loopback(host.strip("[]")):
        lines.append("allow_plain_http: true  # OLLAMA_HOST says so; prompts travel readable")
    return lines


def _model_routes(models: dict[str, dict[str, str]], groups: dict[str, list[str]], have: set[str]) -> Routes:
    """Return exact routes for the models that more than one of our upstreams can answer."""
    routes: Routes = {}
    for model, names in models.items():
        ours = {upstream: name for upstream, name in names.items() if upstream in have}
        others = _stand_ins(model, models, groups, have)
        if not ours or len(ours) + len(others) < 2:
            continue
        for asked in dict.fromkeys((model, *ours.values())):
            namesakes = [upstream for upstream in ours if ours[upstream] == asked]
            chain = dict.fromkeys((*namesakes, *ours))
            targets = [_target(upstream, ours[upstream], asked) for upstream in chain]
            routes.setdefault(asked, [*targets, *others[: max(0, _MOST_TARGETS - len(targets))]])
    return routes


def _stand_ins(
    model: str, models: dict[str, dict[str, str]], groups: dict[str, list[str]], have: set[str]
) -> list[str]:
    """Return the best model of each other company in the model's group, at its first upstream we have."""
    group = next((group for group in groups.values() if model in group), [])
    companies = {_company(models[model])}
    targets = []
    for other in group:
        upstream = next((name for name in models[other] if name in have), None)
        if upstream is None or _company(models[other]) in companies:
            continue
        companies.add(_company(models[other]))
        targets.append(f"{upstream}/{models[other][upstream]}")
    return targets


def _company(names: dict[str, str]) -> str:
    """Return who makes a model, or for an open one who comes first among its hosts."""
    return next(iter(names))


def _target(upstream: str, name: str, asked: str) -> str:
    return upstream if name == asked else f"{upstream}/{name}"


def _pattern_routes(have: list[str]) -> Routes:
    """Return a route for each provider's own kind of names, and one for all the rest."""
    rest = next((name for name in _CATCH_ALL if name in have), have[0])
    routes: Routes = {}
    for name in have:
        for pattern in providers()[name].models:
            routes.setdefault(pattern, []).append(name)
    return {pattern: names for pattern, names in routes.items() if names != [rest]} | {"*": [rest]}


def _missing(models: dict[str, dict[str, str]], have: set[str], env: Mapping[str, str]) -> list[str]:
    """Say which keys would give a second upstream to models that have only one."""
    gains: dict[str, list[str]] = {}
    for model, names in models.items():
        if len(have & set(names)) == 1:
            for absent in names:
                if absent not in have:
                    gains.setdefault(absent, []).append(model)
    notes = []
    for name, gained in gains.items():
        more = f" and {len(gained) - 3} more models" if len(gained) > 3 else ""
        wanted = _variables(name, providers()[name], env)
        notes.append(f"{wanted} would add a fallback for {', '.join(gained[:3])}{more}")
    return notes


def _variables(name: str, row: ProviderRow, env: Mapping[str, str]) -> str:
    wanted = [str(row.key_env)] + (["AZURE_OPENAI_ENDPOINT"] if name == "azure" else [])
    return " and ".join(variable for variable in wanted if not env.get(variable))


def _render(upstreams: dict[str, list[str]], routes: Routes) -> str:
    lines = ["# Made from the environment. Save it as sidestep.yaml to change it.", "upstreams:"]
    for name, section in upstreams.items():
        lines.append(f"  {name}:")
        lines += [f"    {line}" for line in section]
    lines += ["", "routes:  # model a client asks for -> where it may go, best first"]
    for name, targets in routes.items():
        lines.append(f"  {_scalar(name)}: [{', '.join(map(_scalar, targets))}]")
    return "\n".join(lines) + "\n"


def _scalar(text: str) -> str:
    """Return a text as YAML that reads back as the same text."""
    return text if _PLAIN.fullmatch(text) else json.dumps(text)
