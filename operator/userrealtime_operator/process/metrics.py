"""The operator's metrics for Prometheus. No label contains the name of a user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from userrealtime_core import announcer
from userrealtime_core.metrics import MetricsRegistry

_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics(MetricsRegistry):
    """The operator's metrics, in a separate registry. Names start with `userrealtime_operator_`."""

    def __init__(self) -> None:
        super().__init__("userrealtime_operator", process=True, buckets=_BUCKETS)
        self.leader = self._gauge("leader", "1 if this replica is the leader, otherwise 0.")
        self.resources = self._gauge(
            "resources", "UserRealtime resources by condition and status.", "condition", "status"
        )
        self.namespaces = self._gauge(
            "namespace_available", "1 if the operator can read this served namespace, otherwise 0.", "served_namespace"
        )
        self.listening = self._gauge("listening_relays", "Users whose pod has a LISTEN in Postgres.")
        self.depth = self._gauge("workqueue_depth", "Keys that wait for a worker.")
        self.wait = self._histogram("workqueue_queue_duration_seconds", "The time until a worker starts a due key.")
        self.retries = self._counter("workqueue_retries", "Keys that failed and are retried.")
        self.reconciles = self._counter("reconcile", "Reconciliations: success or error.", "kind", "result")
        self.duration = self._histogram("reconcile_duration_seconds", "The duration of one reconciliation.", "kind")
        self.requests = self._counter(
            "rest_client_requests",
            "Requests to the API server, except watches. The code is 0 if there was no response.",
            *("verb", "resource", "code"),
        )
        self.latency = self._histogram(
            "rest_client_request_duration_seconds", "The time from the request to the response.", "verb", "resource"
        )
        self.swept = self._counter("swept_users", "Deleted resources whose rows in the database were removed.")
        self.sleeps = self._counter("sleeps", "Users that fell asleep.")
        self.wakes = self._counter("wakes", "Users that were woken, by reason.", "reason")
        self.wake_seconds = self._histogram(
            "wake_duration_seconds", "The time from a wake request until a pod is an endpoint of the Service."
        )
        self.database_failures = self._counter("database_failures", "Operations on the database that failed.")
        self.pod_sessions_ended = self._counter(
            "pod_sessions_ended", "Sessions of pods' database roles that the watchdog terminated.", "reason"
        )
        for reason in ("revoked", "advisory_lock", "locks", "transaction"):
            self.pod_sessions_ended.labels(reason)  # start at 0, so the first one is an increase
        self.undroppable = self._gauge("undroppable_roles", "Revoked database roles that cannot be dropped.")
        self.full_inboxes = self._gauge(
            "nearly_full_inboxes", "Users whose waiting messages use at least 80 % of the inbox quota; 100 at most."
        )
        self.announcer = announcer.Metrics(self._registry, "userrealtime_operator")
        self.broadcasts = announcer.BroadcastMetrics(self._registry, "userrealtime_operator")

    def request(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """Count one request to the API server."""
        self.requests.labels(verb, resource, str(code)).inc()
        self.latency.labels(verb, resource).observe(seconds)

    def count_resources(self, conditions: Mapping[tuple[str, str], int]) -> None:
        """Replace the numbers of resources by `conditions`: how many have a condition's type and status."""
        self.resources.clear()
        for kind in ("Ready", "Progressing", "DatabaseReady", "Asleep"):
            for status in ("True", "False", "Unknown"):
                self.resources.labels(kind, status)
        for (kind, status), number in conditions.items():
            self.resources.labels(kind, status).set(number)
