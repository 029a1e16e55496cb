"""Where a log stands: the one thing that its reader and the protocol with clients both speak of."""

from __future__ import annotations

from typing import NamedTuple


class Position(NamedTuple):
    """As far as this relay knows. `earliest`, the oldest number kept, may have moved on since the log was asked."""

    head: int
    earliest: int
    epoch: str | None
    """Which incarnation of the log this is; None while there is no event yet."""
