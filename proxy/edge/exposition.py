"""Metrics as text: Prometheus' format or OpenMetrics, as the scraper asks.

prometheus_client chooses the format and renders the metrics of its own collectors. Ours are rendered
here, byte for byte as it would, but with each series' name and labels kept as text: with ten
upstreams a scrape holds up the event loop, and every stream on it, for 1 ms instead of 17.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from proxy.edge.families import FAMILIES, STATES, Family
from proxy.edge.samples import Exemplar, Histogram, Labels, Samples, Values

# All names here are plain; there is nothing to escape, in whichever way the scraper proposes.
ESCAPING = re.compile(r";\s*escaping=[^;,]*")

# OpenMetrics 1.0 allows an exemplar's label names and values 128 characters together.
EXEMPLAR_CHARS = 128 - len("request_id")

go_string: Callable[[float], str] = floatToGoString  # which is not annotated

SUFFIXES = {"counter": "_total", "info": "_info"}
CLASSIC_TYPES = {"info": "gauge", "state": "gauge"}
OPENMETRICS_TYPES = {"state": "gauge"}


class Renderer:
    """Renders samples; remembers the text of each series' names, as many as there are series."""

    def __init__(self) -> None:
        self._names: dict[tuple[str, Labels], tuple[str, ...]] = {}

    def render(self, samples: Samples, registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
        """Return body and content type for a scrape with the Accept header *accept*.

        The body has *samples*, then what the collectors in *registry* give.
        """
        encode, content_type = choose_encoder(ESCAPING.sub("", accept))
        openmetrics = content_type.startswith("application/openmetrics-text")
        lines: list[str] = []
        for family in FAMILIES:
            lines += _head(family, openmetrics=openmetrics)
            if family.kind == "histogram":
                lines += self._histograms(family, samples.histograms[family.name], openmetrics=openmetrics)
            else:
                lines += self._plain(family, samples.values[family.name])
        return "".join(lines).encode() + encode(registry), content_type

    def _plain(self, family: Family, values: Values) -> Iterator[str]:
        for labels, value in values.items():
            names = self._names.get((family.name, labels)) or self._name(family, labels)
            if family.kind == "state":
                for index, name in enumerate(names):
                    yield f"{name} {float(index == value)}\n"
            else:
                yield f"{names[0]} {_number(value)}\n"

    def _histograms(
        self, family: Family, histograms: dict[Labels, Histogram], *, openmetrics: bool
    ) -> Iterator[str]:
        for labels, histogram in histograms.items():
            names = self._names.get((family.name, labels)) or self._name(family, labels)
            examples = histogram.exemplars if openmetrics else {}
            total = 0
            for index, count in enumerate(histogram.counts):
                total += count
                example = _exemplar(examples[index]) if index in examples else ""
                yield f"{names[index]} {_number(total)}{example}\n"
            yield f"{names[-2]} {_number(total)}\n"
            yield f"{names[-1]} {_number(histogram.sum)}\n"

    def _name(self, family: Family, labels: Labels) -> tuple[str, ...]:
        """Return the names with labels of all lines that make up one series."""
        pairs = dict(zip(family.labels, labels, strict=True))
        name = family.name + SUFFIXES.get(family.kind, "")
        if family.kind == "state":
            names = tuple(_labelled(name, pairs | {"state": state}) for state in STATES)
        elif family.kind == "histogram":
            bounds = (*map(go_string, family.buckets), "+Inf")
            buckets = (_labelled(f"{name}_bucket", pairs | {"le": bound}) for bound in bounds)
            names = (*buckets, _labelled(f"{name}_count", pairs), _labelled(f"{name}_sum", pairs))
        else:
            names = (_labelled(name, pairs),)
        self._names[family.name, labels] = names
        return names


def _head(family: Family, *, openmetrics: bool) -> tuple[str, str]:
    if openmetrics:
        name, kind = family.name, OPENMETRICS_TYPES.get(family.kind, family.kind)
    else:
        name = family.name + SUFFIXES.get(family.kind, "")
        kind = CLASSIC_TYPES.get(family.kind, family.kind)
    return (f"# HELP {name} {family.help}\n", f"# TYPE {name} {kind}\n")


def _labelled(name: str, pairs: dict[str, str]) -> str:
    text = ",".join(f'{label}="{_escape(value)}"' for label, value in sorted(pairs.items()))
    return f"{name}{{{text}}}" if text else name


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return repr(float(value)) if 0 <= value < 1e6 else go_string(value)


def _exemplar(example: Exemplar) -> str:
    request_id, value, wall = example
    when = f" {wall}" if wall is not None else ""
    return f' # {{request_id="{_escape(request_id[:EXEMPLAR_CHARS])}"}} {go_string(value)}{when}'
