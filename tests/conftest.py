"""What every test gets: an environment without the developer's own keys, and hypothesis profiles."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# `make test` tries few examples of each property; HYPOTHESIS_PROFILE=thorough tries many.
settings.register_profile("quick", max_examples=50, deadline=None)
settings.register_profile("thorough", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(autouse=True, scope="session")
def _a_bare_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide keys, proxies and settings of this machine: no test may depend on them, or spend their money.

    A proxy that a test starts keeps its state elsewhere than the developer's own.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        for name in list(os.environ):
            if _is_private(name):
                patch.delenv(name)
        yield


def _is_private(name: str) -> bool:
    if name.startswith("SIDESTEP_TEST_"):
        return False
    return (
        name.startswith(("OPENAI_", "AZURE_OPENAI_", "SIDESTEP_", "OLLAMA_"))
        or name.endswith("_API_KEY")
        or name.lower() in {"http_proxy", "https_proxy", "all_proxy", "no_proxy"}
    )
