"""The proxy as users run it: `python -m proxy serve -c FILE` in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.real_model import free_port

ROOT = Path(__file__).parent.parent.parent
READY_S = 20


@dataclass
class Proxy:
    """One running proxy and what it says of itself."""

    port: int
    admin_port: int
    process: subprocess.Popen[bytes]
    log: Path
    errors: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def admin(self, path: str) -> str:
        """Return the admin listener's answer to a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def lines(self) -> list[dict[str, Any]]:
        """Return the JSON log so far, without a last line that is still being written."""
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the series of that name that carry these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.admin("/metrics"))
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def breaker_state(self, upstream: str) -> str:
        """Return the worst state among the breakers of an upstream's targets and of the upstream itself."""
        for state in ("open", "half_open", "recovering"):
            if self.metric("sidestep_breaker_state", upstream=upstream, state=state) > 0:
                return state
        return "closed"


@contextmanager
def running_proxy(config: dict[str, Any], directory: Path) -> Iterator[Proxy]:
    """Run `serve` with this configuration on free ports; the proxy must end cleanly on SIGTERM."""
    port, admin_port = free_port(), free_port()
    server = {"listen": f"127.0.0.1:{port}", "admin": f"127.0.0.1:{admin_port}"}
    file = directory / "sidestep.yaml"
    file.write_text(yaml.safe_dump({**config, "server": {**server, **config.get("server", {})}}))
    log, errors = directory / "stdout.jsonl", directory / "stderr.log"
    with open(log, "wb") as stdout, open(errors, "wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "proxy", "serve", "-c", file], cwd=ROOT, stdout=stdout, stderr=stderr
        )
    proxy = Proxy(port, admin_port, process, log, errors)
    try:
        _wait_until_ready(proxy)
        yield proxy
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, errors.read_text()
    finally:
        process.kill()
        process.wait(10)


def _wait_until_ready(proxy: Proxy) -> None:
    end = time.monotonic() + READY_S
    while True:
        try:
            proxy.admin("/readyz")
        except (urllib.error.URLError, OSError):
            said = proxy.log.read_text() + proxy.errors.read_text()
            assert proxy.process.poll() is None, f"the proxy ended at once:\n{said}"
            assert time.monotonic() < end, f"the proxy was not ready in {READY_S} s:\n{said}"
            time.sleep(0.05)
        else:
            return
