"""The queries of dashboard and rules, taken apart as far as their conventions need it.

The real Prometheus says whether a query is valid; here is only which series it selects, and how. Every
selector of ours is written out (`name{...}[...]`), so a regular expression finds them all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from proxy.core.breaker import State
from proxy.core.events import Decision, RequestOutcome
from proxy.core.outcome import Kind, Scope
from proxy.edge.families import FAMILIES, Family

ROOT = Path(__file__).parent.parent.parent
GRAFANA = ROOT / "deploy" / "grafana"
PROMETHEUS = ROOT / "deploy" / "prometheus"
RUNBOOK = ROOT / "docs" / "runbook.md"

_SELECTOR = re.compile(
    r"(?:(?P<function>\w+)\s*\(\s*)?"
    r"\b(?P<metric>(?:\w+:)?(?:sidestep|process)_[\w:]+|up\b)"
    r"(?:\{(?P<matchers>[^}]*)\})?(?:\[(?P<range>[^\]]*)\])?"
)
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")

PROCESS = ("resident_memory_bytes", "cpu_seconds_total", "open_fds", "max_fds")
TARGET_LABELS = {"job", "instance"}  # of every series that Prometheus scrapes
SUFFIXES = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_count", "_sum")}

_BOOLEANS = {"true", "false"}
_WORDS: dict[tuple[str, str], set[str]] = {
    ("sidestep_requests_total", "outcome"): set(RequestOutcome),
    ("sidestep_attempts_total", "outcome"): set(Kind),
    ("sidestep_decisions_total", "decision"): set(Decision),
    ("sidestep_breaker_state", "state"): set(State),
    ("sidestep_breaker_state", "scope"): set(Scope),
    ("sidestep_breaker_transitions_total", "to"): set(State),
    ("sidestep_breaker_transitions_total", "enforced"): _BOOLEANS,
    ("sidestep_config_reloads_total", "result"): {"success", "failure"},
}


@dataclass(frozen=True)
class Selector:
    """One selector; `function` is what it is the direct argument of."""

    metric: str
    matchers: tuple[tuple[str, str, str], ...]
    range: str | None
    function: str | None


@dataclass(frozen=True)
class Query:
    """One target of a panel, and where it stands."""

    panel: str
    letter: str
    expression: str


def selectors(expression: str) -> list[Selector]:
    """Return the selectors of an expression."""
    return [
        Selector(
            each["metric"], tuple(_MATCHER.findall(each["matchers"] or "")), each["range"], each["function"]
        )
        for each in _SELECTOR.finditer(expression)
    ]


def grouping_labels(expression: str) -> set[str]:
    """Return the labels by which an expression groups or joins."""
    return {label.strip() for group in _GROUPING.findall(expression) for label in group.split(",")} - {""}


def exposed() -> dict[str, set[str]]:
    """Return the series that Sidestep exposes, each with the names of its labels."""
    series = {f"process_{name}": set(TARGET_LABELS) for name in PROCESS}
    for family in FAMILIES:
        labels = {*family.labels, *TARGET_LABELS, *(["state"] if family.kind == "state" else [])}
        for name in names_of(family):
            series[name] = labels | ({"le"} if name.endswith("_bucket") else set())
    return series


def names_of(family: Family) -> list[str]:
    """Return the names under which the series of a family are exposed."""
    return [family.name + suffix for suffix in SUFFIXES.get(family.kind, ("",))]


def unknown_words(selector: Selector) -> set[str]:
    """Return the values in a selector's matchers that its label never has, as far as those are listed."""
    return {
        f"{label}={word}"
        for label, _, value in selector.matchers
        if (selector.metric, label) in _WORDS
        for word in set(value.split("|")) - _WORDS[selector.metric, label]
    }


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana reads it."""
    read: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "sidestep.json").read_text())
    return read


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels, without the headings of its rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def panel_queries() -> list[Query]:
    """Return every query of every panel."""
    return [
        Query(panel["title"], target["refId"], target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]


def annotation_queries() -> list[Query]:
    """Return the queries of the dashboard's annotations."""
    return [Query(each["name"], "", each["expr"]) for each in dashboard()["annotations"]["list"]]


def rules(name: str) -> list[dict[str, Any]]:
    """Return the rules of one file, of all its groups."""
    return list(_rules(PROMETHEUS / "rules" / name))


def _rules(path: Path) -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load(path.read_text())["groups"]:
        yield from group["rules"]
