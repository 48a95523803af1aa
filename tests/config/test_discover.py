"""Upstreams and routes from the environment alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config.loader import Loaded, load, read
from proxy.config.report import render_check

NOWHERE = Path("/nonexistent")


def found(**env: str) -> Loaded:
    return load(None, env, NOWHERE, system_file=NOWHERE)


def routes_of(loaded: Loaded) -> dict[str, list[str]]:
    assert loaded.settings is not None, loaded.problems
    return {name: [str(tier[0]) for tier in route.targets] for name, route in loaded.settings.routes.items()}


def test_one_key_is_one_upstream_that_gets_everything() -> None:
    loaded = found(OPENAI_API_KEY="k")
    assert routes_of(loaded) == {"*": ["openai"]}
    assert loaded.notes[0].startswith(
        "AZURE_OPENAI_API_KEY and AZURE_OPENAI_ENDPOINT would add a fallback for gpt-"
    )
    assert any(note.startswith("OPENROUTER_API_KEY would add a fallback for gpt-") for note in loaded.notes)


def test_upstreams_that_serve_the_same_model_stand_in_for_each_other() -> None:
    routes = routes_of(
        found(
            OPENAI_API_KEY="k",
            OPENROUTER_API_KEY="k",
            AZURE_OPENAI_API_KEY="k",
            AZURE_OPENAI_ENDPOINT="https://r.openai.azure.com",
        )
    )
    assert routes["gpt-5"] == ["openai", "azure", "openrouter/openai/gpt-5"]
    assert routes["openai/gpt-5"] == ["openrouter", "openai/gpt-5", "azure/gpt-5"]
    assert routes["text-embedding-3-small"] == ["openai", "azure"]
    assert routes["gpt-*"] == ["openai", "azure"]
    assert routes["*"] == ["openrouter"]


def test_other_companies_models_stand_in_only_when_asked_to() -> None:
    keys = {"OPENAI_API_KEY": "k", "ANTHROPIC_API_KEY": "k", "GEMINI_API_KEY": "k"}
    apart = found(**keys)
    assert "gpt-5" not in routes_of(apart)
    assert routes_of(apart)["claude-*"] == ["anthropic"]
    assert any("SIDESTEP_EQUIVALENTS=1" in note for note in apart.notes)
    together = found(**keys, SIDESTEP_EQUIVALENTS="1")
    assert routes_of(together)["gpt-5"] == ["openai", "anthropic/claude-sonnet-4-6", "gemini/gemini-2.5-pro"]
    assert "text-embedding-3-small" not in routes_of(together)


def test_no_made_route_is_longer_than_max_attempts() -> None:
    first = ["OPENAI", "OPENROUTER", "ANTHROPIC", "GEMINI", "GROQ"]
    names = [*first, "MISTRAL", "DEEPSEEK", "TOGETHER", "FIREWORKS", "XAI"]
    loaded = found(**{f"{name}_API_KEY": "k" for name in names}, SIDESTEP_EQUIVALENTS="1")
    assert not loaded.warnings
    assert max(map(len, routes_of(loaded).values())) == 4


def test_what_only_has_a_local_name_stays_local() -> None:
    routes = routes_of(found(OPENAI_API_KEY="k", GROQ_API_KEY="k", OLLAMA_HOST="127.0.0.1"))
    assert routes["*"] == ["ollama"]
    assert routes["gpt-*"] == ["openai"]
    assert not any("ollama" in targets for name, targets in routes.items() if name != "*")


@pytest.mark.parametrize(
    ("written", "base_url"),
    [
        ("0.0.0.0", "http://127.0.0.1:11434/v1"),
        ("0.0.0.0:8000", "http://127.0.0.1:8000/v1"),
        (":8000", "http://127.0.0.1:8000/v1"),
        ("localhost", "http://localhost:11434/v1"),
        ("http://127.0.0.1", "http://127.0.0.1/v1"),
        ("https://ollama.example", "https://ollama.example/v1"),
        ("http://10.0.0.3:11434/", "http://10.0.0.3:11434/v1"),
        ("[::]:8000", "http://127.0.0.1:8000/v1"),
        ("[::1]", "http://[::1]:11434/v1"),
    ],
)
def test_ollama_host_is_read_as_ollama_does(written: str, base_url: str) -> None:
    loaded = found(OLLAMA_HOST=written)
    assert loaded.settings is not None, loaded.problems
    assert loaded.settings.upstreams["ollama"].base_url == base_url


@pytest.mark.parametrize("written", ["", "http://", "no host", "a/b/c"])
def test_an_ollama_host_that_is_none_is_left_out(written: str) -> None:
    loaded = found(OPENAI_API_KEY="k", OLLAMA_HOST=written)
    assert loaded.settings is not None
    assert ("ollama" in loaded.settings.upstreams) == (written == "http://")


@pytest.mark.parametrize(
    "endpoint",
    ["https://r.openai.azure.com", "https://r.openai.azure.com/", "https://r.openai.azure.com/openai/v1/"],
)
def test_azures_endpoint_is_completed(endpoint: str) -> None:
    loaded = found(AZURE_OPENAI_API_KEY="k", AZURE_OPENAI_ENDPOINT=endpoint)
    assert loaded.settings is not None, loaded.problems
    assert loaded.settings.upstreams["azure"].base_url == "https://r.openai.azure.com/openai/v1"


def test_a_key_without_its_endpoint_is_mentioned() -> None:
    loaded = found(OPENAI_API_KEY="k", AZURE_OPENAI_API_KEY="k")
    assert loaded.notes[0].startswith("AZURE_OPENAI_ENDPOINT would add a fallback for ")


def test_the_openai_base_url_is_taken_from_our_own_variable() -> None:
    loaded = found(
        OPENAI_API_KEY="k",
        OPENAI_BASE_URL="http://127.0.0.1:7380/v1",
        SIDESTEP_OPENAI_BASE_URL="https://eu.api.openai.com/v1",
    )
    assert loaded.settings is not None, loaded.problems
    assert loaded.settings.upstreams["openai"].base_url == "https://eu.api.openai.com/v1"


def test_what_is_printed_is_a_file_that_says_the_same_and_holds_no_key() -> None:
    env = {"OPENAI_API_KEY": "canary-1", "OPENROUTER_API_KEY": "canary-2", "OLLAMA_HOST": "0.0.0.0"}
    loaded = found(**env)
    printed = render_check(loaded)
    assert "canary" not in printed
    again = read(printed.split("\n\n", 1)[1], "sidestep.yaml", env, NOWHERE)
    assert again.settings == loaded.settings


def test_a_mistake_shows_the_file_that_was_made() -> None:
    printed = render_check(
        found(AZURE_OPENAI_API_KEY="canary", AZURE_OPENAI_ENDPOINT="http://canary.example")
    )
    assert "environment:5:15: error: upstreams.azure.base_url: http:// beyond this machine" in printed
    assert "    5      base_url: ${AZURE_OPENAI_ENDPOINT}/openai/v1" in printed
    assert "canary" not in printed
