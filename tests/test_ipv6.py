"""All parts on addresses of IPv6 only, as on a cluster without IPv4.

The servers listen on ::1 and on no address of IPv4, and every URL contains [::1].
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from testing.local.brokers import BROKERS
from testing.local.postgres import LocalPostgres
from testing.operator.activator import SERVICE, gate, secret
from testing.operator.names import child_name
from testing.operator.pods import FakePods
from testing.relay.brokers import bridging, make_broker
from testing.relay.harness import KEY, NEVER, PATIENCE_S, client, get, publish, receive, receive_ids, running, token
from testing.relay.http_client import request
from testing.relay.issuer import RSA, endpoint, jwk, sign
from userrealtime_client import Client, Event, Options, Position
from userrealtime_client.machine import Transport
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_core.secret import Secret
from userrealtime_operator.activator import announcements
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.routes import Route
from userrealtime_operator.activator.tokens import Tokens
from userrealtime_operator.activator.wakes import Wakes
from userrealtime_operator.kube.types import NamespacedName
from userrealtime_operator.postgres.database import Database
from userrealtime_operator.postgres.migrate import migrate
from userrealtime_operator.postgres.roles import Roles
from userrealtime_operator.secrets.database_passwords import Credentials, role_names
from userrealtime_relay.broadcast_api.config import Config as BroadcastConfig
from userrealtime_relay.broadcast_api.server import BroadcastApi
from userrealtime_relay.notify.kafka import _connection as kafka_connection
from userrealtime_relay.process.registration import register_address

HOST = "::1"
TRANSPORTS: tuple[Transport, ...] = ("websocket", "sse", "poll")
SCOPE = "cluster/users"
APPLICATION = "a-token-of-an-application-0123456789"


@pytest.fixture(scope="module")
def server() -> Iterator[LocalPostgres]:
    with LocalPostgres(host=HOST) as server:
        yield server


@pytest.fixture
async def url(server: LocalPostgres) -> str:
    """The URL of a new database with the schema."""
    admin = await asyncpg.connect(server.url())
    await admin.execute("drop database if exists app")
    await admin.execute("create database app")
    await admin.close()
    await migrate(server.url("app"))
    return server.url("app")


@pytest.fixture
async def connection(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


async def test_every_transport_of_a_relay(url: str, connection: asyncpg.Connection) -> None:
    await publish(connection, 2)
    async with running(url, HOST=HOST) as relay:
        assert (await get(relay.health_port, "/ready", host=HOST))[0] == 200
        answer = await request(relay, "/poll?last_event_id=0", host=HOST)
        assert [event["id"] for event in answer.json["events"]] == [1, 2]
        address = f"http://[{HOST}]:{relay.ws_port}"
        for transport in TRANSPORTS:
            options = Options(transports=(transport,))
            async with Client(address, token=token(), position=Position(0, None), options=options) as alice:
                async with asyncio.timeout(PATIENCE_S):
                    first = await anext(aiter(alice))
            assert isinstance(first, Event)
            assert first.id == 1


@pytest.mark.parametrize("name", BROKERS)
async def test_a_broker_and_its_bridge(url: str, connection: asyncpg.Connection, name: str) -> None:
    async with (
        make_broker(name, host=HOST) as broker,
        bridging(url, broker, HOST=HOST, POLL_INTERVAL=NEVER) as bridge,
        running(url, None, **broker.variables, HOST=HOST, POLL_INTERVAL=NEVER) as relay,
        client(relay, host=HOST) as alice,
    ):
        assert (await receive(alice))["cursor"] == 0
        await publish(connection, 2)
        assert await receive_ids(alice, 2) == [1, 2]
        assert (await get(bridge.health_port, "/ready", host=HOST))[0] == 200


def test_servers_of_kafka_keep_their_brackets() -> None:
    """Without them, an address and a short port such as 9092 are another address."""
    servers = Secret("kafka://user:password@[fd00::1]:9092,kafka://[fd00::2],kafka://kafka.svc")
    assert kafka_connection(servers)["bootstrap_servers"] == ["[fd00::1]:9092", "[fd00::2]:9092", "kafka.svc:9092"]


async def test_the_broadcast_api(url: str) -> None:
    settings = {"DATABASE_URL": url, "BROADCAST_TOKEN": APPLICATION, "HOST": HOST, "PORT": "0", "HEALTH_PORT": "0"}
    async with BroadcastApi(BroadcastConfig.from_environment(settings)) as api, asyncio.timeout(PATIENCE_S):
        while (await get(api.health_port, "/ready", host=HOST))[0] != 200:
            await asyncio.sleep(0.01)
        body = json.dumps({"userId": "alice", "event": "job.progress", "data": 1}).encode()
        answer = await request(api.port, "/broadcast", APPLICATION, method="POST", body=body, host=HOST)
        assert answer.status < 300, answer


async def test_a_key_set(url: str) -> None:
    async with endpoint(jwk(RSA, "r"), host=HOST) as issuer:
        assert f"//[{HOST}]:" in issuer.url
        async with (
            running(url, HOST=HOST, JWKS_URL=issuer.url, TOKEN_AUDIENCE="*", TOKEN_KEY="") as relay,
            client(relay, sign(RSA, "r"), host=HOST) as alice,
        ):
            assert (await receive(alice))["type"] == "connected"


async def test_the_credentials_of_a_user(url: str, connection: asyncpg.Connection) -> None:
    """The operator writes the URL of the user's role from its own URL."""
    credentials = Credentials(role_names("/app", SCOPE, "alice")[0], "a password")
    async with Database(url) as database:
        await Roles(database).ensure(credentials, "6f3c3f0e-0000-4000-8000-000000000001", SCOPE, "alice")
    await publish(connection, 1)
    async with running(credentials.url(url), HOST=HOST) as relay, client(relay, host=HOST, last_event_id="0") as alice:
        assert (await receive(alice))["type"] == "connected"
        assert await receive_ids(alice, 1) == [1]


async def test_an_activator_and_the_pod_that_it_wakes(url: str, connection: asyncpg.Connection) -> None:
    await publish(connection, 2)
    async with gate(url, host=HOST) as (opened, cluster, _):
        answer = await request(opened.port, "/poll?last_event_id=0", headers=SERVICE, host=HOST)
        assert answer.status == 200, answer
        assert [event["id"] for event in answer.json["events"]] == [1, 2]
        assert cluster.wakes == 1


async def test_a_pod_registers_its_address() -> None:
    route = Route(NamespacedName("users", "alice"), "alice", "", child_name("alice"))

    async def read(_: Route) -> dict[str, object]:
        return secret(KEY)

    metrics = Metrics()
    async with await asyncio.start_server(lambda _, writer: writer.close(), HOST, 0) as pod:
        pods = FakePods(port=pod.sockets[0].getsockname()[1])
        wakes, tokens = Wakes(pods, metrics), Tokens(RelaySettings.from_environment({}), read)
        async with announcements.serve(HOST, 0, wakes, tokens, metrics) as port, asyncio.timeout(PATIENCE_S):
            await tokens.check(route, token())
            waiting = asyncio.create_task(wakes.wake_and_wait(route))
            await asyncio.sleep(0.05)
            await register_address(f"http://[{HOST}]:{port}/users/{route.child_name}", HOST, KEY)
            assert await waiting == (HOST, pods.port)
            await wakes.close()
