"""Makes `${VAR}` one word for YAML, also inside braces and brackets: `{key: ${APP_KEY}, rpm: 60}`.

YAML alone would take the `{` for a mapping of its own there. Before parsing, the characters that mean
something to YAML are replaced by private ones inside each `${...}`, one by one, so that all positions
stay; in the scalars that come out they are put back.
"""

from __future__ import annotations

import re

_MEANINGFUL = "{}[],:#?"
_PRIVATE = "".join(chr(0xF8A0 + i) for i in range(len(_MEANINGFUL)))
_HIDE = str.maketrans(_MEANINGFUL, _PRIVATE)
_MARKS = re.compile(r"\$\{|\}|\n")
_SHOW = str.maketrans(_PRIVATE, _MEANINGFUL)


def hide_variables(text: str) -> str:
    """Return *text* with what is inside `${...}` made meaningless to YAML; its length stays."""
    if "${" not in text or not set(_PRIVATE).isdisjoint(text):
        return text
    parts: list[str] = []
    at = 0
    for start, end in _variables(text):
        parts += [text[at : start + 1], text[start + 1 : end].translate(_HIDE)]
        at = end
    return "".join([*parts, text[at:]])


def show_variables(text: str) -> str:
    """Return *text* as it was written."""
    return text.translate(_SHOW)


def _variables(text: str) -> list[tuple[int, int]]:
    """Return where the outermost variables begin and end; each stands on one line."""
    found: list[tuple[int, int]] = []
    opened: list[int] = []
    for mark in _MARKS.finditer(text):
        if mark[0] == "\n":
            opened.clear()
        elif mark[0] == "${":
            opened.append(mark.start())
        elif opened:
            start = opened.pop()
            while found and found[-1][0] > start:
                found.pop()
            found.append((start, mark.end()))
    return found
