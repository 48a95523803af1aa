"""The unit by systemd's own checks, and what it starts, installed as the guide says and hardened alike."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from proxy.config.model import ServerSettings
from tests.deploy import docs
from tests.deploy.tools import ROOT, until_ready
from tests.e2e.real_model import free_port

UNIT = ROOT / "deploy" / "systemd" / "sidestep.service"
INSTALL_S, END_S = 300, 40
EXPOSURE = 20  # tenths of systemd's own points; a service that does nothing about it has 96

# What MemoryDenyWriteExecute, NoNewPrivileges and LimitCORE come down to, before the program starts.
HARDENED = """
import ctypes, os, resource, sys
PR_SET_NO_NEW_PRIVS, PR_SET_MDWE, REFUSE_EXEC_GAIN = 38, 65, 1
libc = ctypes.CDLL(None)
libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
libc.prctl(PR_SET_MDWE, REFUSE_EXEC_GAIN, 0, 0, 0)  # Linux 6.3 and newer
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.umask(0o077)
os.execv(sys.argv[1], sys.argv[1:])
"""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def unit() -> dict[str, list[str]]:
    """Return the settings of the unit's [Service]; some are given more than once."""
    found: dict[str, list[str]] = {}
    section = UNIT.read_text().partition("[Service]")[2].partition("[Install]")[0]
    for name, value in re.findall(r"^(\w+)=(.*)$", section, re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Do what the guide says, below a folder; return the folder."""
    root = tmp_path_factory.mktemp("root")
    for words in install_commands():
        command = [re.sub(r"^(?=/(?:opt|etc)/)", str(root), word) for word in words]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=INSTALL_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
    return root


def install_commands() -> list[list[str]]:
    every = docs.commands("systemd")
    return [words for sudo, *words in every if sudo == "sudo" and words[0] != "systemctl"]


def verified(folder: Path, program: Path) -> str:
    """Return what systemd has to say of the unit, and of what is in *folder* beside it."""
    text = UNIT.read_text().replace("/opt/sidestep/bin/sidestep", str(program))
    (folder / UNIT.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", folder / UNIT.name],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


@needs_systemd
def test_systemd_accepts_it(tmp_path: Path) -> None:
    assert verified(tmp_path, Path(sys.executable)) == ""


@needs_systemd
def test_systemd_accepts_the_guides_addition(tmp_path: Path) -> None:
    (text,) = docs.blocks("systemd", "ini")
    (tmp_path / "sidestep.service.d").mkdir()
    addition = tmp_path / "sidestep.service.d" / "keys.conf"
    addition.write_text(text)
    assert verified(tmp_path, Path(sys.executable)) == ""
    addition.write_text(text.replace("LoadCredential", "LoadCredentials"))
    assert "Unknown key 'LoadCredentials'" in verified(tmp_path, Path(sys.executable))


@needs_systemd
def test_systemd_finds_it_well_protected() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager", UNIT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_open_requests_may_finish_before_it_is_killed() -> None:
    server = ServerSettings()
    (limit,) = unit()["TimeoutStopSec"]
    assert int(limit.removesuffix("s")) == server.drain_delay + server.drain + 5


def test_there_are_files_enough_for_every_connection() -> None:
    (limit,) = unit()["LimitNOFILE"]
    assert int(limit) >= 2 * ServerSettings().max_connections + 64


def test_a_reload_is_a_hangup_and_a_mistake_is_not_tried_again() -> None:
    settings = unit()
    assert settings["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    # What `serve` ends with if its configuration has mistakes.
    assert settings["RestartPreventExitStatus"] == ["2"]


def test_it_reads_what_the_guide_installs() -> None:
    settings = unit()
    places = {words[-1] for words in install_commands() if words[0] == "install"}
    assert settings["ExecStart"][0].split()[-1] in places
    assert settings["EnvironmentFile"][0].removeprefix("-") in places
    assert settings["ExecStart"][0].split()[0].startswith("/opt/sidestep/")


def test_the_guides_other_commands_are_about_this_service() -> None:
    rest = docs.commands("systemd")[len(install_commands()) :]
    assert [words for words in rest if words[0] == "sudo"] == [
        ["sudo", "systemctl", "daemon-reload"],
        ["sudo", "systemctl", "enable", "--now", "sidestep"],
        ["sudo", "systemctl", "reload", "sidestep"],
    ]
    assert [words for words in rest if words[0] != "sudo"] == [
        ["journalctl", "--unit", "sidestep", "--follow"]
    ]


def test_the_guides_addition_gives_a_key_by_file(tmp_path: Path) -> None:
    (text,) = docs.blocks("systemd", "ini")
    addition = configparser.ConfigParser()
    addition.read_string(text)
    name = addition["Service"]["LoadCredential"].partition(":")[0]
    assert f"api_key_file: ${{CREDENTIALS_DIRECTORY}}/{name}`" in docs.SECTIONS["systemd"]
    (tmp_path / name).write_text("sk-1\n")
    config = tmp_path / "sidestep.yaml"
    config.write_text(
        "upstreams: {openai: {provider: openai, api_key_file: '${CREDENTIALS_DIRECTORY}/openai'}}\n"
        "routes: {gpt-5: [openai]}\n"
    )
    env = {**os.environ, "CREDENTIALS_DIRECTORY": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "check", "-c", config],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_guide_installs_starts_as_the_unit_says(installed: Path) -> None:
    assert (installed / "etc/sidestep/keys.env").stat().st_mode & 0o777 == 0o600
    assert (installed / "etc/systemd/system/sidestep.service").read_text() == UNIT.read_text()
    ports = [free_port(), free_port()]
    config = installed / "etc" / "sidestep" / "sidestep.yaml"
    written = yaml.safe_load(config.read_text())
    written["server"] = {"listen": f"127.0.0.1:{ports[0]}", "admin": f"127.0.0.1:{ports[1]}"}
    config.write_text(yaml.safe_dump(written))
    with started(installed) as process:
        until_ready(f"http://127.0.0.1:{ports[1]}/readyz", process)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=END_S)
    assert process.returncode == 0, said


@contextmanager
def started(root: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the unit's command, installed below *root*, with its variables and what it forbids."""
    settings = unit()
    state = root / "var" / "lib" / "sidestep"
    state.mkdir(parents=True)
    env = dict(word.split("=", 1) for word in settings["Environment"][0].split())
    keys = ("OPENAI_API_KEY", "OPENROUTER_API_KEY", "ANTHROPIC_API_KEY")
    env |= {"HOME": str(state), **dict.fromkeys(keys, "sk-1")}
    command = [re.sub(r"^(?=/)", str(root), word) for word in settings["ExecStart"][0].split()]
    process = subprocess.Popen(
        [sys.executable, "-c", HARDENED, *command],
        cwd=state,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
