"""The metrics of the bridge."""

from __future__ import annotations

from userrealtime_core import announcer
from userrealtime_core.metrics import MetricsRegistry


class Metrics(MetricsRegistry):
    """All metrics of the bridge, in a separate registry. Names start with `userrealtime_bridge_`."""

    def __init__(self) -> None:
        super().__init__("userrealtime_bridge")
        self.ready = self._gauge("ready", "1 if the bridge is connected to Postgres and to the broker, else 0.")
        self.pending = self._gauge("pending_users", "Users whose signal has not been published to the broker yet.")
        self.dropped = self._gauge(
            "dropped_users", "Signals dropped because the pending set was full; the next poll publishes them."
        )
        self.announcer = announcer.Metrics(self._registry, "userrealtime_bridge")
        self.broadcasts = announcer.BroadcastMetrics(self._registry, "userrealtime_bridge")
        self.broadcasts_lost = self._counter(
            "broadcasts_lost", "Broadcasts dropped because the broker did not accept them, or because too many waited."
        )
        self.polls = self._counter("polls", "Polls of the heads of all users that have a running relay.")
        self.signals = self._counter("signals", "Signals that the broker has accepted.")
        self.postgres_failures = self._counter("postgres_failures", "Connections to Postgres that failed or were lost.")
        self.broker_failures = self._counter("broker_failures", "Connections to the broker that failed or were lost.")
