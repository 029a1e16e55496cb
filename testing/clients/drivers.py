"""The functions of `userrealtime.server` on a connection of each driver that they accept.

`drivers.py URL` runs in an environment with the drivers. For each of them it publishes once in a transaction that is
rolled back and once in a transaction that commits, and takes one message from the inbox. It prints the results as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Final

import psycopg
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from userrealtime.server import aposition, apublish, atake, position, publish, take

NOTE: Final = {"text": "ü : %s"}


def steps(connection: Any, driver: str) -> list[Any]:
    """Run the steps of a synchronous driver, within a block that commits or rolls back."""
    publish(connection, driver, "kept", NOTE)
    return [position(connection, driver), [message.data for message in take(connection, 1)]]


async def asteps(connection: Any, driver: str) -> list[Any]:
    """Run the steps of an asynchronous driver."""
    await apublish(connection, driver, "kept", NOTE)
    return [await aposition(connection, driver), [message.data for message in await atake(connection, 1)]]


def synchronous(url: str) -> dict[str, list[Any]]:
    """Return the results of the synchronous drivers."""
    found = {}
    with psycopg.connect(url) as plain:
        publish(plain, "psycopg", "lost")
        plain.rollback()
        found["psycopg"] = steps(plain, "psycopg")
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        publish(connection, "sqlalchemy", "lost")
        connection.rollback()
        found["sqlalchemy"] = steps(connection, "sqlalchemy")
        connection.commit()
    with Session(engine) as session:
        publish(session, "session", "lost")
        session.rollback()
        found["session"] = steps(session, "session")
        session.commit()
    engine.dispose()
    return found


async def asynchronous(url: str) -> dict[str, list[Any]]:
    """Return the results of the asynchronous drivers."""
    found = {}
    async with await psycopg.AsyncConnection.connect(url) as plain:
        await apublish(plain, "async psycopg", "lost")
        await plain.rollback()
        found["async psycopg"] = await asteps(plain, "async psycopg")
    for driver in ("psycopg", "asyncpg"):
        engine = create_async_engine(url.replace("postgresql:", f"postgresql+{driver}:"))
        name = f"async session with {driver}"
        async with AsyncSession(engine) as session:
            await apublish(session, name, "lost")
            await session.rollback()
            found[name] = await asteps(session, name)
            await session.commit()
        await engine.dispose()
    return found


if __name__ == "__main__":
    print(json.dumps({**synchronous(sys.argv[1]), **asyncio.run(asynchronous(sys.argv[1]))}))
