"""What kustomize makes of a folder, and what Sidestep makes of that."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from proxy.config.loader import read
from proxy.config.model import Settings
from tests.deploy.tools import ROOT, output

KUBERNETES = ROOT / "deploy" / "kubernetes"
# What the Secret would hold.
VARIABLES = {
    "OPENAI_API_KEY": "sk-1", "OPENROUTER_API_KEY": "sk-2", "AZURE_OPENAI_API_KEY": "sk-3", "APP_KEY": "k-1",
    "SEARCH_KEY": "k-2", "BATCH_KEY": "k-3",
}  # fmt: skip

Found = dict[str, Any]


@dataclass(frozen=True)
class Rendered:
    """What kustomize gives."""

    objects: list[Found]

    def one(self, kind: str, name: str = "") -> Found:
        """Return the object of that kind, and of that name if one is given."""
        found = [each for each in self.objects if each["kind"] == kind]
        (one,) = [each for each in found if name in ("", each["metadata"]["name"])]
        return one

    def pod(self, name: str) -> Found:
        """Return the pod that a Deployment makes."""
        template: Found = self.one("Deployment", name)["spec"]["template"]
        return template

    def config_text(self) -> str:
        """Return Sidestep's configuration."""
        found = [each for each in self.objects if each["kind"] == "ConfigMap"]
        (one,) = [each for each in found if each["metadata"]["name"].startswith("sidestep-config-")]
        return str(one["data"]["sidestep.yaml"])


def render(folder: Path) -> Rendered:
    """Return what `kubectl kustomize` makes of a folder."""
    text = output("kubectl", "kustomize", folder)
    return Rendered([each for each in yaml.safe_load_all(text) if each])


def container(pod: Found) -> Found:
    """Return Sidestep's container, wherever it is in a pod."""
    every = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    (ours,) = [each for each in every if each["name"] == "sidestep"]
    return dict(ours)


def sidesteps(rendered: Rendered) -> Iterator[Found]:
    """Give every pod that Sidestep is in."""
    for each in rendered.objects:
        if each["kind"] == "Deployment":
            template = each["spec"]["template"]
            if template["metadata"]["labels"].get("sidestep"):
                yield template


def variables(container: Found) -> dict[str, str]:
    """Return the variables that a container is given outright."""
    return {each["name"]: each["value"] for each in container.get("env", [])}


def settings(rendered: Rendered, container: Found) -> Settings:
    """Return what Sidestep makes of its ConfigMap, its variables and the Secret."""
    env = {**VARIABLES, **variables(container)}
    loaded = read(rendered.config_text(), "sidestep.yaml", env, Path("/etc/sidestep"))
    assert loaded.settings is not None, loaded.problems
    assert loaded.warnings == ()
    return loaded.settings
