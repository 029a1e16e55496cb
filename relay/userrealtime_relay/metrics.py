"""The metrics of one relay. No label contains a value that a client chooses."""

from __future__ import annotations

from typing import Final

from userrealtime_core.metrics import MetricsRegistry

_LATENCY_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics(MetricsRegistry):
    """All metrics of the relay. Names start with `userrealtime_relay_`."""

    def __init__(self) -> None:
        super().__init__("userrealtime_relay", buckets=_LATENCY_BUCKETS)
        self.ready = self._gauge("ready", "1 if the relay accepts connections, else 0.")
        self.connections = self._gauge("connections", "Clients that are authenticated and connected.")
        self.unauthenticated = self._gauge("unauthenticated", "Connections that have not authenticated.")
        self.ring_events = self._gauge("ring_events", "Events in the ring.")
        self.ring_bytes = self._gauge("ring_bytes", "Bytes of frames in the ring.")
        self.lag_events = self._gauge("lag_events", "Events between the slowest client and the head of the ring.")
        self.unsent_bytes = self._gauge("unsent_bytes", "Bytes waiting in the process for clients' sockets.")
        self.accepted = self._counter("accepted", "Clients that were authenticated and admitted.")
        self.delivered_events = self._counter("delivered_events", "Events written to sockets, counted for each client.")
        self.delivered_bytes = self._counter("delivered_bytes", "Bytes of events written to sockets.")
        self.broadcasts = self._counter("broadcasts", "Broadcasts that have arrived for the user.")
        self.delivered_broadcasts = self._counter(
            "delivered_broadcasts", "Broadcasts written to sockets, counted for each client."
        )
        self.broadcasts_dropped = self._counter(
            "broadcasts_dropped",
            "Broadcasts dropped: slow, counted for each client that had not received them in time; invalid; or "
            "database: a broadcast of a client, which did not reach the other pods of the user.",
            "reason",
        )
        self.log_connections = self._counter("log_connections", "Connections made to Postgres.")
        self.log_failures = self._counter("log_failures", "Connections to Postgres that failed or were lost.")
        self.log_connected = self._gauge("log_connected", "1 while there is a connection to Postgres, else 0.")
        self.broker_connected = self._gauge("broker_connected", "1 while the relay is connected to a broker, else 0.")
        self.broker_failures = self._counter("broker_failures", "Connections to the broker that failed or were lost.")
        self.client_broadcasts = self._counter(
            "client_broadcasts", "Broadcasts of clients: sent, disabled, limited or invalid.", "outcome"
        )
        self.starts = self._counter(
            "starts",
            "Positions at which clients began: head, resumed from ring or log, or the reason of a reset.",
            "outcome",
        )
        self.closes = self._counter(
            "closes", "Connections that ended, by close code; 'other' stands for codes that clients choose.", "code"
        )
        self.limited = self._counter(
            "limited",
            "Requests and connections over a limit: chunks, connections, messages, message_bytes, request_time, slow, "
            "unauthenticated.",
            "limit",
        )
        self.submissions = self._counter(
            "submissions", "Messages that clients published: stored, refused, full or unavailable.", "outcome"
        )
        self.latency = self._histogram(
            "latency_seconds",
            "Time from the commit of an event, on Postgres' clock, to the write to a socket, on the relay's clock: "
            "one observation per write, of its first event, for clients at the head.",
        )
