"""What the demo does in Postgres: it publishes, takes messages from the inbox, and asks who is online."""

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
# A notification may be lost; then the inbox is looked at this much later.
LOOK_AGAIN_S = 5.0
RETRY_S = 1.0
BATCH = 20
LONGEST_TEXT = 500
CHANNEL = "userrealtime_inbox"

# As in docs/inbox.md, but of the demo's users alone: others of this database are somebody else's.
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
PRESENCE = "select user_id, clients, since from userrealtime.online where user_id = any ($1)"

# Whatever keeps a statement from being carried out now.
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)

_logger = logging.getLogger(__name__)


class DatabaseError(Exception):
    """The database refuses, or does not answer; the message is for people."""


@dataclass(frozen=True)
class Presence:
    """Who is online, and what the database's clock says, by which events are dated."""

    now: datetime
    users: dict[str, Object]


class Database:
    """The application's own connections."""

    def __init__(self, pool: asyncpg.Pool, url: str) -> None:
        self._pool = pool
        self._url = url

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str) -> AsyncIterator[Database]:
        """A few connections, made when they are needed."""
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

    async def publish(self, user: str, event: str, data: Object) -> None:
        """Publish an event to a user. In a real application: in the transaction of what the event is about."""
        try:
            async with self._pool.acquire(timeout=TIMEOUT_S) as connection:
                await connection.execute(PUBLISH, user, event, json.dumps(data))
        except FAILURES as error:
            raise _explained(error) from None

    async def presence(self) -> Presence:
        """Who of the demo's users has clients connected."""
        try:
            async with self._pool.acquire(timeout=TIMEOUT_S) as connection:
                now = await connection.fetchval("select clock_timestamp()")
                rows = await connection.fetch(PRESENCE, USERS)
        except FAILURES as error:
            raise _explained(error) from None
        online = {row["user_id"]: {"clients": row["clients"], "since": row["since"].isoformat()} for row in rows}
        return Presence(now, {user: online.get(user, {"clients": 0, "since": None}) for user in USERS})

    async def serve_inbox(self) -> None:
        """Answer every message that the users' clients send, by an event to whoever sent it. Never ends."""
        while True:
            try:
                connection = await asyncpg.connect(self._url, timeout=TIMEOUT_S, command_timeout=TIMEOUT_S)
                try:
                    await self._serve_inbox(connection)
                finally:
                    connection.terminate()
            except FAILURES as error:
                _logger.warning("the inbox cannot be read: %s", error or type(error).__name__)
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
    """Take a few messages and publish their answers, in one transaction; how many there were."""
    async with connection.transaction():
        messages = sorted(await connection.fetch(TAKE, USERS, BATCH), key=lambda message: message["id"])
        for message in messages:
            answer = json.dumps(reply(message["id"], json.loads(message["data"])))
            await connection.execute(PUBLISH, message["user_id"], "echo", answer)
    return len(messages)


def reply(message_id: int, data: Any) -> Object:
    """The data of the answer to a message. A client may send whatever it likes, so it is looked at first."""
    text = data.get("text") if isinstance(data, dict) else None
    if not isinstance(text, str) or not 1 <= len(text) <= LONGEST_TEXT:
        return {"inbox": message_id, "error": f"text must have 1 to {LONGEST_TEXT} characters"}
    return {"inbox": message_id, "text": text}


def _explained(error: BaseException) -> DatabaseError:
    return DatabaseError(f"the database does not do this now: {error or type(error).__name__}")
