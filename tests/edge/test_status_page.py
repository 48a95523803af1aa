"""The status page as it leaves the server: readable without JavaScript, safe whatever the data holds."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from proxy.core.events import Decision, RequestOutcome
from proxy.edge.admin import content_security_policy
from proxy.edge.status.headline import Drill
from proxy.edge.status.template import FILTERS, fill_in
from proxy.edge.status_page import PAGE, render
from tests.edge.board import Watched
from tests.edge.examples import (
    ACell,
    breaker_moved,
    decided,
    failed_over_request,
    request_ended,
    route,
    upstream,
)

NUMBERS = {"failures": 5.0, "requests": 5.0}


class Reader(HTMLParser):
    """Reads a page: tables as rows of text, all tags with their attributes, all text outside scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("style", "script", "td", "th"):
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text.append(data.strip())

    def said(self) -> str:
        return " ".join(" ".join(self.text).split())


def read(page: bytes) -> Reader:
    reader = Reader()
    reader.feed(page.decode())
    return reader


def outage() -> Watched:
    """openai is cut off, azure answers."""
    watched = Watched(
        ACell(
            "openai",
            "gpt-5",
            "chat",
            state="open",
            reason="consecutive",
            numbers=NUMBERS,
            failure_ratio=0.625,
            cooldown_s=4.2,
            ttft_p50_s=0.31,
            ttft_p95_s=1.25,
            in_flight=2,
        )
    )
    watched.observe(*failed_over_request(), breaker_moved(numbers=NUMBERS))
    watched.observe(decided(Decision.HOLD, upstream="", reason="open"))
    return watched


def test_without_javascript_it_is_a_plain_table() -> None:
    reader = read(render(outage().status()))
    assert [
        "openai gpt-5",
        "Cut off It is overloaded: 5 failures in a row, from 5 requests.",
        "",
        "0%",
        "63%",
        "310 ms",
        "1.3 s",
        "2",
        "in 4 s",
    ] in reader.rows
    assert ["azure gpt-5-prod", "Up", "", "100%", "–", "–", "–", "0", "–"] in reader.rows
    refresh = {"http-equiv": "refresh", "content": "5"}
    assert ("meta", refresh) in reader.tags


def test_it_answers_whether_users_are_fine_and_tells_the_story() -> None:
    said = read(render(outage().status())).said()
    assert "Your users are fine." in said
    assert "The one request of the last 5 min was answered; without Sidestep, 100% would have failed." in said
    assert "Kept from failing, since start 1 1 saved after a failed attempt, 0 routed around" in said
    assert "openai is overloaded It was cut off: 5 failures in a row, from 5 requests." in said
    assert "05:19:42 Saved openai=overloaded → azure=ok" in said
    assert "waited for a target: its breaker is open" in said


def test_drills_and_drains_are_visibly_marked() -> None:
    drill = Drill("openai", "status:503", 1.0, None)
    reader = read(render(Watched(drained=["azure"], drills=[drill]).status()))
    assert "drill Every attempt on openai fails on purpose (status:503)." in reader.said()
    assert "drained azure was taken out by hand" in reader.said()
    row = next(row for row in reader.rows if row[0] == "azure gpt-5-prod")
    assert row[1] == "Drained Taken out by hand."


def test_where_there_is_nothing_it_says_so() -> None:
    said = read(render(Watched().status())).said()
    assert "All quiet." in said
    assert said.count("None yet") == 3


def test_nothing_in_the_data_can_become_markup_or_a_template() -> None:
    evil = "\"><script>alert(1)</script>&'{{version}}{{#routes}}"
    watched = Watched(ACell(evil, evil, state=evil, reason=evil, numbers={evil: 1.0}))
    watched.routes = [msgspec_replace(route(), evil)]
    watched.observe(breaker_moved(upstream=evil, model=evil, reason=evil), decided(Decision.HOLD, route=evil))
    watched.observe(*failed_over_request(evil))
    watched.observe(request_ended(RequestOutcome.UPSTREAM_ERROR, route=evil, model=evil, client=evil))
    page = render(watched.status())
    reader = read(page)
    mine = read(PAGE.read_bytes())
    scripts = [tag for tag, _ in reader.tags if tag == "script"]
    assert len(scripts) == len([tag for tag, _ in mine.tags if tag == "script"])
    assert evil in reader.said()
    assert any(evil in cell for row in reader.rows for cell in row)
    names = {name for _, attributes in reader.tags for name in attributes}
    assert names <= {name for _, attributes in read(render(outage().status())).tags for name in attributes}


def msgspec_replace(example: Any, evil: str) -> Any:
    """Return a route whose names are all *evil*."""
    tiers = tuple(
        type(tier)(tuple(type(target)(upstream(evil), evil) for target in tier.targets))
        for tier in example.tiers
    )
    return type(example)(evil, tiers)


