"""`${VAR}`, `${VAR:-default}`, `${VAR:?message}` and `$$` in one scalar, as Docker Compose reads them.

Values are taken as they are: nothing in an environment variable is interpreted again, neither as YAML
nor as another variable. Only defaults may hold variables of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from proxy.config.problems import one_line

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_BARE = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)\Z")
_DEEPEST = 8


class InterpolationError(ValueError):
    """A variable is missing or a `${...}` is not understood. The message holds no values."""


def interpolate(text: str, env: Mapping[str, str], depth: int = 0) -> str:
    """Return *text* with its variables replaced by their values.

    Raises: InterpolationError.
    """
    if depth > _DEEPEST:
        raise InterpolationError("variables are nested too deeply")
    bare = _BARE.match(text)
    if bare and depth == 0:
        name = bare[1]
        raise InterpolationError(f"write ${{{name}}}, or $${name} for a literal dollar sign")
    parts: list[str] = []
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        parts.append(text[at:dollar])
        follower = text[dollar + 1 : dollar + 2]
        if follower == "{":
            end = _closing_brace(text, dollar + 2)
            parts.append(_value(text[dollar + 2 : end], env, depth))
            at = end + 1
        else:
            parts.append("$")
            at = dollar + (2 if follower == "$" else 1)
    parts.append(text[at:])
    return "".join(parts)


def _closing_brace(text: str, start: int) -> int:
    """Return where the `${` that was opened just before *start* is closed."""
    depth = 1
    at = start
    while at < len(text):
        if text.startswith("${", at):
            depth += 1
            at += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    raise InterpolationError("'${' without its '}'")


def _value(inside: str, env: Mapping[str, str], depth: int) -> str:
    found = _NAME.match(inside)
    if not found:
        raise InterpolationError("'${' needs the name of a variable: ${NAME}")
    name, rest = found[0], inside[found.end() :]
    value = env.get(name, "")
    if rest.startswith(":-"):
        return value or interpolate(rest[2:], env, depth + 1)
    if rest.startswith(":?"):
        if not value:
            raise InterpolationError(f"{name} is not set: {one_line(rest[2:]) or 'it is required'}")
        return value
    if rest:
        raise InterpolationError(f"write ${{{name}}}, ${{{name}:-default}} or ${{{name}:?message}}")
    if name not in env:
        raise InterpolationError(f"environment variable {name} is not set")
    return value
