"""The dashboard by the rules of Grafana's dashboard-linter, and by what the metrics are really called.

Whether its queries return what they promise is tried in `test_prometheus.py`, on a real Prometheus.
"""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterable
from typing import Any

import pytest
import yaml

from proxy.core.events import RequestOutcome
from proxy.core.outcome import RULES, Kind, Verdict
from proxy.edge.families import FAMILIES, STATES
from tests.deploy.queries import (
    GRAFANA,
    Query,
    annotation_queries,
    dashboard,
    exposed,
    grouping_labels,
    names_of,
    panel_queries,
    panels,
    selectors,
    unknown_words,
)

UNITS = {"percentunit", "short", "none", "reqps", "ops", "s", "bytes"}  # of those that the linter knows
MATCHERS = {("job", "=~", "$job"), ("instance", "=~", "$instance")}


def each_panel(panel: dict[str, Any]) -> str:
    return str(panel["title"])


def each_query(query: Query) -> str:
    return f"{query.panel} {query.letter}".strip()


def variable(name: str) -> dict[str, Any]:
    found = [each for each in dashboard()["templating"]["list"] if each["name"] == name]
    assert len(found) == 1
    return dict(found[0])


def test_the_file_is_what_its_description_makes() -> None:
    built = runpy.run_path(str(GRAFANA / "build.py"))["text"]()
    file = GRAFANA / "dashboards" / "sidestep.json"
    assert file.read_text() == built, "run: python deploy/grafana/build.py"


def test_it_can_be_provisioned() -> None:
    read = dashboard()
    assert read["uid"] == "sidestep"
    assert read["editable"] is False
    assert not {"id", "__inputs", "__requires"} & read.keys()
    provider = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "sidestep.yaml").read_text())
    assert [each["type"] for each in provider["providers"]] == ["file"]
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text())
    assert [each["type"] for each in source["datasources"]] == ["prometheus"]


def test_there_is_one_data_source_variable() -> None:
    sources = [each for each in dashboard()["templating"]["list"] if each["type"] == "datasource"]
    assert [(each["name"], each["label"], each["query"]) for each in sources] == [
        ("datasource", "Data source", "prometheus")
    ]


@pytest.mark.parametrize("name", ["job", "instance"])
def test_a_variable_selects_what_is_scraped(name: str) -> None:
    found = variable(name)
    assert found["type"] == "query"
    assert found["label"] == name.title()
    assert found["datasource"]["uid"] == "${datasource}"
    assert found["multi"]
    assert found["includeAll"]
    assert found["allValue"] == ".+"
    assert found["refresh"] == 2, "it must follow the time range"
    assert found["query"]["query"] == found["definition"]
    assert found["definition"].startswith("label_values(sidestep_build_info")


def test_instances_are_those_of_the_chosen_jobs() -> None:
    assert '{job=~"$job"}' in variable("instance")["definition"]


