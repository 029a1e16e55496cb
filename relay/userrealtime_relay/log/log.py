"""One user's log in Postgres, over one connection that both LISTENs and reads.

No transaction stays open on it: inside one, a LISTENing connection gets no notification and holds back vacuum. Every
query has a time limit, which also detects a half-open connection; keepalives let the server detect its half.

Behind a transaction pooler, such as PgBouncer, each transaction may use another backend. Notifications are then lost,
and settings and prepared statements of one transaction are missing in the next, or in conflict with it. There, each
query is a separate transaction with an unnamed statement and its own time limit. A pooler is detected by the process id
of the backend, which a pooler does not know when the connection begins.
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
from userrealtime_core.wire.submission import Full, Refused, Submission
from userrealtime_relay.wire.frames import encode_events

CONNECT_TIMEOUT: Final = 10
CLOSE_TIMEOUT: Final = 2
QUERY_TIMEOUT: Final = 20
"""Seconds. The limit of the server is a little shorter: an overloaded server does not continue a useless query."""


class LogReplaced(Exception):
    """The epoch of the log has changed since it was opened: its numbers mean other events."""


ERRORS: Final = (*postgres.CONNECTION_ERRORS, LogReplaced)
"""The errors of all methods of `Log`. After any of them, abandon the connection."""

_STATEMENT_TIMEOUT: Final = int(QUERY_TIMEOUT * 1000 * 0.9)
# Not sent with the connection, because a pooler rejects unknown parameters. Times and plans are as in
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

_SUBMIT: Final = "select userrealtime.submit($1, $2, $3, $4::text::jsonb, true)"
_ATTEND: Final = "select userrealtime.attend($1, $2, $3)"
_PRESENT: Final = "select userrealtime.present($1, $2, $3, $4, $5)"
_BROADCAST_CHANNEL: Final = "select userrealtime.broadcast_channel($1)"
_FORWARD_BROADCASTS: Final = "select userrealtime.forward_broadcasts($1, $2::text[])"
_OPEN: Final = "select head, earliest, epoch, channel from userrealtime.open($1)"

_EVENTS: Final = "select epoch, id, event, at, data from userrealtime.events($1, $2, $3, $4)"
_EVENT: Final = """
select l.epoch, e.id, e.event, e.at::text, e.data::text
from userrealtime.log l left join userrealtime.event e on e.user_id = l.user_id and e.id = $2
where l.user_id = $1
"""


class Page:
    """Events of the log, without a gap between them, oldest first; possibly none.

    They are encoded only when needed: the next page can be requested before.
    """

    def __init__(self, rows: Sequence[asyncpg.Record]) -> None:
        """`rows` have `epoch, id, event, at, data`; rows after a gap are ignored."""
        first = rows[0]["id"] if rows else 1
        if rows and rows[-1]["id"] - first >= len(rows):
            rows = [row for place, row in enumerate(rows) if row["id"] == first + place]
        self._rows = rows
        self.first = first
        """The number of the first event, if there is one."""
        self.last = first + len(rows) - 1
        """The number of the last."""

    def __len__(self) -> int:
        return len(self._rows)

    def frames(self) -> list[bytes]:
        """Return the bytes of the frame of each event."""
        return encode_events(self._rows)

    def times(self) -> list[str]:
        """Return the time of each event: ISO 8601, in UTC, as Postgres writes it."""
        return [row["at"] for row in self._rows]


def channel(user_id: str) -> str:
    """Return the channel of a user's signals, as the function `userrealtime.channel` of the database does."""
    return f"urt_{hashlib.sha256(user_id.encode()).hexdigest()[:32]}"


