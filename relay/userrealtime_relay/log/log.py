"""One user's log in Postgres, over one connection that both LISTENs and reads.

No transaction is ever open on it: a LISTENing connection inside one gets no notification and holds back vacuum. Every
query has a time limit, which is also how a half-open connection is found; keepalives let the server find its half.

Behind a pooler of transactions, such as PgBouncer, each transaction may come to another backend. Notifications are lost
then, and what one transaction leaves behind (settings, prepared statements) is not there in the next, or in its way. So
each query is a transaction of its own there, with an unnamed statement and the time limit inside. Whether something is
in between shows in the number of the backend, which a pooler cannot know when the connection begins.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import asyncpg

from userrealtime_core import postgres
from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogState
from userrealtime_relay.wire.frames import encode_events
from userrealtime_relay.wire.submission import Refused, Submission

CONNECT_TIMEOUT: Final = 10
CLOSE_TIMEOUT: Final = 2
QUERY_TIMEOUT: Final = 20
"""Seconds. The server gives up a little before the client, so that an overloaded one is not left working on."""


class LogReplaced(Exception):
    """The log is of another epoch than the one that was opened: its numbers mean other events."""


ERRORS: Final = (*postgres.CONNECTION_ERRORS, LogReplaced)
"""What any use of a `Log` may raise: the connection is then given up."""

_STATEMENT_TIMEOUT: Final = int(QUERY_TIMEOUT * 1000 * 0.9)
# Not sent along with the connection: a pooler refuses what it does not know. Times and plans are those of
# userrealtime.events: one plan, with no scan that small tables are best read by, as they grow.
_SETTINGS: Final = f"""
set statement_timeout = {_STATEMENT_TIMEOUT};
set idle_in_transaction_session_timeout = 10000;
set tcp_keepalives_idle = 30;
set tcp_keepalives_interval = 10;
set tcp_keepalives_count = 3;
set timezone = 'UTC';
set datestyle = 'ISO';
set plan_cache_mode = force_generic_plan;
set enable_seqscan = off;
set enable_bitmapscan = off
"""
_TRANSACTION_SETTINGS: Final = f"""
set local statement_timeout = {_STATEMENT_TIMEOUT};
set local timezone = 'UTC';
set local datestyle = 'ISO'
"""

_SUBMIT: Final = "select userrealtime.submit($1, $2, $3, $4::text::jsonb)"
_ATTEND: Final = "select userrealtime.attend($1, $2, $3)"
_PRESENT: Final = "select userrealtime.present($1, $2, $3, $4)"
_OPEN: Final = "select head, earliest, epoch, channel from userrealtime.open($1)"

_EVENTS: Final = "select epoch, id, event, at, data from userrealtime.events($1, $2, $3, $4)"
_EVENT: Final = """
select l.epoch, e.id, e.event, e.at::text, e.data::text
from userrealtime.log l left join userrealtime.event e on e.user_id = l.user_id and e.id = $2
where l.user_id = $1
"""


class Page:
    """Events of the log, without a gap between them, oldest first; maybe none.

    They stay as they were read until they are asked for: the next page can be on its way by then.
    """

    def __init__(self, rows: Sequence[asyncpg.Record]) -> None:
        """`rows` are of `epoch, id, event, at, data`; what comes after a gap is left out."""
        first = rows[0]["id"] if rows else 1
        if rows and rows[-1]["id"] - first >= len(rows):
            rows = [row for place, row in enumerate(rows) if row["id"] == first + place]
        self._rows = rows
        self.first = first
        """The number of the first event, if there is any."""
        self.last = first + len(rows) - 1
        """The number of the last."""

    def __len__(self) -> int:
        return len(self._rows)

    def frames(self) -> list[bytes]:
        """Each event as the bytes of its frame."""
        return encode_events(self._rows)

    def times(self) -> list[str]:
        """When each event happened: ISO 8601, in UTC, as Postgres writes it."""
        return [row["at"] for row in self._rows]


def channel(user_id: str) -> str:
    """The name under which a user's signals are sent; `userrealtime.channel` in the database says the same."""
    return f"urt_{hashlib.sha256(user_id.encode()).hexdigest()[:32]}"


