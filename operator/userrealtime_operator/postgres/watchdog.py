"""The watchdog: it terminates sessions of pods that hold what all users of the Postgres server share.

PostgreSQL grants every role advisory locks and transactions of any length, and a role may lift its own time limits. A
pod of a user needs neither. The holder of a stolen password could use them to exhaust the lock table, to fill the
notification queue, or to delay upgrades, so the limits are enforced here, from another session.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from typing import Final

import asyncpg

from userrealtime_core.postgres import CONNECTION_ERRORS, open_session
from userrealtime_core.secret import Secret
from userrealtime_operator.process.metrics import Metrics

from .roles import GROUP, TRANSACTION_LIMIT_S

logger = logging.getLogger(__name__)

INTERVAL_S: Final = 3.0
LOCK_LIMIT: Final = 256
"""Locks of one session. The queries of a relay need less than a tenth of them."""
CONNECT_TIMEOUT_S: Final = 10
QUERY_TIMEOUT_S: Final = 10
UNDROPPABLE_AFTER_S: Final = 600
"""How long a role may be revoked and not dropped before it is counted."""
RESERVE: Final = 64
_RESERVE: Final = "select count(*) filter (where pg_try_advisory_lock_shared($1, n)) from generate_series(1, $2) n"

_OFFENDERS: Final = """
with locks as (
    select pid, bool_or(locktype = 'advisory') as advisory, count(*) as number from pg_locks group by pid
)
select a.pid, a.usename::text as role,
    case
        when v.name is not null then 'revoked'
        when l.advisory then 'advisory_lock'
        when l.number > $2 then 'locks'
        else 'transaction'
    end as reason
from pg_stat_activity a
    left join locks l on l.pid = a.pid
    left join userrealtime.revoked_role v on v.name = a.usename
where (v.name is not null or exists (
        select from pg_auth_members m join pg_roles g on g.oid = m.roleid
        where g.rolname = $3 and m.member = a.usesysid and not m.admin_option
    ))
    and (
        v.name is not null or l.advisory or l.number > $2
        or a.xact_start < clock_timestamp() - make_interval(secs => $1)
    )
    -- Another installation on this server has its own watchdog.
    and pg_has_role(a.usesysid, 'usage')
"""
_UNDROPPABLE: Final = """
select count(*) from userrealtime.revoked_role where revoked_at < now() - make_interval(secs => $1)
"""


@dataclass(frozen=True, slots=True)
class Offender:
    """A session that is terminated. `reason` is revoked, advisory_lock, locks or transaction."""

    pid: int
    role: str
    reason: str


class Watchdog:
    """`run` it in one task of the operator that leads."""

    def __init__(self, url: Secret, metrics: Metrics, *, transaction_limit_s: float = TRANSACTION_LIMIT_S) -> None:
        self._url = url
        self._metrics = metrics
        self._limit_s = transaction_limit_s
        self._key = random.randrange(2**31)  # noqa: S311  (no secret)

    async def run(self) -> None:
        """Check every few seconds until cancelled."""
        try:
            while True:
                try:
                    connection = await self.open()
                    try:
                        while True:
                            await self.check(connection)
                            await asyncio.sleep(INTERVAL_S)
                    finally:
                        connection.terminate()
                except CONNECTION_ERRORS as error:
                    logger.warning("the watchdog has no connection to the database, retrying: %s", error or "timed out")
                    await asyncio.sleep(INTERVAL_S)
        finally:
            self._metrics.undroppable.set(0)

    async def open(self) -> asyncpg.Connection:
        """A connection for `check`, with a reserve of entries in the lock table of the server.

        Without them, a full lock table would fail the query that finds its cause. Nothing waits for these locks.
        """
        connection = await open_session(
            self._url,
            name="userrealtime-watchdog",
            connect_timeout=CONNECT_TIMEOUT_S,
            query_timeout=QUERY_TIMEOUT_S,
        )
        await connection.fetchval(_RESERVE, self._key, RESERVE)
        return connection

    async def check(self, connection: asyncpg.Connection) -> list[Offender]:
        """Terminate the sessions of pods that are over a limit, and return them."""
        try:
            return await self._check(connection)
        except asyncpg.OutOfMemoryError:
            await connection.execute("select pg_advisory_unlock_all()")
            try:
                return await self._check(connection)
            finally:
                await connection.fetchval(_RESERVE, self._key, RESERVE)

    async def _check(self, connection: asyncpg.Connection) -> list[Offender]:
        rows = await connection.fetch(_OFFENDERS, self._limit_s, LOCK_LIMIT, GROUP)
        offenders = [Offender(row["pid"], row["role"], row["reason"]) for row in rows]
        for each in offenders:
            if await connection.fetchval("select pg_terminate_backend($1)", each.pid):
                self._metrics.pod_sessions_ended.labels(each.reason).inc()
                logger.warning(
                    "terminated a session of database role %s (pid %d): %s", each.role, each.pid, each.reason
                )
        self._metrics.undroppable.set(await connection.fetchval(_UNDROPPABLE, UNDROPPABLE_AFTER_S))
        return offenders
