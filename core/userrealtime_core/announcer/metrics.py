"""The metrics of an announcer, in the registry of the process that it runs in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class Metrics:
    """`prefix` is the process's own, such as `userrealtime_bridge`."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        def counter(name: str, description: str) -> Counter:
            return Counter(f"{prefix}_{name}", description, registry=registry)

        self.leased = Gauge(
            f"{prefix}_announcer_leased", "1 while this announcer polls the queue, else 0.", registry=registry
        )
        self.rings = counter("rings", "Notifications received from publishers that found no announcer polling.")
        self.polls = counter("queue_polls", "Polls of the queue.")
        self.announced = counter("announced_users", "Users that polls or rings have announced.")
        self.queue_usage = Gauge(
            f"{prefix}_notification_queue_usage",
            "Fraction of the server's notification queue that is in use. Publishers do not notify above 0.5.",
            registry=registry,
        )
        self.full = counter("notification_queue_full", "Polls whose NOTIFY failed because the server's queue was full.")
        self.failures = counter("announcer_failures", "Connections of the announcer that failed or were lost.")


class BroadcastMetrics:
    """The metrics of broadcasts. `prefix` is the process's own, such as `userrealtime_bridge`."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        def counter(name: str, description: str) -> Counter:
            return Counter(f"{prefix}_{name}", description, registry=registry)

        self.leased = Gauge(
            f"{prefix}_broadcast_leased",
            "1 while this announcer polls the queue of broadcasts, else 0.",
            registry=registry,
        )
        self.taken = counter("broadcasts_taken", "Broadcasts taken from the queue, with and without a running relay.")
        self.sent = counter("broadcasts_sent", "Broadcasts sent to relays, by NOTIFY or by the broker.")
        self.dropped = Gauge(
            f"{prefix}_broadcasts_dropped",
            "Broadcasts dropped since the schema was installed, since no announcer ran or a queue was full.",
            registry=registry,
        )
        self.failures = counter("broadcaster_failures", "Connections for broadcasts that failed or were lost.")
