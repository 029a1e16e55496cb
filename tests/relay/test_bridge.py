"""The bridge, between a real Postgres and a real broker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from testing.database import Database
from testing.local.brokers import LocalBroker
from testing.relay.brokers import bridging, make_broker
from testing.relay.harness import NEVER, PATIENCE_S, get, until
from testing.relay.pgbouncer import pgbouncer
from userrealtime_core.announcer import traffic
from userrealtime_core.announcer.queue import DOORBELL
from userrealtime_core.environment import ConfigError
from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogMoved, LogPosition
from userrealtime_relay.bridge import server
from userrealtime_relay.bridge.__main__ import main
from userrealtime_relay.bridge.config import Config
from userrealtime_relay.bridge.metrics import Metrics
from userrealtime_relay.bridge.pending import Pending
from userrealtime_relay.bridge.poller import SLICE, Poller
from userrealtime_relay.bridge.server import Bridge
from userrealtime_relay.log.log import channel
from userrealtime_relay.notify import decode
from userrealtime_relay.notify.broker import load

NONSENSE = ("", " ", "null", "[" * 7000, '{"alice": [0, "e"]}', "urt_", "urt_" + "0" * 32, "x" * 7999)


@pytest.fixture
async def broker() -> AsyncIterator[LocalBroker]:
    async with make_broker("nats") as broker:
        yield broker


@asynccontextmanager
async def hearing(broker: LocalBroker, user: str = "alice") -> AsyncIterator[list[LogPosition]]:
    """Yield a list that receives all notifications for one user."""
    heard: list[LogPosition] = []
    begun = asyncio.Event()

    def hear(message: bytes) -> None:
        begun.set()
        position = decode(message)
        if position is not None:
            heard.append(position)

    task = asyncio.create_task(load(broker.name).subscribe(Secret(broker.url), user, hear))
    try:
        async with asyncio.timeout(PATIENCE_S):
            await begun.wait()
        yield heard
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def polling(url: str, poll_interval: float) -> AsyncIterator[tuple[Poller, Pending]]:
    """Run only the bridge's poll of all heads; return the signals that it adds."""
    pending = Pending()
    poller = Poller(Secret(url), poll_interval, pending, Metrics())
    task = asyncio.create_task(poller.run())
    try:
        yield poller, pending
    finally:
        task.cancel()
        await asyncio.wait([task])


async def attend(connection: asyncpg.Connection, *users: str) -> None:
    """Register a running relay, which receives its signals from a broker, for each user."""
    await connection.execute("select userrealtime.attend(u, 'pod', false) from unnest($1::text[]) u", list(users))


async def say(connection: asyncpg.Connection, *users: str) -> None:
    """Publish an event to each user, in one transaction."""
    await connection.execute("select userrealtime.publish(u, 'test') from unnest($1::text[]) u", list(users))


async def busy(connection: asyncpg.Connection, bridge: Bridge) -> None:
    """Ring until the announcer polls, and has received all rings."""
    rings = await value(bridge, "rings_total")
    async with asyncio.timeout(PATIENCE_S):
        while not await value(bridge, "announcer_leased"):
            await connection.execute("select pg_notify('userrealtime_doorbell', n::text) from generate_series(1, 8) n")
            rings += 8
        while await value(bridge, "rings_total") < rings:
            await asyncio.sleep(0.02)


async def value(bridge: Bridge, name: str) -> float:
    _, body = await get(bridge.health_port, "/metrics")
    return float(next(line for line in body.splitlines() if line.startswith(f"userrealtime_bridge_{name} ")).split()[1])


async def test_a_commit_signals_each_user_with_the_newest_head(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
) -> None:
    await attend(connection, "alice", "bob")
    async with hearing(broker) as alice, hearing(broker, "bob") as bob, bridging(migrated.url, broker):
        await say(connection, "alice", "bob", "alice")
        epoch = await connection.fetchval("select epoch from userrealtime.log where user_id = 'alice'")
        await until(lambda: LogPosition(2, epoch) in alice and bool(bob))
        assert max(position.head for position in alice) == 2
        assert max(position.head for position in bob) == 1


