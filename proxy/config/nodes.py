"""YAML text to a tree of nodes that know their places.

Built from the parser's events rather than by `yaml.compose`: libyaml's composer recurses on the C stack
and dies of 200,000 opening brackets. Scalars stay the text they were written as, so that YAML 1.1's
readings (`no`, `12:30`, `010`) never apply: what a scalar means is decided by who expects it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import yaml

from proxy.config.shield import hide_variables, show_variables

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DEEPEST = 64
_CORE_TAG = "tag:yaml.org,2002:"
_CORE_KINDS = {"str", "int", "float", "bool", "null", "map", "seq", "timestamp"}


class _Mark(Protocol):
    """A place in the text, of either parser. Counts from 0."""

    @property
    def line(self) -> int: ...
    @property
    def column(self) -> int: ...


class YamlError(ValueError):
    """The text is not YAML that we read. Lines and columns count from 1."""

    def __init__(self, message: str, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


@dataclass(slots=True)
class Scalar:
    """A text. `plain` is true if it was written without quotes."""

    line: int
    column: int
    text: str
    plain: bool


@dataclass(slots=True)
class Sequence:
    """A list."""

    line: int
    column: int
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class Mapping:
    """Keys and values in the order of the file; the same key may come twice."""

    line: int
    column: int
    entries: list[tuple[Node, Node]] = field(default_factory=list)


Node: TypeAlias = Scalar | Sequence | Mapping


def parse(text: str) -> Node | None:
    """Return the document's tree, or None if there is nothing in it.

    An anchored node is shared by its aliases: the tree is a graph without cycles.
    Raises: YamlError at the first place that can not be read.
    """
    builder = _Builder()
    try:
        for event in yaml.parse(hide_variables(text), Loader=_LOADER):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _at(mark, f"not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise YamlError("not valid YAML: it holds characters that are not allowed") from error
    return builder.root


class _Builder:
    """Puts events together. Keeps its own stack, so that depth costs nothing and is bounded."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self._open: list[tuple[Sequence | Mapping, str | None, list[Node]]] = []
        self._anchors: dict[str, Node] = {}

    def take(self, event: yaml.Event) -> None:
        mark = event.start_mark
        if isinstance(event, yaml.DocumentStartEvent) and self.root is not None:
            raise _at(mark, "a second document begins here; a configuration is one")
        if isinstance(event, yaml.NodeEvent):
            self._take_node(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            node, anchor, children = self._open.pop()
            if isinstance(node, Mapping):
                node.entries = list(zip(children[::2], children[1::2], strict=True))
            else:
                node.items = children
            self._add(node, anchor)

    def _take_node(self, event: yaml.NodeEvent) -> None:
        place = _at(event.start_mark, "")
        line, column = place.line, place.column
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _at(event.start_mark, "this alias stands for nothing that is complete above it")
            self._add(self._anchors[event.anchor], None)
            return
        _refuse_tag(event)
        if isinstance(event, yaml.ScalarEvent):
            self._add(Scalar(line, column, show_variables(event.value), not event.style), event.anchor)
            return
        if len(self._open) >= _DEEPEST:
            raise _at(event.start_mark, f"nested more than {_DEEPEST} levels deep")
        is_list = isinstance(event, yaml.SequenceStartEvent)
        self._open.append((Sequence(line, column) if is_list else Mapping(line, column), event.anchor, []))

    def _add(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if self._open:
            self._open[-1][2].append(node)
        else:
            self.root = node


def _refuse_tag(event: yaml.NodeEvent) -> None:
    tag = getattr(event, "tag", None)
    if tag is None or tag == "!" or (tag.startswith(_CORE_TAG) and tag[len(_CORE_TAG) :] in _CORE_KINDS):
        return
    raise _at(event.start_mark, "tags (words that begin with '!') are not used here")


def _at(mark: _Mark | None, message: str) -> YamlError:
    return YamlError(message, mark.line + 1, mark.column + 1) if mark else YamlError(message)
