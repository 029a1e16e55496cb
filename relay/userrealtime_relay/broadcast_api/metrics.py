"""The metrics of the broadcast API."""

from __future__ import annotations

from userrealtime_core.metrics import MetricsRegistry


class Metrics(MetricsRegistry):
    """All metrics of the broadcast API, in a separate registry. Names start with `userrealtime_broadcast_api_`."""

    def __init__(self) -> None:
        super().__init__("userrealtime_broadcast_api")
        self.ready = self._gauge("ready", "1 if the process is connected to Postgres, else 0.")
        self.pending = self._gauge("pending", "Broadcasts that are accepted and not written to the database yet.")
        self.requests = self._counter(
            "requests",
            "Requests: accepted, unauthorized, invalid, too_large, full (too many wait), slow (the body did not arrive "
            "in time) or unavailable (no database).",
            "outcome",
        )
        for outcome in ("accepted", "unauthorized", "invalid", "too_large", "full", "slow", "unavailable"):
            self.requests.labels(outcome)  # start at 0, so the first one is an increase
        self.written = self._counter("written", "Broadcasts written to the database.")
        self.lost = self._counter(
            "lost", "Broadcasts dropped after they were accepted, because the database failed or rejected them."
        )
        self.failures = self._counter("failures", "Connections to Postgres that failed or were lost.")
