"""A database of each test, on the server of all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import asyncpg

from testing.local.postgres import LocalPostgres

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Database:
    """One test's own database. `server` is shared: stop or restart it only in tests that use `own_server`."""

    server: LocalPostgres
    name: str

    @property
    def url(self) -> str:
        return self.server.url(self.name)


async def create_database(server: LocalPostgres) -> Database:
    name = f"test_{next(_numbers)}"
    connection = await asyncpg.connect(server.url())
    try:
        await connection.execute(f"create database {name}")
    finally:
        await connection.close()
    return Database(server, name)
