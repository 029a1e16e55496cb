"""Relays that hear of events from a real broker, to which a bridge tells them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest

from e2e.local.brokers import BROKERS, LocalBroker
from tests.conftest import Database
from tests.relay.brokers import bridging, make_broker
from tests.relay.support import client, publish, receive, receive_ids, running


@pytest.fixture(params=BROKERS)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[LocalBroker]:
    async with make_broker(request.param, password="secret") as broker:
        yield broker


async def test_events_arrive(migrated: Database, connection: asyncpg.Connection, broker: LocalBroker) -> None:
    async with (
        bridging(migrated.url, broker, POLL_INTERVAL="600"),
        running(migrated.url, None, **broker.variables, POLL_INTERVAL="600") as relay,
        client(relay) as alice,
    ):
        assert (await receive(alice))["cursor"] == 0
        for number in range(1, 20):
            await publish(connection)
            assert await receive_ids(alice, number) == [number]
