"""The fixture of the clients' tests: a Postgres, a relay process, and a network between client and relay with faults.

    the test's client --> link --> relay --> Postgres

The tests in Python call it; those in JavaScript and in a browser use it over HTTP (`serving`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import asyncpg
from aiohttp import web

from testing.announcer import broadcasting
from testing.faults.environment import RelayProcess
from testing.faults.proxy import Filter, Link
from testing.local.postgres import LocalPostgres
from testing.patience import PATIENCE_S
from testing.relay.harness import USER, token
from userrealtime_operator.postgres.migrate import migrate

ROOT: Final = Path(__file__).parents[2]
GRACE_S: Final = 10
TEMPLATE: Final = "clients_template"
REFUSAL: Final = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
MARKS: Final = {"websocket": b"HTTP/1.1 101", "sse": b"text/event-stream"}
"""The bytes in a response by which its transport is detected."""

_numbers = itertools.count(1)


class ClientFixture:
    """The whole fixture. A context manager: at its end, it stops all processes and drops the database."""

    def __init__(self, server: LocalPostgres, **variables: str) -> None:
        self.server = server
        self.database = f"clients_{next(_numbers)}"
        self.blocked: set[str] = set()
        """The transports that the network blocks."""
        self._variables = {
            "TOKEN_LEEWAY": "0",
            "ALLOWED_ORIGINS": "*",
            "MAX_BROADCASTS_PER_SECOND": "100",
            **variables,
        }
        self._stack = AsyncExitStack()
        self._published = 0
        self._turn = asyncio.Lock()
        self._announcing = False

    async def __aenter__(self) -> Self:
        async with self._connected("postgres") as connection:
            if not await connection.fetchval("select true from pg_database where datname = $1", TEMPLATE):
                await connection.execute(f"create database {TEMPLATE}")
                await migrate(self.server.url(TEMPLATE))
            await connection.execute(f"create database {self.database} template {TEMPLATE}")
        async with self._connected() as connection:
            # As the operator registers a user: the log has an epoch from the start.
            await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
            await connection.execute("create table applied (n int)")
        direct = await self._stack.enter_async_context(Link(self.server.port))
        self.relay = RelayProcess(self.database, direct, ["pass"], self._variables)
        self._stack.callback(self.relay.output.close)
        self._stack.push_async_callback(self.relay.stop, grace_s=0)
        await self.relay.start()
        self.link = await self._stack.enter_async_context(Link(self.relay.port, self._filter))
        self.url = f"http://127.0.0.1:{self.link.port}"
        self._writer = await asyncpg.connect(self.server.url(self.database))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._turn:
            self._writer.terminate()
        await self._stack.aclose()
        async with self._connected("postgres") as connection:
            await connection.execute(f"drop database {self.database} with (force)")

    async def describe(self) -> dict[str, str]:
        """Return the parameters of a client."""
        return {"url": self.url}

    async def strand(self) -> None:
        """Drop all further data of the open connections without closing them."""
        self.link.strand()

    async def publish(self, count: int = 1) -> int:
        """Publish events in one transaction, each with its number in its data; return the number of all events."""
        # A test may cancel this. Counted events must be published in any case.
        return await asyncio.shield(self._publish(count))

    async def _publish(self, count: int) -> int:
        async with self._turn, self._writer.transaction():
            first, self._published = self._published + 1, self._published + count
            await self._writer.execute(
                "insert into applied select n from generate_series($1::int, $2::int) n", first, self._published
            )
            await self._writer.execute(
                "select userrealtime.publish($1, 'test.event', jsonb_build_object('n', n)) "
                "from generate_series($2::int, $3::int) n",
                USER,
                first,
                self._published,
            )
            return self._published

    async def broadcast(self, *values: object, event: str = "test.broadcast") -> None:
        """Broadcast values, each in a transaction of its own. The first call starts an announcer."""
        async with self._turn:
            if not self._announcing:
                self._announcing = True
                await self._stack.enter_async_context(broadcasting(self.server.url(self.database)))
            for value in values:
                await self._writer.execute(
                    "select userrealtime.broadcast($1, $2, $3::text::jsonb)", USER, event, json.dumps(value)
                )

    async def connections(self) -> int:
        """Return the number of connected clients that the relay has reported last."""
        async with self._connected() as connection:
            query = "select clients from userrealtime.online where user_id = $1"
            return int(await connection.fetchval(query, USER) or 0)

    async def snapshot(self) -> dict[str, Any]:
        """The state, which is the number of the last change, and its position in the log."""
        async with self._connected() as connection:
            row = await connection.fetchrow(
                "select (select coalesce(max(n), 0) from applied) as state, userrealtime.position($1) as position", USER
            )
        return dict(row or {})

    async def publish_values(self, expressions: Sequence[str]) -> list[str]:
        """Publish the values of SQL expressions of JSON text, one per event; return the texts of the jsonb values."""
        publish = "select userrealtime.publish($1, 'test.value', ({})::jsonb)"
        for expression in expressions:
            async with self._turn, self._writer.transaction():
                self._published += 1
                await self._writer.execute("insert into applied values ($1)", self._published)
                await self._writer.execute(publish.format(expression), USER)
        return [await self._writer.fetchval(f"select ({expression})::jsonb::text") for expression in expressions]

    async def refuse(self, refusing: bool) -> None:
        """Close all connections and reject new ones, or accept connections again."""
        self.link.refusing = refusing
        if refusing:
            self.link.cut()

    async def silence(self, silent: bool) -> None:
        """Hold all data in both directions without closing the connections, or release it."""
        if silent:
            self.link.hold(up=True, down=True)
        else:
            self.link.release()

    async def restart(self, *, grace_s: float = GRACE_S) -> None:
        """Stop the relay, gracefully or with SIGKILL, and start it again."""
        await self.relay.stop(grace_s=grace_s)
        await self.relay.start()

    async def block(self, *transports: str) -> None:
        """Respond to these transports like a proxy that does not support them; forward others."""
        self.blocked = set(transports)
        self.link.cut()

    async def forget(self) -> None:
        """Remove all events except the newest one."""
        async with self._turn:
            await self._writer.execute(
                "delete from userrealtime.event e using userrealtime.log l "
                "where e.user_id = $1 and l.user_id = e.user_id and e.id < l.head",
                USER,
            )

    async def replace(self) -> str:
        """Give the log a new epoch, as after a restore of the database, and return the epoch."""
        async with self._turn:
            epoch = await self._writer.fetchval(
                "update userrealtime.log set epoch = gen_random_uuid() where user_id = $1 returning epoch::text", USER
            )
        return str(epoch)

    async def inbox(self) -> list[dict[str, Any]]:
        """Return the messages of clients, in order."""
        rows = await self._writer.fetch(
            "select id, ref, event, data::text from userrealtime.inbox where user_id = $1 order by id", USER
        )
        return [{**row, "data": json.loads(row["data"])} for row in map(dict, rows)]

    def _filter(self) -> Filter:
        """Return a filter of the relay's data on one connection, which rejects a response of a blocked transport."""
        refused = False

        def passing(data: bytes) -> bytes:
            nonlocal refused
            if refused:
                return b""
            refused = any(MARKS[transport] in data[:2000] for transport in self.blocked)
            return REFUSAL if refused else data

        return passing

    @asynccontextmanager
    async def _connected(self, database: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(
            self.server.url(database or self.database), timeout=PATIENCE_S, command_timeout=60
        )
        try:
            yield connection
        finally:
            connection.terminate()


@asynccontextmanager
async def serving(stage: ClientFixture, *folders: Path) -> AsyncIterator[str]:
    """Tests in other languages reach the stage by this URL: `POST /do/METHOD` with JSON arguments, `GET /token`.

    Args:
        folders: served as files, by their names, for a browser.
    """

    async def act(request: web.Request) -> web.Response:
        arguments = await request.json()
        method = getattr(stage, request.match_info["method"])
        positional = arguments if isinstance(arguments, list) else []
        named = arguments if isinstance(arguments, dict) else {}
        return web.json_response(await method(*positional, **named))

    async def give_token(request: web.Request) -> web.Response:
        return web.Response(text=token(life_s=float(request.query.get("life_s", "3600"))))

    application = web.Application()
    application.router.add_post("/do/{method}", act)
    application.router.add_get("/token", give_token)
    for folder in folders:
        application.router.add_static(f"/{folder.name}", folder)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()
