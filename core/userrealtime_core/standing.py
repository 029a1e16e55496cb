"""Where a user's log stands: what a signal reports. A signal is a hint, so neither is trusted as a fact."""

from __future__ import annotations

from typing import NamedTuple


class Standing(NamedTuple):
    """The number of the newest event, and the epoch of the log it belongs to."""

    head: int
    epoch: str


class Moved(NamedTuple):
    """A user whose log has grown, and where it stands now."""

    user_id: str
    standing: Standing
