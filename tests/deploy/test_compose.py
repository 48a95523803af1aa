"""deploy/compose.yaml, read by Docker Compose itself; it needs no engine to say what it would do."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy import __version__
from proxy.config.discover import discover
from proxy.config.loader import Loaded, load
from proxy.config.providers import providers
from tests.deploy import docs
from tests.deploy.tools import ROOT, output, run

DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "compose.yaml"
WITH_KEYS = {"SIDESTEP_CLIENT_KEYS": "k-1,k-2", "OPENAI_API_KEY": "sk-1", "OPENROUTER_API_KEY": "sk-2"}
SERVICES = ["sidestep", "prometheus", "grafana"]

Found = dict[str, Any]


def composed(*more: Path, **env: str) -> Found:
    """Return what Compose makes of the file, and of *more* laid over it."""
    files = [part for file in (COMPOSE, *more) for part in ("--file", str(file))]
    text = output("docker-compose", *files, "config", env={**WITH_KEYS, **env})
    read: Found = yaml.safe_load(text)
    return read


def loaded(service: Found, tmp_path: Path) -> Loaded:
    """Return what Sidestep makes of the variables that its container has."""
    env = {name: str(value) for name, value in service["environment"].items() if value is not None}
    return load(None, env, tmp_path, system_file=tmp_path / "none")


@pytest.fixture(scope="module")
def services() -> Found:
    found: Found = composed()["services"]
    return found


def seconds(duration: str) -> int:
    return sum(int(count) * {"m": 60, "s": 1}[unit] for count, unit in re.findall(r"(\d+)([ms])", duration))


def test_compose_accepts_it() -> None:
    code, said = run("docker-compose", "--file", COMPOSE, "config", "--quiet", env=WITH_KEYS)
    assert (code, said) == (0, "")


def test_without_a_key_for_clients_it_says_so() -> None:
    code, said = run("docker-compose", "--file", COMPOSE, "config", "--quiet")
    assert code != 0
    assert "choose a key for applications to send" in said


def test_everything_is_published_on_loopback_alone(services: Found) -> None:
    published = {
        name: {port["target"]: (port["host_ip"], port["published"]) for port in service["ports"]}
        for name, service in services.items()
    }
    assert published == {
        "sidestep": {7380: ("127.0.0.1", "7380"), 7381: ("127.0.0.1", "7381")},
        "prometheus": {9090: ("127.0.0.1", "9090")},
        "grafana": {3000: ("127.0.0.1", "3000")},
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_no_rights(services: Found, name: str) -> None:
    service = services[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert all(each.get("read_only") for each in service["volumes"] if each["type"] == "bind")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_and_asked_for_its_health(services: Found, name: str) -> None:
    image, _, tag = services[name]["image"].partition(":")
    assert re.fullmatch(r"v?\d+\.\d+\.\d+", tag), image
    assert services[name]["healthcheck"]["test"][0] == "CMD"


def test_it_is_this_version_built_here(services: Found) -> None:
    assert services["sidestep"]["image"] == f"sidestep:{__version__}"
    assert services["sidestep"]["build"]["context"] == str(ROOT)


def test_they_start_in_order(services: Found) -> None:
    waits = {name: list(service.get("depends_on", {})) for name, service in services.items()}
    assert waits == {"sidestep": [], "prometheus": ["sidestep"], "grafana": ["prometheus"]}
    assert all(
        each["condition"] == "service_healthy"
        for service in services.values()
        for each in service.get("depends_on", {}).values()
    )


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists(services: Found, name: str) -> None:
    binds = [Path(each["source"]) for each in services[name]["volumes"] if each["type"] == "bind"]
    assert [path for path in binds if not path.exists()] == []


def test_the_keys_of_every_provider_are_passed_on(services: Found) -> None:
    azure = {"AZURE_OPENAI_ENDPOINT": "https://example.openai.azure.com"}
    names = {row.key_env for row in providers().values() if row.key_env}
    known = {name for name in names if discover({name: "sk-1", **azure}) is not None}
    passed = {name for name in services["sidestep"]["environment"] if not name.startswith("SIDESTEP_")}
    assert passed == known | set(azure)


def test_sidestep_starts_with_these_variables(services: Found, tmp_path: Path) -> None:
    found = loaded(services["sidestep"], tmp_path)
    assert found.settings is not None, found.problems
    server = found.settings.server
    assert [key.key.reveal() for key in server.client_keys] == ["k-1", "k-2"]
    assert (str(server.listen), str(server.metrics)) == ("0.0.0.0:7380", "0.0.0.0:7382")
    assert server.admin.is_loopback
    assert set(found.settings.upstreams) == {"openai", "openrouter"}


def test_the_status_page_is_reachable_with_a_key_only(tmp_path: Path) -> None:
    service = composed(SIDESTEP_ADMIN_KEY="a-1")["services"]["sidestep"]
    found = loaded(service, tmp_path)
    assert found.settings is not None, found.problems
    assert str(found.settings.server.admin) == "0.0.0.0:7381"
    assert found.settings.server.admin_key is not None


def test_open_requests_may_finish_before_it_is_killed(services: Found, tmp_path: Path) -> None:
    settings = loaded(services["sidestep"], tmp_path).settings
    assert settings is not None
    drains = settings.server.drain_delay + settings.server.drain
    assert seconds(services["sidestep"]["stop_grace_period"]) == drains + 5


def test_prometheus_is_the_one_of_the_other_folder(services: Found, tmp_path: Path) -> None:
    theirs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    ours = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text())
    settings = loaded(services["sidestep"], tmp_path).settings
    assert settings is not None
    assert settings.server.metrics is not None
    del theirs["alerting"]
    theirs["scrape_configs"][0]["static_configs"][0]["targets"] = [f"sidestep:{settings.server.metrics.port}"]
    assert ours == theirs


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_accepts_its_files(services: Found, tmp_path: Path) -> None:
    for each in services["prometheus"]["volumes"]:
        if each["type"] == "bind":
            copy = tmp_path / Path(each["target"]).relative_to("/etc/prometheus")
            copy.symlink_to(each["source"])
    done = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_is_provisioned_as_in_the_other_folder(services: Found) -> None:
    theirs = yaml.safe_load(
        (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yaml").read_text()
    )
    ours = yaml.safe_load((DEPLOY / "compose" / "datasource.yaml").read_text())
    theirs["datasources"][0]["url"] = "http://prometheus:9090"
    assert ours == theirs
    targets = {each["target"]: each["source"] for each in services["grafana"]["volumes"]}
    folder = DEPLOY / "grafana" / "provisioning" / "dashboards"
    (provider,) = yaml.safe_load((folder / "sidestep.yaml").read_text())["providers"]
    assert targets["/etc/grafana/provisioning/dashboards"] == str(folder)
    assert targets[provider["options"]["path"]] == str(DEPLOY / "grafana" / "dashboards")
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (Path(targets[provider["options"]["path"]]) / Path(home).name).exists()


def test_the_guides_second_file_brings_a_configuration(tmp_path: Path) -> None:
    (text,) = docs.blocks("Compose", "yaml")
    mine = tmp_path / "mine.yaml"
    mine.write_text(text)
    service = composed(mine, INHOUSE_KEY="sk-9")["services"]["sidestep"]
    assert "/etc/sidestep/sidestep.yaml" in {each["target"] for each in service["volumes"]}
    assert service["environment"]["INHOUSE_KEY"] == "sk-9"


def test_the_guides_commands_are_composes(tmp_path: Path) -> None:
    export, *rest = docs.commands("Compose")
    env = dict(word.split("=", 1) for word in export[1:])
    assert export[0] == "export"
    assert loaded(composed(**env)["services"]["sidestep"], tmp_path).settings is not None
    for words in rest:
        assert words[:4] == ["docker", "compose", "-f", str(COMPOSE.relative_to(ROOT))]
        known = output("docker-compose", words[4], "--help")
        assert [word for word in words[5:] if word.startswith("--") and word not in known] == []
        assert {word for word in words[5:] if not word.startswith("-")} <= set(SERVICES)
