"""The proxy as a process of its own, configured by YAML text, with signals and everything it says."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parent.parent.parent
LONGEST_S = 20.0  # nothing here takes longer, whatever a test forgets


@dataclass
class ProxyProcess:
    """A process that serves: the JSON lines of its log so far, and what it wrote to stdout and stderr."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    errors: str = ""

    async def until_said(self, event: str, count: int = 1) -> dict[str, Any]:
        """Wait until it has logged *event* for the *count*-th time; return that line."""
        async with asyncio.timeout(LONGEST_S):
            while len(found := [line for line in self.lines if line.get("event") == event]) < count:
                assert self.process.returncode is None, f"it has ended: {self.lines} {self.errors}"
                await asyncio.sleep(0.01)
        return found[count - 1]

    async def until_printed(self, text: str) -> None:
        """Wait until it has printed *text*, to stdout or stderr."""
        async with asyncio.timeout(LONGEST_S):
            while text not in self.text and text not in self.errors:
                assert self.process.returncode is None, f"it has ended: {self.text} {self.errors}"
                await asyncio.sleep(0.01)

    @property
    def listen(self) -> str:
        """Return HOST:PORT of the endpoint."""
        return str(next(line["listen"] for line in self.lines if line["event"] == "started"))

    @property
    def admin(self) -> str:
        """Return HOST:PORT of the admin listener."""
        return str(next(line["admin"] for line in self.lines if line["event"] == "started"))

    def chat(self, session: aiohttp.ClientSession, *, stream: bool = False, model: str = "m") -> Any:
        """Return an aiohttp request context for a chat completion."""
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Hi"}]}
        return session.post(f"http://{self.listen}/v1/chat/completions", json=body)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; return its exit code."""
        async with asyncio.timeout(LONGEST_S):
            return await self.process.wait()


@asynccontextmanager
async def a_process(
    *arguments: str,
    python: Sequence[str] = ("-m", "proxy"),
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[ProxyProcess]:
    """Run `python -m proxy ARGUMENTS`; what it says is collected, and it is killed in the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *python, *arguments,
        cwd=ROOT, env={**os.environ, **(env or {})}, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, **options,
    )  # fmt: skip
    running = ProxyProcess(process)
    readers = [asyncio.ensure_future(_read(running, "text")), asyncio.ensure_future(_read(running, "errors"))]
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await asyncio.gather(*readers)


@asynccontextmanager
async def a_served(
    text: str, folder: Path, *, server: str = "", **options: Any
) -> AsyncIterator[ProxyProcess]:
    """Run `serve` with *text* (everything but `server`), and *server* (more keys of that section)."""
    file = folder / "sidestep.yaml"
    head = f"server: {{listen: 127.0.0.1:0, admin: 127.0.0.1:0{', ' if server else ''}{server}}}\n"
    file.write_text(head + text)
    async with a_process("serve", "-c", str(file), **options) as process:
        await process.until_said("started")
        yield process


async def _read(running: ProxyProcess, what: str) -> None:
    stream = running.process.stdout if what == "text" else running.process.stderr
    assert stream is not None
    while line := await stream.readline():
        setattr(running, what, getattr(running, what) + line.decode())
        if what == "text" and line.startswith(b"{"):
            running.lines.append(json.loads(line))
