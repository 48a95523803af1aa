"""The status data and its page without JavaScript."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from proxy.core.events import Decision, Event, RequestOutcome
from proxy.core.target import Target, Tier
from proxy.edge.status_data import MAX_DECISIONS, MAX_MOVES, Sources, StatusBoard, TargetStatus, target_status
from proxy.edge.status_page import render
from tests.edge.examples import (
    WALL,
    ACell,
    breaker_moved,
    decided,
    failed_over_request,
    good_request,
    request_ended,
    route,
    upstream,
    wildcard,
)

GPT5 = Target(upstream("openai"), "gpt-5")


class Watched:
    """A board over cells and times that a test sets."""

    def __init__(self, *cells: ACell, drained: Iterable[str] = ()) -> None:
        self.wall = WALL
        self.now = 100.0
        self.cells = list(cells)
        self.board = StatusBoard(
            Sources(
                version="1.2.3",
                routes=lambda: [route(), wildcard()],
                cells=lambda: self.cells,
                clock=lambda: self.now,
                wall=lambda: self.wall,
                ready=lambda: True,
                drained=lambda: tuple(drained),
                listen=lambda: ["127.0.0.1:7380"],
            )
        )

    def observe(self, *events: Event) -> None:
        for event in events:
            self.board.observe(event)

    def target(self, name: str = "gpt-5", index: int = 0) -> TargetStatus:
        found = next(found for found in self.board.status().routes if found.name == name)
        return found.targets[index]


def test_routes_and_targets_are_listed_best_first_before_any_traffic() -> None:
    status = Watched().board.status()
    listed = {
        found.name: [(t.upstream, t.model, t.tier, t.state) for t in found.targets] for found in status.routes
    }
    assert listed == {
        "gpt-5": [("openai", "gpt-5", 0, "closed"), ("azure", "gpt-5-prod", 1, "closed")],
        "*": [("openai", "", 0, "closed")],
    }
    assert (status.version, status.ready, status.listen) == ("1.2.3", True, ["127.0.0.1:7380"])


def test_totals_count_what_failover_saved() -> None:
    watched = Watched()
    watched.now += 60.0
    watched.observe(*good_request(), *failed_over_request(), request_ended(RequestOutcome.INTERRUPTED))
    status = watched.board.status()
    assert (status.totals.requests, status.totals.saved) == (3, 1)
    assert status.totals.outcomes["interrupted"] == 1
    assert status.uptime_s == 60.0


def test_a_target_shows_its_breaker_and_why() -> None:
    cell = ACell(
        "openai",
        "gpt-5",
        "chat",
        state="open",
        reason="failure_ratio",
        numbers={"ratio": 0.61234567},
        failure_ratio=0.61234567,
        cooldown_s=3.2,
        share=0.0,
        in_flight=2,
        ttft_p50_s=0.4,
        ttft_p95_s=1.9,
    )
    found = Watched(cell).target()
    assert (found.state, found.next_probe_s, found.admitted, found.in_flight) == ("open", 3.2, 0.0, 2)
    assert found.why is not None
    assert (found.why.scope, found.why.reason, found.why.numbers) == (
        "target",
        "failure_ratio",
        {"ratio": 0.6123},
    )
    assert (found.failure_ratio, found.ttft_p50_s, found.ttft_p95_s) == (0.6123, 0.4, 1.9)


@pytest.mark.parametrize(
    ("cells", "state"),
    [
        pytest.param([], "closed", id="nothing known"),
        pytest.param([ACell("openai", "gpt-5", "chat", cooldown_s=7.0)], "resting", id="rests after a 429"),
        pytest.param([ACell("openai", scope="endpoint", state="open")], "open", id="its host is down"),
        pytest.param(
            [ACell("openai", "gpt-5", "chat", state="recovering"), ACell("openai", "gpt-5", "embeddings")],
            "recovering",
            id="the worst of its operations",
        ),
        pytest.param([ACell("openai", "other", "chat", state="open")], "closed", id="another model is down"),
    ],
)
def test_a_target_s_state_is_the_worst_it_depends_on(cells: list[ACell], state: str) -> None:
    assert Watched(*cells).target().state == state


def test_a_drained_upstream_is_shown_as_such_whatever_its_breaker_says() -> None:
    watched = Watched(ACell("openai", scope="endpoint", state="open"), drained=["openai"])
    assert watched.target().state == "drained"
    assert watched.target(index=1).state == "closed"


def test_the_share_of_traffic_is_that_of_the_last_minutes() -> None:
    watched = Watched()
    assert watched.target().share is None
    watched.observe(request_ended(), request_ended(), request_ended(), failed_over_request()[-1])
    assert (watched.target().share, watched.target(index=1).share) == (0.75, 0.25)
    watched.wall += 60.0
    assert watched.target().share == 0.75
    watched.wall += 60.0
    assert watched.target().share is None


def test_a_wildcard_target_has_the_share_of_all_its_models() -> None:
    watched = Watched()
    names = [request_ended(route="*", model=f"model-{number}") for number in range(5000)]
    watched.observe(*names, request_ended(route="*", model="m" * 100_000))
    assert watched.target("*").share == 1.0


def test_moves_are_kept_newest_first_and_bounded() -> None:
    watched = Watched()
    for number in range(MAX_MOVES + 50):
        watched.observe(breaker_moved(numbers={"failures": float(number)}))
    moves = watched.board.status().moves
    assert len(moves) == MAX_MOVES
    assert moves[0].numbers == {"failures": float(MAX_MOVES + 49)}


def test_the_same_decision_again_counts_up_one_entry() -> None:
    watched = Watched()
    failover = decided(Decision.FAILOVER, upstream="azure", reason="overloaded")
    for _ in range(1000):
        watched.observe(decided(), decided(Decision.SKIP), failover)
    watched.observe(decided(Decision.HOLD, upstream="", reason="open"))
    found = [(entry.decision, entry.reason, entry.count) for entry in watched.board.status().decisions]
    assert found == [("hold", "open", 1), ("failover", "overloaded", 1000)]


def test_the_same_decision_much_later_is_news() -> None:
    watched = Watched()
    watched.observe(decided(Decision.HOLD))
    watched.wall += 61.0
    watched.observe(decided(Decision.HOLD))
    entry = watched.board.status().decisions[0]
    assert (entry.count, entry.first, entry.last) == (
        1,
        "2026-11-22T05:20:43.500Z",
        "2026-11-22T05:20:43.500Z",
    )


def test_decisions_are_bounded() -> None:
    watched = Watched()
    for number in range(MAX_DECISIONS + 50):
        watched.observe(decided(Decision.REJECT, route=f"route-{number}"))
    assert len(watched.board.status().decisions) == MAX_DECISIONS


def test_the_data_is_plain_json() -> None:
    watched = Watched(ACell("openai", "gpt-5", "chat", state="open", reason="slow", numbers={"p95": 3.0}))
    watched.observe(*failed_over_request(), breaker_moved())
    found = msgspec.json.decode(msgspec.json.encode(watched.board.status()))
    assert found["routes"][0]["targets"][0]["why"] == {
        "scope": "target",
        "reason": "slow",
        "numbers": {"p95": 3.0},
    }
    assert found["moves"][0]["from"] == "closed"
    assert found["decisions"][0]["decision"] == "failover"


class Reader(HTMLParser):
    """Reads a page's tables as rows of text, and all tags."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data.strip()


