"""The text that Prometheus reads, from the numbers as they are when it asks."""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.measures import BOUNDS_S, Histogram, Measure

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
_ENDS: Final = (*(str(bound) for bound in BOUNDS_S), "+Inf")


class Metrics(Collector):
    """``/metrics``. Nothing is counted here: the parts of the daemon do, whether anybody asks or not."""

    def __init__(self, measures: Sequence[Measure]) -> None:
        self._measures = measures
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        """All of them, in `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        return map(_family, self._measures)


def _family(measure: Measure) -> Metric:
    name, text, labels, read = measure
    if name.endswith("_seconds"):
        histogram = HistogramMetricFamily(name, text, labels=labels)
        for values, value in read().items():
            assert isinstance(value, Histogram)
            buckets = list(zip(_ENDS, accumulate(value.counts), strict=True))
            histogram.add_metric(values, buckets, value.total_s)
        return histogram
    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
    family = kind(name, text, labels=labels)
    for values, value in read().items():
        assert not isinstance(value, Histogram)
        family.add_metric(values, value)
    return family
