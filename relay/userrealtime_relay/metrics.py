"""What Prometheus may know about one relay. No label holds anything that a client chooses."""

from __future__ import annotations

from typing import Final

from userrealtime_core.metrics import MetricsRegistry

_LATENCY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics(MetricsRegistry):
    """All of the relay's metrics, in a registry of their own. Names start with `userrealtime_relay_`."""

    def __init__(self) -> None:
        super().__init__("userrealtime_relay", buckets=_LATENCY_BUCKETS)
        self.ready = self._gauge("ready", "1 if the relay takes connections, else 0.")
        self.connections = self._gauge("connections", "Clients that are authenticated and connected.")
        self.unauthenticated = self._gauge("unauthenticated", "Connections that have not authenticated.")
        self.ring_events = self._gauge("ring_events", "Events in the ring.")
        self.ring_bytes = self._gauge("ring_bytes", "Bytes of frames in the ring.")
        self.lag_events = self._gauge("lag_events", "How far the client that is furthest behind is behind the ring.")
        self.unsent_bytes = self._gauge("unsent_bytes", "Bytes waiting in the process for clients' sockets.")
        self.accepted = self._counter("accepted", "Clients that were ever authenticated and given a place.")
        self.delivered_events = self._counter("delivered_events", "Events written to sockets, each client counted.")
        self.delivered_bytes = self._counter("delivered_bytes", "Bytes of events written to sockets.")
        self.log_connections = self._counter("log_connections", "Connections made to Postgres.")
        self.log_failures = self._counter("log_failures", "Connections to Postgres that failed or were lost.")
        self.log_connected = self._gauge("log_connected", "1 while there is a connection to Postgres, else 0.")
        self.broker_connected = self._gauge("broker_connected", "1 while signals come from a broker, else 0.")
        self.broker_failures = self._counter("broker_failures", "Connections to the broker that failed or were lost.")
        self.starts = self._counter(
            "starts", "Where clients began: at the head, resumed from ring or log, or reset and why.", "outcome"
        )
        self.closes = self._counter(
            "closes", "Connections that ended, by the close code; 'other' is a code that the client chose.", "code"
        )
        self.limited = self._counter(
            "limited",
            "What was refused or closed for a limit: chunks, connections, messages, message_bytes, request_time, slow, "
            "unauthenticated.",
            "limit",
        )
        self.submissions = self._counter(
            "submissions", "Messages that clients published: stored, refused or unavailable.", "outcome"
        )
        self.latency = self._histogram(
            "latency_seconds",
            "From the event's commit, on Postgres' clock, to the write to a socket, on ours; one observation a write, "
            "of its first event, and only for clients that were waiting at the head.",
        )