def test_nothing_is_loaded_from_elsewhere() -> None:
    page = render(outage().status())
    reader = read(page)
    assert not {"img", "iframe", "object", "embed", "video", "audio", "base", "form"} & {
        t for t, _ in reader.tags
    }
    sources = [
        attributes[name]
        for _, attributes in reader.tags
        for name in ("src", "href", "srcset", "data", "action")
        if name in attributes
    ]
    ours = {"status.json", "metrics", "-/requests", "-/config"}
    assert {source for source in sources if source and not source.startswith("data:image/svg+xml,")} == ours
    css = page.decode().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in css
    assert "@import" not in css


def test_the_policy_lets_the_page_s_own_style_and_script_run_and_nothing_else() -> None:
    """Style attributes and inline handlers would be blocked: there must be none."""
    page = render(outage().status())
    reader = read(page)
    policy = content_security_policy(page)
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 3
    for _, attributes in reader.tags:
        assert "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert policy == content_security_policy(render(Watched().status()))


def test_it_is_made_of_things_that_can_be_read_aloud() -> None:
    reader = read(render(outage().status()))
    tags = [tag for tag, _ in reader.tags]
    assert tags.count("h1") == 1
    assert tags.count("main") == 1
    assert ("html", {"lang": "en"}) in reader.tags
    assert "caption" in tags
    live = [attributes for _, attributes in reader.tags if "aria-live" in attributes]
    assert [attributes["aria-live"] for attributes in live] == ["polite"]
    for tag, attributes in reader.tags:
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes["aria-label"]
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    labelled = [
        attributes["aria-labelledby"] for _, attributes in reader.tags if "aria-labelledby" in attributes
    ]
    assert len(set(ids)) == len(ids)
    assert set(labelled) <= set(ids)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = "".join(c * 2 for c in digits) if len(digits) == 3 else digits
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_of_text_can_be_read(scheme: int) -> None:
    """WCAG AA asks for 4.5 between text and what is behind it."""
    blocks = re.findall(r":root \{(.*?)\}", PAGE.read_text(), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{3,6})", blocks[scheme]))
    texts = set(colours) - {"ground", "card", "line", "bar"}
    assert texts >= {"ink", "soft", "closed", "open", "half_open", "recovering", "resting", "drained", "lost"}
    for text in texts:
        for behind in ("ground", "card"):
            assert contrast(colours[text], colours[behind]) >= 4.5, (text, behind)


DATA: dict[str, Any] = {
    "name": "<b>",
    "none": None,
    "zero": 0,
    "share": 0.5,
    "items": [{"n": 1, "inner": {"x": "deep"}}, {"n": 2, "inner": None}],
    "words": ["a", "b"],
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{name}}", "&lt;b&gt;"),
        ("[{{none}}{{nowhere}}{{name.x.y}}]", "[]"),
        ("{{zero}}", "0"),
        ("{{share|percent}} {{none|percent}}", "50% –"),
        ("{{#items}}{{n}}={{inner.x}};{{/items}}", "1=deep;2=;"),
        ("{{#items}}{{#inner}}{{x}}{{n}}{{name}}{{/inner}}{{/items}}", "deep1&lt;b&gt;"),
        ("{{#words}}{{.}} {{/words}}{{words.1}}{{words.9}}", "a b b"),
        ("{{#zero}}yes{{/zero}}{{^zero}}no{{/zero}}", "no"),
        ("{{^items}}none{{/items}}{{#share}}{{.}}{{/share}}", "0.5"),
        ("{ {name} } {{ name }}", "{ {name} } {{ name }}"),
    ],
)
def test_templates(template: str, expected: str) -> None:
    assert fill_in(template, DATA) == expected


@pytest.mark.parametrize("template", ["{{#a}}", "{{/a}}", "{{#a}}{{#b}}{{/a}}{{/b}}"])
def test_a_template_that_does_not_close_what_it_opens_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="clos"):
        fill_in(template, DATA)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("percent", 0.0, "0%"),
        ("percent", 0.004, "<1%"),
        ("percent", 0.125, "13%"),
        ("percent", 0.9999, "99.9%"),
        ("percent", 1.0, "100%"),
        ("seconds", 0.0312, "31 ms"),
        ("seconds", 1.25, "1.3 s"),
        ("seconds", 75, "1 min 15 s"),
        ("count", 1234567, "1,234,567"),
        ("clock", "2026-11-22T05:19:42.500Z", "05:19:42"),
        ("moment", "2026-01-02T05:19:42.500Z", "2 Jan, 05:19:42"),
    ],
)
def test_filters(name: str, value: Any, expected: str) -> None:
    assert FILTERS[name](value) == expected


def test_every_value_that_the_page_shows_is_in_the_data() -> None:
    """A renamed field would leave a hole in the page: all first names are known to some part of the data."""
    known: set[str] = {"0"}

    def collect(part: Any) -> None:
        if isinstance(part, dict):
            known.update(part)
            for value in part.values():
                collect(value)
        elif isinstance(part, list):
            for value in part:
                collect(value)

    for watched in (outage(), Watched(drained=["azure"])):
        collect(msgspec.to_builtins(watched.status()))
    names = set(re.findall(r"\{\{[#^/]?([\w.]+)(?:\|\w+)?\}\}", PAGE.read_text()))
    assert {step for name in names - {"."} for step in name.split(".")} - known == set()
