"""The queues of signals and of broadcasts in Postgres, over one connection each.

The functions that are called are those of `schema/repeatable/signals.sql` and `schema/repeatable/broadcast.sql`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import asyncpg

from userrealtime_core.postgres import fetch_alone
from userrealtime_core.wire.broadcast import Broadcast
from userrealtime_core.wire.position import LogMoved, LogPosition

DOORBELL: Final = "userrealtime_doorbell"
BROADCAST_DOORBELL: Final = "userrealtime_broadcast"
LEASE_MS: Final = 1000
MOST_BROADCASTS: Final = 2000
"""How many broadcasts are taken at a time."""

SETTINGS: Final = "set {local} statement_timeout = 18000; set {local} synchronous_commit = off"
"""Nothing that an announcer writes has to survive a crash."""
KEEPALIVES: Final = """
set tcp_keepalives_idle = 30;
set tcp_keepalives_interval = 10;
set tcp_keepalives_count = 3
"""


class Announced(NamedTuple):
    """What one poll has found.

    Attributes:
        moved: the users that have a running relay.
        position: after which the next poll reads.
        queued: the number of users, with and without a relay.
    """

    moved: list[LogMoved]
    position: str
    queued: int


class Taken(NamedTuple):
    """What one call has taken from the queue of broadcasts.

    Attributes:
        broadcasts: those for relays that do not listen. The others were notified.
        position: after which the next call reads.
        taken: the number of broadcasts, with and without a relay.
        sent: the number of broadcasts that were notified.
    """

    broadcasts: list[Broadcast]
    position: str | None
    taken: int
    sent: int


class _Session:
    """A connection of an announcer, which is identified by a number from 0 to 1023."""

    def __init__(self, connection: asyncpg.Connection, announcer: int, *, pooled: bool) -> None:
        self._connection = connection
        self._announcer = announcer
        self._pooled = pooled

    async def prepare(self) -> None:
        """Set the connection up."""
        if not self._pooled:
            await self._connection.execute(SETTINGS.format(local="") + ";" + KEEPALIVES)

    async def listeners(self) -> int:
        """How many relays listen."""
        return int(await self._value("select userrealtime.listeners()"))

    async def _value(self, query: str, *arguments: object) -> Any:
        [row] = await self._fetch(query, *arguments)
        return row[0]

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        if self._pooled:
            return await fetch_alone(self._connection, SETTINGS.format(local="local"), query, *arguments)
        return await self._connection.fetch(query, *arguments)


class Queue(_Session):
    """The queue of signals."""

    async def arm_doorbell(self) -> list[str]:
        """Have publishers ring, for three minutes. Returns the transactions that may not."""
        return list(await self._value("select userrealtime.arm_doorbell()"))

    async def renew_lease(self) -> bool:
        """Take or extend the lease for `LEASE_MS`. False if another announcer holds it."""
        return bool(await self._value("select userrealtime.renew_lease($1, $2)", self._announcer, LEASE_MS))

    async def end_lease(self) -> list[str]:
        """End the lease. Returns the transactions that may still commit a row of the queue."""
        return list(await self._value("select userrealtime.end_lease($1)", self._announcer))

    async def is_leased(self) -> bool:
        """Whether any announcer holds the lease."""
        return bool(await self._value("select userrealtime.leased()"))

    async def unsettled(self, among: Sequence[str] | None = None) -> list[str]:
        """Return the open transactions that may still commit a row of the queue, if given only from `among`."""
        return list(await self._value("select userrealtime.unsettled($1::text[])", among))

    async def announce(self, since: str | None, *, notifying: bool) -> Announced:
        """Read what was committed since a position, and notify the relays that listen if `notifying`.

        Raises:
            asyncpg.ProgramLimitExceededError: the notification queue is full. Nothing was read.
        """
        rows = await self._fetch(
            "select user_id, head, epoch, upto, queued from userrealtime.announce($1, $2)", since, notifying
        )
        return Announced(
            [_moved(row) for row in rows if row["user_id"] is not None], rows[0]["upto"], rows[0]["queued"]
        )

    async def forget(self, since: str | None, before: str) -> None:
        """Delete the rows that were announced between two positions."""
        await self._fetch("select userrealtime.forget_signals($1, $2)", since, before)

    async def standings(self, channels: Sequence[str]) -> list[LogMoved]:
        """The users behind these channels that have a running relay, and where their logs stand."""
        query = "select user_id, head, epoch from userrealtime.standings($1::text[])"
        return [_moved(row) for row in await self._fetch(query, channels)]

    async def notification_queue_usage(self) -> float:
        """The fraction of the server's notification queue that is in use."""
        return float(await self._value("select pg_notification_queue_usage()"))


class BroadcastQueue(_Session):
    """The queue of broadcasts."""

    async def arm(self) -> None:
        """Have callers of `broadcast()` ring, for 15 seconds."""
        await self._fetch("select userrealtime.arm_broadcasts()")

    async def lease(self) -> bool:
        """Take or extend the lease for `LEASE_MS`. False if another announcer holds it."""
        return bool(await self._value("select userrealtime.lease_broadcasts($1)", self._announcer))

    async def release(self, since: str | None) -> bool:
        """End the lease. True if broadcasts may remain whose callers did not ring."""
        return bool(await self._value("select userrealtime.release_broadcasts($1, $2)", self._announcer, since))

    async def take(self, since: str | None) -> Taken | None:
        """Take the broadcasts that were committed since a position, and notify the relays that listen.

        None if another announcer has the lease.

        Raises:
            asyncpg.ProgramLimitExceededError: the notification queue is full. Nothing was taken.
        """
        query = "select user_id, channel, message, upto, taken, sent from userrealtime.take_broadcasts($1, $2, $3)"
        rows = await self._fetch(query, self._announcer, since, MOST_BROADCASTS)
        if not rows:
            return None
        *broadcasts, last = rows
        return Taken(
            [Broadcast(row["user_id"], row["channel"], row["message"]) for row in broadcasts],
            last["upto"],
            last["taken"],
            last["sent"],
        )

    async def dropped(self) -> int:
        """How many broadcasts were dropped before an announcer took them."""
        return int(await self._value("select userrealtime.broadcasts_dropped()"))


def _moved(row: asyncpg.Record) -> LogMoved:
    return LogMoved(row["user_id"], LogPosition(row["head"], row["epoch"] or ""))
