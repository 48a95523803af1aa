"""Settings to running parts: the only place where configuration meets the wire.

Pure: nothing is opened, nothing is started, so that a reload can build the new parts aside and swap
them whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from proxy import __version__
from proxy.config.addresses import endpoint_of
from proxy.config.model import ClientKey as ClientKeySettings
from proxy.config.model import ServerSettings, Settings
from proxy.config.resolve import Wire as UpstreamWire
from proxy.config.resolve import core_routes, upstream_facts, upstream_wire
from proxy.core.routing import RouteTable
from proxy.core.target import Route, UpstreamFacts
from proxy.dialects.endpoints import every_endpoint
from proxy.dialects.params import Params
from proxy.edge.auth import ClientKey, Gate, digest_of
from proxy.edge.limits import Usage
from proxy.edge.names import Names, names_of
from proxy.edge.server import Setup
from proxy.transport.connection.dial import Origin
from proxy.transport.headers import FROM_CLIENT, WITH_CLIENT_KEY
from proxy.transport.upstream import Upstream

USER_AGENT = f"sidestep/{__version__}"


@dataclass(frozen=True, slots=True)
class Parts:
    """All that a configuration becomes; a reload makes a new one and swaps it whole."""

    settings: Settings
    routes: tuple[Route, ...]
    facts: Mapping[str, UpstreamFacts]
    upstreams: Mapping[str, Upstream]
    setup: Setup
    names: Names


def build(settings: Settings, usage: dict[str, Usage]) -> Parts:
    """Return the parts for *settings*; *usage* (by client key) outlives reloads."""
    facts = {name: upstream_facts(settings, name) for name in settings.upstreams}
    routes = core_routes(settings)
    labels = dict.fromkeys(endpoint.label for endpoint in every_endpoint())
    return Parts(
        settings=settings,
        routes=routes,
        facts=facts,
        upstreams={name: _upstream(upstream_wire(settings, name), facts[name]) for name in facts},
        setup=_setup(settings.server, RouteTable(routes), usage),
        names=names_of(routes, settings.upstreams, labels),
    )


def admin_key(server: ServerSettings) -> ClientKey | None:
    """Return the key of the admin listener, if it has one."""
    key = server.admin_key
    return ClientKey("admin", digest_of(key.reveal())) if key is not None else None


def _setup(server: ServerSettings, routes: RouteTable, usage: dict[str, Usage]) -> Setup:
    keys = [_client_key(key) for key in server.client_keys]
    return Setup(
        routes=routes,
        gate=Gate(keys, usage, any_host=server.allow_anonymous and not server.listen.is_loopback),
        max_body=server.max_body,
        max_connections=server.max_connections,
        allow_admin_operations=server.allow_admin_operations,
    )


def _client_key(key: ClientKeySettings) -> ClientKey:
    allow = frozenset(key.allow) if key.allow is not None else None
    return ClientKey(key.name, digest_of(key.key.reveal()), allow, key.max_concurrency, key.rpm)


def _passed_on(wire: UpstreamWire) -> tuple[str, ...]:
    own = WITH_CLIENT_KEY if wire.passthrough else ()
    return tuple(dict.fromkeys((*FROM_CLIENT, *own, *wire.headers_from_client)))


def _upstream(wire: UpstreamWire, known: UpstreamFacts) -> Upstream:
    parts = urlsplit(wire.base_url)
    _, host, port = endpoint_of(wire.base_url)
    secure = parts.scheme == "https"
    proxy = wire.proxy.reveal() if wire.proxy is not None else None
    added = {name: value.reveal() for name, value in wire.headers.items()}
    lines = {"host": parts.netloc.rpartition("@")[2], "user-agent": USER_AGENT, "accept-encoding": "identity"}
    lines.update({name.lower(): value for name, value in added.items()})
    fixed = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    keys = {
        name: f"{wire.auth_header}: {wire.auth_prefix}{key.reveal()}\r\n".encode()
        for name, key in zip(known.credentials, wire.keys, strict=False)
    }
    changed = wire.drop or wire.rename or wire.set
    return Upstream(
        facts=known,
        origin=Origin("https" if secure else "http", host, port, wire.ca_file, proxy),
        base_path=parts.path.rstrip("/"),
        query=f"?{parts.query}" if parts.query else "",
        keys=keys,
        fixed=fixed.encode("utf-8"),
        client_headers=_passed_on(wire),
        params=Params(frozenset(wire.drop), wire.rename, wire.set) if changed else None,
        models=wire.models,
        prefills=wire.prefills,
    )
