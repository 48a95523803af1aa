"""What the configuration's tests share: a minimal file, an environment, a short way to load text."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from proxy.config.loader import Loaded, read
from proxy.config.model import Settings

ENV = {
    "OPENAI_API_KEY": "sk-canary-openai-0123456789",
    "OTHER_KEY": "canary-other",
    "EMPTY": "",
    "HOME": "/nonexistent",
}
MINIMAL = """\
upstreams:
  openai: {base_url: "https://api.openai.com/v1", api_key: "${OPENAI_API_KEY}"}
routes:
  "*": [openai]
"""


def load_text(text: str, env: dict[str, str] | None = None) -> Loaded:
    """Load *text* as a file named sidestep.yaml."""
    return read(dedent(text), "sidestep.yaml", ENV if env is None else env, Path("/nonexistent"))


def mistakes(text: str, env: dict[str, str] | None = None) -> list[str]:
    """Return the errors of *text*, without the file's name and the word error."""
    return [
        str(problem).replace("sidestep.yaml:", "").replace(" error:", "")
        for problem in load_text(text, env).problems
    ]


def settings_of(text: str, env: dict[str, str] | None = None) -> Settings:
    """Return the settings of a text that must be right."""
    loaded = load_text(text, env)
    assert loaded.settings is not None, loaded.problems
    return loaded.settings
