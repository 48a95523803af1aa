"""The same samples rendered by prometheus_client alone, to compare our renderer with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from proxy.edge.families import FAMILIES, STATES, Family
from proxy.edge.samples import Samples


@dataclass(frozen=True)
class Collector:
    """A collector as the library wants it."""

    samples: Samples

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            yield (
                _histogram(family, self.samples)
                if family.kind == "histogram"
                else _plain(family, self.samples)
            )


def render(samples: Samples, accept: str) -> tuple[bytes, str]:
    registry = CollectorRegistry()
    registry.register(Collector(samples))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _plain(family: Family, samples: Samples) -> Metric:
    values = samples.values[family.name].items()
    names = list(family.labels)
    if family.kind == "info":
        info = InfoMetricFamily(family.name, family.help, labels=names)
        for labels, _ in values:
            info.add_metric(labels, {})
        return info
    if family.kind == "state":
        states = GaugeMetricFamily(family.name, family.help, labels=[*names, "state"])
        for labels, value in values:
            for index, state in enumerate(STATES):
                states.add_metric((*labels, state), float(index == value))
        return states
    make = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    metric = make(family.name, family.help, labels=names)
    for labels, value in values:
        metric.add_metric(labels, value)
    return metric


def _histogram(family: Family, samples: Samples) -> Metric:
    metric = HistogramMetricFamily(family.name, family.help, labels=list(family.labels))
    for labels, histogram in samples.histograms[family.name].items():
        buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
        total = 0
        for index, bound in enumerate([*map(floatToGoString, family.buckets), "+Inf"]):
            total += histogram.counts[index]
            if index in histogram.exemplars:
                request_id, value, wall = histogram.exemplars[index]
                buckets.append((bound, total, Exemplar({"request_id": request_id}, value, wall)))
            else:
                buckets.append((bound, total))
        metric.add_metric(labels, buckets, histogram.sum)
    return metric