class Log:
    """A connection to one user's log. Once a method has raised one of `ERRORS`, `abandon` it and connect anew."""

    def __init__(self, connection: asyncpg.Connection, user_id: str, *, pooled: bool) -> None:
        self._connection = connection
        self._user_id = user_id
        self.pooled = pooled
        """Whether transactions go through a pooler, so that `listen` would hear nothing."""
        self._epoch: str | None = None  # as `open` saw it last
        # A connection carries one query at a time, and there are as many askers as clients that catch up.
        self._turn = asyncio.Lock()

    @classmethod
    async def connect(cls, url: Secret, user_id: str, *, pooled: bool | None = None, listening: bool = True) -> Self:
        """Connect, within `CONNECT_TIMEOUT` seconds, and set the connection up, within another `QUERY_TIMEOUT`.

        Args:
            pooled: whether there is a pooler of transactions in between; by default, that is found out.
            listening: whether `listen` is wanted. If not, any pooler is taken for one of transactions.

        Raises:
            ERRORS: the database is not there, or refuses, or the URL cannot be parsed. None of them quotes the URL.
        """
        connection = await connect(url)
        try:
            async with asyncio.timeout(QUERY_TIMEOUT):
                if pooled is None:
                    pooled = not await is_direct(connection) and not (listening and await hears(url))
                if not pooled:
                    await connection.execute(_SETTINGS)
        except BaseException:
            connection.terminate()
            raise
        return cls(connection, user_id, pooled=pooled)

    async def open(self) -> tuple[LogState, str]:
        """Return the state of the log, and the channel of its notifications. Also checks the connection."""
        [row] = await self._fetch(_OPEN, self._user_id)
        head, earliest, epoch, channel = row
        self._epoch = epoch
        return LogState(head, earliest, epoch), channel

    async def page(self, after: int, *, max_events: int, max_bytes: int) -> Page:
        """The events after number `after`.

        At most `max_events`; none is added once their data has `max_bytes`, so the last may exceed that.

        Raises:
            LogReplaced: they would be events of another log than the one that was opened. One that had no epoch yet,
                for want of events, may have got its first.
        """
        return self._page(await self._fetch(_EVENTS, self._user_id, after, max_events, max_bytes))

    async def event(self, number: int) -> Page:
        """The event with this number, or none: as a `page`, for two thirds of what one costs Postgres.

        Raises:
            LogReplaced: as `page`.
        """
        return self._page(await self._fetch(_EVENT, self._user_id, number))

    def _page(self, rows: Sequence[asyncpg.Record]) -> Page:
        if rows and self._epoch not in (None, rows[0]["epoch"]):
            raise LogReplaced("the log is not the one that was opened")
        return Page([] if not rows or rows[0]["id"] is None else rows)

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        async with self._turn:
            if self.pooled:
                return await postgres.fetch_alone(self._connection, _TRANSACTION_SETTINGS, query, *arguments)
            return await self._connection.fetch(query, *arguments)

    async def submit(self, submission: Submission) -> int:
        """Store a message for the application, once per ref. Returns its id.

        Raises:
            Refused: it cannot be stored, whoever tries.
        """
        try:
            [row] = await self._fetch(_SUBMIT, self._user_id, *submission)
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            # The kind alone: what Postgres says may quote the data.
            raise Refused(f"this cannot be stored: {type(error).__name__}") from None
        return int(row[0])

    async def attend(self, instance: str, *, listens: bool) -> None:
        """Report that this relay runs, and whether it listens. Only running relays receive signals."""
        await self._fetch(_ATTEND, self._user_id, instance, listens)

    async def present(self, instance: str, clients: int | None, *, listens: bool) -> None:
        """Report how many clients this relay has; None when it ends."""
        await self._fetch(_PRESENT, self._user_id, instance, clients, listens)

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Call `wake` at each notification, and once when the connection is lost."""

        def notified(*_: object) -> None:
            wake()

        self._connection.add_termination_listener(notified)
        async with self._turn:
            await self._connection.add_listener(channel, notified)

    async def close(self) -> None:
        """End the connection in order, within `CLOSE_TIMEOUT` seconds, or drop it."""
        try:
            await self._connection.close(timeout=CLOSE_TIMEOUT)
        except ERRORS:
            self.abandon()

    def abandon(self) -> None:
        """Drop the connection without a word to the server. Queries under way fail. Never blocks."""
        self._connection.terminate()


async def connect(url: Secret, *, name: str = "userrealtime-relay", **options: Any) -> asyncpg.Connection:
    """A connection, as `Log.connect` makes it. `name` is its application name."""
    return await postgres.open_session(
        url, name=name, connect_timeout=CONNECT_TIMEOUT, query_timeout=QUERY_TIMEOUT, **options
    )


async def is_direct(connection: asyncpg.Connection) -> bool:
    """Whether there is no pooler of transactions in between."""
    return await postgres.is_direct(connection, _TRANSACTION_SETTINGS)


async def hears(url: Secret) -> bool:
    """Whether notifications pass what is in between."""
    return await postgres.receives_notifications(lambda: connect(url, statement_cache_size=0))
