"""What Prometheus may know about the activator. No label holds the name of a user."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_BUCKETS: Final = (0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 30)
OUTCOMES: Final = (
    *("carried", "stranger", "unauthorized", "refused", "preflight", "crowded", "evicted", "failed", "gone", "drained"),
)
ANNOUNCEMENTS: Final = ("taken", "not_awaited", "refused")
FAILURES: Final = ("no_pod", "not_asked", "crowded", "stopping")


class Metrics:
    """All of the activator's metrics, in a registry of their own. Names start with `userrealtime_activator_`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self.ready = self._gauge("ready", "1 if this replica takes connections, else 0.")
        self.users = self._gauge("users", "Users whom it knows.")
        self.connections = self._gauge("connections", "Connections that there are.")
        self.unauthenticated = self._gauge("unauthenticated", "Connections that have not authenticated.")
        self.waiting = self._gauge("waking_users", "Users whose pods are waited for.")
        self.outcomes = self._counter("outcomes", "Connections that ended, by what became of them.", "outcome")
        self.requested = self._counter("wakes_requested", "Wake requests written.")
        self.failures = self._counter("wake_failures", "Wakes that failed, by reason.", "reason")
        self.announcements = self._counter("announcements", "Pods that said they listen, by outcome.", "outcome")
        self.carried = self._counter("carried_bytes", "Bytes carried, by direction: to the pod, to the client.", "to")
        self.wake = Histogram(
            "userrealtime_activator_wake_seconds",
            "From the first client to a pod that takes connections; one observation a wake that was asked for.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        for outcome in OUTCOMES:
            self.outcomes.labels(outcome)
        for outcome in ANNOUNCEMENTS:
            self.announcements.labels(outcome)
        for reason in FAILURES:
            self.failures.labels(reason)

    def value(self, name: str, **labels: str) -> float:
        """A sample as it is now, 0 where there is none. `name` without the prefix."""
        return self._registry.get_sample_value(f"userrealtime_activator_{name}", labels) or 0.0

    def expose(self) -> bytes:
        """The text that `/metrics` answers."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(f"userrealtime_activator_{name}", description, registry=self._registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"userrealtime_activator_{name}", description, labels, registry=self._registry)
