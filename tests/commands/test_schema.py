"""`sidestep schema`: the schema takes what the loader takes, and the shipped files turn it on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from proxy.cli import main
from proxy.config.loader import read
from proxy.config.model import Settings
from proxy.config.nodes import Node, Scalar, Sequence, parse
from proxy.config.schema import DRAFT, file_schema

CONFIG = Path(__file__).parents[2] / "config"
SHIPPED = [CONFIG / "sidestep.yaml", *sorted((CONFIG / "examples").glob("*.yaml"))]
SCHEMA = file_schema()
ENV = {"PORT": "7380", "KEY": "k", "N": "5", "FLAG": "yes", "TIME": "5s", "MODE": "observe"}
BASE = """\
upstreams:
  openai: {base_url: "https://api.openai.com/v1", api_key: "${KEY}"}
  b: {base_url: "https://b.example/v1", api_key: "${KEY}"}
"""


def core_schema(node: Node | None) -> Any:
    """Return what YAML 1.2's core schema, which editors follow, makes of a document."""
    if node is None:
        return None
    if isinstance(node, Sequence):
        return [core_schema(item) for item in node.items]
    if isinstance(node, Scalar):
        return _plain(node.text) if node.plain else node.text
    return {key.text: core_schema(value) for key, value in node.entries if isinstance(key, Scalar)}


def _plain(text: str) -> Any:
    words = {"": None, "~": None, "null": None, "true": True, "false": False}
    if text in words:
        return words[text]
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text)
    return float(text) if re.fullmatch(r"[-+]?[0-9]*\.[0-9]+", text) else text


def faults(text: str) -> list[str]:
    """Return what the schema finds wrong with a file."""
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    validator = jsonschema.Draft7Validator(SCHEMA)
    found = list(validator.iter_errors(core_schema(parse(text))))
    for error in found:
        found += error.context  # of each form that it might have had
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def test_the_command_prints_the_shipped_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """config/sidestep.schema.json is `sidestep schema`'s output: make it anew when a setting changes."""
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert printed == (CONFIG / "sidestep.schema.json").read_text("utf-8")
    assert json.loads(printed)["$schema"] == DRAFT


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_the_shipped_files_turn_the_schema_on(file: Path) -> None:
    first = file.read_text("utf-8").split("\n", 1)[0]
    found = re.fullmatch(r"# yaml-language-server: \$schema=(\S+)", first)
    assert found
    assert (file.parent / found[1]).resolve() == CONFIG / "sidestep.schema.json"


def test_the_schema_is_one() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_the_shipped_files_are_valid(file: Path) -> None:
    assert faults(file.read_text("utf-8")) == []


