"""One user's log in Postgres, over one connection that both LISTENs and reads.

No transaction is ever open on it: a LISTENing connection inside one gets no notification and holds back vacuum. Every
query has a time limit, which is also how a half-open connection is found; keepalives let the server find its half.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple, Self

import asyncpg

from .config import Secret
from .inbox import Refused, Submission

CONNECT_TIMEOUT: Final = 10
QUERY_TIMEOUT: Final = 20
"""Seconds. The server gives up a little before the client, so that an overloaded one is not left working on."""

ERRORS: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What any use of a `Log` may raise: the connection is then to be given up."""

_SERVER_SETTINGS: Final = {
    "application_name": "userrealtime-relay",
    "statement_timeout": str(int(QUERY_TIMEOUT * 1000 * 0.9)),
    "idle_in_transaction_session_timeout": "10000",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}

_SUBMIT: Final = "select userrealtime.submit($1, $2, $3, $4::text::jsonb)"
_OPEN: Final = "select head, earliest, epoch, channel from userrealtime.open($1)"

# Walks the primary key one number at a time, so that the server reads, and writes out as text, no event beyond the
# page's bytes; a plain limit could mean hundreds of events of a megabyte each. Ends at a gap, should there be one.
_PAGE: Final = """
with recursive page (id, event, at, data, events, bytes_before) as (
    (select id, event, at, data::text, 1, 0::bigint from userrealtime.event
     where user_id = $1 and id > $2 order by id limit 1)
    union all
    select e.id, e.event, e.at, e.data::text, p.events + 1, p.bytes_before + octet_length(p.data)
    from page p join userrealtime.event e on e.user_id = $1 and e.id = p.id + 1
    where p.events < $3 and p.bytes_before + octet_length(p.data) < $4
)
select id, event, at, data from page
"""


class Event(NamedTuple):
    """One event of the log; `data` is its JSON text, as Postgres writes it."""

    number: int
    event: str
    at: datetime
    data: str


class Opened(NamedTuple):
    """Where a log stands. `earliest` is `head + 1` when no event is kept; `epoch` is None before the first one."""

    head: int
    earliest: int
    epoch: str | None
    channel: str


class Log:
    """A connection to one user's log. Once a method has raised one of `ERRORS`, `abandon` it and connect anew."""

    def __init__(self, connection: asyncpg.Connection, user_id: str) -> None:
        self._connection = connection
        self._user_id = user_id
        # A connection carries one query at a time, and there are as many askers as clients that catch up.
        self._turn = asyncio.Lock()

    @classmethod
    async def connect(cls, url: Secret, user_id: str) -> Self:
        """Connect, within `CONNECT_TIMEOUT` seconds.

        Raises:
            ERRORS: the database is not there, or refuses, or the URL cannot be parsed. None of them quotes the URL.
        """
        try:
            connection = await asyncpg.connect(
                url.reveal(), timeout=CONNECT_TIMEOUT, command_timeout=QUERY_TIMEOUT, server_settings=_SERVER_SETTINGS
            )
        except ValueError:
            raise asyncpg.InterfaceError(
                "DATABASE_URL cannot be parsed: percent-encode what is special in its user and password"
            ) from None
        return cls(connection, user_id)

    async def open(self) -> Opened:
        """Where the log stands now. Also proves that the connection still works."""
        async with self._turn:
            [row] = await self._connection.fetch(_OPEN, self._user_id)
        return Opened(*row)

    async def page(self, after: int, *, max_events: int, max_bytes: int) -> list[Event]:
        """The events after number `after`, without a gap between them, oldest first.

        At most `max_events`; none is added once their data has `max_bytes`, so the last may exceed that.
        """
        async with self._turn:
            rows = await self._connection.fetch(_PAGE, self._user_id, after, max_events, max_bytes)
        return [Event(*row) for row in rows]

    async def submit(self, submission: Submission) -> int:
        """Store a message for the application, once per ref. Returns its id.

        Raises:
            Refused: it cannot be stored, whoever tries.
        """
        async with self._turn:
            try:
                number: int = await self._connection.fetchval(_SUBMIT, self._user_id, *submission)
            except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
                # The message alone: what else Postgres says quotes the data.
                raise Refused(f"this cannot be stored: {type(error).__name__}") from None
        return number

    async def listen(self, channel: str, wake: Callable[[], None]) -> None:
        """Call `wake` at each notification, and once when the connection is lost."""

        def notified(*_: object) -> None:
            wake()

        self._connection.add_termination_listener(notified)
        async with self._turn:
            await self._connection.add_listener(channel, notified)

    def abandon(self) -> None:
        """Drop the connection without a word to the server. Queries under way fail. Never blocks."""
        self._connection.terminate()