def read(page: bytes) -> Reader:
    reader = Reader()
    reader.feed(page.decode())
    return reader


def test_the_page_shows_states_reasons_and_figures_as_text() -> None:
    cell = ACell(
        "openai", "gpt-5", "chat", state="half_open", reason="slow", failure_ratio=0.5, cooldown_s=2.0
    )
    watched = Watched(cell)
    watched.observe(*failed_over_request(), breaker_moved())
    page = render(watched.board.status())
    rows = read(page).rows
    row = ["openai/gpt-5", "half-open", "target: slow", "50%", "", "", "", "0%", "0", "2.00 s"]
    assert row in rows
    assert "1 saved by failover" in page.decode()
    move = [
        "2026-11-22T05:19:42.500Z",
        "target openai gpt-5 chat",
        "closed → open",
        "consecutive (failures 5)",
    ]
    assert move in rows
    assert ["2026-11-22T05:19:42.500Z", "gpt-5", "azure", "failover: overloaded", "1"] in rows


def test_nothing_in_the_data_can_become_markup() -> None:
    evil = '"><script>alert(1)</script>&'
    bad = Target(upstream(evil), evil)
    watched = Watched()
    watched.observe(breaker_moved(upstream=evil, model=evil, reason=evil), decided(Decision.HOLD, route=evil))
    status = watched.board.status()
    target = target_status(
        bad, 0, [ACell(evil, evil, state=evil, reason=evil, numbers={evil: 1.0})], None, drained=False
    )
    routes = [replace_struct(status.routes[0], name=evil, targets=[target])]
    page = render(replace_struct(status, version=evil, routes=routes, listen=[evil], ts=evil))
    reader = read(page)
    assert "script" not in reader.tags
    assert b"<script" not in page
    assert any(evil in cell for row in reader.rows for cell in row)


def test_the_page_loads_nothing_from_elsewhere() -> None:
    page = render(Watched().board.status())
    assert not {"script", "link", "img", "iframe", "object"} & set(read(page).tags)
    assert b"http://" not in page
    assert b"https://" not in page


def test_empty_lists_say_so() -> None:
    assert render(Watched().board.status()).count(b"None yet.") == 2


def replace_struct(value: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(value, **changes)


def test_targets_in_one_tier_share_its_number() -> None:
    board = StatusBoard(
        Sources(
            version="1",
            routes=lambda: [replace(route(), tiers=(Tier((GPT5, Target(upstream("azure"), "x"))),))],
            cells=list,
            clock=lambda: 0.0,
            wall=lambda: WALL,
            ready=lambda: False,
        )
    )
    status = board.status()
    assert [target.tier for target in status.routes[0].targets] == [0, 0]
    assert "not ready" in render(status).decode()
