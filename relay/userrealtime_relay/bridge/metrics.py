"""What Prometheus may know about the bridge."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    """All of the bridge's metrics, in a registry of their own. Names start with `userrealtime_bridge_`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self.ready = self._gauge("ready", "1 if the bridge is connected to Postgres and to the broker, else 0.")
        self.pending = self._gauge(
            "pending_users", "Users whose logs have moved, of which the broker was not told yet."
        )
        self.dropped = self._gauge("dropped_users", "Users that found no room among these; told after the next look.")
        self.notifications = self._counter("notifications", "Notifications that Postgres has sent.")
        self.looks = self._counter("looks", "Times that the logs of all users with a relay were looked at.")
        self.signals = self._counter("signals", "Signals that the broker has taken.")
        self.postgres_failures = self._counter("postgres_failures", "Connections to Postgres that failed or were lost.")
        self.broker_failures = self._counter("broker_failures", "Connections to the broker that failed or were lost.")

    def expose(self) -> bytes:
        """The text that `/metrics` answers."""
        return generate_latest(self._registry)

    def _gauge(self, name: str, description: str) -> Gauge:
        return Gauge(f"userrealtime_bridge_{name}", description, registry=self._registry)

    def _counter(self, name: str, description: str) -> Counter:
        return Counter(f"userrealtime_bridge_{name}", description, registry=self._registry)
