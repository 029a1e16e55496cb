"""The activator's metrics. No label contains the name of a user."""

from __future__ import annotations

from typing import Final

from userrealtime_core.metrics import MetricsRegistry

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
    "expired",
    "polled",
    "internal_error",
)
ANNOUNCEMENTS: Final = ("accepted", "not_waiting", "rejected")
UNPARKED: Final = ("events", "message", "woken", "timeout", "gone", "closed")
FAILURES: Final = ("no_pod", "request_failed", "overloaded", "shutting_down")


class Metrics(MetricsRegistry):
    """All metrics of the activator. Names start with `userrealtime_activator_`."""

    def __init__(self) -> None:
        super().__init__("userrealtime_activator", process=True, buckets=_BUCKETS)
        self.ready = self._gauge("ready", "1 if this replica accepts connections, else 0.")
        self.users = self._gauge("users", "Users that this replica can wake.")
        self.connections = self._gauge("connections", "Open connections.")
        self.unauthenticated = self._gauge("unauthenticated", "Connections that have not authenticated.")
        self.waiting = self._gauge("waking_users", "Users that are being woken.")
        self.waiting_starts = self._gauge("waiting_starts", "Users whose pods wait for their turn to start.")
        self.starts = self._gauge("starts", "Users whose pods are starting.")
        self.start_limit = self._gauge("start_limit", "The number of pods that may start at the same time.")
        self.outcomes = self._counter("outcomes", "Connections, by outcome.", "outcome")
        self.requested = self._counter("wakes_requested", "Wake requests written to the API server.")
        self.failures = self._counter("wake_failures", "Wakes that failed, by reason.", "reason")
        self.announcements = self._counter("announcements", "Announcements of pods, by outcome.", "outcome")
        self.forwarded = self._counter("forwarded_bytes", "Forwarded bytes, by direction (pod, client).", "to")
        self.parked = self._gauge("parked_connections", "Parked connections.")
        self.parked_users = self._gauge("parked_users", "Users with parked connections.")
        self.parks = self._counter("parks", "Connections that were parked.")
        self.unparks = self._counter("unparks", "Connections that are not parked any more, by reason.", "reason")
        self.database_failures = self._counter("database_failures", "Connections to Postgres that failed or were lost.")
        self.wake = self._histogram(
            "wake_seconds",
            "Time from the first client to a pod that accepts connections, of each requested wake.",
        )
        for outcome in OUTCOMES:
            self.outcomes.labels(outcome)
        for outcome in ANNOUNCEMENTS:
            self.announcements.labels(outcome)
        for reason in UNPARKED:
            self.unparks.labels(reason)
        for reason in FAILURES:
            self.failures.labels(reason)
