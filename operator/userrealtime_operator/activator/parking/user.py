"""The parked clients of one user, and where the log of the user stands. No I/O."""

from __future__ import annotations

from typing import Protocol

from userrealtime_core.wire.position import LogState
from userrealtime_operator.kube.types import NamespacedName


class ParkedClient(Protocol):
    """A client whose connection is parked."""

    @property
    def resource(self) -> NamespacedName:
        """The resource whose address the client has used."""

    def wake(self, reason: str) -> None:
        """Connect the client to the pod. `reason` is the label of the metric."""

    def keep_alive(self) -> None:
        """Show proxies and the client that the connection is alive."""


class ParkedUser:
    """One user. Several resources may have the same user."""

    __slots__ = ("clients", "count", "state", "user_id")

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.clients: set[ParkedClient] = set()
        self.count = 0
        """The number of clients to report: the parked ones, and those that wait for the state of the log."""
        self.state: LogState | None = None
        """Where the log stands; None until it was read."""

    @property
    def position(self) -> tuple[int, str | None] | None:
        """The head and the epoch of the log."""
        return None if self.state is None else (self.state.head, self.state.epoch)

    def move(self, state: LogState) -> bool:
        """Set where the log stands. Return whether the clients need the pod."""
        before = self.position
        self.state = state
        return before is not None and self.position != before