@pytest.mark.parametrize("leased", [False, True])
async def test_a_transaction_with_many_users_signals_all_of_them(
    migrated: Database,
    connection: asyncpg.Connection,
    broker: LocalBroker,
    monkeypatch: pytest.MonkeyPatch,
    leased: bool,
) -> None:
    monkeypatch.setattr(traffic, "QUIET_WINDOW", PATIENCE_S)  # the announcer polls until the end of the test
    users = [f"user-{number}-{'x' * 100}" for number in range(3000)]
    await attend(connection, *users)
    async with (
        hearing(broker, users[0]) as first,
        hearing(broker, users[-1]) as last,
        bridging(migrated.url, broker, POLL_INTERVAL=NEVER) as bridge,
    ):
        if leased:
            await busy(connection, bridge)
        before = await value(bridge, "signals_total"), await value(bridge, "rings_total")
        await say(connection, *users)
        await until(lambda: bool(first and last))
        async with asyncio.timeout(PATIENCE_S):
            while await value(bridge, "signals_total") < before[0] + len(users):
                await asyncio.sleep(0.02)
        rings = await value(bridge, "rings_total") - before[1]
        assert rings == 0 if leased else 0 < rings < len(users) / 20  # many channels in each


async def test_the_next_poll_signals_what_no_notification_came_for(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
) -> None:
    """For users with a running relay only."""
    await say(connection, "alice", "bob")
    await attend(connection, "alice")
    async with (
        hearing(broker) as alice,
        hearing(broker, "bob") as bob,
        bridging(migrated.url, broker, POLL_INTERVAL="0.1"),
    ):
        await until(lambda: len(alice) > 2)  # repeatedly: relays learn that there is no new event
        await connection.execute("update userrealtime.log set head = 2")  # without a signal
        await until(lambda: alice[-1].head == 2)
        assert bob == []


async def test_a_poll_does_not_overwrite_a_newer_signal(migrated: Database, connection: asyncpg.Connection) -> None:
    """Otherwise the event would wait for the next poll."""
    await say(connection, "alice", "bob")
    await attend(connection, "alice", "bob")
    async with polling(migrated.url, 600) as (poller, pending):
        await until(lambda: poller.connected)
        epoch = await connection.fetchval("select epoch from userrealtime.log where user_id = 'alice'")
        await pending.take(10)
        pending.add([LogMoved("alice", LogPosition(2, epoch))])
        poller.poll_now()
        await until(lambda: len(pending) == 2)
        moved = await pending.take(10)
        assert {user_id: position.head for user_id, position in moved} == {"alice": 2, "bob": 1}


async def test_the_heads_of_a_regular_poll_are_spread(migrated: Database, connection: asyncpg.Connection) -> None:
    """Signals of the first poll and signals of new events are not spread."""
    users = [f"user-{number:03}" for number in range(10 * SLICE)]
    await say(connection, *users)
    await attend(connection, *users)
    async with polling(migrated.url, 4) as (_, pending):
        await until(lambda: len(pending) > 0)
        assert len(await pending.take(1000)) == len(users)
        await until(lambda: len(pending) > 0)
        assert len(pending) < len(users)
        pending.add([LogMoved(user, LogPosition(9, "new")) for user in users])
        assert len(await pending.take(1000)) == len(users)


