"""Log lines about the process itself: started, reloaded, draining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from proxy.edge.lines import Stamp


def notice(
    event: str, level: str, fields: Mapping[str, object], wall: float, style: Literal["json", "text"]
) -> bytes:
    """Return one line, newline included; *fields* are plain data without secrets."""
    ts = Stamp().of(wall)
    if style == "json":
        return msgspec.json.encode({"ts": ts, "level": level, "event": event, **fields}) + b"\n"
    told = "  ".join(f"{name} {_shown(value)}" for name, value in fields.items())
    return f"{ts} {event:<14} {told}\n".encode()


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    return str(value)
