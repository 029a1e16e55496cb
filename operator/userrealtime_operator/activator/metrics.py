"""The activator's metrics. No label contains the name of a user."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_BUCKETS: Final = (0.1, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 5, 10, 20, 30)
OUTCOMES: Final = (
    "forwarded",
    "unknown_host",
    "rejected",
    "preflight",
    "unauthorized",
    "overloaded",
    "evicted",
    "unavailable",
    "client_gone",
    "drained",
    "internal_error",
)
ANNOUNCEMENTS: Final = ("accepted", "not_waiting", "rejected")
FAILURES: Final = ("no_pod", "request_failed", "overloaded", "shutting_down")


class Metrics:
    """All metrics of the activator, in a registry of their own. Names start with `userrealtime_activator_`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self.ready = self._gauge("ready", "1 if this replica accepts connections, else 0.")
        self.users = self._gauge("users", "Users that this replica can wake.")
        self.connections = self._gauge("connections", "Open connections.")
        self.unauthenticated = self._gauge("unauthenticated", "Connections that have not authenticated.")
        self.waiting = self._gauge("waking_users", "Users that are being woken.")
        self.outcomes = self._counter("outcomes", "Connections, by outcome.", "outcome")
        self.requested = self._counter("wakes_requested", "Wake requests written to the API server.")
        self.failures = self._counter("wake_failures", "Wakes that failed, by reason.", "reason")
        self.announcements = self._counter("announcements", "Announcements of pods, by outcome.", "outcome")
        self.forwarded = self._counter("forwarded_bytes", "Forwarded bytes, by direction (pod, client).", "to")
        self.wake = Histogram(
            "userrealtime_activator_wake_seconds",
            "Time from the first client to a pod that accepts connections, of each requested wake.",
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
        """Return the current value of a sample, 0 if it does not exist. `name` has no prefix."""
        return self._registry.get_sample_value(f"userrealtime_activator_{name}", labels) or 0.0

    def expose(self) -> bytes:
        """Return the body of `/metrics`."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(f"userrealtime_activator_{name}", description, registry=self._registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"userrealtime_activator_{name}", description, labels, registry=self._registry)