@pytest.mark.parametrize("panel", panels(), ids=each_panel)
def test_a_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith((".", ")."))
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["datasource"]["uid"] == "${datasource}"
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"]["uid"] == "${datasource}"
        assert target["legendFormat"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_titles_are_unique() -> None:
    titles = [panel["title"] for panel in dashboard()["panels"]]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("query", [*panel_queries(), *annotation_queries()], ids=each_query)
def test_a_query_follows_the_variables_and_names_what_exists(query: Query) -> None:
    series = exposed()
    found = selectors(query.expression)
    assert found
    for selector in found:
        assert set(selector.matchers) >= MATCHERS
        assert selector.metric in series
        assert {label for label, _, _ in selector.matchers} <= series[selector.metric]
        assert not unknown_words(selector)
    assert grouping_labels(query.expression) <= set.union(*(series[each.metric] for each in found))


@pytest.mark.parametrize("query", panel_queries(), ids=each_query)
def test_a_query_takes_rates_as_it_should(query: Query) -> None:
    for selector in selectors(query.expression):
        if selector.metric.endswith(("_total", "_bucket", "_count", "_sum")):
            assert selector.function in ("rate", "increase"), "a counter as such says nothing"
        if selector.range is not None:
            # Counts over what is being looked at are what $__range is for.
            allowed = {"rate": {"$__rate_interval"}, "increase": {"$__rate_interval", "$__range"}}
            assert selector.range in allowed[str(selector.function)]
        if selector.metric.endswith("_bucket"):
            assert query.expression.startswith("histogram_quantile(")


def test_a_legend_names_labels_that_its_query_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            legend = {part.split("}}")[0] for part in target["legendFormat"].split("{{")[1:]}
            assert legend <= grouping_labels(target["expr"]), panel["title"]


def test_panels_fill_the_width_and_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies over {taken.get((x, y))}"
                taken[x, y] = panel["title"]
    height = max(y for _, y in taken) + 1
    assert taken.keys() == {(x, y) for x in range(24) for y in range(height)}


def test_the_story_comes_first() -> None:
    first = [panel["title"] for panel in panels()[:7]]
    assert first == [
        "Answered",
        "Attempts that worked",
        "Requests saved",
        "Routed around",
        "Requests lost",
        "Traffic",
        "Upstreams now",
    ]
    rows = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert rows[0] == "Is it up for clients?"


@pytest.mark.parametrize("title", ["Upstreams now", "Breakers"])
def test_breaker_states_are_shown_by_their_names(title: str) -> None:
    (panel,) = [each for each in panels() if each["title"] == title]
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    names = {int(number): shown["text"] for number, shown in mapping["options"].items()}
    assert tuple(names[number] for number in sorted(names)) == STATES
    for target in panel["targets"]:
        for number, name in names.items():
            assert number == 0 or f"{number} * sidestep_breaker_state{{" in target["expr"]
            if number:
                multiplied = target["expr"].split(f"{number} * ")[1].split("}")[0]
                assert f'state="{name}"' in multiplied


def test_actual_success_leaves_out_what_says_nothing_of_an_upstream() -> None:
    """All that is neutral to breakers, but for rate limits: they have cost the client an attempt."""
    neutral = {kind for kind, rule in RULES.items() if rule.verdict is Verdict.NEUTRAL} - {Kind.RATE_LIMITED}
    (panel,) = [each for each in panels() if each["title"] == "Attempts that worked"]
    (left_out,) = [
        value
        for selector in selectors(panel["targets"][0]["expr"])
        for label, operator, value in selector.matchers
        if (label, operator) == ("outcome", "!~")
    ]
    assert set(left_out.split("|")) == neutral


@pytest.mark.parametrize(
    ("title", "prefix", "outcomes"),
    [("Requests by outcome", "", RequestOutcome), ("Attempts by outcome", "openai: ", Kind)],
)
def test_every_outcome_has_one_colour(title: str, prefix: str, outcomes: Iterable[str]) -> None:
    (panel,) = [each for each in panels() if each["title"] == title]
    matchers = [override["matcher"]["options"].strip("/") for override in panel["fieldConfig"]["overrides"]]
    for outcome in outcomes:
        series = prefix + outcome
        assert sum(bool(re.fullmatch(f"(openai)?{matcher}", series)) for matcher in matchers) == 1, outcome


def test_transitions_of_breakers_are_annotated() -> None:
    queries = annotation_queries()
    assert {selector.metric for query in queries for selector in selectors(query.expression)} == {
        "sidestep_breaker_transitions_total"
    }
    assert all(each["enable"] for each in dashboard()["annotations"]["list"])


def test_every_metric_is_shown() -> None:
    queries = [*panel_queries(), *annotation_queries()]
    shown = {selector.metric for query in queries for selector in selectors(query.expression)}
    assert [family.name for family in FAMILIES if shown.isdisjoint(names_of(family))] == []
