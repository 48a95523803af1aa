"""README.md tells the truth: its commands, configurations, snippets, names and links are tried."""

from __future__ import annotations

import ast
import asyncio
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.real_model import free_port
from tests.e2e.serving import Proxy, running_proxy
from tests.fakes.upstream import FakeUpstream, Reply

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLE_VARIABLES = re.compile(r"\$\{(\w+)\}")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    return [text for found, text in FENCE.findall(README) if found == language]


def commands(program: str) -> list[list[str]]:
    """Return the shown shell commands that call a program, and those in running text."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(rf"`({program} [^`]*)`", README)
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words and Path(words[0]).name == program]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    upstreams = {"openai": {"base_url": f"http://127.0.0.1:{free_port()}/v1"}}
    config = {"upstreams": upstreams, "routes": {"gpt-5": ["openai"]}}
    with running_proxy(config, tmp_path_factory.mktemp("readme")) as proxy:
        yield proxy


def test_it_begins_with_what_it_is_and_the_two_commands() -> None:
    assert README.startswith("# Sidestep\n\nSidestep ")
    assert [words[:2] for words in commands("make")[:2]] == [["make", "run"], ["make", "test"]]


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_make_knows_the_target(words: list[str]) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", commands("sidestep"), ids=" ".join)
def test_sidestep_knows_the_command_and_its_flags(words: list[str]) -> None:
    command = words[1]
    done = subprocess.run(
        [sys.executable, "-m", "proxy", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    flags = [word for word in words[2:] if word.startswith("-")]
    assert [flag for flag in flags if not re.search(rf"(?<!\w){flag}\b", done.stdout)] == []


@pytest.mark.parametrize("text", blocks("yaml"), ids=lambda text: f"{len(text.splitlines())} lines")
def test_a_configuration_is_valid(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EXAMPLE_VARIABLES.findall(text):
        monkeypatch.setenv(name, f"value-of-{name}")
    file = tmp_path / "sidestep.yaml"
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "check", "-c", file],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error:" not in done.stdout + done.stderr
    assert "value-of-" not in done.stdout + done.stderr
    assert all(route in done.stdout for route in yaml.safe_load(text)["routes"])


@pytest.mark.parametrize("text", blocks("python"), ids=lambda text: text.splitlines()[0])
def test_a_python_snippet_compiles_and_its_imports_exist(text: str) -> None:
    compile(text, "README.md", "exec")
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    exec("\n".join(map(ast.unparse, imports)), {})


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js is not installed")
@pytest.mark.parametrize("text", blocks("js"), ids=lambda text: text.splitlines()[0])
def test_a_node_snippet_is_well_formed(text: str, tmp_path: Path) -> None:
    file = tmp_path / "snippet.mjs"
    file.write_text(text)
    done = subprocess.run(["node", "--check", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_address_shown_is_served(proxy: Proxy) -> None:
    shown = set(re.findall(r"http://127\.0\.0\.1:(738\d)(/[\w./-]*)?", README))
    assert {port for port, _ in shown} == {"7380", "7381"}
    for port, path in shown - {("7380", "/v1")}:
        url = proxy.url if port == "7380" else f"http://127.0.0.1:{proxy.admin_port}"
        with urllib.request.urlopen(f"{url}{path}", timeout=10) as answer:
            assert answer.status == 200
    with urllib.request.urlopen(f"{proxy.base_url}/models", timeout=10) as answer:
        assert b"gpt-5" in answer.read()


def test_every_metric_named_exists(proxy: Proxy) -> None:
    named = set(re.findall(r"\bsidestep_[a-z_]+", README))
    exposed = set(re.findall(r"^# TYPE (sidestep_\w+)", proxy.admin("/metrics"), re.MULTILINE))
    assert named - exposed == set()


async def test_every_header_named_is_on_an_answer(tmp_path: Path) -> None:
    named = set(re.findall(r"\bx-(?:sidestep|request)-[a-z-]+", README))
    async with FakeUpstream(Reply()) as fake:
        config = {"upstreams": {"openai": {"base_url": fake.base_url}}, "routes": {"gpt-5": ["openai"]}}
        with running_proxy(config, tmp_path) as proxy:
            headers = await asyncio.to_thread(_headers_of_a_chat, proxy)
    assert named - headers == set()


def _headers_of_a_chat(proxy: Proxy) -> set[str]:
    request = urllib.request.Request(
        f"{proxy.base_url}/chat/completions",
        data=b'{"model": "gpt-5", "messages": []}',
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return {name.lower() for name in answer.headers}


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    table = README.partition("## Dependencies")[2]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == needed


@pytest.mark.parametrize(
    "path", re.findall(r"\]\(([^)#:]+)\)|`((?:proxy|config|deploy|docs)/[\w./-]+)`", README)
)
def test_every_file_named_exists(path: tuple[str, str]) -> None:
    assert (ROOT / (path[0] or path[1])).exists()