async def test_who_was_away_longer_than_a_pod_lives_is_not_told_of(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await say(connection, "alice")
    await connection.execute("select userrealtime.present('alice', 'pod', 0)")
    assert len(await connection.fetch("select * from userrealtime.heads()")) == 1
    await connection.execute("update userrealtime.presence set seen_at = now() - interval '4 minutes'")
    assert await connection.fetch("select * from userrealtime.heads()") == []


async def test_a_lost_connection_to_postgres_loses_nothing(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
) -> None:
    await connection.execute("select userrealtime.present('alice', 'pod', 1)")
    async with hearing(broker) as alice, bridging(migrated.url, broker, POLL_INTERVAL=NEVER) as bridge:
        for number in range(1, 4):
            ended = await connection.fetchval(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity "
                "where application_name = 'userrealtime-bridge'"
            )
            assert ended == 2
            await say(connection, "alice")
            await until(lambda number=number: bool(alice) and alice[-1].head == number)  # type: ignore[misc]
            await until(lambda: bridge.not_ready_reason is None)


async def test_what_the_broker_could_not_take_is_told_when_it_can(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
) -> None:
    await attend(connection, "alice", "bob")
    async with bridging(migrated.url, broker, POLL_INTERVAL=NEVER) as bridge:
        await broker.kill()
        for _ in range(3):
            await say(connection, "alice", "bob")
        await until(lambda: bridge.not_ready_reason == "not connected to the broker")
        before = await value(bridge, "signals_total")
        await broker.start()
        async with asyncio.timeout(PATIENCE_S):
            while await value(bridge, "signals_total") < before + 2 or await value(bridge, "pending_users") > 0:
                await asyncio.sleep(0.02)
        # Only the newest one of each user; the poll after a new connection may repeat them.
        assert await value(bridge, "signals_total") <= before + 4


async def test_a_forged_notification_has_no_effect(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
) -> None:
    await attend(connection, "alice")
    async with hearing(broker) as alice, bridging(migrated.url, broker, POLL_INTERVAL=NEVER) as bridge:
        for payload in NONSENSE:
            await connection.execute("select pg_notify('userrealtime_doorbell', $1)", payload)
        await say(connection, "alice")
        await until(lambda: bool(alice))
        assert {position.head for position in alice} == {1}
        assert not bridge.working.done()


async def test_behind_a_pooler_it_polls_and_says_so(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker, caplog: pytest.LogCaptureFixture
) -> None:
    await connection.execute("select userrealtime.present('alice', 'pod', 1)")
    async with (
        pgbouncer(migrated.url, "transaction") as url,
        hearing(broker) as alice,
        bridging(url, broker, POLL_INTERVAL=NEVER),
    ):
        await say(connection, "alice")
        await until(lambda: bool(alice))
    assert "transaction pooler" in caplog.text


async def test_its_role_may_do_what_it_must_and_nothing_else(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
) -> None:
    role = f"bridge_{migrated.name}"
    await connection.execute(f"create role {role} login; select userrealtime.grant_bridge('{role}')")
    url = migrated.url.replace("postgres@", f"{role}@")
    try:
        await attend(connection, "alice")
        async with hearing(broker) as alice, bridging(url, broker):
            await say(connection, "alice")
            await until(lambda: bool(alice))
        bridge = await asyncpg.connect(url)
        for statement in (
            "select * from userrealtime.event",
            "select * from userrealtime.log",
            "select * from userrealtime.presence",
            "select * from userrealtime.open('alice')",
            "select * from userrealtime.events('alice', 0, 1, 1)",
            "select * from userrealtime.signal_queue",
            "insert into userrealtime.signal_queue (user_id, head) values ('alice', 1)",
            "select setval('userrealtime.announcer_lease', 1)",
            "select userrealtime.publish('alice', 'x')",
            "select userrealtime.submit('alice', 'r', 'x')",
            "select userrealtime.present('alice', 'pod', 1)",
            "select userrealtime.grant_bridge('postgres')",
            "create table userrealtime.mine ()",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await bridge.execute(statement)
        await bridge.close()
    finally:
        await connection.execute(f"drop owned by {role}; drop role {role}")


async def test_the_longest_names_fit_into_a_notification(migrated: Database, connection: asyncpg.Connection) -> None:
    """Otherwise a commit would fail."""
    rung: list[str] = []
    listener = await asyncpg.connect(migrated.url)
    await listener.execute("select userrealtime.arm_doorbell()")
    await listener.add_listener(DOORBELL, lambda *notified: rung.extend(str(notified[3]).split()))
    longest = [character * 250 + f"{n:03}" for character in ("\U0001f600", '"', "\\", "x") for n in range(100)]
    await say(connection, *longest)
    await until(lambda: len(rung) == len(longest))
    assert set(rung) == {channel(user) for user in longest}
    await connection.execute("update userrealtime.log set epoch = repeat('\U0001f600\"', 5000)")
    await until(lambda: len(rung) == 2 * len(longest))
    await listener.close()


async def test_it_says_how_it_is(migrated: Database, broker: LocalBroker) -> None:
    async with bridging(migrated.url, broker) as bridge:
        assert await get(bridge.health_port, "/health") == (200, '{"status":"ok"}')
        assert await get(bridge.health_port, "/ready") == (200, '{"status":"ready"}')
        assert await value(bridge, "ready") == 1
        await broker.kill()
        await until(lambda: bridge.not_ready_reason is not None)
        status, body = await get(bridge.health_port, "/ready")
        assert (status, json.loads(body)["reason"]) == (503, "not connected to the broker")


async def test_the_process_starts_and_ends_in_order(migrated: Database, broker: LocalBroker) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "userrealtime_relay.bridge",
        env={**os.environ, "DATABASE_URL": migrated.url, "HOST": "127.0.0.1", "HEALTH_PORT": "0", **broker.variables},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    messages: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        while messages.count("connected to the broker") < 1:
            messages.append(json.loads(await process.stdout.readline())["message"])
        process.send_signal(signal.SIGTERM)
        rest, _ = await process.communicate()
    assert json.loads(rest.splitlines()[-1])["message"] == "stopped"
    assert process.returncode == 0


def test_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--help"]) == 0
    assert "DATABASE_URL" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert main(["secret"]) == 2
    assert "secret" not in capsys.readouterr().err
    for name in ("DATABASE_URL", "SIGNAL", "NATS_URL"):
        monkeypatch.delenv(name, raising=False)
    assert main([]) == 2
    said = capsys.readouterr().err
    assert "DATABASE_URL: required" in said
    assert "SIGNAL: '' is not one of nats, redis, kafka" in said


@pytest.mark.parametrize(
    ("broker", "url"),
    [
        ("nats", ""),
        ("nats", "redis://somewhere"),
        ("nats", "nats://a,b"),
        ("redis", "redis://user:pass word@"),
        ("kafka", "kafka://host:99999"),
    ],
)
def test_a_wrong_url_is_told_without_it(broker: str, url: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        Config.from_environment({"DATABASE_URL": "postgresql://x", "SIGNAL": broker, f"{broker.upper()}_URL": url})
    assert f"{broker.upper()}_URL: " in str(wrong.value)
    assert not url or url not in str(wrong.value)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "userrealtime_relay.notify.nats", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "nats"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "nats", None)
    with pytest.raises(ConfigError, match="needs the package nats"):
        load("nats")


async def test_an_older_signal_does_not_replace_a_newer_one() -> None:
    pending = Pending()
    pending.add([LogMoved("a", LogPosition(5, "e"))])
    pending.add([LogMoved("a", LogPosition(0, "e"))])
    assert await pending.take(1) == [LogMoved("a", LogPosition(5, "e"))]
    pending.add([LogMoved("a", LogPosition(5, "e")), LogMoved("a", LogPosition(1, "of another log"))])
    assert await pending.take(1) == [LogMoved("a", LogPosition(1, "of another log"))]


async def test_pending_keeps_the_newest_of_each() -> None:
    pending = Pending(max_users=3)
    pending.add([LogMoved(user, LogPosition(1, "e")) for user in "abcd"])
    pending.add([LogMoved("a", LogPosition(2, "e"))])
    assert (len(pending), pending.dropped) == (3, 1)
    taken = await pending.take(2)
    assert taken == [LogMoved("a", LogPosition(2, "e")), LogMoved("b", LogPosition(1, "e"))]
    pending.add([LogMoved("a", LogPosition(3, "e"))])
    pending.put_back(taken)
    assert await pending.take(10) == [
        LogMoved("c", LogPosition(1, "e")),
        LogMoved("a", LogPosition(3, "e")),
        LogMoved("b", LogPosition(1, "e")),
    ]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pending.take(1)


async def test_a_batch_has_a_limit(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BATCH", 2)
    await attend(connection, *(f"user-{n}" for n in range(7)))
    async with hearing(broker, "user-6") as last, bridging(migrated.url, broker, POLL_INTERVAL=NEVER):
        await say(connection, *(f"user-{n}" for n in range(7)))
        await until(lambda: bool(last))


def test_the_configuration_has_defaults() -> None:
    config = Config.from_environment(
        {
            "DATABASE_URL": "postgresql://x",
            "SIGNAL": "nats",
            "NATS_URL": "nats://user:word@host:4222,nats://other",
            "REDIS_URL": "nonsense",
        }
    )
    assert (config.health_port, config.poll_interval) == (3000, 10)
    assert "word" not in repr(config)
