"""Deletes expired events and inbox messages in small batches, and applies the quota of the inbox."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import asyncpg

from userrealtime_operator.model.policies import InboxQuota, Retention

from .database import CONNECT_TIMEOUT_S, Database, explained

BATCH = 5_000
USERS_A_PAGE = 500

# Two index lookups for each user. Users with a registration in another scope are left to that scope's operator.
_OVERDUE = """
select l.user_id from userrealtime.log l cross join lateral (
    select e.id, e.at from userrealtime.event e where e.user_id = l.user_id order by e.id limit 1
) oldest
where l.user_id > $1 and (oldest.at < now() - $2::interval or oldest.id <= l.head - $3::bigint)
  and not exists (select from userrealtime.registration r where r.user_id = l.user_id and r.scope <> all($4::text[]))
order by l.user_id limit $5
"""

_MANY_PROCESSED = """
select u.user_id from userrealtime.inbox_usage u, userrealtime.inbox_quota q
where u.done_messages > q.max_messages or u.done_bytes > q.max_bytes
"""


async def prune(database: Database, retention: Retention, scopes: Sequence[str]) -> tuple[int, int]:
    """Delete expired rows, one transaction per batch, and return the numbers of deleted events and messages.

    Raises:
        DatabaseError: the database is unavailable; the next run deletes the rest.
    """
    max_age = None if retention.max_age_s is None else timedelta(seconds=retention.max_age_s)
    events = messages = 0
    try:
        async with database.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
            after = ""
            while max_age is not None or retention.max_events is not None:
                rows = await connection.fetch(
                    _OVERDUE, after, max_age, retention.max_events, list(scopes), USERS_A_PAGE
                )
                for row in rows:
                    removed = BATCH
                    while removed == BATCH:
                        removed = await connection.fetchval(
                            "select userrealtime.prune($1, $2, $3, $4)", row[0], max_age, retention.max_events, BATCH
                        )
                        events += removed
                if len(rows) < USERS_A_PAGE:
                    break
                after = rows[-1][0]
            if retention.inbox_max_age_s is not None:
                removed = BATCH
                while removed == BATCH:
                    removed = await connection.fetchval(
                        "select userrealtime.prune_inbox($1, $2)", timedelta(seconds=retention.inbox_max_age_s), BATCH
                    )
                    messages += removed
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise explained(error) from None
    return events, messages


async def limit_inbox(database: Database, quota: InboxQuota) -> int:
    """Set the quota of the inbox, and delete the oldest processed messages of the users that have more than the quota.

    Returns the number of users whose waiting messages use at least 80 % of the quota, 100 at most.

    Raises:
        DatabaseError: the database is unavailable.
    """
    try:
        async with database.pool.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
            nearly_full: int = await connection.fetchval(
                "select userrealtime.limit_inbox($1, $2)", quota.max_messages, quota.max_bytes
            )
            for row in await connection.fetch(_MANY_PROCESSED):
                removed = BATCH
                while removed == BATCH:
                    removed = await connection.fetchval("select userrealtime.trim_inbox($1, $2)", row[0], BATCH)
            return nearly_full
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise explained(error) from None
