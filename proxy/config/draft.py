"""A configuration on its way to settings: plain data, where each value stands, what is wrong so far."""

from __future__ import annotations

from collections.abc import Mapping as Environment
from typing import Literal, TypeAlias

from proxy.config.interpolate import InterpolationError, interpolate
from proxy.config.nodes import Mapping, Node, Scalar, Sequence
from proxy.config.problems import Problem, Spot, one_line, quote
from proxy.config.scalars import Text

Raw: TypeAlias = "Text | list[Raw] | dict[str, Raw] | None"
Path: TypeAlias = tuple[str | int, ...]

_NULLS = {"", "~", "null", "Null", "NULL"}
_MOST_HINTS = 100
_MOST_VALUES = 100_000  # far beyond any real file; aliases of aliases reach it in no time


class TooLarge(ValueError):
    """The aliases of a document unfold to more than we take."""


class Draft:
    """What all steps of loading share. Paths are those of `Settings`; labels are what the file says."""

    def __init__(self, source: str, env: Environment[str, str]) -> None:
        self.source = source
        self.data: dict[str, Raw] = {}
        self.problems: list[Problem] = []
        self._env = env
        self._spots: dict[Path, Spot] = {(): Spot("file", source, 1, 1, 1, 1)}
        self._broken: set[Path] = set()
        self._around_broken: set[Path] = set()
        self._values = 0

    def take(self, node: Node, path: Path = (), label: str = "", key: Scalar | None = None) -> Raw:
        """Return the node as plain data, remember where its parts stand, resolve its variables.

        Raises: TooLarge.
        """
        self._values += 1
        if self._values > _MOST_VALUES:
            raise TooLarge(f"more than {_MOST_VALUES} values once its aliases are unfolded")
        if path:
            at = key or node
            self._spots[path] = Spot(label, self.source, node.line, node.column, at.line, at.column)
        if isinstance(node, Scalar):
            return self._scalar(node, path)
        if isinstance(node, Sequence):
            return [self.take(item, (*path, i), f"{label}[{i}]") for i, item in enumerate(node.items)]
        return self._mapping(node, path, label)

    def put_server(self, key: str, value: Text | list[Raw], variable: str) -> None:
        """Set a key of the server's part from an environment variable, over what the file says."""
        server = self.data.get("server")
        if server is None:
            server = self.data["server"] = {}
        if not isinstance(server, dict):
            return
        server[key] = value
        spot = self._spots["server", key] = Spot(variable, "environment")
        for i in range(len(value) if isinstance(value, list) else 0):
            self._spots["server", key, i] = spot

    def alias(self, path: Path, original: Path) -> None:
        """Say that the value at *path* was made from what stands at *original*."""
        self._spots[path] = self.spot(original)

    def spot(self, path: Path) -> Spot:
        """Return where the value at *path*, or else the nearest one around it, stands."""
        while path not in self._spots:
            path = path[:-1]
        return self._spots[path]

    def error(self, path: Path, message: str, *, at_key: bool = False, label: str | None = None) -> None:
        """Report a mistake and mark the value as not to be relied on."""
        self._break(path)
        self._report("error", path, message, at_key=at_key, label=label)

    def warn(self, path: Path, message: str, *, at_key: bool = False) -> None:
        """Report what is legal and yet probably not meant."""
        self._report("warning", path, message, at_key=at_key, label=None)

    @property
    def may_hint(self) -> bool:
        """Tell whether to look for what may have been meant, which is slow: not for hundreds."""
        return len(self.problems) < _MOST_HINTS

    def is_broken(self, path: Path) -> bool:
        """Tell whether a mistake at *path*, or around it, has been reported."""
        return any(path[:length] in self._broken for length in range(len(path) + 1))

    def intact(self, *path: str | int) -> bool:
        """Tell whether nothing was wrong at *path*, around it or inside it."""
        return path not in self._around_broken and not self.is_broken(path)

    def _break(self, path: Path) -> None:
        self._broken.add(path)
        self._around_broken.update(path[:length] for length in range(len(path)))

    def _report(
        self,
        severity: Literal["error", "warning"],
        path: Path,
        message: str,
        *,
        at_key: bool,
        label: str | None,
    ) -> None:
        spot = self.spot(path)
        line, column = (spot.key_line, spot.key_column) if at_key else (spot.line, spot.column)
        self.problems.append(Problem(spot.source, line, column, severity, label or spot.label, message))

    def _scalar(self, node: Scalar, path: Path) -> Text | None:
        try:
            text = interpolate(node.text, self._env)
        except InterpolationError as error:
            self.error(path, str(error))
            return None
        if node.plain and text in _NULLS and not (text == "" and "$" in node.text):
            return None
        return Text(text, node.text, plain=node.plain)

    def _mapping(self, node: Mapping, path: Path, label: str) -> dict[str, Raw]:
        values: dict[str, Raw] = {}
        for key, value in self._entries(node, path, label):
            inner = f"{label}.{one_line(key.text)}" if label else one_line(key.text)
            values[key.text] = self.take(value, (*path, key.text), inner, key)
        return values

    def _entries(self, node: Mapping, path: Path, label: str) -> list[tuple[Scalar, Node]]:
        """Return the entries with usable keys, each key once, merged mappings (`<<`) behind."""
        seen: dict[str, Scalar] = {}
        entries: list[tuple[Scalar, Node]] = []
        merged: list[tuple[Scalar, Node]] = []
        for key, value in node.entries:
            if isinstance(key, Scalar) and key.plain and key.text == "<<":
                merged += self._merged(value, path, label)
            elif usable := self._usable(key, path, label, seen):
                seen[usable.text] = usable
                entries.append((usable, value))
        for key, value in merged:
            if key.text not in seen:
                seen[key.text] = key
                entries.append((key, value))
        return entries

    def _merged(self, value: Node, path: Path, label: str) -> list[tuple[Scalar, Node]]:
        maps = value.items if isinstance(value, Sequence) else [value]
        if not all(isinstance(found, Mapping) for found in maps):
            self._at_node(value, path, label, "'<<' takes a mapping, or a list of mappings")
        return [
            pair for found in maps if isinstance(found, Mapping) for pair in self._entries(found, path, label)
        ]

    def _usable(self, key: Node, path: Path, label: str, seen: dict[str, Scalar]) -> Scalar | None:
        if not isinstance(key, Scalar):
            self._at_node(key, path, label, "a key must be a text")
            return None
        inner = f"{label}.{one_line(key.text)}" if label else one_line(key.text)
        if not key.text:
            self._at_node(key, path, label, "a key is empty")
        elif "${" in key.text:
            self._at_node(key, path, inner, "variables are not resolved inside keys")
        elif key.text in seen:
            first = seen[key.text].line
            self._at_node(key, path, inner, f"duplicate key {quote(key.text)}, first on line {first}")
        else:
            return key
        return None

    def _at_node(self, node: Node, path: Path, label: str, message: str) -> None:
        self._around_broken.add(path)
        self.problems.append(Problem(self.source, node.line, node.column, "error", label or "file", message))
