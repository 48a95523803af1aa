"""Print the JSON Schema of the configuration, for editors.

Editors with the YAML language server (VS Code, Neovim, JetBrains, ...) check and complete a file that
begins with a comment naming the schema.

example:
  sidestep schema > sidestep.schema.json
  # then, as the first line of sidestep.yaml:
  # yaml-language-server: $schema=sidestep.schema.json
"""

from __future__ import annotations

import argparse
import json

from proxy.config.schema import file_schema


def add_flags(_parser: argparse.ArgumentParser) -> None:
    """Declare no flags."""


def run(_options: argparse.Namespace) -> int:
    """Print it."""
    print(json.dumps(file_schema(), indent=2, ensure_ascii=False))
    return 0
