"""What people are shown of a configuration: the text of `sidestep check`, the table of routes."""

from __future__ import annotations

from proxy.config.loader import Loaded
from proxy.config.model import RouteSettings, Settings
from proxy.config.resolve import route_policy


def render_check(loaded: Loaded) -> str:
    """Return all mistakes and warnings, one a line; then, if it can be used, what it says.

    That is the effective routes, and for a configuration made from the environment the file itself.
    """
    lines = [str(problem) for problem in (*loaded.problems, *loaded.warnings)]
    if loaded.settings is None:
        numbered = enumerate((loaded.text or "").splitlines(), start=1)
        listing = [f"{number:5}  {line}" for number, line in numbered]
        return "\n".join([*lines, _count(loaded), *listing]) + "\n"
    lines += [f"{loaded.source}: ok{_warned(loaded)}", ""]
    if loaded.text is not None:
        lines += [*loaded.text.rstrip().splitlines(), "", *(f"# {note}" for note in loaded.notes)]
    else:
        lines += routes_table(loaded.settings)
    return "\n".join(lines).rstrip() + "\n"


def routes_table(settings: Settings) -> list[str]:
    """Return the routes in matching order, one line each, for `check` and the start-up log."""
    width = max(map(len, settings.routes), default=0)
    lines = ["routes, first match wins:"]
    for name, route in settings.routes.items():
        lines.append(f"  {name:{width}}  {_chain(route)}{_extras(settings, name, route)}")
    return lines


def _count(loaded: Loaded) -> str:
    errors = len(loaded.problems)
    return f"{loaded.source}: {errors} error{'s' if errors != 1 else ''}{_warned(loaded)}"


def _warned(loaded: Loaded) -> str:
    count = len(loaded.warnings)
    return f", {count} warning{'s' if count != 1 else ''}" if count else ""


def _chain(route: RouteSettings) -> str:
    """Return the targets that may be used, tiers joined by arrows."""
    tiers = []
    for tier in route.targets:
        open_to = [target for target in tier if route.permits(target.upstream)]
        weighted = len({target.weight for target in open_to}) > 1
        names = [f"{target} ({target.weight:g})" if weighted else str(target) for target in open_to]
        if names:
            tiers.append(names[0] if len(names) == 1 else f"[{', '.join(names)}]")
    return " -> ".join(tiers)


def _extras(settings: Settings, name: str, route: RouteSettings) -> str:
    """Return what the route says beyond its targets."""
    parts = [f"owner {route.owner}"] if route.owner else []
    parts += [route.balance] if route.balance != "weighted" else []
    parts += [
        f"{key} {value}" for key, value in route.policy.model_dump(mode="json", exclude_unset=True).items()
    ]
    most = route_policy(settings, name).max_attempts
    if len(route.targets) > most:
        parts.append(f"at most {most} attempts")
    return f"  ({', '.join(parts)})" if parts else ""
