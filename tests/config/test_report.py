"""What `sidestep check` prints, and the effective configuration as data."""

from __future__ import annotations

import json

from proxy.config.dump import config_hash, masked
from proxy.config.report import render_check
from tests.config.loading import MINIMAL, load_text, settings_of

TEXT = """
server: {client_keys: [canary-client], admin_key: canary-admin}
upstreams:
  a:
    provider: openai
    api_key: ${OPENAI_API_KEY}
    headers: {X-Key: canary-header}
    policy: {connect: 2500ms}
  b: {provider: groq, api_keys: [canary-one, canary-two], proxy: "http://me:canary@proxy.example:1"}
  c: {base_url: "http://127.0.0.1:1/v1"}
routes:
  "gpt-*": [[a, b]]
  m:
    targets: [[{target: a/x, weight: 2}, b/y], c, {target: b/z, context: 9}]
    deny: [c]
    owner: a
    policy: {hedge: p95, first_token: auto}
"""


def test_check_prints_the_effective_routes() -> None:
    assert render_check(load_text(TEXT)).splitlines() == [
        "sidestep.yaml:14:48: warning: routes.m.targets[1]: is never tried: allow and deny exclude it",
        "sidestep.yaml: ok, 1 warning",
        "",
        "routes, first match wins:",
        "  m      [a/x (2), b/y (1)] -> b/z  (owner a, hedge p95, first_token auto)",
        "  gpt-*  [a, b]",
    ]


def test_check_counts_the_mistakes_and_shows_no_routes() -> None:
    assert render_check(load_text(MINIMAL + "policy: {stall: 5, hold: no}\n")).splitlines() == [
        "sidestep.yaml:5:17: error: policy.stall: '5' has no unit: write 5s for seconds or 5ms for "
        "milliseconds",
        "sidestep.yaml:5:26: error: policy.hold: 'no' is not a duration: write 250ms, 30s, 5m or 1h",
        "sidestep.yaml: 2 errors",
    ]


def test_the_effective_configuration_is_plain_data_in_the_files_own_words_and_without_secrets() -> None:
    data = masked(settings_of(TEXT))
    text = json.dumps(data)
    assert "canary" not in text
    assert data["server"]["listen"] == "127.0.0.1:7380"
    assert data["server"]["max_body"] == "64MiB"
    assert data["server"]["client_keys"][0] == {
        "name": "client-1",
        "key": "***",
        "allow": None,
        "max_concurrency": None,
        "rpm": None,
    }
    assert data["upstreams"]["a"]["policy"] == {"connect": "2.5s"}
    assert data["upstreams"]["b"]["proxy"] == "http://***@proxy.example:1"
    assert data["upstreams"]["b"]["base_url"] == "https://api.groq.com/openai/v1"
    assert data["routes"]["m"]["targets"][2] == [{"target": "b/z", "weight": 1.0, "context": 9}]
    assert data["routes"]["m"]["policy"] == {"first_token": "auto", "hedge": "p95"}
    assert data["policy"]["breaker"]["failure_ratio"] == "50%"
    assert data["policy"]["early_keepalive"] == "off"


def test_passthrough_is_no_secret() -> None:
    text = "upstreams: {a: {provider: openai, api_key: passthrough}}\nroutes: {m: [a]}\n"
    assert masked(settings_of(text))["upstreams"]["a"]["api_key"] == "passthrough"


def test_the_hash_changes_with_the_configuration_and_not_with_its_secrets() -> None:
    one = settings_of(TEXT)
    assert config_hash(one) == config_hash(settings_of(TEXT, {"OPENAI_API_KEY": "another"}))
    assert config_hash(one) != config_hash(settings_of(TEXT.replace("2500ms", "2501ms")))


def test_no_repr_of_the_settings_holds_a_secret() -> None:
    loaded = load_text(TEXT)
    assert "canary" not in repr(loaded)
    assert loaded.settings is not None
    assert "canary" not in str(loaded.settings.model_dump()) + loaded.settings.model_dump_json()
