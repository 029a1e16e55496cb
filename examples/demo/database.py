"""The demo's statements in Postgres: its state, changes with their events, the inbox, and presence."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from .session import USERS
from .view import Object

POOL = 4
TIMEOUT_S = 5.0
# A notification can be lost. The inbox is also polled at this interval.
LOOK_AGAIN_S = 5.0
RETRY_S = 1.0
BATCH = 20
LONGEST_TEXT = 500
KEPT_MESSAGES = 50
CHANNEL = "userrealtime_inbox"

# As in docs/inbox.md, restricted to the users of the demo: other applications can share the database.
TAKE = """
with waiting as (
    select id from userrealtime.inbox
    where done is null and user_id = any ($1)
    order by id
    limit $2
    for update skip locked
)
update userrealtime.inbox as message
set done = now()
from waiting
where message.id = waiting.id
returning message.id, message.user_id, message.data
"""
PUBLISH = "select userrealtime.publish($1, $2, $3::text::jsonb)"
# A statement is a transaction: the row and the event are committed together, or neither of them.
SEND = """
with removed as (
    delete from userrealtime_demo.message
    where recipient = $1 and number <= (
        select number from userrealtime_demo.message
        where recipient = $1 order by number desc offset $4 - 1 limit 1
    )
), message as (
    insert into userrealtime_demo.message (recipient, sender, text) values ($1, $2, $3)
    returning number, sender, text, sent
)
select userrealtime.publish(
    $1, 'note', jsonb_build_object('number', number, 'from', sender, 'text', text, 'sent', sent)
) from message
"""
TICK = """
with counter as (
    insert into userrealtime_demo.counter as known (user_id, ticks) values ($1, 1)
    on conflict (user_id) do update set ticks = known.ticks + 1
    returning ticks
)
select userrealtime.publish($1, 'tick', jsonb_build_object('number', ticks)) from counter
"""
# One statement, and therefore one snapshot: the position is exactly the position of the state.
STATE = """
select json_build_object(
    'state', json_build_object(
        'messages', (
            select coalesce(json_agg(message order by message.number), '[]') from (
                select number, sender as "from", text, sent from userrealtime_demo.message
                where recipient = $1 order by number desc limit $2
            ) message
        ),
        'ticks', (select coalesce(max(ticks), 0) from userrealtime_demo.counter where user_id = $1)
    ),
    'position', userrealtime.position($1)
)::text
"""
PRESENCE = "select user_id, clients, since from userrealtime.online where user_id = any ($1)"

# The errors of a statement that cannot be executed now.
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

_logger = logging.getLogger(__name__)


class DatabaseError(Exception):
    """The database rejected a statement or did not answer. The message is shown on the page."""


@dataclass(frozen=True)
class Presence:
    """Presence of the users, and the time of the database, which events also have."""

    now: datetime
    users: dict[str, Object]


class Database:
    """The connections of the application."""

    def __init__(self, pool: asyncpg.Pool, url: str) -> None:
        self._pool = pool
        self._url = url

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Database]:
        """Create the pool. It opens connections when they are needed."""
        pool = asyncpg.create_pool(
            url,
            min_size=0,
            max_size=POOL,
            timeout=TIMEOUT_S,
            command_timeout=TIMEOUT_S,
            max_inactive_connection_lifetime=60,
        )
        await pool
        try:
            yield cls(pool, url)
        finally:
            pool.terminate()

    async def send(self, recipient: str, sender: str, text: str) -> None:
        """Store a message to a user and publish its event, in one transaction."""
        await self._value(SEND, recipient, sender, text, KEPT_MESSAGES)

    async def tick(self, user: str) -> None:
        """Increment a user's counter and publish its event, in one transaction."""
        await self._value(TICK, user)

    async def state(self, user: str) -> str:
        """A user's messages and counter, and their position in the log: the JSON that the client's `state` returns."""
        found: str = await self._value(STATE, user, KEPT_MESSAGES)
        return found

    async def _value(self, statement: str, *arguments: str | int) -> Any:
        try:
            async with self._pool.acquire(timeout=TIMEOUT_S) as connection:
                return await connection.fetchval(statement, *arguments)
        except FAILURES as error:
            raise _explained(error) from None

    async def presence(self) -> Presence:
        """Return which users of the demo have connected clients."""
        try:
            async with self._pool.acquire(timeout=TIMEOUT_S) as connection:
                now = await connection.fetchval("select clock_timestamp()")
                rows = await connection.fetch(PRESENCE, USERS)
        except FAILURES as error:
            raise _explained(error) from None
        online = {row["user_id"]: {"clients": row["clients"], "since": row["since"].isoformat()} for row in rows}
        return Presence(now, {user: online.get(user, {"clients": 0, "since": None}) for user in USERS})

    async def serve_inbox(self) -> None:
        """Reply to every message in the inbox with an event to its sender. Never ends."""
        while True:
            try:
                connection = await asyncpg.connect(self._url, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S)
                try:
                    await self._serve_inbox(connection)
                finally:
                    connection.terminate()
            except FAILURES as error:
                _logger.warning("reading the inbox failed, retry in %s s: %s", RETRY_S, error or type(error).__name__)
                await asyncio.sleep(RETRY_S)

    async def _serve_inbox(self, connection: asyncpg.Connection) -> None:
        woken = asyncio.Event()
        await connection.add_listener(CHANNEL, lambda *_: woken.set())
        while True:
            woken.clear()
            while await take_messages(connection):
                pass
            try:
                async with asyncio.timeout(LOOK_AGAIN_S):
                    await woken.wait()
            except TimeoutError:
                pass


async def take_messages(connection: asyncpg.Connection) -> int:
    """Take a batch of messages and publish the replies, in one transaction. Return the number of messages."""
    async with connection.transaction():
        messages = sorted(await connection.fetch(TAKE, USERS, BATCH), key=lambda message: message["id"])
        for message in messages:
            answer = json.dumps(reply(message["id"], json.loads(message["data"])))
            await connection.execute(PUBLISH, message["user_id"], "echo", answer)
    return len(messages)


def reply(message_id: int, data: Any) -> Object:
    """Return the data of the reply to a message. Clients can send any data, so it is validated first."""
    text = data.get("text") if isinstance(data, dict) else None
    if not isinstance(text, str) or not 1 <= len(text) <= LONGEST_TEXT:
        return {"inbox": message_id, "error": f"text must have 1 to {LONGEST_TEXT} characters"}
    return {"inbox": message_id, "text": text}


def _explained(error: BaseException) -> DatabaseError:
    return DatabaseError(f"the database cannot do this now: {error or type(error).__name__}")
