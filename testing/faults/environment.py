"""A Postgres, two relays for one user, clients, and writers, with a network between them that can be broken.

    writer --> Postgres <-- link <-- relay <-- link <-- client

Without a broker, an announcer notifies the relays. With a broker, they receive their signals from there, over one more
link each, and two bridges publish them.

Steps are taken one after the other; relays and clients continue meanwhile. Writers, and the test when
it reads the log, have separate connections that only a restart of Postgres breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import asyncpg

from testing.local.brokers import LocalBroker
from testing.local.ports import free_port
from testing.local.postgres import LocalPostgres
from testing.relay.harness import USER, environment, token
from userrealtime_operator.postgres.migrate import migrate

from .client import TRANSPORTS, Client, Transport, make
from .history import History, Row, Violation, judge
from .proxy import Link, Mode, Notifications

RELAYS: Final = 2
BRIDGES: Final = 2
WRITERS: Final = 2
MAX_CLIENTS: Final = 6
GREETING_S: Final = 2
SETTLE_S: Final = 60
"""The time limit for the recovery of all parts on a slow machine."""
QUICK: Final = {
    "POLL_INTERVAL": "0.5",
    "PING_INTERVAL": "1",
    "SEND_TIMEOUT": "2",
    "DRAIN_TIMEOUT": "1",
    "RING_EVENTS": "50",
    "DATABASE_IDLE_AFTER": "0.2",
}
TEMPLATE: Final = "faults_template"
LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)

_numbers = itertools.count(1)


class Process:
    """A process on a fixed port, which stays the same when it is restarted."""

    def __init__(self, module: str, port: int, variables: Mapping[str, str]) -> None:
        self.port = port
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 (the world closes it)
        self._module = module
        self._variables = variables
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the process unless it runs, and wait until it listens."""
        if self._process is not None:
            return
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            env={**os.environ, **self._variables},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
        )
        async with asyncio.timeout(SETTLE_S):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    break
                except OSError:
                    assert self._process.returncode is None, self.tail()
                    await asyncio.sleep(0.02)
        writer.transport.abort()

    async def stop(self, *, grace_s: float) -> None:
        """Send SIGTERM, and SIGKILL when the grace is over; without any grace, only SIGKILL.

        Raises:
            Violation: it has ended before.
        """
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is not None:
            raise Violation(f"{self._module} ended unexpectedly with {process.returncode}:\n{self.tail()}")
        if grace_s > 0:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), grace_s)
            except TimeoutError:
                process.kill()
        else:
            process.kill()
        await process.wait()

    def tail(self) -> str:
        """Return the last lines of its output."""
        self.output.seek(0)
        return "".join(line.decode() for line in self.output.readlines()[-20:])


class RelayProcess(Process):
    """A relay, which connects to Postgres through `link`, and to a broker through `broker_link`."""

    def __init__(
        self,
        database: str,
        link: Link,
        mode: list[Mode],
        variables: Mapping[str, str] = {},
        *,
        broker: LocalBroker | None = None,
        broker_link: Link | None = None,
    ) -> None:
        self.link = link
        self.broker_link = broker_link
        self.mode = mode
        port = free_port()
        url = f"postgresql://postgres@127.0.0.1:{link.port}/{database}?sslmode=disable"
        whole = environment(url, **{**QUICK, **variables, "WS_PORT": str(port)})
        if broker is not None and broker_link is not None:
            by_link = broker.url.replace(f":{broker.port}", f":{broker_link.port}")
            whole |= {**broker.variables, f"{broker.name.upper()}_URL": by_link}
        super().__init__("testing.faults.relay", port, whole)


class BridgeProcess(Process):
    """A bridge with direct connections to Postgres and the broker: it is killed, which is worse than a broken link."""

    def __init__(self, url: str, broker: LocalBroker) -> None:
        port = free_port()
        variables = {"DATABASE_URL": url, "HOST": "127.0.0.1", "HEALTH_PORT": str(port), **broker.variables}
        super().__init__("testing.faults.bridge", port, {**variables, "POLL_INTERVAL": "0.4"})


class AnnouncerProcess(Process):
    """The announcer of a platform without a broker."""

    def __init__(self, url: str) -> None:
        port = free_port()
        super().__init__("testing.faults.announcer", port, {"DATABASE_URL": url, "PORT": str(port)})


