"""Relays that receive signals from a real broker, to which a bridge publishes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import asyncpg
import pytest

from testing.database import Database
from testing.local.brokers import BROKERS, LocalBroker
from testing.relay.brokers import PASSWORD, bridging, following, make_broker
from testing.relay.harness import NEVER, PATIENCE_S, metric, publish, receive_ids, running, until
from userrealtime_core.secret import Secret
from userrealtime_core.wire.position import LogMoved, LogPosition
from userrealtime_relay.notify import Unreachable, decode, encode
from userrealtime_relay.notify.broker import load


@pytest.fixture(params=BROKERS)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[LocalBroker]:
    async with make_broker(request.param, PASSWORD) as broker:
        yield broker


@pytest.mark.parametrize("user", ["alice", "a.b > *@example.com", 'ünï"cödé' + "\U0001f600" * 60, "x" * 253])
async def test_each_hears_of_one_user_and_of_no_other(broker: LocalBroker, user: str) -> None:
    module, url = load(broker.name), Secret(broker.url)
    heard: list[bytes] = []
    subscription = asyncio.create_task(module.subscribe(url, user, heard.append))
    try:
        await until(lambda: heard == [b""] or subscription.done())
        async with module.publishing(url) as tell:
            await tell([LogMoved("somebody else", LogPosition(1, "e")), LogMoved(user, LogPosition(2, "e"))])
            await tell([LogMoved(user + "x"[:253], LogPosition(3, "e"))])
            await tell([LogMoved(user, LogPosition(4, "e"))])
        await until(lambda: b"4 e" in heard or subscription.done())
        assert heard == [b"", b"2 e", b"4 e"]
    finally:
        subscription.cancel()
        await asyncio.wait([subscription])


async def test_events_arrive_while_the_broker_is_killed_and_comes_back(
    migrated: Database, connection: asyncpg.Connection, broker: LocalBroker, caplog: pytest.LogCaptureFixture
) -> None:
    """No poll helps: the relay reads the missed events because the broker is available again."""
    async with following(migrated.url, broker) as (relay, alice):
        await publish(connection, 3)
        assert await receive_ids(alice, 3) == [1, 2, 3]
        await broker.kill()
        await publish(connection, 3)
        assert relay.not_ready_reason is None  # not needed: events only arrive later
        await broker.start()
        await publish(connection, 3)
        assert await receive_ids(alice, 9) == [4, 5, 6, 7, 8, 9]
    assert PASSWORD not in caplog.text


async def test_a_cancellation_that_the_client_of_nats_swallows_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    flushing = asyncio.Event()

    async def swallow(*_: object) -> None:
        flushing.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(PATIENCE_S)

    monkeypatch.setattr("nats.aio.client.Client.flush", swallow)
    async with make_broker("nats", PASSWORD) as broker:
        subscription = asyncio.create_task(load("nats").subscribe(Secret(broker.url), "alice", lambda _: None))
        await asyncio.wait_for(flushing.wait(), PATIENCE_S)
        subscription.cancel()
        done, _ = await asyncio.wait([subscription], timeout=PATIENCE_S)
        assert done
        assert subscription.cancelled()


@pytest.mark.parametrize("name", BROKERS)
async def test_a_password_may_hold_anything(name: str) -> None:
    async with make_broker(name, "p/a:s%s@w#o,rd?") as broker, load(name).publishing(Secret(broker.url)) as tell:
        await tell([LogMoved("alice", LogPosition(1, "e"))])


async def test_a_wrong_password_is_told_without_one(broker: LocalBroker) -> None:
    url = Secret(broker.url.replace(PASSWORD, "not-the-password"))
    with pytest.raises(Unreachable) as refused:
        async with asyncio.timeout(PATIENCE_S):
            await load(broker.name).subscribe(url, "alice", lambda _: None)
    assert "password-" not in str(refused.value)
    assert "not-the" not in str(refused.value)
    with pytest.raises(Unreachable):
        async with asyncio.timeout(PATIENCE_S), load(broker.name).publishing(url):
            pass


@pytest.mark.parametrize("name", BROKERS)
async def test_a_broker_that_is_not_there_is_told(name: str) -> None:
    url = Secret(make_broker(name, PASSWORD).url)
    with pytest.raises(Unreachable) as away:
        async with asyncio.timeout(PATIENCE_S):
            await load(name).subscribe(url, "alice", lambda _: None)
    assert PASSWORD not in str(away.value)


def test_what_is_encoded_is_decoded_and_nothing_else() -> None:
    assert decode(encode(LogPosition(42, "an epoch"))) == LogPosition(42, "an epoch")
    for message in (b"", b" e", b"x e", b"-1 e", b"1" * 20 + b" e", b"\xff\xfe", "\u0661 e".encode()):
        assert decode(message) is None


class TestWithNats:
    """Tests that are independent of the kind of broker."""

    @pytest.fixture
    async def broker(self) -> AsyncIterator[LocalBroker]:
        async with make_broker("nats") as broker:
            yield broker

    async def test_a_relay_does_without_until_the_broker_is_there(
        self,
        migrated: Database,
        connection: asyncpg.Connection,
        broker: LocalBroker,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        await broker.kill()
        with caplog.at_level(logging.WARNING, "userrealtime_relay"):
            async with running(migrated.url, None, **broker.variables, POLL_INTERVAL="0.2") as relay:
                await publish(connection, 2)
                await until(lambda: relay.tail.ring.head == 2)
                assert await metric(relay, "broker_connected") == 0
                await broker.start()
                async with asyncio.timeout(PATIENCE_S):
                    while await metric(relay, "broker_connected") == 0:
                        await asyncio.sleep(0.05)
        said = [record.__dict__["fields"]["error"] for record in caplog.records]
        assert said
        assert "refused" in said[0] or "Connect call failed" in said[0]

    async def test_of_two_bridges_either_may_fail(
        self, migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
    ) -> None:
        async with (
            running(migrated.url, None, **broker.variables, POLL_INTERVAL=NEVER) as relay,
            bridging(migrated.url, broker, POLL_INTERVAL=NEVER),
        ):
            async with bridging(migrated.url, broker, POLL_INTERVAL=NEVER):
                await publish(connection, 2)
                await until(lambda: relay.tail.ring.head == 2)
            await publish(connection, 2)
            await until(lambda: relay.tail.ring.head == 4)

    async def test_without_any_bridge_the_poll_goes_on(
        self, migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
    ) -> None:
        async with running(
            migrated.url, None, **broker.variables, POLL_INTERVAL="0.2", DATABASE_IDLE_AFTER="0"
        ) as relay:
            for number in range(1, 4):
                await publish(connection)
                await until(lambda number=number: relay.tail.ring.head == number)  # type: ignore[misc]
            assert await metric(relay, "log_connections_total") > 3

    async def test_a_new_epoch_is_told(
        self, migrated: Database, connection: asyncpg.Connection, broker: LocalBroker
    ) -> None:
        await publish(connection, 3)
        async with (
            bridging(migrated.url, broker, POLL_INTERVAL=NEVER),
            running(migrated.url, None, **broker.variables, POLL_INTERVAL=NEVER) as relay,
        ):
            await until(lambda: relay.tail.state.epoch is not None)
            ring = relay.tail.ring
            await connection.execute("update userrealtime.log set epoch = 'restored'")
            await until(lambda: relay.tail.ring is not ring)
            assert relay.tail.state.epoch == "restored"
