"""`sidestep drill` as people run it: a process beside a live proxy."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.cli import main
from proxy.commands.drill import told
from proxy.transport.felt import Latency, Move, Report
from tests.fakes.proxy import RunningProxy, running_proxy
from tests.fakes.upstream import FakeUpstream, Reply, dead_port

TEXT = """
upstreams: {a: {base_url: %s}, b: {base_url: %s}}
routes: {m: [a, b]}
policy: {hold: 0s}
"""
NONE = Latency(0, None, None)


@asynccontextmanager
async def two(tmp_path: Path, server: str = "") -> AsyncIterator[RunningProxy]:
    """A proxy in front of two upstreams that answer."""
    async with FakeUpstream(Reply()) as a, FakeUpstream(Reply()) as b:
        text = TEXT % (a.base_url, b.base_url)
        async with running_proxy(text, tmp_path, server=server) as proxy:
            yield proxy


async def sidestep(*words: str, key: str = "") -> Process:
    """Start the command; its output is read by the caller."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1", **({"SIDESTEP_ADMIN_KEY": key} if key else {})}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy", "drill", *words, stdout=PIPE, stderr=PIPE, env=env
    )


async def outcome(process: Process) -> tuple[int, str, str]:
    """Return exit code, output and complaints."""
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def first_line(process: Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(30):
        return (await process.stdout.readline()).decode()


async def asked(proxy: RunningProxy, times: int) -> list[str]:
    """Ask *times* and return who answered."""
    found = []
    for _ in range(times):
        async with proxy.chat() as answer:
            await answer.read()
            found.append(answer.headers["x-sidestep-upstream"])
    return found


async def test_it_waits_for_the_end_and_tells_what_clients_felt(tmp_path: Path) -> None:
    async with two(tmp_path) as proxy:
        words = ("a", "--fault", "status:503", "--for", "2s", "--admin", proxy.admin_url)
        process = await sidestep(*words)
        begun = await first_line(process)
        assert begun.startswith("All attempts on 'a' are made to fail (status:503) for 2 s.")
        assert await asked(proxy, 3) == ["b", "b", "b"]
        code, out, err = await outcome(process)
        assert (code, err) == (0, "")
        assert "Clients felt no error: 3 requests." in out
        assert "3  answered after a failed attempt" in out
        assert await asked(proxy, 1) == ["a"]


async def test_ctrl_c_ends_the_drill_and_still_reports(tmp_path: Path) -> None:
    async with two(tmp_path) as proxy:
        process = await sidestep("a", "--fault", "refuse", "--for", "1h", "--admin", proxy.admin_url)
        await first_line(process)
        await asked(proxy, 1)
        process.send_signal(signal.SIGINT)
        code, out, err = await outcome(process)
        assert (code, err) == (0, "")
        assert "1 of 1 attempt on it made to fail" in out
        assert await asked(proxy, 1) == ["a"]


async def test_a_keyed_admin_takes_the_key_from_the_environment(tmp_path: Path) -> None:
    async with two(tmp_path, "admin_key: admin-key-123456") as proxy:
        words = ("a", "--fault", "hang", "--for", "100ms", "--admin", proxy.admin_url)
        code, _, err = await outcome(await sidestep(*words))
        assert (code, "SIDESTEP_ADMIN_KEY" in err) == (1, True)
        code, out, err = await outcome(await sidestep(*words, key="admin-key-123456"))
        assert (code, err) == (0, "")
        assert "No client asked" in out


async def test_what_the_proxy_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    async with two(tmp_path) as proxy:
        code, _, err = await outcome(await sidestep("c", "--fault", "hang", "--admin", proxy.admin_url))
        assert (code, "there are a, b" in err) == (1, True)


def test_no_proxy_is_exit_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drill", "a", "--fault", "hang", "--admin", f"127.0.0.1:{dead_port()}"]) == 1
    assert "no proxy answers" in capsys.readouterr().err


WRONG = [
    pytest.param(["a"], "--fault", id="no fault"),
    pytest.param(["--fault", "hang"], "UPSTREAM", id="no upstream"),
    pytest.param(["a", "--fault", "explode"], "there are refuse", id="no such fault"),
    pytest.param(["a", "--fault", "hang", "--share", "150%"], "100%", id="more than all"),
    pytest.param(["a", "--fault", "hang", "--for", "60"], "60s", id="a time without a unit"),
    pytest.param(["a", "--fault", "hang", "--for", "2h"], "1h", id="too long"),
]


@pytest.mark.parametrize(("words", "says"), WRONG)
def test_wrong_words_are_exit_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["drill", *words])
    assert exited.value.code == 2
    assert says in capsys.readouterr().err


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["drill", "--help"])
    assert exited.value.code == 0
    assert "sidestep drill openai --fault status:503" in capsys.readouterr().out


def test_harm_is_told_first() -> None:
    report = Report(
        id=1, upstream="openai", fault="cut", share=1.0, for_s=60.0, elapsed_s=60.0, left_s=0.0,
        running=False, attempts=90, hit=90, open=1,
        requests={"ok": 5, "ok_failover": 80, "failed": 2, "interrupted": 8, "other": 5},
        failed_over=Latency(80, 1.5, 3.0), others=Latency(5, 0.5, 0.75), extra_p50_s=1.0, extra_p99_s=2.25,
        moves=[Move(1.23, "target", "gpt-5", "chat", "closed", "open", "consecutive")] * 20,
    )  # fmt: skip
    lines = told(report)
    assert lines[2] == "10 of 100 requests hurt a client (10%)."
    assert "        1  hit and still open" in lines
    assert "  after    1.2 s  target gpt-5 chat: closed -> open (consecutive)" in lines
    assert lines[-1] == "  and 8 more"
    assert any(line.startswith("  difference") and "+" in line for line in lines)


def test_a_quiet_drill_says_so() -> None:
    nothing = dict.fromkeys(("ok", "ok_failover", "failed", "interrupted", "other"), 0)
    report = Report(
        id=1, upstream="openai", fault="hang", share=0.5, for_s=60.0, elapsed_s=60.0, left_s=0.0,
        running=False, attempts=0, hit=0, open=0, requests=nothing, failed_over=NONE, others=NONE,
        extra_p50_s=None, extra_p99_s=None, moves=[],
    )  # fmt: skip
    lines = told(report)
    assert "No client asked for a model of that upstream meanwhile." in lines
    assert lines[-1] == "No breaker moved."