class Writer:
    """An application's connection, with at most one transaction open on it.

    `committed` holds the numbers it was told are committed, `undone` those that it knows are not; of a commit that
    was cut off, only the log knows.
    """

    def __init__(self, url: str) -> None:
        self.committed: list[int] = []
        self.undone: list[int] = []
        self._url = url
        self._connection: asyncpg.Connection | None = None
        self._open: list[list[int]] | None = None  # the transaction's numbers, by savepoint

    async def publish(self, numbers: list[int], size: int) -> bool:
        """Publish events; return whether the commit was confirmed. Without a confirmation, it may have succeeded."""
        done = await self._execute(
            "select userrealtime.publish($1, 'test.event', jsonb_build_object('n', n, 'text', repeat('x', $3))) "
            "from unnest($2::bigint[]) n",
            USER,
            numbers,
            size,
        )
        if done:
            (self.committed if self._open is None else self._open[-1]).extend(numbers)
        return done

    async def begin(self) -> None:
        if self._open is None and await self._execute("begin"):
            self._open = [[]]

    async def savepoint(self) -> None:
        if self._open is not None and await self._execute(f"savepoint s{len(self._open)}"):
            self._open.append([])

    async def undo_to_savepoint(self) -> None:
        if self._open is not None and len(self._open) > 1:
            name = f"s{len(self._open) - 1}"
            if await self._execute(f"rollback to savepoint {name}; release savepoint {name}"):
                self.undone += self._open.pop()

    async def force_numbering(self) -> None:
        """Number the events of the open transaction before its commit."""
        if self._open is not None:
            await self._execute("set constraints all immediate; set constraints all deferred")

    async def replicate(self, *, replica: bool) -> None:
        """Enable or disable ordinary triggers from the next transaction on."""
        await self._execute(f"set session_replication_role = {'replica' if replica else 'origin'}")

    async def end(self, *, commit: bool) -> None:
        if self._open is not None:
            numbers = list(itertools.chain.from_iterable(self._open))
            if await self._execute("commit" if commit else "rollback"):
                (self.committed if commit else self.undone).extend(numbers)
            self._open = None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _execute(self, statement: str, *values: Any) -> bool:
        """Return whether the server confirmed it."""
        try:
            if self._connection is None:
                self._connection = await asyncpg.connect(self._url, timeout=10, command_timeout=10)
            await self._connection.execute(statement, *values)
        except LOST:
            self._open = None
            self.close()
            return False
        return True


