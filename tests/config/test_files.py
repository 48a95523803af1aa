"""What ships: every file in config/ loads, and the tables agree with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxy.config.loader import load
from proxy.config.model import CapabilitySettings, Settings, UpstreamSettings
from proxy.config.policy import PolicySettings
from proxy.config.providers import providers, shipped
from proxy.dialects.endpoints import every_endpoint

CONFIG = Path(__file__).parents[2] / "config"
FILES = [CONFIG / "sidestep.yaml", *sorted((CONFIG / "examples").glob("*.yaml"))]
EXPECTED = (
    "openai azure openrouter anthropic gemini groq mistral deepseek together fireworks xai bedrock "
    "ollama vllm llamacpp lmstudio"
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_configuration_that_we_ship_is_right(file: Path) -> None:
    variables = re.findall(r"\$\{([A-Z0-9_]+)[:}]", file.read_text("utf-8"))
    env = {name: f"key of {name}" for name in variables if "ENDPOINT" not in name}
    loaded = load(str(file), env, CONFIG)
    assert loaded.problems == ()
    assert loaded.warnings == ()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_configuration_that_we_ship_names_the_variables_that_it_needs(file: Path) -> None:
    text = file.read_text("utf-8")
    head = text.partition("\n\n")[0] if file.parent.name == "examples" else text.partition("\nserver:")[0]
    code = "\n".join(
        line.partition(" #")[0] for line in text.splitlines() if not line.lstrip().startswith("#")
    )
    for variable in re.findall(r"\$\{([A-Z0-9_]+)[}?]", code):
        assert variable in head


def test_the_commented_file_shows_every_key_with_its_default() -> None:
    text = (CONFIG / "sidestep.yaml").read_text("utf-8")
    shown = set(re.findall(r"(?:^|[ #{])([a-z_]+):(?= |$)", text, re.MULTILINE))
    models = [Settings, UpstreamSettings, PolicySettings]
    models += [type(Settings().server), type(Settings().policy.breaker)]
    wanted = {name for model in models for name in model.model_fields}
    assert (
        wanted - shown - {"api_keys", "api_key_file", "dialect", "allow_plain_http", "status_feed"} == set()
    )


def test_the_providers_are_those_of_the_contract() -> None:
    assert list(providers()) == EXPECTED.split()


@pytest.mark.parametrize("name", EXPECTED.split())
def test_a_providers_row_agrees_with_the_code(name: str) -> None:
    row = providers()[name]
    assert row.lacks <= set(CapabilitySettings.model_fields) - {"context"}
    assert row.dialect == UpstreamSettings.model_fields["dialect"].default
    assert row.keyless or row.key_env
    assert set(row.endpoints or ()) <= {endpoint.label for endpoint in every_endpoint()}


@pytest.mark.parametrize("name", [name for name in EXPECTED.split() if name != "bedrock"])
def test_a_provider_is_enough_of_a_description(tmp_path: Path, name: str) -> None:
    row = providers()[name]
    key = "" if row.keyless else ", api_key: k"
    url = ", base_url: 'https://mine.openai.azure.com/openai/v1'" if row.is_example else ""
    file = tmp_path / "sidestep.yaml"
    file.write_text(f"upstreams: {{u: {{provider: {name}{key}{url}}}}}\nroutes: {{'*': [u]}}\n")
    loaded = load(str(file), {}, tmp_path)
    assert loaded.settings is not None, loaded.problems
    assert loaded.settings.upstreams["u"].provider == name


@pytest.mark.parametrize(
    ("url", "provider"),
    [
        ("https://api.groq.com/openai/v1", "groq"),
        ("https://anything.openai.azure.com/openai/v1", "azure"),
        ("https://openai.azure.com.example/v1", None),
        ("https://notapi.openai.com/v1", None),
        ("http://127.0.0.1:8000/v1", None),
    ],
)
def test_a_provider_is_known_by_its_host(tmp_path: Path, url: str, provider: str | None) -> None:
    file = tmp_path / "sidestep.yaml"
    file.write_text(f"upstreams: {{openai: {{base_url: '{url}', api_key: k}}}}\nroutes: {{'*': [openai]}}\n")
    loaded = load(str(file), {}, tmp_path)
    assert loaded.settings is not None, loaded.problems
    assert loaded.settings.upstreams["openai"].provider == provider


def test_an_upstream_named_like_a_provider_is_that_provider(tmp_path: Path) -> None:
    file = tmp_path / "sidestep.yaml"
    file.write_text("upstreams: {groq: {api_key: k}, ollama: }\nroutes: {'*': [groq, ollama]}\n")
    loaded = load(str(file), {}, tmp_path)
    assert loaded.settings is not None, loaded.problems
    assert loaded.settings.upstreams["groq"].base_url == "https://api.groq.com/openai/v1"
    assert loaded.settings.upstreams["ollama"].base_url == "http://127.0.0.1:11434/v1"


def test_the_table_of_models_is_consistent() -> None:
    table = shipped("equivalents.yaml")
    models, groups = table["models"], table["equivalents"]
    assert all(upstream in providers() for names in models.values() for upstream in names)
    assert not any("ollama" in names for names in models.values())
    members = [model for group in groups.values() for model in group]
    assert len(members) == len(set(members))
    assert set(members) <= set(models)
    assert not any("embedding" in model for model in members)


def test_the_tables_are_found_in_an_installed_package_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_shipped").mkdir()
    (tmp_path / "_shipped" / "providers.yaml").write_text("installed: {base_url: here}\n")
    monkeypatch.setattr("proxy.config.providers._PACKAGE", tmp_path)
    assert shipped("providers.yaml") == {"installed": {"base_url": "here"}}