class Log:
    """A connection to one user's log. After one of `ERRORS`, `abandon` it and connect again."""

    def __init__(self, connection: asyncpg.Connection, user_id: str, *, pooled: bool) -> None:
        self._connection = connection
        self._user_id = user_id
        self.pooled = pooled
        """Whether a transaction pooler is in between: `listen` would receive nothing."""
        self._epoch: str | None = None  # as of the last `open`
        # A connection has one query at a time, and every client that catches up makes queries.
        self._turn = asyncio.Lock()

    @classmethod
    async def connect(cls, url: Secret, user_id: str, *, pooled: bool | None = None, listening: bool = True) -> Self:
        """Connect, within `CONNECT_TIMEOUT` seconds, and set the connection up, within another `QUERY_TIMEOUT`.

        Args:
            pooled: whether a transaction pooler is in between; detected by default.
            listening: whether `listen` will be called. If not, any pooler is treated as a transaction pooler.

        Raises:
            ERRORS: the database is unreachable or rejects the connection, or the URL is invalid. None quotes the URL.
        """
        connection = await connect(url)
        try:
            async with asyncio.timeout(QUERY_TIMEOUT):
                if pooled is None:
                    pooled = not await is_direct(connection) and not (listening and await receives_notifications(url))
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
        """Return the events after number `after`.

        At most `max_events`, and as many as have `max_bytes` of data; the last one may exceed that.

        Raises:
            LogReplaced: the log was replaced since it was opened. A log without an epoch may have received one.
        """
        return self._page(await self._fetch(_EVENTS, self._user_id, after, max_events, max_bytes))

    async def event(self, number: int) -> Page:
        """Return the event with this number, or none, as a page. It costs Postgres two thirds of `page`.

        Raises:
            LogReplaced: as `page`.
        """
        return self._page(await self._fetch(_EVENT, self._user_id, number))

    def _page(self, rows: Sequence[asyncpg.Record]) -> Page:
        if rows and self._epoch not in (None, rows[0]["epoch"]):
            raise LogReplaced("the log was replaced since it was opened")
        return Page([] if not rows or rows[0]["id"] is None else rows)

    async def _fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        async with self._turn:
            if self.pooled:
                return await postgres.fetch_alone(self._connection, _TRANSACTION_SETTINGS, query, *arguments)
            return await self._connection.fetch(query, *arguments)

    async def submit(self, submission: Submission) -> int:
        """Store a message for the application, once per ref. Returns its id.

        Raises:
            Refused: the message cannot be stored.
            Full: the user's quota is used up.
        """
        try:
            [row] = await self._fetch(_SUBMIT, self._user_id, *submission)
        except asyncpg.ConfigurationLimitExceededError:
            raise Full from None
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            # Only the type: the message of Postgres may quote the data.
            raise Refused(f"this cannot be stored: {type(error).__name__}") from None
        return int(row[0])

    async def attend(self, instance: str, *, listens: bool) -> None:
        """Report that this relay runs, and whether it listens. Only running relays receive signals."""
        await self._fetch(_ATTEND, self._user_id, instance, listens)

    async def present(self, instance: str, clients: int | None, quiet_s: float, *, listens: bool) -> None:
        """Report how many clients this relay has, None when it ends, and for how many seconds it had no traffic."""
        await self._fetch(_PRESENT, self._user_id, instance, clients, listens, quiet_s)

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Call `wake` at each notification, and once when the connection is lost."""

        def notified(*_: object) -> None:
            wake()

        self._connection.add_termination_listener(notified)
        async with self._turn:
            await self._connection.add_listener(channel, notified)

    async def broadcast_channel(self) -> str | None:
        """Return the channel of the user's broadcasts; None if the role may not know it."""
        try:
            [row] = await self._fetch(_BROADCAST_CHANNEL, self._user_id)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):
            return None
        channel: str | None = row[0]
        return channel

    async def forward_broadcasts(self, messages: Sequence[str]) -> int:
        """Send broadcasts of clients to the other pods of the user. Return how many were accepted."""
        try:
            [row] = await self._fetch(_FORWARD_BROADCASTS, self._user_id, messages)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):
            return 0
        return int(row[0])

    async def listen_broadcasts(self, channel: str, receive: Callable[[str], None]) -> None:
        """Call `receive` with each broadcast."""

        def notified(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            receive(str(payload).partition(" ")[2])  # a number comes first, which makes it unique

        async with self._turn:
            await self._connection.add_listener(channel, notified)

    async def close(self) -> None:
        """Close the connection, within `CLOSE_TIMEOUT` seconds, or abandon it."""
        try:
            await self._connection.close(timeout=CLOSE_TIMEOUT)
        except ERRORS:
            self.abandon()

    def abandon(self) -> None:
        """Drop the connection without notice to the server. Running queries fail. Never blocks."""
        self._connection.terminate()


async def connect(url: Secret, *, name: str = "userrealtime-relay", **options: Any) -> asyncpg.Connection:
    """Return a connection, as `Log.connect` makes it. `name` is its application name."""
    return await postgres.open_session(
        url, name=name, connect_timeout=CONNECT_TIMEOUT, query_timeout=QUERY_TIMEOUT, **options
    )


async def is_direct(connection: asyncpg.Connection) -> bool:
    """Return whether no transaction pooler is in between."""
    return await postgres.is_direct(connection, _TRANSACTION_SETTINGS)


async def receives_notifications(url: Secret) -> bool:
    """Return whether notifications arrive, as they do through a session pooler."""
    return await postgres.receives_notifications(lambda: connect(url, statement_cache_size=0))
