"""Text for terminals: columns that line up, colours where they are welcome, paragraphs that fit."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from textwrap import wrap

COLOURS = {"green": 32, "red": 31, "yellow": 33, "blue": 34, "magenta": 35, "bold": 1, "dim": 2}
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
CLEAR = "\x1b[H\x1b[2J"
WIDEST = 160


class Ink:
    """Colours text, if *welcome*."""

    def __init__(self, *, welcome: bool) -> None:
        self._welcome = welcome

    def __call__(self, colour: str, text: str) -> str:
        """Return *text* in *colour*, one of `COLOURS`; empty text stays empty."""
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if self._welcome and text and colour else text


def ink() -> Ink:
    """Return the ink for standard output: coloured on a terminal, unless NO_COLOR says otherwise."""
    dumb = os.environ.get("TERM") == "dumb"
    return Ink(welcome=sys.stdout.isatty() and not os.environ.get("NO_COLOR") and not dumb)


def screen_width() -> int:
    """Return how many columns there are, within reason."""
    return min(WIDEST, shutil.get_terminal_size((100, 24)).columns)


def table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = (), indent: str = "  ") -> list[str]:
    """Return *rows* with columns that line up; those in *right* at their right edge. The last is as it is."""
    at_right = set(right)
    widths = [max(map(_width, column)) for column in zip(*rows, strict=True)]
    return [
        indent
        + "  ".join(
            _padded(
                cell, 0 if place == len(row) - 1 and place not in at_right else widths[place], at_right, place
            )
            for place, cell in enumerate(row)
        ).rstrip()
        for row in rows
    ]


def paragraph(text: str, width: int, indent: str) -> list[str]:
    """Return *text* in lines that fit."""
    return wrap(text, max(20, width), initial_indent=indent, subsequent_indent=indent)


def plain(text: str) -> str:
    """Return *text* without what could move the cursor: names may be a client's text."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def _padded(cell: str, width: int, at_right: set[int], place: int) -> str:
    space = " " * (width - _width(cell))
    return space + cell if place in at_right else cell + space


def _width(cell: str) -> int:
    return len(ESCAPE.sub("", cell))
