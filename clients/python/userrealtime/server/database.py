"""SQL of the log and the inbox, on the connection and in the transaction of the application.

The functions accept what an application has: a connection of psycopg or of Django, or a connection or session of
SQLAlchemy. Those whose names begin with `a` accept a connection of asyncpg, or an asynchronous one of the others.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

PUBLISH: Final = "select userrealtime.publish({}, {}, cast({} as text)::jsonb)"
POSITION: Final = "select userrealtime.position({})"
TAKE: Final = """
with waiting as (
    select id from userrealtime.inbox where done is null order by id limit cast({} as int) for update skip locked
), taken as (
    update userrealtime.inbox as message set done = now() from waiting where message.id = waiting.id
    returning message.id, message.user_id, message.ref, message.event, cast(message.data as text) as data, message.at
)
select id, user_id, ref, event, data, at from taken order by id
"""
LIMIT: Final = 10

Row = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Message:
    """A message that a client of the user has published. Its content is up to the client: validate it."""

    id: int
    user_id: str
    ref: str
    event: str
    data: Any
    at: datetime


def publish(connection: Any, user_id: str, event: str, data: Any = None) -> None:
    """Publish an event to a user as part of the open transaction. It is delivered if that commits.

    Args:
        data: any JSON value; None publishes an empty object.
    """
    _run(connection, PUBLISH, user_id, event, _encode(data))


async def apublish(connection: Any, user_id: str, event: str, data: Any = None) -> None:
    """Publish as `publish` does, on an asynchronous connection."""
    await _arun(connection, PUBLISH, user_id, event, _encode(data))


def position(connection: Any, user_id: str) -> str:
    """Return the position of the user's log in the snapshot of the open transaction.

    Read the state in the same transaction, with the isolation level REPEATABLE READ. In READ COMMITTED, read the
    position first.
    """
    return str(_run(connection, POSITION, user_id)[0][0])


async def aposition(connection: Any, user_id: str) -> str:
    """Return the position as `position` does, on an asynchronous connection."""
    return str((await _arun(connection, POSITION, user_id))[0][0])


def take(connection: Any, limit: int = LIMIT) -> list[Message]:
    """Take the oldest messages from the inbox, in the order of their arrival.

    They are done when the open transaction commits. Until then no other worker gets them; after a rollback they are
    available again.
    """
    return [_message(row) for row in _run(connection, TAKE, limit)]


async def atake(connection: Any, limit: int = LIMIT) -> list[Message]:
    """Take messages as `take` does, on an asynchronous connection."""
    return [_message(row) for row in await _arun(connection, TAKE, limit)]


def _encode(data: Any) -> str:
    return json.dumps({} if data is None else data, ensure_ascii=False, allow_nan=False)


def _message(row: Row) -> Message:
    number, user_id, ref, event, data, at = row
    return Message(number, user_id, ref, event, json.loads(data), at)


def _is_of_sqlalchemy(connection: Any) -> bool:
    return any(kind.__module__.startswith("sqlalchemy.") for kind in type(connection).__mro__)


def _run(connection: Any, sql: str, *values: Any) -> Sequence[Row]:
    if _is_of_sqlalchemy(connection):
        text, parameters = _named(sql, values)
        return list(connection.execute(text, parameters).all())
    if not hasattr(connection, "cursor"):
        raise TypeError(
            f"{type(connection).__name__} is no connection of psycopg, Django or SQLAlchemy; for an asynchronous one, "
            "use the function whose name begins with `a`"
        )
    with connection.cursor() as cursor:
        cursor.execute(sql.format(*["%s"] * len(values)), values)
        return list(cursor.fetchall())


async def _arun(connection: Any, sql: str, *values: Any) -> Sequence[Row]:
    if _is_of_sqlalchemy(connection):
        text, parameters = _named(sql, values)
        return list((await connection.execute(text, parameters)).all())
    if hasattr(connection, "fetchval"):  # asyncpg
        numbered = sql.format(*(f"${place}" for place in range(1, len(values) + 1)))
        return list(await connection.fetch(numbered, *values))
    async with connection.cursor() as cursor:
        await cursor.execute(sql.format(*["%s"] * len(values)), values)
        return list(await cursor.fetchall())


def _named(sql: str, values: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
    from sqlalchemy import text  # an application that passes such a connection has it

    names = [f"value_{place}" for place in range(len(values))]
    # `::` is no parameter to SQLAlchemy, and a colon before a name is one.
    return text(sql.format(*(f":{name}" for name in names))), dict(zip(names, values, strict=True))
