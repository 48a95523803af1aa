"""Whom a request says it is for, and which web page sent it: the defence against browsers.

A web page can make its visitor's browser send requests to loopback. Two headers tell: `Host` names
the page's own domain if that was rebound to 127.0.0.1, `Origin` is there if a script or form sent it.
The port of `Host` is not compared: behind a forwarded port (`ssh -L`, `kubectl port-forward`) it is
another than ours, and it says nothing about who sent the request.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


@lru_cache(maxsize=256)
def is_loopback_host(header: str | None) -> bool:
    """Return whether a Host header (NAME, NAME:PORT, [::1]:PORT) names this machine's loopback."""
    host = _host_of(header or "")
    if host in NAMES:
        return True
    try:
        if host.startswith("["):
            return IPv6Address(host[1:-1]).is_loopback
        return IPv4Address(host).is_loopback
    except AddressValueError:
        return False


def is_same_origin(origin: str, host: str | None) -> bool:
    """Return whether an Origin header names the very listener that Host names."""
    return bool(host) and origin.lower() in (f"http://{host}".lower(), f"https://{host}".lower())


def _host_of(header: str) -> str:
    """Return the name or address in lower case, brackets kept, "" for anything malformed."""
    name, colon, port = header.rpartition(":")
    if not colon or (header.startswith("[") and header.endswith("]")):
        return header.lower()
    if not (port.isascii() and port.isdecimal()) or int(port[:6]) > 65535:
        return ""
    return name.lower()
