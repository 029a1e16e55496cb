"""A database over TLS, as the operator and relays come to it, and URLs that cannot be used."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from testing.cluster.local import pki
from testing.database import Database as OwnDatabase
from testing.relay.pgbouncer import pgbouncer
from userrealtime_core.secret import Secret
from userrealtime_operator.postgres.database import Database, DatabaseError
from userrealtime_operator.postgres.migrate import MigrationError, migrate
from userrealtime_relay.log.log import ERRORS, Log

Use = Callable[[str], Awaitable[Any]]


async def operate(url: str) -> None:
    async with Database(url) as database:
        await database.ping()


async def relay(url: str) -> None:
    await (await Log.connect(Secret(url), "alice")).close()


@pytest.fixture(params=[migrate, operate, relay])
def use(request: pytest.FixtureRequest) -> Use:
    used: Use = request.param
    return used


@pytest.fixture
async def url(migrated: OwnDatabase, authority: Path) -> AsyncIterator[str]:
    """The URL of a PgBouncer with TLS, because the PostgreSQL of these tests is built without it."""
    async with pgbouncer(migrated.url, "session", authority) as url:
        yield f"{url}?sslmode=verify-full"


async def refusal(use: Use, url: str) -> Exception:
    with pytest.raises((MigrationError, DatabaseError, *ERRORS)) as refused:
        await use(url)
    return refused.value


async def test_a_server_of_a_trusted_authority_is_used(
    use: Use, migrated: OwnDatabase, any_authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLROOTCERT", str(any_authority / "ca.crt"))
    async with pgbouncer(migrated.url, "session", any_authority) as url:
        await use(f"{url}?sslmode=verify-full")


async def test_a_server_of_another_name_or_authority_is_refused(
    use: Use, url: str, authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSSLROOTCERT", str(authority / "ca.crt"))
    assert "localhost" in str(await refusal(use, url.replace("127.0.0.1", "localhost")))
    pki.make(tmp_path, [])
    monkeypatch.setenv("PGSSLROOTCERT", str(tmp_path / "ca.crt"))
    assert "certificate verify failed" in str(await refusal(use, url))


async def test_who_is_to_verify_and_trusts_nobody_is_told_what_to_do(
    use: Use, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # where libpq's own file would be
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    assert "PGSSLROOTCERT" in str(await refusal(use, url))


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("postgresql://u:hun/hunter2@db/app", "percent-encode"),
        ("postgresql://u:hunter2/p@db/app", "percent-encode"),
        ("postgresql://u:p@db:hunter2/app", "percent-encode"),
        ("postgresql://u:hunter2@127.0.0.1:1/app?sslmode=verify", "verify-full"),
    ],
)
async def test_a_url_that_cannot_be_used_is_not_quoted(use: Use, url: str, advice: str) -> None:
    error = await refusal(use, url)
    assert advice in str(error)
    # Nor in the traceback, with all that came before.
    assert "hunter2" not in "".join(traceback.format_exception(error, chain=True)).replace(url, "")
