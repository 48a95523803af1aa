"""A whole proxy in the test's own event loop, on real sockets, configured by YAML text."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from proxy.app import Application, Options
from proxy.config.loader import Loaded, read
from proxy.edge.traces import Traces

SERVER = "server: {listen: 127.0.0.1:0, admin: 127.0.0.1:0%s}\n"


@dataclass
class RunningProxy:
    """A proxy that listens. `log` is the file its lines go to, `text` what a reload reads."""

    application: Application
    session: aiohttp.ClientSession
    log: Path
    text: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Return the base URL as a user would set it, with /v1."""
        return f"http://{self.application.listen}/v1"

    @property
    def admin_url(self) -> str:
        """Return the admin listener's URL."""
        return f"http://{self.application.admin}"

    def chat(self, *, stream: bool = False, model: str = "m", **more: Any) -> Any:
        """Return an aiohttp request context for a chat completion."""
        body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "Hi"}], **more}
        return self.session.post(f"{self.url}/chat/completions", json=body, headers=self.headers)

    async def reload(self, text: str) -> int:
        """Replace the configuration but for its server's part, and reload; return the status."""
        self.text = self.text.partition("\n")[0] + "\n" + text
        async with self.session.post(f"{self.admin_url}/-/reload") as answer:
            return answer.status

    async def metrics(self) -> str:
        """Return the text of `/metrics`."""
        async with self.session.get(f"{self.admin_url}/metrics") as answer:
            return await answer.text()

    async def status(self) -> dict[str, Any]:
        """Return `/status.json`."""
        async with self.session.get(f"{self.admin_url}/status.json") as answer:
            status: dict[str, Any] = await answer.json()
            return status


@asynccontextmanager
async def running_proxy(
    text: str,
    tmp_path: Path,
    *,
    server: str = "",
    env: Mapping[str, str] | None = None,
    traces: Traces | None = None,
) -> AsyncIterator[RunningProxy]:
    """Run a proxy configured by *text* (everything but `server`) and *server* (more keys of that section)."""
    whole = SERVER % (f", {server}" if server else "") + text
    loaded = read(whole, "test", env or {}, tmp_path)
    assert loaded.settings is not None, loaded.problems
    log = tmp_path / "log.jsonl"
    descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def reread() -> Loaded:
        return read(proxy.text, "test", env or {}, tmp_path)

    application = Application(loaded, Options(log_fd=descriptor, reread=reread, traces=traces))
    await application.start()
    try:
        async with aiohttp.ClientSession() as session:
            proxy = RunningProxy(application, session, log, whole)
            yield proxy
    finally:
        await application.close()
        os.close(descriptor)
