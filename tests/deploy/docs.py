"""docs/deploy.md, taken apart: what it shows is tried by the tests of what it is about."""

from __future__ import annotations

import re
import shlex

from tests.deploy.tools import ROOT

TEXT = (ROOT / "docs" / "deploy.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def languages(section: str) -> list[str]:
    """Return the languages of a section's blocks, in order."""
    return [language for language, _ in _FENCE.findall(SECTIONS[section])]


def blocks(section: str, language: str) -> list[str]:
    """Return a section's blocks of one language."""
    return [text for found, text in _FENCE.findall(SECTIONS[section]) if found == language]


def commands(section: str) -> list[list[str]]:
    """Return the commands of a section's blocks, in words."""
    lines = "\n".join(blocks(section, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
