"""One connection to Postgres for all parked users, which reports them as present and learns that their logs moved.

Publishers ring the doorbell, or the announcer notifies the activators (`schema/repeatable/signals.sql`).
Both name users by the hashes of their ids, and are hints: a head is read before a pod is woken.
All heads are read every poll interval.

A user is reported before its head is read, in separate transactions: the signal of a later event finds the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Final

import asyncpg

from userrealtime_core.postgres import CONNECTION_ERRORS, fetch_alone, is_direct, open_session, receives_notifications
from userrealtime_core.reconnect import Reconnect
from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogState

from .user import ParkedUser

DOORBELL: Final = "userrealtime_doorbell"
PARKED: Final = "userrealtime_parked"
NAME: Final = "userrealtime-activator"
POLL_S: Final = 10.0
POOLED_POLL_S: Final = 1.0
"""The interval behind a transaction pooler, which passes no notification."""
REPORT_S: Final = 1.0
"""The shortest time between two reports of changed numbers of clients. A new user is reported immediately."""
REPEAT_S: Final = 60.0
"""Seconds after which all reports are repeated. They are valid for three minutes."""
LOCATE_S: Final = 10.0
"""How long a client waits for the state of its log. After that it is forwarded to a pod."""
WITHDRAW_S: Final = 3.0
CONNECT_S: Final = 10
QUERY_S: Final = 20
BATCH: Final = 1000
_SETTINGS: Final = "set {local} statement_timeout = 18000; set {local} synchronous_commit = off"
_PARK: Final = "select userrealtime.park($1, $2::text[], $3::int[])"
_HEADS: Final = "select user_id, head, earliest, epoch, wanted from userrealtime.parked_heads($1::text[])"

_logger = logging.getLogger(__name__)


class Heads:
    """The parked users of this activator. `run` it in one task.

    Args:
        url: of the database, with a role that has the rights of `userrealtime.grant_activator`.
        instance: the name of this activator, which no other process has.
        moved: called with each user whose log has another head or epoch than before, or who has missed a broadcast.
        failed: called when the connection has failed.
    """

    def __init__(
        self, url: Secret, instance: str, moved: Callable[[ParkedUser], None], failed: Callable[[], None] = lambda: None
    ) -> None:
        self.connected = False
        """Whether all reports and heads are known to the database and to this process."""
        self._url = url
        self._instance = instance
        self._moved = moved
        self._on_failure = failed
        self._reconnect = Reconnect(CONNECTION_ERRORS, _logger, "no connection to Postgres for parked users, retrying")
        self._users: dict[str, ParkedUser] = {}
        self._by_channel: dict[str, ParkedUser] = {}
        self._located: dict[ParkedUser, asyncio.Future[None]] = {}
        self._unreported: set[str] = set()
        self._changed: set[str] = set()
        self._rung: set[ParkedUser] = set()
        self._work = asyncio.Event()
        self._pooled = True  # until the connection is known to be none of a transaction pooler

    def __len__(self) -> int:
        return len(self._users)

    def __iter__(self) -> Iterator[ParkedUser]:
        return iter(list(self._users.values()))

    def enter(self, user_id: str) -> ParkedUser:
        """Return the user for a client that is about to be parked. Call `changed` when its clients have changed."""
        user = self._users.get(user_id)
        if user is None:
            user = self._users[user_id] = ParkedUser(user_id)
            self._by_channel[_channel(user_id)] = user
            self._unreported.add(user_id)
            self._work.set()
        return user

    def changed(self, user: ParkedUser) -> None:
        """Report the number of clients of a user, and forget a user without clients."""
        if not user.count and self._users.get(user.user_id) is user:
            del self._users[user.user_id]
            del self._by_channel[_channel(user.user_id)]
            self._rung.discard(user)
            if (waiting := self._located.pop(user, None)) is not None:
                _resolve(waiting)
        self._changed.add(user.user_id)
        self._work.set()

    async def locate(self, user: ParkedUser) -> LogState | None:
        """Return where the log of a user stands; None if it is unknown, because the database does not answer."""
        if not self.connected:
            return None
        if user.state is None:
            waiting = self._located.get(user)
            if waiting is None:
                waiting = self._located[user] = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOCATE_S):
                    await asyncio.shield(waiting)
        return user.state

    async def run(self) -> None:
        """Work until cancelled."""
        await self._reconnect.run(self._session, self._failed)

    async def withdraw(self) -> None:
        """Report that this activator has no parked clients any more. Never fails, and takes a few seconds at most."""
        with contextlib.suppress(*CONNECTION_ERRORS):
            async with asyncio.timeout(WITHDRAW_S):
                connection = await self._open()
                try:
                    await self._report(connection, {*self._users, *self._unreported, *self._changed}, withdrawn=True)
                finally:
                    connection.terminate()

    async def _open(self) -> asyncpg.Connection:
        return await open_session(self._url, name=NAME, connect_timeout=CONNECT_S, query_timeout=QUERY_S)

    async def _session(self) -> None:
        connection = await self._open()
        try:
            connection.add_termination_listener(lambda _: self._work.set())
            direct = await is_direct(connection, _SETTINGS.format(local="local"))
            hears = direct or await receives_notifications(self._open)
            self._pooled = not hears
            if hears:
                await connection.execute(_SETTINGS.format(local=""))
            await self._serve(connection, POLL_S if hears else POOLED_POLL_S, hears=hears)
        finally:
            connection.terminate()

    async def _serve(self, connection: asyncpg.Connection, poll_s: float, *, hears: bool) -> None:
        if hears:
            await connection.add_listener(DOORBELL, self._on_ring)
            await connection.add_listener(PARKED, self._on_ring)
        loop = asyncio.get_running_loop()
        report_at = repeat_at = poll_at = 0.0
        while True:
            self._work.clear()
            if connection.is_closed():
                raise ConnectionResetError("the connection was lost")
            now = loop.time()
            if now >= repeat_at:
                repeat_at = now + REPEAT_S
                self._changed.update(self._users)
            reported = self._unreported
            self._unreported = set()
            if now >= report_at:
                report_at = now + REPORT_S
                reported |= self._changed
                self._changed = set()
            await self._report(connection, reported)
            if now >= poll_at:
                poll_at = now + poll_s
                read: Collection[ParkedUser] = list(self)
            else:
                read = self._rung | {user for user in map(self._users.get, reported) if user and user.state is None}
            self._rung = set()
            await self._read(connection, list(read))
            if not self.connected:
                self.connected = True
                self._reconnect.succeeded()
                _logger.info("connected to Postgres", extra={"fields": {"parked_users": len(self)}})
            await self._wait(connection, min(repeat_at, poll_at), report_at)

    async def _wait(self, connection: asyncpg.Connection, until: float, report_at: float) -> None:
        """Wait for work: until a time, or until a report of changed numbers is due."""
        while not (self._unreported or self._rung or connection.is_closed()):
            try:
                async with asyncio.timeout_at(min(until, report_at) if self._changed else until):
                    await self._work.wait()
            except TimeoutError:
                return
            self._work.clear()

    async def _report(
        self, connection: asyncpg.Connection, user_ids: Collection[str], *, withdrawn: bool = False
    ) -> None:
        for batch in _batches(sorted(user_ids)):
            users = [None if withdrawn else self._users.get(user_id) for user_id in batch]
            clients = [0 if user is None else user.count for user in users]
            await self._fetch(connection, _PARK, self._instance, batch, clients)

    async def _read(self, connection: asyncpg.Connection, users: Sequence[ParkedUser]) -> None:
        for batch in _batches(users):
            rows = await self._fetch(connection, _HEADS, [user.user_id for user in batch])
            states = {row["user_id"]: LogState(row["head"], row["earliest"], row["epoch"]) for row in rows}
            wanted = {row["user_id"] for row in rows if row["wanted"]}
            for user in batch:
                if user.move(states[user.user_id]) or user.user_id in wanted:
                    self._moved(user)
                if (waiting := self._located.pop(user, None)) is not None:
                    _resolve(waiting)
            await asyncio.sleep(0)

    async def _fetch(self, connection: asyncpg.Connection, query: str, *arguments: Any) -> list[asyncpg.Record]:
        if self._pooled:
            return await fetch_alone(connection, _SETTINGS.format(local="local"), query, *arguments)
        return await connection.fetch(query, *arguments)

    def _on_ring(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        for channel in str(payload).split():
            if (user := self._by_channel.get(channel)) is not None:
                self._rung.add(user)
        if self._rung:
            self._work.set()

    def _failed(self) -> None:
        self._on_failure()
        self.connected = False
        self._changed.update(self._users)
        for waiting in self._located.values():
            _resolve(waiting)
        self._located.clear()


def _resolve(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _channel(user_id: str) -> str:
    """Return what `userrealtime.channel` returns."""
    return "urt_" + hashlib.sha256(user_id.encode()).hexdigest()[:32]


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for begin in range(0, len(items), BATCH):
        yield items[begin : begin + BATCH]