class FaultEnvironment:
    """All of it. A context manager: leaving it ends everything it started, and drops the database."""

    def __init__(self, server: LocalPostgres, broker: LocalBroker | None = None) -> None:
        self.server = server
        self.broker = broker
        """A running broker, which the caller stops."""
        self.bridges: list[BridgeProcess] = []
        self.announcers: list[AnnouncerProcess] = []
        """One announcer without a broker; none with a broker."""
        self.history = History()
        self.clients: list[Client] = []
        self.client_links: list[Link] = []
        self.relays: list[RelayProcess] = []
        self.database = f"faults_{next(_numbers)}"
        self.writers = [Writer(server.url(self.database)) for _ in range(WRITERS)]
        self._published = itertools.count(1)
        self._backup: Path | None = None
        self._stuck: asyncpg.Connection | None = None
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        try:
            await self._create_database()
            for _ in range(RELAYS):
                mode: list[Mode] = ["pass"]
                link = await self._stack.enter_async_context(
                    Link(self.server.port, lambda mode=mode: Notifications(lambda: mode[0]))  # type: ignore[misc]
                )
                broker_link = None
                if self.broker is not None:
                    broker_link = await self._stack.enter_async_context(Link(self.broker.port))
                relay = RelayProcess(self.database, link, mode, broker=self.broker, broker_link=broker_link)
                self.relays.append(relay)
            url = self.server.url(self.database)
            if self.broker is not None:
                self.bridges += [BridgeProcess(url, self.broker) for _ in range(BRIDGES)]
            else:
                self.announcers.append(AnnouncerProcess(url))
            for process in self.processes:
                self._stack.callback(process.output.close)
            await asyncio.gather(*(process.start() for process in self.processes))
            self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            await self.connect_client(0)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    @property
    def processes(self) -> list[Process]:
        return [*self.relays, *self.bridges, *self.announcers]

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self.writers:
            writer.close()
        await self.drain_notifications()
        stopped = await asyncio.gather(*(each.stop(grace_s=0) for each in self.processes), return_exceptions=True)
        await self._stack.aclose()
        async with self.connected("postgres") as connection:
            await connection.execute(f"drop database if exists {self.database} with (force)")
        for failure in stopped:
            if failure is not None and error is None:
                raise failure

    @asynccontextmanager
    async def connected(self, database: str | None = None) -> AsyncIterator[asyncpg.Connection]:
        """Open a connection that no fault affects."""
        connection = await asyncpg.connect(self.server.url(database or self.database), timeout=10, command_timeout=60)
        try:
            yield connection
        finally:
            connection.terminate()

    def take_numbers(self, count: int) -> list[int]:
        """Return new numbers for events, which identify an event independently of its id."""
        return list(itertools.islice(self._published, count))

    async def connect_client(self, relay: int, transport: Transport | None = None) -> None:
        """One more client, at the head of the log. It is greeted, unless what should greet it is broken.

        Without a `transport`, they take turns.
        """
        if len(self.clients) == MAX_CLIENTS:
            return
        link = await self._stack.enter_async_context(Link(self.relays[relay].port))
        number = len(self.clients)
        transport = transport or TRANSPORTS[number % len(TRANSPORTS)]
        client = make(transport, f"client {number} ({transport})", link.port, token(), by_header=number % 2 == 1)
        self.client_links.append(link)
        self.clients.append(client)
        self._tasks.append(asyncio.create_task(client.run()))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GREETING_S):
                while client.place.cursor is None:
                    await asyncio.sleep(0.01)

    async def fill_notifications(self) -> None:
        """Fill the notification queue of the server, and keep it full by a session that listens in a transaction."""
        url = self.server.url(self.database)
        self._stuck = await asyncpg.connect(url, timeout=10, command_timeout=60)
        await self._stuck.execute("listen anything")
        await self._stuck.execute("begin; select 1")
        async with self.connected() as connection:
            with contextlib.suppress(asyncpg.ProgramLimitExceededError):
                while True:
                    await connection.execute(
                        "select pg_notify('x', repeat('y', 7900) || n) from generate_series(1, 9) n"
                    )

    async def drain_notifications(self) -> None:
        """End the session that fills the queue."""
        if self._stuck is not None:
            self._stuck.terminate()
            self._stuck = None

    async def restart_postgres(self, mode: str) -> None:
        await asyncio.to_thread(self.server.restart, mode)

    async def look(self, connection: asyncpg.Connection) -> None:
        """Add the events of the log to the history."""
        epoch = await connection.fetchval("select epoch from userrealtime.log where user_id = $1", USER)
        rows = await connection.fetch(
            "select id, event, to_char(at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as at, "
            "data::text as data from userrealtime.event where user_id = $1 order by id",
            USER,
        )
        self.history.see(epoch, [(row["id"], Row(row["event"], row["at"], json.loads(row["data"]))) for row in rows])

    async def retain(self, keep: int) -> None:
        """Remove all events except the newest ones."""
        async with self.connected() as connection, connection.transaction():
            await connection.execute("lock table userrealtime.log in exclusive mode")
            await self.look(connection)
            last = max(self.history.head - keep, 0)
            await connection.execute("delete from userrealtime.event where user_id = $1 and id <= $2", USER, last)
            self.history.let_go[self.history.epoch] = max(last, self.history.let_go[self.history.epoch])

    async def set_back(self, by: int) -> None:
        """Remove the newest events, as a restored backup does, while the relays are connected."""
        async with self.connected() as connection, connection.transaction():
            await connection.execute("lock table userrealtime.log in exclusive mode")
            await self.look(connection)
            let_go = self.history.let_go[self.history.epoch]
            head = max(self.history.head - by, let_go)
            await connection.execute("delete from userrealtime.event where user_id = $1 and id > $2", USER, head)
            await connection.execute(
                "update userrealtime.log set head = $2, epoch = gen_random_uuid() where user_id = $1", USER, head
            )
            await self.look(connection)
            self.history.let_go[self.history.epoch] = let_go

    async def back_up(self) -> None:
        """Dump the whole database."""
        self._backup = self._folder / "dump.sql"
        async with self.connected() as connection:
            await self.look(connection)
        self._backup_let_go = self.history.let_go[self.history.epoch]
        await self._run("pg_dump", "--file", str(self._backup), self.server.url(self.database))

    async def restore(self) -> None:
        """Put the dump in the database's place, with a new epoch. Without a dump, nothing happens.

        Ready before it takes the place, as docs/delivery.md says: no relay sees it with its old epoch.
        """
        if self._backup is None:
            return
        restored = f"{self.database}_restored"
        async with self.connected("postgres") as connection:
            await connection.execute(f"create database {restored}")
        await self._run(
            "psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file", str(self._backup),
            self.server.url(restored),
        )  # fmt: skip
        for writer in self.writers:  # their open transactions would otherwise end unnoticed with the database
            await writer.end(commit=False)
        async with self.connected() as connection:
            await self.look(connection)
        async with self.connected(restored) as connection:
            await connection.execute("update userrealtime.log set epoch = gen_random_uuid()")
        async with self.connected("postgres") as connection:
            await connection.execute(f"drop database {self.database} with (force)")
            await connection.execute(f"alter database {restored} rename to {self.database}")
        async with self.connected() as connection:
            await self.look(connection)
        self.history.let_go[self.history.epoch] = self._backup_let_go

    async def settle(self, *, mending: bool = True) -> None:
        """Publish a last event, and wait until every client has reached the log's end; all faults are repaired before.

        Raises:
            Violation: one is not, within `SETTLE_S`.
        """
        for writer in self.writers:
            await writer.end(commit=True)
        if mending:
            await self._mend()
        writer = self.writers[0]
        while not await writer.publish(self.take_numbers(1), 1):
            pass  # it detects its lost connection only when it uses it
        async with self.connected() as connection:
            await self.look(connection)
        goal = (self.history.epoch, self.history.head)
        try:
            async with asyncio.timeout(SETTLE_S):
                while any((client.place.epoch, client.place.cursor) != goal for client in self.clients):
                    self._check_tasks()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            where = ", ".join(f"{client.name} at {client.place.cursor}" for client in self.clients)
            said = "\n".join(process.tail() for process in self.processes)
            raise Violation(f"after {SETTLE_S} s the log is at {goal[1]}, but {where}; relays said:\n{said}") from None

    def judge(self) -> None:
        """Whether the log kept the writers' transactions, and every client has what was promised.

        Raises:
            Violation: not so.
        """
        self._check_tasks()
        ever = {row.data["n"] for rows in self.history.epochs.values() for row in rows.values()}
        for writer in self.writers:
            if not set(writer.committed) <= ever:
                raise Violation(f"committed, but never in the log: {sorted(set(writer.committed) - ever)}")
            if set(writer.undone) & ever:
                raise Violation(f"rolled back, but in the log: {sorted(set(writer.undone) & ever)}")
        for client in self.clients:
            judge(client.name, client.transcript, self.history)

    async def _mend(self) -> None:
        broker_links = [relay.broker_link for relay in self.relays if relay.broker_link is not None]
        for link in self.client_links + [relay.link for relay in self.relays] + broker_links:
            link.refusing = False
            link.release()
        if self.broker is not None:
            await self.broker.start()
        for relay in self.relays:
            relay.mode[0] = "pass"
        for process in self.processes:
            await process.start()
        for client in self.clients:
            client.awake.set()

    def _check_tasks(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()
                raise Violation("a client gave up")

    async def _create_database(self) -> None:
        async with self.connected("postgres") as connection:
            if not await connection.fetchval("select true from pg_database where datname = $1", TEMPLATE):
                await connection.execute(f"create database {TEMPLATE}")
                await migrate(self.server.url(TEMPLATE))
            await connection.execute(f"create database {self.database} template {TEMPLATE}")
        async with self.connected() as connection:
            # As the operator registers a user: the log has an epoch from the start.
            await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
            await self.look(connection)

    async def _run(self, program: str, *arguments: str) -> None:
        process = await asyncio.create_subprocess_exec(
            self.server.program(program), *arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        async with asyncio.timeout(60):
            _, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
