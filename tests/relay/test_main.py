"""The process: its command line, its shutdown, and secrets that it never prints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from testing.database import Database
from testing.relay.harness import (
    KEY,
    PATIENCE_S,
    client,
    closed,
    environment,
    get,
    publish,
    receive,
    receive_ids,
    terminate,
    token,
)
from testing.relay.http_client import request
from testing.relay.process import process

NO_DATABASE = "postgresql://nobody:hunter2@127.0.0.1:1/none"


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "userrealtime_relay", *arguments],
        env={"PATH": os.environ["PATH"], **variables},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_help_and_version() -> None:
    for flag in ("--help", "-h"):
        outcome = run(flag)
        assert (outcome.returncode, outcome.stderr) == (0, "")
        assert outcome.stdout.startswith("usage: userrealtime-relay")
    outcome = run("--version")
    assert outcome.returncode == 0
    assert outcome.stdout.startswith("userrealtime-relay 0.")


@pytest.mark.parametrize("arguments", [["--port=1"], ["serve"], ["--help", "--version"], [""]])
def test_other_arguments_are_refused_and_not_repeated(arguments: list[str]) -> None:
    outcome = run(*arguments)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert "takes no arguments" in outcome.stderr
    assert "port" not in outcome.stderr


def test_a_wrong_environment_is_told_in_one_go() -> None:
    outcome = run(USER_ID="alice", DATABASE_URL="hunter2", WS_PORT="x")
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr.splitlines()[0] == "userrealtime-relay cannot start: the environment is wrong:"
    assert [line.split(":")[0].strip() for line in outcome.stderr.splitlines()[1:]] == [
        "DATABASE_URL",
        "TOKEN_KEY",
        "WS_PORT",
    ]
    assert "hunter2" not in outcome.stderr


async def test_a_port_that_is_taken_is_told() -> None:
    async with process(NO_DATABASE) as relay:
        outcome = await asyncio.to_thread(run, **environment(NO_DATABASE, WS_PORT=str(relay.ws_port)))
        assert outcome.returncode == 1
        assert outcome.stderr.startswith("userrealtime-relay cannot listen: ")
        assert "Traceback" not in outcome.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    async with process(NO_DATABASE) as relay:
        relay.send(number)
        assert await relay.end() == 0
        assert json.loads(relay.lines[-1])["message"] == "stopped"


async def test_a_rolling_restart_loses_nothing(migrated: Database, connection: asyncpg.Connection) -> None:
    """Events are published while one relay replaces another. The client follows the close codes."""
    enough = asyncio.Event()

    async def publish_on() -> int:
        published = 0
        while not enough.is_set():
            await publish(connection, 2)
            published += 2
            await asyncio.sleep(0.01)
        return published

    publishing = asyncio.create_task(publish_on())
    ids: list[int] = []
    for _ in range(3):
        async with process(migrated.url) as relay:
            await relay.wait_for("connected to Postgres")
            async with client(relay.ws_port, last_event_id=len(ids)) as alice:
                assert (await receive(alice))["type"] == "connected"
                ids += await receive_ids(alice, len(ids) + 20)
                relay.send(signal.SIGTERM)
                ids += [message["id"] async for message in until_closed(alice)]
            assert await relay.end() == 0
    enough.set()
    published = await publishing
    async with process(migrated.url) as relay:
        await relay.wait_for("connected to Postgres")
        async with client(relay.ws_port, last_event_id=len(ids)) as alice:
            await receive(alice)
            if len(ids) < published:
                ids += await receive_ids(alice, published)
    assert ids == list(range(1, published + 1))


async def until_closed(alice: ClientConnection) -> AsyncIterator[dict[str, Any]]:
    """Return the messages before a close with 1012."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            yield json.loads(await asyncio.wait_for(alice.recv(), PATIENCE_S))
    assert (await closed(alice))[0] == 1012


async def test_while_it_drains_it_is_not_ready_and_a_second_signal_ends_it(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with process(migrated.url) as relay:
        await relay.wait_for("connected to Postgres")
        async with client(relay.ws_port) as slow:
            await receive(slow)
            slow.transport.pause_reading()
            await publish(connection, 80, size=200_000)
            relay.send(signal.SIGTERM)
            await relay.wait_for("draining")
            status, body = await get(relay.health_port, "/ready")
            assert (status, json.loads(body)["reason"]) == (503, "draining")
            relay.send(signal.SIGTERM)
            assert await relay.end() == 128 + signal.SIGTERM
            slow.transport.abort()


async def test_no_secret_is_ever_said(migrated: Database, connection: asyncpg.Connection) -> None:
    good, bad, forged = token(), token(sub="mallory"), token(key="k" * 40)
    tokens = [good, bad, forged]
    password = "hunter2hunter2"
    url = migrated.url.replace("postgres@", f"postgres:{password}@")
    async with process(url, LOG_LEVEL="debug", POLL_INTERVAL="0.1", ALLOW_QUERY_TOKEN="true") as relay:
        await relay.wait_for("connected to Postgres")
        for each in tokens:
            offered = [Subprotocol("userrealtime.v1"), Subprotocol(f"bearer.{each}")]
            async with client(relay.ws_port, each, last_event_id="marked-cursor", token="marked-" + each) as header:
                await closed(header)
            async with client(relay.ws_port, None, subprotocols=offered) as subprotocol:
                await publish(connection)
                if each == good:
                    assert (await receive(subprotocol))["type"] == "connected"
                    await subprotocol.send("marked-message")
                    await receive(subprotocol)
                else:
                    await closed(subprotocol)
            async with client(relay.ws_port, None) as message:
                await message.send(json.dumps({"type": "auth", "token": each}))
                await message.recv() if each == good else await closed(message)
            for path in ("/sse", "/poll", "/publish"):
                method, body = ("POST", b'{"ref":"marked-ref","event":"x"}') if path == "/publish" else ("GET", b"")
                in_url = f"{path}?token={each}&marked-query"
                for target, bearer in ((path, each), (in_url, None)):
                    answer = await request(relay.ws_port, target, bearer, method=method, body=body)
                    assert answer.status == (200 if each == good else 401)
        await get(relay.ws_port, "/marked-path?marked-query")
        await get(relay.health_port, "/marked-path?marked-query")
        other = await asyncpg.connect(migrated.server.url())
        await other.execute("alter database " + migrated.name + " with allow_connections false")
        await other.close()
        await terminate(connection)
        failure = await relay.wait_for("no connection to Postgres, retrying")
        assert "error" in failure
        relay.send(signal.SIGTERM)
        assert await relay.end() == 0
    said = "".join(relay.lines)
    for secret in (KEY, password, "marked", *tokens, *(part for each in tokens for part in each.split(".")[1:])):
        assert secret not in said
    for line in relay.lines:
        assert isinstance(json.loads(line), dict)
