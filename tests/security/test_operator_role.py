"""The holder of the operator's database URL: it has all logs, and not the server."""

from __future__ import annotations

import asyncpg
import pytest

from testing.installation import OPERATOR, Installation, installation
from userrealtime_operator.postgres.roles import LIMITED_CREATEROLE

PREDEFINED = ("pg_execute_server_program", "pg_read_server_files", "pg_write_server_files", "pg_read_all_data")
WARNING = "lets a role with CREATEROLE give itself roles such as pg_execute_server_program"


async def refused(site: Installation, statement: str) -> bool:
    connection = await asyncpg.connect(site.operator_url)
    try:
        await connection.execute(statement)
    except asyncpg.InsufficientPrivilegeError:
        return True
    finally:
        await connection.close()
    return False


async def test_the_operators_role_has_no_access_to_the_server_or_the_operator_warns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Up to PostgreSQL 15, CREATEROLE includes these roles. There, the operator's log has a warning and the advice."""
    async with installation() as site:
        await site.relay_url("alice")
        admin = await asyncpg.connect(site.admin_url)
        is_limited = admin.get_server_version().major >= LIMITED_CREATEROLE
        await admin.close()
        for role in PREDEFINED:
            assert await refused(site, f"grant {role} to {OPERATOR.role}") == is_limited
        assert (WARNING in caplog.text) != is_limited
        assert await refused(site, f"alter role {OPERATOR.role} superuser")
        assert await refused(site, "alter role postgres password 'x'")
        assert not is_limited or await refused(site, "copy (select 1) to program 'true'")
