"""What no single value can tell: references, addresses, credentials, things that can never happen.

Each check reads what is left of the settings after validation, or the draft's raw data where places
in lists matter, and stays silent about values whose own mistake has been reported already.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.config.addresses import Address, endpoint_of, is_loopback
from proxy.config.checks_routes import check_names, targets_of
from proxy.config.draft import Draft, Path, Raw
from proxy.config.model import PASSTHROUGH, Settings, UpstreamSettings
from proxy.config.providers import providers
from proxy.config.resolve import nearest_values
from proxy.config.scalars import Text

# RFC 9110 token; the names are refused because they carry credentials, frame the message, or are ours.
_TOKEN_CHARS = set("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
_CREDENTIAL_HEADERS = {
    "authorization",
    "api-key",
    "x-api-key",
    "x-goog-api-key",
    "x-auth-token",
    "x-amz-security-token",
    "cookie",
}
_FRAMING_HEADERS = {
    "host",
    "connection",
    "content-length",
    "content-encoding",
    "accept-encoding",
    "transfer-encoding",
    "keep-alive",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "forwarded",
}
_OUR_PARAMS = {"model", "stream"}


def check_server(draft: Draft, settings: Settings) -> None:
    """Listening beyond this machine needs keys; addresses must differ; client keys must be distinct."""
    server = settings.server
    keys_known = draft.intact("server", "client_keys") and draft.intact("server", "allow_anonymous")
    if keys_known and not (server.listen.is_loopback or server.client_keys or server.allow_anonymous):
        draft.error(
            ("server", "listen"),
            "can be reached by others: set client_keys, or allow_anonymous: true",
        )
    if draft.intact("server", "admin_key") and not (server.admin.is_loopback or server.admin_key):
        draft.error(("server", "admin"), "can be reached by others: set admin_key")
    if keys_known and server.allow_anonymous and server.client_keys:
        draft.warn(("server", "allow_anonymous"), "has no effect while there are client_keys")
    listeners = {"listen": server.listen, "admin": server.admin, "metrics": server.metrics}
    taken: dict[Address, str] = {}
    for key, address in listeners.items():
        if address is None or not address.port:
            continue
        if address in taken:
            draft.error(("server", key), f"is the same address as server.{taken[address]}")
        taken.setdefault(address, key)
    _check_client_keys(draft, settings)


def check_upstreams(draft: Draft, settings: Settings) -> None:
    """Check where each upstream is, how it is authorised, and that somebody uses it."""
    used = {str(target["upstream"]) for _, target in targets_of(draft) if "upstream" in target}
    for name, upstream in settings.upstreams.items():
        path: Path = ("upstreams", name)
        _check_place(draft, settings, path, upstream)
        _check_key(draft, settings, path, upstream)
        _check_headers(draft, path, upstream)
        _check_params(draft, path, upstream)
        if name not in used and draft.intact("routes"):
            draft.warn(path, "is not used by any route", at_key=True)
    if not settings.upstreams and draft.intact("upstreams"):
        draft.error(("upstreams",), "no upstreams: say where requests may go", at_key=True, label="upstreams")
    _check_fates(draft, settings)


def check_policies(draft: Draft, settings: Settings) -> None:
    """An open time that grows must be able to grow."""
    owners: list[tuple[Path, dict[str, float]]] = [
        ((), nearest_values(("open", "open_max"), settings.policy.breaker))
    ]
    for name, upstream in settings.upstreams.items():
        if {"open", "open_max"} & upstream.policy.breaker.model_fields_set:
            layers = (upstream.policy.breaker, settings.policy.breaker)
            owners.append((("upstreams", name), nearest_values(("open", "open_max"), *layers)))
    for path, values in owners:
        place = (*path, "policy", "breaker")
        if values["open_max"] < values["open"] and draft.intact(*place):
            key = "open_max" if draft.spot((*place, "open_max")) != draft.spot(place) else "open"
            draft.error((*place, key), "breaker.open_max is less than breaker.open")


def check_exposure(draft: Draft) -> None:
    """Warn once, at the first key that is written into a file that others may read."""
    for path, text in _secrets(draft):
        if "${" not in text.shown and draft.spot(path).line:
            draft.warn(path, "a key is written into a file that others can read: use ${VAR}, or chmod 600")
            return


def _secrets(draft: Draft) -> Iterator[tuple[Path, Text]]:
    server, upstreams = draft.data.get("server"), draft.data.get("upstreams")
    places: list[tuple[Path, Raw]] = []
    if isinstance(server, dict):
        places.append((("server", "admin_key"), server.get("admin_key")))
        keys = server.get("client_keys")
        for i, entry in enumerate(keys if isinstance(keys, list) else []):
            places.append(
                (("server", "client_keys", i, "key"), entry.get("key") if isinstance(entry, dict) else None)
            )
    for name, raw in (upstreams if isinstance(upstreams, dict) else {}).items():
        if isinstance(raw, dict):
            places += _keys_of(("upstreams", name), raw)
    yield from ((path, raw) for path, raw in places if isinstance(raw, Text))


def _keys_of(path: Path, raw: dict[str, Raw]) -> Iterator[tuple[Path, Raw]]:
    if raw.get("api_key") != PASSTHROUGH and "api_key_file" not in raw:
        yield (*path, "api_key"), raw.get("api_key")
    several, headers = raw.get("api_keys"), raw.get("headers")
    for i, key in enumerate(several if isinstance(several, list) else []):
        yield (*path, "api_keys", i), key
    for name, value in (headers if isinstance(headers, dict) else {}).items():
        if name.lower() in _CREDENTIAL_HEADERS:
            yield (*path, "headers", name), value


def _check_client_keys(draft: Draft, settings: Settings) -> None:
    server = draft.data.get("server")
    entries = server.get("client_keys") if isinstance(server, dict) else None
    seen: dict[tuple[str, str], int] = {}
    for i, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, dict):
            continue
        for what in ("key", "name"):
            value = entry.get(what)
            if not isinstance(value, Text):
                continue
            first = seen.setdefault((what, value), i)
            if first != i:
                draft.error(("server", "client_keys", i, what), f"the same {what} as client_keys[{first}]")
        check_names(draft, ("server", "client_keys", i, "allow"), entry.get("allow"))


def _check_place(draft: Draft, settings: Settings, path: Path, upstream: UpstreamSettings) -> None:
    scheme, host, port = endpoint_of(upstream.base_url)
    place = (*path, "base_url")
    server = settings.server
    ours = {"listen": server.listen, "admin": server.admin, "metrics": server.metrics}
    for key, address in ours.items():
        if address is not None and address.meets(host, port):
            draft.error(place, f"is Sidestep itself: the address of server.{key}")
            return
    plain_known = draft.intact(*path, "allow_plain_http")
    if scheme == "http" and not is_loopback(host) and not upstream.allow_plain_http and plain_known:
        draft.error(
            place,
            "http:// beyond this machine sends keys and prompts readable: use https://, "
            "or set allow_plain_http: true",
        )


def _check_key(draft: Draft, settings: Settings, path: Path, upstream: UpstreamSettings) -> None:
    if upstream.passthrough and settings.server.client_keys:
        draft.error(
            (*path, "api_key"),
            "passthrough sends the client's own key upstream: it can not be used with server.client_keys",
        )
    row = providers().get(upstream.provider or "")
    _, host, _ = endpoint_of(upstream.base_url)
    keyless = (row is not None and row.keyless) or is_loopback(host)
    in_headers = _CREDENTIAL_HEADERS & {name.lower() for name in upstream.headers}
    if upstream.api_key or upstream.api_keys or keyless or in_headers or not draft.intact(*path):
        return
    variable = row.key_env if row and row.key_env else "NAME_OF_A_VARIABLE"
    draft.error(path, f"has no key: write api_key: ${{{variable}}}", at_key=True)


def _check_headers(draft: Draft, path: Path, upstream: UpstreamSettings) -> None:
    for name in upstream.headers:
        if fault := _header_fault(name.lower()):
            draft.error((*path, "headers", name), fault, at_key=True)
    for i, name in enumerate(upstream.headers_from_client):
        place = (*path, "headers_from_client", i)
        if name.lower() in _CREDENTIAL_HEADERS:
            draft.error(
                place, "a client's credentials never go upstream; for that there is api_key: passthrough"
            )
        elif fault := _header_fault(name.lower()):
            draft.error(place, fault)


def _header_fault(name: str) -> str | None:
    if not set(name) <= _TOKEN_CHARS:
        return "is not the name of a header"
    if name in _FRAMING_HEADERS or name.startswith(("proxy-", "x-forwarded-", "x-sidestep-")):
        return "this header is Sidestep's own to set"
    return None


def _check_params(draft: Draft, path: Path, upstream: UpstreamSettings) -> None:
    params = upstream.params
    for key, names in (("drop", params.drop), ("rename", params.rename), ("set", params.set)):
        for i, name in enumerate(names):
            if name in _OUR_PARAMS:
                place = (*path, "params", key, i if key == "drop" else name)
                draft.error(place, f"'{name}' is Sidestep's own to set", at_key=key != "drop")


def _check_fates(draft: Draft, settings: Settings) -> None:
    fates = [upstream.fate or name for name, upstream in settings.upstreams.items()]
    for name, upstream in settings.upstreams.items():
        if upstream.fate is not None and fates.count(upstream.fate) == 1:
            draft.warn(("upstreams", name, "fate"), "no other upstream shares this fate")
