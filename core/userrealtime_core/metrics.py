"""The metrics of one process, in a separate registry."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class MetricsRegistry:
    """The base of a process's metrics.

    Args:
        prefix: what all names begin with, such as `userrealtime_relay`.
        process: whether the metrics of the process (CPU time, memory, files) are included.
        buckets: the buckets of every histogram.
    """

    def __init__(
        self, prefix: str, *, process: bool = False, buckets: Sequence[float] = Histogram.DEFAULT_BUCKETS
    ) -> None:
        self._prefix = prefix
        self._buckets = buckets
        self._registry = CollectorRegistry(auto_describe=False)
        if process:
            ProcessCollector(registry=self._registry)

    def expose(self) -> bytes:
        """Return the text of `/metrics`, whose type is `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def value(self, name: str, **labels: str) -> float:
        """Return the present value of a sample, given without the prefix; 0 if there is none."""
        return self._registry.get_sample_value(f"{self._prefix}_{name}", labels) or 0.0

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(f"{self._prefix}_{name}", description, labels, registry=self._registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"{self._prefix}_{name}", description, labels, registry=self._registry)

    def _histogram(self, name: str, description: str, *labels: str) -> Histogram:
        name = f"{self._prefix}_{name}"
        return Histogram(name, description, labels, buckets=self._buckets, registry=self._registry)
