"""The broadcast API: requests of applications, over HTTP, into a real Postgres with an announcer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from testing.announcer import broadcasting, hearing_broadcasts
from testing.audit import AuditLines
from testing.database import Database
from testing.relay.harness import NEVER, PATIENCE_S, client, get, receive, running, until
from testing.relay.http_client import Answer, exchange, request
from testing.relay.pgbouncer import pgbouncer
from userrealtime_core.environment import ConfigError
from userrealtime_core.secret import Secret
from userrealtime_core.wire.broadcast import MOST_CONTENT_BYTES
from userrealtime_relay.broadcast_api import queue
from userrealtime_relay.broadcast_api.__main__ import main
from userrealtime_relay.broadcast_api.config import Config, ServerTokens
from userrealtime_relay.broadcast_api.metrics import Metrics
from userrealtime_relay.broadcast_api.queue import MAX_PENDING, BroadcastWriter, PendingBroadcast
from userrealtime_relay.broadcast_api.server import MAX_BODY_BYTES, BroadcastApi

TOKEN = "a-token-of-an-application-0123456789"
OLD_TOKEN = "the-token-before-it-0123456789-abcdef"
NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"


def config(url: str, **changes: str) -> Config:
    environment = {
        "DATABASE_URL": url,
        "BROADCAST_TOKEN": f"{TOKEN}\n{OLD_TOKEN}\n",
        "HOST": "127.0.0.1",
        "PORT": "0",
        "HEALTH_PORT": "0",
        **changes,
    }
    return Config.from_environment(environment)


@asynccontextmanager
async def serving(url: str) -> AsyncIterator[BroadcastApi]:
    async with BroadcastApi(config(url)) as api:
        await until(lambda: api.not_ready_reason is None)
        yield api


async def post(api: BroadcastApi, body: Any, token: str | None = TOKEN, **headers: str) -> Answer:
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await request(api.port, "/broadcast", token, method="POST", headers=headers, body=encoded)


def body(data: Any = 1, user_id: str = "alice", event: str = "job.progress") -> dict[str, Any]:
    return {"userId": user_id, "event": event, "data": data}


async def outcome(api: BroadcastApi, name: str) -> float:
    _, text = await get(api.health_port, "/metrics")
    [line] = [each for each in text.splitlines() if each.startswith(f"userrealtime_broadcast_api_{name} ")]
    return float(line.rpartition(" ")[2])


async def test_the_clients_of_the_user_receive_it_in_order(migrated: Database) -> None:
    async with (
        broadcasting(migrated.url),
        running(migrated.url, POLL_INTERVAL=NEVER) as relay,
        serving(migrated.url) as api,
        client(relay) as alice,
    ):
        assert (await receive(alice))["type"] == "connected"
        await relay.tail.broadcast_channel()
        first = asyncio.create_task(receive(alice))
        while not first.done():  # the relay starts to listen some time after its start
            assert (await post(api, body("first"))).status == 202
            await asyncio.wait([first], timeout=0.1)
        assert first.result() == {"type": "broadcast", "event": "job.progress", "data": "first"}
        for number in range(20):
            answer = await post(api, body({"percent": number, "text": "größe 🎈"}))
            assert (answer.status, answer.json) == (202, {})
        found: list[Any] = []
        while len(found) < 20:
            message = await receive(alice)
            found += [message["data"]] if message["data"] != "first" else []
        assert found == [{"percent": number, "text": "größe 🎈"} for number in range(20)]


async def test_many_on_one_connection_reach_only_their_user(migrated: Database) -> None:
    async with (
        broadcasting(migrated.url),
        hearing_broadcasts(migrated.url) as alice,
        hearing_broadcasts(migrated.url, "bob") as bob,
        serving(migrated.url) as api,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        for number in range(50):
            content = json.dumps(body(number, "alice" if number % 2 else "bob")).encode()
            head = f"POST /broadcast HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
            writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            async with asyncio.timeout(PATIENCE_S):
                answered = await reader.readuntil(b"\r\n\r\n")
                assert answered.startswith(b"HTTP/1.1 202 "), answered
                await reader.readexactly(2)
        writer.close()
        await until(lambda: len(alice) == 25 and len(bob) == 25)
        assert [json.loads(text)["data"] for text in alice] == list(range(1, 50, 2))
        assert [json.loads(text)["data"] for text in bob] == list(range(0, 50, 2))
        assert await outcome(api, 'requests_total{outcome="accepted"}') == 50
        assert await outcome(api, "written_total") == 50


@pytest.mark.parametrize("token", [None, "x", f"{TOKEN}x", TOKEN[:-1], "", "é" * 40])
async def test_without_a_valid_token_it_is_rejected_and_the_body_is_not_read(
    migrated: Database, token: str | None
) -> None:
    with AuditLines() as lines:
        async with serving(migrated.url) as api:
            authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
            # The body never arrives: the response does not wait for it.
            headers = {"Content-Length": "100", **authorization}
            async with exchange(api.port, "/broadcast", None, "POST", headers, b"") as opened:
                assert opened.answer.status == 401
                assert opened.answer.headers["www-authenticate"] == "Bearer"
                assert opened.answer.headers["connection"] == "close"
            answer = await post(api, body(), None, **authorization)
            assert answer.status == 401
            assert "Authorization: Bearer TOKEN" in answer.json["error"]
            assert await outcome(api, 'requests_total{outcome="unauthorized"}') == 2
            # A request without a token causes no line, and no line contains the token.
            rejected = lines.of("token-rejected")
            assert len(rejected) == (0 if token is None else 2)
            assert {(line["reason"], line["client"]) for line in rejected} <= {
                ("not a token of the broadcast API", "127.0.0.1")
            }
            assert not token or token == "x" or token not in json.dumps(lines.all, ensure_ascii=False)
            assert await outcome(api, "written_total") == 0


async def test_both_tokens_are_accepted_and_another_scheme_is_not(migrated: Database) -> None:
    async with serving(migrated.url) as api:
        for token in (TOKEN, OLD_TOKEN):
            assert (await post(api, body(), token)).status == 202
        assert (await post(api, body(), None, Authorization=f"bearer {TOKEN}")).status == 202
        for value in (f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN} {TOKEN}"):
            assert (await post(api, body(), None, Authorization=value)).status == 401


async def test_the_size_is_checked_before_the_body_is_read(migrated: Database) -> None:
    async with serving(migrated.url) as api:
        for length in (MAX_BODY_BYTES + 1, 10**15):
            headers = {"Content-Length": str(length)}
            async with exchange(api.port, "/broadcast", TOKEN, "POST", headers, b"") as opened:
                assert opened.answer.status == 413
        # Without a length, it is counted while it arrives. It is no JSON.
        chunk = b"x" * 4000
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for _ in range(3)) + b"0\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(
            f"POST /broadcast HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
            + chunks
        )
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        writer.close()


async def test_the_limit_is_that_of_the_database(migrated: Database) -> None:
    most = MOST_CONTENT_BYTES - len('"job.progress"') - 2
    async with broadcasting(migrated.url), hearing_broadcasts(migrated.url) as heard, serving(migrated.url) as api:
        assert (await post(api, body("x" * most))).status == 202
        answer = await post(api, body("x" * (most + 1)))
        assert answer.status == 413
        assert "the limit is 7000" in answer.json["error"]
        # The type jsonb writes a space after each comma, so this is too large as well.
        assert (await post(api, json.dumps(body([1] * 3000), separators=(",", ":")).encode())).status == 413
        await until(lambda: len(heard) == 1)
        assert json.loads(heard[0])["data"] == "x" * most
        assert await outcome(api, "lost_total") == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "send a JSON object"),
        (b"x", "send a JSON object"),
        (b"[]", "send a JSON object"),
        (b"\xff", "send a JSON object"),
        (b"[" * 8000, "send a JSON object"),
        (b'{"event":"x","data":1}', '"userId" must be'),
        (b'{"userId":"","event":"x"}', '"userId" must be'),
        (b'{"userId":7,"event":"x"}', '"userId" must be'),
        (b'{"userId":"alice"}', '"event" must be'),
        (b'{"userId":"alice","event":"a\\nb"}', '"event" must be'),
        (b'{"userId":"alice","event":"x","data":NaN}', "not finite"),
        (b'{"userId":"alice","event":"x","data":"\\u0000"}', "U+0000"),
        (b'{"userId":"alice","event":"x","data":"\\ud800"}', "surrogate"),
    ],
)
async def test_an_invalid_body_is_rejected_with_the_reason(migrated: Database, content: bytes, reason: str) -> None:
    async with serving(migrated.url) as api:
        answer = await post(api, content)
        assert answer.status == 400
        assert reason in answer.json["error"]
        assert await outcome(api, 'requests_total{outcome="invalid"}') == 1


async def test_one_that_the_database_rejects_loses_no_other(migrated: Database) -> None:
    """Postgres writes 1e300 with 301 digits, so a broadcast can be larger there than in the request."""
    async with broadcasting(migrated.url), hearing_broadcasts(migrated.url) as heard, serving(migrated.url) as api:
        api.writer.add(PendingBroadcast("alice", "x", "1"))
        api.writer.add(PendingBroadcast("alice", "x", json.dumps([1e300] * 100)))
        api.writer.add(PendingBroadcast("alice", "x", "2"))
        await until(lambda: len(heard) == 2)
        assert [json.loads(text)["data"] for text in heard] == [1, 2]
        assert await outcome(api, "lost_total") == 1
        assert api.not_ready_reason is None


async def test_a_full_queue_rejects_and_a_hanging_database_delays_no_answer(
    migrated: Database, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "BATCH", 10)
    async with serving(migrated.url) as api:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("lock table userrealtime.broadcast_queue")
        try:
            # With an announcer, the writer waits for the lock; it has the first batch then.
            await connection.execute("select userrealtime.arm_broadcasts()")
            assert (await post(api, body())).status == 202
            await until(lambda: not api.writer._pending)
            for number in range(MAX_PENDING):
                api.writer.add(PendingBroadcast("alice", "x", str(number)))
            answer = await post(api, body())
            assert answer.status == 429
            assert answer.headers["retry-after"] == "1"
            assert "too many broadcasts wait" in answer.json["error"]
            assert await outcome(api, "pending") == MAX_PENDING
        finally:
            await transaction.rollback()
        await until(lambda: not api.writer.is_full)
        assert (await post(api, body())).status == 202
        async with asyncio.timeout(PATIENCE_S):
            await api.writer.drain()
        assert await outcome(api, "written_total") == MAX_PENDING + 2


async def test_without_a_database_it_is_not_ready_and_accepts_none() -> None:
    async with BroadcastApi(config(NO_DATABASE)) as api:
        answer = await post(api, body())
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "not connected to Postgres" in answer.json["error"]
        assert (await get(api.health_port, "/ready"))[0] == 503
        assert (await get(api.health_port, "/health"))[0] == 200


async def test_what_waits_when_the_connection_is_lost_is_dropped_and_counted(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with serving(migrated.url) as api:
        pid = await connection.fetchval(
            "select pid from pg_stat_activity where application_name = $1 and datname = current_database()", queue.NAME
        )
        async with connection.transaction():
            await connection.execute("select userrealtime.arm_broadcasts()")
            await connection.execute("lock table userrealtime.broadcast_queue")
            for number in range(3):
                assert (await post(api, body(number))).status == 202
            await connection.execute("select pg_terminate_backend($1)", pid)
            await until(lambda: api.not_ready_reason is not None)
        assert await outcome(api, "lost_total") == 3
        assert await outcome(api, "failures_total") >= 1
        await until(lambda: api.not_ready_reason is None)
        assert (await post(api, body())).status == 202


async def test_a_role_needs_one_right_only_and_without_it_none_is_accepted(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    role = f"broadcaster_{migrated.url.rpartition('/')[2]}"
    await connection.execute(f"create role {role} login password 'x'")
    try:
        await connection.execute(f"grant usage on schema userrealtime to {role}")
        head, _, tail = migrated.url.partition("://")
        url = f"{head}://{role}:x@{tail.rpartition('@')[2]}"
        async with BroadcastApi(config(url)) as api:
            await until(lambda: "failures_total 0" not in api.metrics.expose().decode())
            assert (await post(api, body())).status == 503
            await connection.execute(f"grant execute on function userrealtime.broadcast to {role}")
            await until(lambda: api.not_ready_reason is None)
            assert (await post(api, body())).status == 202
            async with asyncio.timeout(PATIENCE_S):
                await api.writer.drain()
            assert await outcome(api, "written_total") == 1
    finally:
        await connection.execute(f"drop owned by {role}")
        await connection.execute(f"drop role {role}")


async def test_it_works_through_a_transaction_pooler(migrated: Database) -> None:
    async with (
        broadcasting(migrated.url),
        hearing_broadcasts(migrated.url) as heard,
        pgbouncer(migrated.url, "transaction") as pooled,
        serving(pooled) as api,
    ):
        for number in range(5):
            assert (await post(api, body(number))).status == 202
        await until(lambda: len(heard) == 5)
        assert [json.loads(text)["data"] for text in heard] == list(range(5))


async def test_it_drains_at_its_end(migrated: Database) -> None:
    metrics = Metrics()
    writer = BroadcastWriter(Secret(migrated.url), metrics)
    task = asyncio.create_task(writer.run())
    try:
        await until(lambda: writer.connected)
        for number in range(1000):
            writer.add(PendingBroadcast("alice", "x", str(number)))
        await writer.drain()
        assert "userrealtime_broadcast_api_written_total 1000.0" in metrics.expose().decode()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_other_paths_and_methods(migrated: Database) -> None:
    async with serving(migrated.url) as api:
        answer = await request(api.port, "/broadcast", TOKEN)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert (await request(api.port, "/metrics", TOKEN)).status == 404


def test_tokens_are_a_file_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "DATABASE_URL").write_text("postgresql://broadcaster:hunter2@db/app")
    (tmp_path / "BROADCAST_TOKEN").write_text(f"{TOKEN}\n")
    found = Config.from_environment({"CREDENTIALS_DIR": str(tmp_path)})
    assert (found.port, found.health_port, found.log_level) == (8080, 3000, "info")
    assert found.tokens.accept(f"Bearer {TOKEN}")
    assert not found.tokens.accept(f"Bearer {OLD_TOKEN}")
    assert TOKEN not in repr(found)
    assert "hunter2" not in repr(found)


@pytest.mark.parametrize(
    "token", ["", "hunter2", f"{'x' * 40} hunter2", "hunter2" * 5 + "é", "x" * 40 + "\n" * 1 + "y"]
)
def test_an_invalid_token_is_reported_without_its_value(token: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config(NO_DATABASE, BROADCAST_TOKEN=token)
    assert "BROADCAST_TOKEN: " in str(raised.value)
    assert "openssl rand -hex 32" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_too_many_tokens_are_rejected() -> None:
    with pytest.raises(ValueError, match="1 to 8 tokens"):
        ServerTokens.parse("\n".join(f"{number:040}" for number in range(9)))
    assert not ServerTokens(()).accept("Bearer ")


def test_the_command_needs_its_variables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("DATABASE_URL", "BROADCAST_TOKEN", "CREDENTIALS_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert main([]) == 2
    printed = capsys.readouterr().err
    assert "DATABASE_URL: required" in printed
    assert "BROADCAST_TOKEN: must be" in printed
    assert main(["--help"]) == 0
    assert "POST /broadcast" in capsys.readouterr().out


def test_the_command_ends_on_a_signal(migrated: Database) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "userrealtime_relay.broadcast_api"],
        env={
            "PATH": "",
            "DATABASE_URL": migrated.url,
            "BROADCAST_TOKEN": TOKEN,
            "HOST": "127.0.0.1",
            "PORT": "0",
            "HEALTH_PORT": "0",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not any("connected to Postgres" in line for line in lines):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert "stopped" in process.stdout.read()
        assert TOKEN not in "".join(lines)
    finally:
        process.kill()
        process.communicate()
