"""`sidestep status`: the status page for a terminal, from a proxy that runs."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.commands.status import render
from proxy.commands.terminal import CLEAR, ESCAPE, Ink, table
from proxy.core.events import RequestOutcome
from tests.edge.board import Watched, detour
from tests.edge.examples import ACell, breaker_moved, failed_over_request, request_ended
from tests.fakes.proxy import running_proxy
from tests.fakes.upstream import FakeUpstream, Reply, dead_port

ROOT = Path(__file__).parents[2]
NUMBERS = {"failures": 5.0, "requests": 5.0}
TEXT = 'upstreams: {openai: {base_url: "%s"}}\nroutes: {m: [openai]}\n'


def outage() -> Watched:
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
        ),
        drained=["local"],
    )
    watched.observe(breaker_moved(numbers=NUMBERS), *failed_over_request("req_1"), *detour("req_2"))
    return watched


def shown(*, colour: bool = False, width: int = 100) -> str:
    return render(outage().status(), Ink(welcome=colour), width)


def test_it_shows_what_the_page_shows() -> None:
    text = re.sub(r" {2,}", "  ", shown())
    assert text.startswith("Your users are fine.\nAll 2 requests of the last 5 min were answered;")
    assert "DRAINED: local was taken out by hand and gets no new requests." in text
    assert "2 requests, 2 kept from failing (1 saved, 1 routed around), 0 lost" in text
    row = "1 openai/gpt-5  Cut off  0%  63%  310 ms  1.3 s  2  in 4 s  It is overloaded: 5 failures in a row"
    assert row in text
    assert "2 azure/gpt-5-prod  Up  100%  -  -  -  0  -\n" in text
    assert "openai is overloaded, 0 s so far\n  It was cut off: 5 failures in a row, from 5 requests." in text
    assert "Saved  req_1  720 ms  openai=overloaded → azure=ok" in text
    assert "Sidestep 1.2.3, up 0 s" in text


def test_columns_line_up() -> None:
    rows = [line for line in shown().splitlines() if "gpt-5" in line and "/" in line]
    head = next(line for line in shown().splitlines() if line.lstrip().startswith("TARGET"))
    column = head.index("STATE")
    assert {line[column - 2 : column] for line in rows} == {"  "}
    assert [line[column:].split("  ")[0] for line in rows] == ["Cut off", "Up"]


def test_colour_changes_nothing_but_the_colour() -> None:
    assert ESCAPE.sub("", shown(colour=True)) == shown()
    assert "\x1b[31mCut off\x1b[0m" in shown(colour=True)
    assert "\x1b" not in shown()


def test_paragraphs_fit_the_terminal() -> None:
    story = [line for line in shown(width=50).splitlines() if line.startswith("    ")]
    assert len(story) > 2
    assert max(map(len, story)) <= 50


def test_a_client_s_text_can_not_move_the_cursor() -> None:
    watched = outage()
    watched.observe(
        request_ended(RequestOutcome.UPSTREAM_ERROR, attempts=(), route="\x1b[2Jevil", model="\x1b[2J")
    )
    watched.observe(breaker_moved(model="\x1b[2J", reason="\x1b[2J"))
    assert "\x1b" not in render(watched.status(), Ink(welcome=False), 100)


def test_a_table_with_colours_is_as_wide_as_one_without() -> None:
    ink = Ink(welcome=True)
    lines = table([("a", ink("red", "bb"), "c"), ("aaa", "b", "c")])
    assert [ESCAPE.sub("", line) for line in lines] == ["  a    bb  c", "  aaa  b   c"]
    assert table([("a", "1"), ("b", "100")], right=[1]) == ["  a    1", "  b  100"]


async def test_it_asks_the_running_proxy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with FakeUpstream(Reply()) as fake, running_proxy(TEXT % fake.base_url, tmp_path) as proxy:
        async with proxy.chat() as answer:
            await answer.read()
        assert await asyncio.to_thread(main, ["status", "--admin", proxy.admin_url]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Your users are fine.\nThe one request of the last 5 min was answered.")
    assert "1 openai/m" in told


async def test_the_admin_key_is_read_from_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeUpstream(Reply()) as fake:
        text = TEXT % fake.base_url
        async with running_proxy(text, tmp_path, server="admin_key: the-key") as proxy:
            asked = ["status", "--admin", str(proxy.application.admin)]
            assert await asyncio.to_thread(main, asked) == 1
            assert "needs the admin key: set SIDESTEP_ADMIN_KEY" in capsys.readouterr().err
            monkeypatch.setenv("SIDESTEP_ADMIN_KEY", "the-key")
            assert await asyncio.to_thread(main, asked) == 0
            assert "the-key" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (Reply(200, body="<html>"), "that is not the status of a Sidestep of this version"),
        (Reply(200, json={"version": "0"}), "that is not the status of a Sidestep of this version"),
        (Reply(404), "knows nothing of it (404)"),
        (Reply(403), "refuses us (403)"),
        (Reply(500), "answers 500: is it the admin listener of a Sidestep?"),
    ],
)
async def test_what_is_no_sidestep_is_told_plainly(
    reply: Reply, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with FakeUpstream(reply) as fake:
        assert await asyncio.to_thread(main, ["status", "--admin", fake.url]) == 1
    said = capsys.readouterr()
    assert complaint in said.err
    assert said.out == ""


def test_without_a_proxy_it_says_where_it_asked(capsys: pytest.CaptureFixture[str]) -> None:
    port = dead_port()
    assert main(["status", "--admin", f"127.0.0.1:{port}"]) == 1
    assert f"no proxy answers at http://127.0.0.1:{port}: " in capsys.readouterr().err


def watching(admin: str, stdout: int, **env: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "proxy", "status", "--watch", "--admin", admin]
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, env=plain | env
    )


@pytest.mark.parametrize(
    ("env", "is_coloured"),
    [
        pytest.param({"TERM": "xterm-256color"}, True, id="a terminal"),
        pytest.param({"TERM": "xterm-256color", "NO_COLOR": "1"}, False, id="NO_COLOR"),
        pytest.param({"TERM": "dumb"}, False, id="a dumb terminal"),
    ],
)
async def test_watching_redraws_a_terminal_until_it_is_interrupted(
    tmp_path: Path, env: dict[str, str], is_coloured: bool
) -> None:
    async with FakeUpstream(Reply()) as fake, running_proxy(TEXT % fake.base_url, tmp_path) as proxy:
        ours, theirs = pty.openpty()
        process = watching(proxy.admin_url, theirs, **env)
        os.close(theirs)
        seen = b""
        while seen.count(CLEAR.encode()) < 2:
            seen += await asyncio.to_thread(os.read, ours, 65536)
        process.send_signal(signal.SIGINT)
        _, errors = await asyncio.to_thread(process.communicate, timeout=20)
        os.close(ours)
    assert (process.returncode, errors) == (0, b"")
    assert (b"\x1b[1m" in seen) is is_coloured


async def test_watching_into_a_pipe_neither_clears_nor_colours_and_outlives_the_proxy(tmp_path: Path) -> None:
    async with FakeUpstream(Reply()) as fake, running_proxy(TEXT % fake.base_url, tmp_path) as proxy:
        process = watching(proxy.admin_url, subprocess.PIPE, TERM="xterm-256color")
        assert process.stdout is not None
        seen = await asyncio.to_thread(process.stdout.readline)
    while b"no proxy answers at" not in seen:
        seen += await asyncio.to_thread(process.stdout.readline)
    process.send_signal(signal.SIGINT)
    await asyncio.to_thread(process.communicate, timeout=20)
    assert process.returncode == 0
    assert b"All quiet." in seen
    assert b"\x1b" not in seen