ACCEPTED = [
    pytest.param("routes: {m: openai}", id="a route as a text"),
    pytest.param("routes: {m: [openai, b/x/y]}", id="a list"),
    pytest.param("routes: {m: [[openai, b], {target: b/x, weight: 2, context: 8000}]}", id="tiers"),
    pytest.param("routes: {m: [[{target: openai, weight: 0.5}, b/x]]}", id="a mapping in a tier"),
    pytest.param("routes: {m: {targets: openai}}", id="the long form with one target"),
    pytest.param("routes: {m: {targets: {target: b}, owner: b, balance: least_in_flight}}", id="all of it"),
    pytest.param("routes: {m: {targets: [b], policy: {hedge: off, deadline: 1m30s}}}", id="words"),
    pytest.param("routes: {m: [b], 4: [b/4]}", id="a model called 4"),
    pytest.param("server:\nroutes: {m: [b]}\npolicy:", id="empty sections"),
    pytest.param("server: {client_keys: [abc, {name: x, key: k, allow: [b]}]}\nroutes: {m: [b]}", id="keys"),
    pytest.param("server: {listen: '127.0.0.1:${PORT}', max_body: 1.5 MiB}\nroutes: {m: [b]}", id="a size"),
    pytest.param("server: {workers: auto, allow_anonymous: on}\nroutes: {m: [b]}", id="on"),
    pytest.param("server: {workers: '2', allow_anonymous: Yes}\nroutes: {m: [b]}", id="a number in quotes"),
    pytest.param("policy: {breaker: {failure_ratio: 0.4, slow_ratio: 40%}}\nroutes: {m: [b]}", id="shares"),
    pytest.param("policy: {breaker: {slow_after: null, adaptive: 'no'}}\nroutes: {m: [b]}", id="null"),
    pytest.param("policy: {max_attempts: '${N}', retry_budget: 0}\nroutes: {m: [b]}", id="a variable number"),
    pytest.param("policy: {keepalive: '${TIME}', hedge: p95}\nroutes: {m: [b]}", id="a variable duration"),
    pytest.param("policy: {breaker: {mode: '${MODE}', adaptive: '${FLAG}'}}\nroutes: {m: [b]}", id="a word"),
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_the_loader_takes_the_schema_takes(text: str) -> None:
    assert read(BASE + text, "test", ENV, Path("/nonexistent")).problems == ()
    assert faults(BASE + text) == []


UPSTREAMS = [
    pytest.param("ollama:", id="a known provider with nothing to say"),
    pytest.param("groq: {api_key: '${KEY}'}", id="a known provider with a key"),
    pytest.param("x: {provider: ollama, headers: {X-N: 5}}", id="a number as a header"),
    pytest.param(
        "x: {base_url: 'http://127.0.0.1:1', params: {set: {a: [1, {b: null}]}, drop: [u]}}", id="any JSON"
    ),
    pytest.param("x: {base_url: 'https://x.example', models: {fast: 4}, api_keys: [a, b]}", id="keys"),
    pytest.param(
        "x: {base_url: 'http://127.0.0.1:1', capabilities: {tools: false, context: 8000}}", id="can not"
    ),
    pytest.param(
        "x: {base_url: 'http://127.0.0.1:1', policy: {first_token: auto, connect: 1s}}", id="its policy"
    ),
]


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_upstreams_as_a_file_may_write_them(upstream: str) -> None:
    name = upstream.partition(":")[0]
    text = f"upstreams:\n  {upstream}\nroutes: {{m: [{name}]}}"
    assert read(text, "test", ENV, Path("/nonexistent")).problems == ()
    assert faults(text) == []


REFUSED = [
    pytest.param("routes: {m: []}", "routes.m", id="no targets"),
    pytest.param("routes: {m: [b]}\nroute: {}", "'route' was unexpected", id="an unknown section"),
    pytest.param("server: {lisen: x}\nroutes: {m: [b]}", "'lisen' was unexpected", id="an unknown key"),
    pytest.param("policy: {stall: 60}\nroutes: {m: [b]}", "stall", id="a duration without a unit"),
    pytest.param("server: {max_body: 64}\nroutes: {m: [b]}", "max_body", id="a size without a unit"),
    pytest.param("policy: {breaker: {mode: observed}}\nroutes: {m: [b]}", "mode", id="an unknown word"),
    pytest.param("policy: {breaker: {failure_ratio: 50}}\nroutes: {m: [b]}", "failure_ratio", id="50 of 1"),
    pytest.param("policy: {max_attempts: 0}\nroutes: {m: [b]}", "max_attempts", id="too few"),
    pytest.param("routes: {m: {targets: [b], policy: {connect: 1s}}}", "m", id="not for a route"),
    pytest.param("routes: {m: [{target: b, wait: 1}]}", "m", id="an unknown key of a target"),
]


@pytest.mark.parametrize(("text", "told"), REFUSED)
def test_what_the_loader_refuses_the_schema_refuses(text: str, told: str) -> None:
    assert read(BASE + text, "test", ENV, Path("/nonexistent")).problems != ()
    assert told in " ".join(faults(BASE + text))


def test_every_key_is_described_and_shows_its_default_as_a_file_would_say_it() -> None:
    definitions = SCHEMA["definitions"]
    undescribed = [
        f"{name}.{key}"
        for name, definition in definitions.items()
        for key, part in definition.get("properties", {}).items()
        if "description" not in part and "$ref" not in part
    ]
    assert undescribed == []
    defaults = {key: part.get("default") for key, part in definitions["PolicySettings"]["properties"].items()}
    assert (defaults["deadline"], defaults["retry_budget"], defaults["hedge"]) == ("600s", "20%", "off")
    assert definitions["ServerSettings"]["properties"]["listen"]["default"] == "127.0.0.1:7380"
    assert definitions["ServerSettings"]["properties"]["max_body"]["default"] == "64MiB"
    inherited = definitions["RoutePolicySettings"]["properties"].values()
    assert not [part for part in inherited if "default" in part]


def test_every_setting_has_its_place_in_the_schema() -> None:
    models = Settings.model_json_schema()["$defs"]
    for name, model in models.items():
        if name != "TargetSettings":  # which a file writes as a text
            assert set(SCHEMA["definitions"][name]["properties"]) == set(model["properties"])
