"""Where a user's log stands."""

from __future__ import annotations

from typing import NamedTuple


class LogPosition(NamedTuple):
    """The number of the newest event, and the epoch of the log it belongs to, as a signal reports them.

    A signal is a hint, so neither is trusted as a fact.
    """

    head: int
    epoch: str


class LogMoved(NamedTuple):
    """A user whose log has grown, and where it stands now."""

    user_id: str
    position: LogPosition


class LogState(NamedTuple):
    """The last known state of a log. `earliest`, the oldest number kept, may be outdated."""

    head: int
    earliest: int
    """`head + 1` when no event is kept."""
    epoch: str | None
    """The incarnation of the log; None before the first event."""
