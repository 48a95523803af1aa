"""The access log: the contract's fields, two formats, and a writer that waits for nobody."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy.core.events import AttemptRecord, RequestOutcome
from proxy.edge.access_log import AccessLog, Format
from proxy.edge.log_writer import BATCH_BYTES, MAX_WAITING, LineWriter
from tests.edge.examples import WALL, breaker_moved, decided, failed_over_request, good_request, request_ended


@dataclass
class Lines:
    """What an access log writes."""

    style: Format = "json"
    written: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = AccessLog(self.written.append, lambda: WALL, self.style)

    @property
    def text(self) -> str:
        return b"".join(self.written).decode()


def test_a_request_is_one_json_line_with_the_fields_of_the_contract() -> None:
    lines = Lines()
    for event in failed_over_request():
        lines.log.observe(event)
    assert lines.text.count("\n") == 1
    assert json.loads(lines.text) == {
        "ts": "2026-11-22T05:19:42.500Z",
        "level": "info",
        "event": "request",
        "request_id": "req_2",
        "route": "gpt-5",
        "endpoint": "chat/completions",
        "stream": True,
        "outcome": "ok_failover",
        "status": 200,
        "upstream": "azure",
        "model": "gpt-5-prod",
        "attempts": [
            {"upstream": "openai", "model": "gpt-5", "outcome": "overloaded", "seconds": 0.1},
            {"upstream": "azure", "model": "gpt-5-prod", "outcome": "ok", "seconds": 1.1},
        ],
        "ttft_s": 0.31,
        "duration_s": 0.72,
        "tokens": {"input": 12, "output": 34},
        "client": "app",
    }


def test_a_breaker_s_move_is_one_json_line_with_reason_and_numbers() -> None:
    lines = Lines()
    lines.log.observe(breaker_moved())
    assert json.loads(lines.text) == {
        "ts": "2026-11-22T05:19:42.500Z",
        "level": "warning",
        "event": "breaker",
        "scope": "target",
        "upstream": "openai",
        "model": "gpt-5",
        "operation": "chat",
        "from": "closed",
        "to": "open",
        "reason": "consecutive",
        "numbers": {"failures": 5.0},
        "enforced": True,
    }


def test_other_events_write_nothing() -> None:
    lines = Lines()
    for event in good_request()[:-1]:
        lines.log.observe(event)
    assert lines.written == []


@pytest.mark.parametrize(
    ("outcome", "level"),
    [("ok", "info"), ("client_gone", "info"), ("rejected", "warning"), ("interrupted", "error")],
)
def test_the_level_follows_the_outcome(outcome: str, level: str) -> None:
    lines = Lines()
    lines.log.observe(request_ended(RequestOutcome(outcome)))
    assert json.loads(lines.text)["level"] == level


def test_times_of_the_same_second_differ_in_milliseconds() -> None:
    lines = Lines()
    for wall in (WALL, WALL + 0.125, WALL + 0.4999, WALL + 0.5):
        lines.log.observe(request_ended(wall=wall))
    stamps = [json.loads(line)["ts"][17:] for line in lines.written]
    assert stamps == ["42.500Z", "42.625Z", "42.999Z", "43.000Z"]


def test_a_request_that_nobody_answered_has_nulls() -> None:
    lines = Lines()
    lines.log.observe(
        request_ended(
            RequestOutcome.REJECTED,
            attempts=(),
            ttft_s=None,
            input_tokens=None,
            output_tokens=None,
            upstream="",
            model="",
        )
    )
    found = json.loads(lines.text)
    assert (found["ttft_s"], found["tokens"], found["attempts"], found["upstream"]) == (None, None, [], "")


@pytest.mark.parametrize("style", ["json", "text"])
@pytest.mark.parametrize(
    "model",
    [
        pytest.param("m" * 100_000, id="huge"),
        pytest.param("evil\n2026-01-01T00:00:00Z forged", id="new line"),
        pytest.param("\x1b[2J\x1b]0;x\x07", id="terminal escapes"),
        pytest.param("caf\u00e9 \u6a21\u578b", id="other scripts"),
        pytest.param("half \ud83d pair \udcff", id="lone surrogates"),
        pytest.param("\u202egnp.exe", id="right to left"),
    ],
)
def test_a_client_s_model_name_stays_one_sane_line(style: Format, model: str) -> None:
    lines = Lines(style)
    lines.log.observe(request_ended(model=model, attempts=(AttemptRecord("openai", model, "ok", 0.1),)))
    assert lines.text.count("\n") == 1
    assert lines.text.endswith("\n")
    assert len(lines.text) < 1500
    if style == "text":
        assert lines.text[:-1].isprintable()


def test_text_for_people() -> None:
    lines = Lines("text")
    lines.log.observe(failed_over_request()[-1])
    lines.log.observe(breaker_moved())
    lines.log.observe(
        breaker_moved("closed", from_state="recovering", reason="recovered", numbers={}, enforced=False)
    )
    assert lines.text.splitlines() == [
        "2026-11-22T05:19:42.500Z ok_failover    200     0.72s  gpt-5 chat/completions stream  "
        "openai=overloaded 0.10s, azure=ok 1.10s  ttft 0.31s  tokens 12+34  app  req_2",
        "2026-11-22T05:19:42.500Z breaker                 OPEN  target openai gpt-5 chat  "
        "was closed: consecutive (failures 5)",
        "2026-11-22T05:19:42.500Z breaker               CLOSED  target openai gpt-5 chat  "
        "was recovering: recovered  [observed only]",
    ]


class Timers:
    """Stands for `loop.call_later`; what is due runs when the test says so."""

    def __init__(self) -> None:
        self.due: list[Callable[[], None]] = []
        self.loop = asyncio.new_event_loop()

    def call_later(self, _delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.due.append(callback)
        return asyncio.TimerHandle(0, callback, (), self.loop)

    def run(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


@pytest.fixture
def timers() -> Iterator[Timers]:
    made = Timers()
    yield made
    made.loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_NONBLOCK)
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            continue


def read_all(fd: int) -> bytes:
    found = b""
    while True:
        try:
            data = os.read(fd, 65536)
        except BlockingIOError:
            return found
        if not data:
            return found
        found += data


def test_lines_are_written_together_a_little_later(timers: Timers, pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], timers.call_later)
    writer.write(b"one\n")
    writer.write(b"two\n")
    assert read_all(pipe[0]) == b""
    assert len(timers.due) == 1
    timers.run()
    assert read_all(pipe[0]) == b"one\ntwo\n"
    assert timers.due == []


def test_a_full_batch_does_not_wait(timers: Timers, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        writer = LineWriter(file.fileno(), timers.call_later)
        line = b"x" * 999 + b"\n"
        for _ in range(BATCH_BYTES // 1000 + 1):
            writer.write(line)
    assert path.read_bytes() == line * (BATCH_BYTES // 1000 + 1)


def test_a_reader_that_stands_still_loses_lines_but_blocks_nobody(
    timers: Timers, pipe: tuple[int, int]
) -> None:
    writer = LineWriter(pipe[1], timers.call_later)
    line = b"x" * 999 + b"\n"
    count = 2 * MAX_WAITING // len(line)
    for _ in range(count):
        writer.write(line)
    timers.run()
    assert writer.dropped > 0
    found = b""
    while timers.due:
        found += read_all(pipe[0])
        timers.run()
    found += read_all(pipe[0])
    assert found == line * (count - writer.dropped)


def test_a_pipe_keeps_its_blocking_mode(timers: Timers, pipe: tuple[int, int]) -> None:
    LineWriter(pipe[1], timers.call_later).write(b"one\n")
    timers.run()
    assert os.get_blocking(pipe[1])


def test_a_line_longer_than_a_pipe_takes_at_once_arrives_whole(timers: Timers, pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], timers.call_later)
    lines = [b"a" * 10_000 + b"\n", b"b\n", b"c" * 5_000 + b"\n"]
    for line in lines:
        writer.write(line)
    writer.close()
    assert read_all(pipe[0]) == b"".join(lines)


def test_a_reader_that_has_gone_costs_nothing(timers: Timers, pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], timers.call_later)
    os.close(pipe[0])
    writer.write(b"one\n")
    timers.run()
    writer.write(b"two\n")
    assert timers.due == []
    assert writer.dropped == 2


def test_a_full_disk_costs_lines_and_nothing_else(timers: Timers) -> None:
    with Path("/dev/full").open("wb", buffering=0) as file:
        writer = LineWriter(file.fileno(), timers.call_later)
        writer.write(b"one\n")
        timers.run()
        writer.write(b"two\nthree\n")
        timers.run()
        assert writer.dropped == 3
        assert timers.due == []


def test_close_writes_what_is_left_and_later_lines_at_once(timers: Timers, pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], timers.call_later)
    writer.write(b"one\n")
    writer.close()
    assert read_all(pipe[0]) == b"one\n"
    writer.write(b"two\n")
    assert read_all(pipe[0]) == b"two\n"


async def test_on_a_real_loop_a_line_comes_out_by_itself() -> None:
    loop = asyncio.get_running_loop()
    reader, writer = os.pipe()
    arrived = asyncio.Event()
    loop.add_reader(reader, arrived.set)
    try:
        log = AccessLog(LineWriter(writer, loop.call_later).write, lambda: WALL, "json")
        log.observe(decided())
        log.observe(request_ended())
        await asyncio.wait_for(arrived.wait(), 5)
        assert json.loads(os.read(reader, 65536))["event"] == "request"
    finally:
        loop.remove_reader(reader)
        os.close(reader)
        os.close(writer)
