"""A headless Chromium, driven over its DevTools protocol: open a page, read it as a person would, look at it.

Only what the tests need, on aiohttp's WebSocket client. The profile is a temporary directory; nothing
is loaded from elsewhere, and background networking is off.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage",
    "--hide-scrollbars", "--force-color-profile=srgb", "--remote-debugging-port=0",
)  # fmt: skip
START_S, ANSWER_S = 60.0, 30.0


@dataclass
class Page:
    """One tab. `errors` are what its console and its policies had to complain of."""

    socket: aiohttp.ClientWebSocketResponse
    errors: list[str] = field(default_factory=list)
    loaded: asyncio.Event = field(default_factory=asyncio.Event)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _answers: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(ANSWER_S):
            found = await answer
        assert "error" not in found, f"{method}: {found['error']}"
        result: dict[str, Any] = found["result"]
        return result

    async def listen(self) -> None:
        """Hand out answers and note events until the socket closes."""
        async for message in self.socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Page.loadEventFired":
                self.loaded.set()
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(said["params"]["exceptionDetails"]))

    async def open(self, url: str) -> None:
        """Go to an address and wait until the page has loaded."""
        self.loaded.clear()
        await self.call("Page.navigate", url=url)
        async with asyncio.timeout(ANSWER_S):
            await self.loaded.wait()

    async def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression in the page; a promise is awaited."""
        found = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, script: str, timeout_s: float = ANSWER_S) -> None:
        """Wait until a JavaScript expression is true."""
        async with asyncio.timeout(timeout_s):
            while not await self.run(script):
                await asyncio.sleep(0.05)

    async def text(self, selector: str = "body") -> str:
        """Return the text that is to be seen there, spaces and lines made one."""
        return " ".join(str(await self.run(f"document.querySelector({selector!r}).innerText")).split())

    async def looks(
        self, *, dark: bool = False, width: int = 1280, height: int = 900, scale: int = 1
    ) -> None:
        """Set the size of the window and whether the person prefers dark."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        still = {"name": "prefers-reduced-motion", "value": "reduce"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme, still])

    async def screenshot(self, file: Path) -> None:
        """Keep a picture of the whole page."""
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = await self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(found["data"]))


@asynccontextmanager
async def browsing(profile: Path) -> AsyncIterator[Page]:
    """Start the browser with a new *profile* and open one tab."""
    assert PROGRAM is not None
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *FLAGS,
        *sandbox,
        f"--user-data-dir={profile}",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "TZ": "UTC", "LANG": "en_US.UTF-8"},
        start_new_session=True,
    )
    try:
        port = await _port(profile / "DevToolsActivePort", process)
        async with aiohttp.ClientSession() as session, _tab(session, port) as page:
            yield page
            with suppress(TimeoutError, ConnectionError):
                await page.call("Browser.close")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def _tab(session: aiohttp.ClientSession, port: int) -> AsyncIterator[Page]:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
    async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
        page = Page(socket)
        listening = asyncio.ensure_future(page.listen())
        for domain in ("Page", "Runtime", "Log"):
            await page.call(f"{domain}.enable")
        try:
            yield page
        finally:
            listening.cancel()
            await asyncio.wait([listening])


async def _port(file: Path, process: asyncio.subprocess.Process) -> int:
    """Return the port on which the browser listens, once it has written it down."""
    async with asyncio.timeout(START_S):
        while not (file.exists() and "\n" in file.read_text()):
            assert process.returncode is None, "the browser ended at once"
            await asyncio.sleep(0.05)
    return int(file.read_text().split("\n")[0])
