"""Clients of other systems' protocols that reach an activator before a real relay: what they see of a wake."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import asyncpg
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from testing.database import Database
from testing.operator.activator import SERVICE, FakeCluster, gate
from testing.patience import PATIENCE_S
from testing.relay.harness import KEY, USER, client, closed, publish, receive, running, token, until
from testing.relay.http_client import request
from userrealtime_core.auth.connection_identity import HEADER
from userrealtime_core.protocols.actioncable import EXTENDED, PLAIN, RAILS
from userrealtime_core.relay_settings import PROTOCOLS
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.proxy.dialogue import Dialogue
from userrealtime_operator.activator.proxy.proxy import ActivatorProxy
from userrealtime_operator.activator.proxy.tunnel import Tunnel

WRONG: Final = token(key="a key of a stranger's that is long enough")
LOG: Final = "realtime:log"


@asynccontextmanager
async def protocol_gate(
    database: Database, *, protocols: str = ",".join(PROTOCOLS), **options: Any
) -> AsyncIterator[tuple[ActivatorProxy, FakeCluster, Metrics]]:
    relay = {"PROTOCOLS": protocols, **options.pop("relay", {})}
    async with gate(database.url, relay=relay, **options) as opened:
        yield opened


def pusher(port: int, **headers: str) -> AbstractAsyncContextManager[ClientConnection]:
    return client(port, None, path="/app/key", protocol="7", headers=headers)


def supabase(port: int) -> AbstractAsyncContextManager[ClientConnection]:
    return client(port, None, path="/realtime/v1/websocket", vsn="1.0.0")


def socketio(port: int) -> AbstractAsyncContextManager[ClientConnection]:
    return client(port, None, path="/socket.io/", EIO="4", transport="websocket")


def cable(port: int, bearer: str, *names: str) -> AbstractAsyncContextManager[ClientConnection]:
    return client(port, None, path="/cable", subprotocols=[Subprotocol(name) for name in (*names, f"bearer.{bearer}")])


async def tell(connection: ClientConnection, **fields: Any) -> None:
    await connection.send(json.dumps(fields))


async def text(connection: ClientConnection) -> str:
    async with asyncio.timeout(PATIENCE_S):
        return str(await connection.recv())


async def subscribe(connection: ClientConnection, auth: str, channel: str = "private-log") -> None:
    await tell(connection, event="pusher:subscribe", data={"channel": channel, "auth": auth})


async def join(connection: ClientConnection, bearer: str | None, ref: str) -> dict[str, Any]:
    """Join a channel of Supabase, and return the answer."""
    payload = {} if bearer is None else {"access_token": bearer}
    await tell(connection, topic=LOG, event="phx_join", payload=payload, ref=ref, join_ref=ref)
    answer = await receive(connection)
    assert (answer["event"], answer["ref"]) == ("phx_reply", ref)
    return answer


async def without_pings(connection: ClientConnection) -> dict[str, Any]:
    while (message := await receive(connection)).get("type") == "ping":
        pass
    return message


async def test_a_client_of_pusher_is_greeted_before_the_wake_and_only_then(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await publish(connection, 2)
    async with protocol_gate(migrated) as (opened, cluster, _), pusher(opened.port) as alice:
        established = await receive(alice)
        assert established["event"] == "pusher:connection_established"
        await tell(alice, event="pusher:ping", data={})
        assert (await receive(alice))["event"] == "pusher:pong"
        await subscribe(alice, f"urt:{WRONG}")
        assert (await receive(alice))["event"] == "pusher:subscription_error"
        assert cluster.wakes == 0
        await subscribe(alice, f"urt:{token()};1;envelope")
        await tell(alice, event="pusher:ping", data={"n": 1})  # while the pod starts
        names = [(await receive(alice))["event"] for _ in range(4)]
        assert sorted(names[:3]) == ["pusher:pong", "pusher_internal:subscription_succeeded", "userrealtime:position"]
        assert names[3] == "test.event"
        assert cluster.wakes == 1


async def test_a_signature_is_valid_for_the_connection_at_the_pod(migrated: Database) -> None:
    """The client signs the id that it has got from the activator."""
    async with protocol_gate(migrated) as (opened, cluster, _), pusher(opened.port) as alice:
        socket_id = json.loads((await receive(alice))["data"])["socket_id"]
        await subscribe(alice, f"app:{sign(socket_id, WRONG)}")
        assert (await receive(alice))["event"] == "pusher:subscription_error"
        assert cluster.wakes == 0
        await subscribe(alice, f"app:{sign(socket_id)}")
        assert (await receive(alice))["event"] == "pusher_internal:subscription_succeeded"
        assert cluster.wakes == 1


def sign(socket_id: str, key: str = KEY, channel: str = "private-log") -> str:
    return hmac.digest(key.encode(), f"{socket_id}:{channel}".encode(), "sha256").hex()


async def test_a_client_that_chooses_its_identity_can_use_no_signature(migrated: Database) -> None:
    """Otherwise, it could repeat the signature of another connection."""
    identity = "0" * 23 + "1"
    async with running(migrated.url, PROTOCOLS="pusher") as relay:
        for value in (identity, f"{identity};{'0' * 64}"):
            async with pusher(relay.ws_port, **{HEADER: value}) as alice:
                socket_id = json.loads((await receive(alice))["data"])["socket_id"]
                assert socket_id == "0.1"
                await subscribe(alice, f"app:{sign(socket_id)}")
                assert (await receive(alice))["event"] == "pusher:subscription_error"
                await subscribe(alice, f"urt:{token()}")
                assert (await receive(alice))["event"] == "pusher_internal:subscription_succeeded"


async def test_an_activator_does_not_forward_the_identity_of_a_client(migrated: Database) -> None:
    identity = "0" * 23 + "1"
    async with protocol_gate(migrated) as (opened, _, _), pusher(opened.port, **{HEADER: identity}) as alice:
        socket_id = json.loads((await receive(alice))["data"])["socket_id"]
        assert socket_id != "0.1"
        await subscribe(alice, f"app:{sign(socket_id)}")
        assert (await receive(alice))["event"] == "pusher_internal:subscription_succeeded"


async def test_a_client_of_supabase_joins_with_its_second_token(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with protocol_gate(migrated) as (opened, cluster, _), supabase(opened.port) as alice:
        await tell(alice, topic="phoenix", event="heartbeat", payload={}, ref="1")
        assert (await receive(alice))["ref"] == "1"
        assert (await join(alice, None, "2"))["payload"]["status"] == "error"
        assert (await join(alice, WRONG, "3"))["payload"]["status"] == "error"
        assert cluster.wakes == 0
        assert (await join(alice, token(), "4"))["payload"]["status"] == "ok"
        assert cluster.wakes == 1
        assert (await receive(alice))["event"] == "system"
        await publish(connection, 1)
        assert (await receive(alice))["payload"]["event"] == "test.event"


async def test_a_client_of_socketio_connects_with_a_websocket(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    async with protocol_gate(migrated, relay={"PING_INTERVAL": "17"}) as (opened, cluster, _):
        async with socketio(opened.port) as alice:
            packet = json.loads((await text(alice))[1:])
            assert packet["sid"]
            assert (packet["pingInterval"], packet["upgrades"]) == (17_000, [])
            assert cluster.wakes == 0
            await alice.send("40" + json.dumps({"token": token()}))
            assert (await text(alice)).startswith('40{"sid":')
            await publish(connection, 1)
            assert (await text(alice)).startswith('42["test.event",')
            assert cluster.wakes == 1
        async with socketio(opened.port) as alice:
            await text(alice)
            await alice.send("40" + json.dumps({"token": WRONG}))
            assert (await text(alice)).startswith('44{"message":"Unauthorized')
            assert await closed(alice) == (1008, "Unauthorized")


@pytest.mark.parametrize("names", [(PLAIN, RAILS), (EXTENDED,)])
async def test_a_client_of_action_cable_gets_pings_until_the_pod_is_there(
    migrated: Database, connection: asyncpg.Connection, names: Sequence[str]
) -> None:
    async with protocol_gate(migrated) as (opened, cluster, _), cable(opened.port, token(), *names) as alice:
        assert alice.subprotocol == names[0]
        assert (await receive(alice))["type"] == "ping"
        assert (await without_pings(alice))["type"] == "welcome"
        identifier = json.dumps({"channel": "Log"})
        await tell(alice, command="subscribe", identifier=identifier)
        assert (await without_pings(alice))["type"] == "confirm_subscription"
        await publish(connection, 1)
        assert (await without_pings(alice))["message"]["event"] == "test.event"
        assert cluster.wakes == 1


@pytest.mark.parametrize(
    ("bearer", "rails", "reason", "reconnect"),
    [(WRONG, True, "unauthorized", False), (token(life_s=-60), False, "token_expired", False)],
)
async def test_a_client_of_action_cable_without_a_valid_token_stops(
    migrated: Database, bearer: str, rails: bool, reason: str, reconnect: bool
) -> None:
    names = (PLAIN, RAILS) if rails else (EXTENDED,)
    async with protocol_gate(migrated) as (opened, cluster, metrics), cable(opened.port, bearer, *names) as alice:
        assert await receive(alice) == {"type": "disconnect", "reason": reason, "reconnect": reconnect}
        assert (await closed(alice))[0] == 1008
        assert cluster.wakes == 0
        assert metrics.value("outcomes_total", outcome="unauthorized") == 1


async def test_requests_wake_the_user(migrated: Database, connection: asyncpg.Connection) -> None:
    await publish(connection, 2)
    form = {**SERVICE, "Content-Type": "application/x-www-form-urlencoded"}
    async with protocol_gate(migrated) as (opened, cluster, _):
        for path in ("/streams/log", "/realtime/v1/api/broadcast", "/pusher/auth"):
            method = "GET" if path == "/streams/log" else "POST"
            for bearer in (WRONG, None):
                assert (await request(opened.port, path, bearer, method=method, headers=SERVICE)).status == 401
        assert cluster.wakes == 0
        answer = await request(opened.port, "/streams/log?offset=-1", headers=SERVICE)
        assert [event["id"] for event in answer.json] == [1, 2]
        assert (await request(opened.port, "/streams/log", method="HEAD", headers=SERVICE)).status == 200
        body = b"socket_id=1.2&channel_name=private-log"
        answer = await request(opened.port, "/pusher/auth", method="POST", headers=form, body=body)
        assert answer.json["auth"].startswith("urt:")
        message = {"topic": "log", "event": "note", "payload": {}}
        body = json.dumps({"messages": [message]}).encode()
        answer = await request(opened.port, "/realtime/v1/api/broadcast", method="POST", headers=SERVICE, body=body)
        assert answer.status == 202
        assert cluster.wakes == 4
        assert (await request(opened.port, "/streams/log", method="POST", headers=SERVICE)).status == 405


@pytest.mark.parametrize("enabled", ["", *PROTOCOLS])
async def test_a_protocol_is_there_only_if_it_is_enabled(migrated: Database, enabled: str) -> None:
    async with protocol_gate(migrated, protocols=enabled, comes=False, timeout_s=0.1) as (opened, cluster, _):
        for name, open_socket in (("pusher", pusher), ("socketio", socketio), ("supabase", supabase)):
            if name == enabled:
                async with open_socket(opened.port):
                    pass
                continue
            with pytest.raises(InvalidStatus, match="404"):
                async with open_socket(opened.port):
                    pass
        if enabled != "actioncable":
            with pytest.raises(InvalidStatus, match="404"):
                async with cable(opened.port, token(), PLAIN):
                    pass
        for name, path in (
            ("durable-streams", "/streams/log"),
            ("pusher", "/pusher/auth"),
            ("supabase", "/realtime/v1/api/broadcast"),
        ):
            method = "GET" if name == "durable-streams" else "POST"
            status = 503 if name == enabled else 404
            assert (await request(opened.port, path, method=method, headers=SERVICE)).status == status
        assert cluster.wakes == (enabled in ("durable-streams", "pusher", "supabase"))


async def test_a_pod_that_does_not_come_is_an_end_after_which_a_client_returns(migrated: Database) -> None:
    async with protocol_gate(migrated, comes=False, timeout_s=0.1) as (opened, _, metrics):
        async with pusher(opened.port) as alice:
            await subscribe(alice, f"urt:{token()}")
            assert (await closed(alice))[0] == 4100
        async with supabase(opened.port) as alice:
            await tell(alice, topic=LOG, event="phx_join", payload={"access_token": token()}, ref="1", join_ref="1")
            assert (await closed(alice))[0] == 1013
        async with cable(opened.port, token(), PLAIN, RAILS) as alice:
            assert (await closed(alice))[0] == 1013
        assert metrics.value("outcomes_total", outcome="unavailable") == 3


async def test_what_says_nothing_is_cut(migrated: Database) -> None:
    async with protocol_gate(migrated, request_s=0.1) as (opened, _, _):
        for open_socket, code in ((pusher, 4009), (supabase, 1008), (socketio, 1008)):
            async with open_socket(opened.port) as alice:
                assert (await closed(alice))[0] == code


async def test_a_client_that_says_too_much_before_its_token_is_cut(migrated: Database) -> None:
    async with protocol_gate(migrated) as (opened, cluster, metrics):
        for open_socket, code in ((pusher, 4009), (supabase, 1008)):
            async with open_socket(opened.port) as alice:
                for _ in range(40):
                    await alice.send(" " * 1000)
                assert (await closed(alice))[0] == code
        async with pusher(opened.port) as alice:
            await alice.send(b"\x00")
            for _ in range(9):
                await alice.send("nonsense")
            assert await closed(alice) == (4009, "Too many errors")
        assert cluster.wakes == 0
        assert metrics.value("outcomes_total", outcome="unauthorized") == 3


async def test_the_oldest_client_without_a_token_is_closed_for_a_new_one(migrated: Database) -> None:
    async with protocol_gate(migrated, unauthenticated=1) as (opened, _, metrics), pusher(opened.port) as alice:
        await receive(alice)
        async with pusher(opened.port) as bob:
            await receive(bob)
            assert (await closed(alice))[0] == 4100
        assert metrics.value("outcomes_total", outcome="evicted") == 1


async def test_a_drain_asks_clients_to_return_in_the_words_of_their_protocol(migrated: Database) -> None:
    async with (
        protocol_gate(migrated) as (opened, _, _),
        pusher(opened.port) as waiting,
        pusher(opened.port) as forwarded,
        cable(opened.port, token(), PLAIN, RAILS) as rails,
    ):
        assert (await without_pings(rails))["type"] == "welcome"
        await receive(forwarded)
        await subscribe(forwarded, f"urt:{token()}")
        await receive(forwarded)
        await receive(waiting)
        await opened.drain(0)
        assert (await closed(waiting))[0] == 4100
        assert (await closed(forwarded))[0] == 4100
        assert await without_pings(rails) == {"type": "disconnect", "reason": "server_restart", "reconnect": True}
        assert (await closed(rails))[0] == 1012


async def test_a_pod_that_ends_before_it_answers_is_not_the_last_word(migrated: Database) -> None:
    async with protocol_gate(migrated, ghosts=1) as (opened, _, _), pusher(opened.port) as alice:
        await receive(alice)
        await subscribe(alice, f"urt:{token()}")
        assert (await receive(alice))["event"] == "pusher_internal:subscription_succeeded"


async def test_a_page_of_another_origin_may_not_connect(migrated: Database) -> None:
    async with protocol_gate(migrated, relay={"ALLOWED_ORIGINS": "https://app.example.com"}) as (opened, cluster, _):
        with pytest.raises(InvalidStatus, match="403"):
            async with pusher(opened.port, Origin="https://evil.test"):
                pass
        async with pusher(opened.port, Origin="https://app.example.com") as alice:
            assert (await receive(alice))["event"] == "pusher:connection_established"
        assert cluster.wakes == 0


async def test_a_parked_user_is_woken(migrated: Database, connection: asyncpg.Connection) -> None:
    """Also by a client at the head: the activator parks only clients of its own protocol."""
    await publish(connection, 1)
    epoch = await connection.fetchval("select epoch from userrealtime.log where user_id = $1", USER)
    async with protocol_gate(migrated, parking=True) as (opened, cluster, metrics):
        subprotocols = [Subprotocol(PLAIN), Subprotocol(f"bearer.{token()}")]
        connecting = client(
            opened.port, None, path="/cable", subprotocols=subprotocols, last_event_id="1", epoch=str(epoch)
        )
        async with connecting as alice:
            assert (await without_pings(alice))["type"] == "welcome"
        assert cluster.wakes == 1
        assert metrics.value("parks_total") == 0


async def test_heartbeats_end_with_the_wait(migrated: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise they could be written between two parts of a frame of the pod."""
    beats: list[bool] = []
    original = Tunnel.run

    async def run(tunnel: Tunnel, *arguments: Any) -> None:
        beats.append(False)
        await original(tunnel, *arguments)

    monkeypatch.setattr(Tunnel, "run", run)
    monkeypatch.setattr("userrealtime_core.protocols.actioncable.ActionCable.beat_s", 0.02)
    async with protocol_gate(migrated) as (opened, _, _):
        speak = Dialogue.beat

        def beat(dialogue: Dialogue, unix_s: float) -> bytes:
            beats.append(True)
            return speak(dialogue, unix_s)

        monkeypatch.setattr(Dialogue, "beat", beat)
        async with cable(opened.port, token(), PLAIN, RAILS) as alice:
            assert (await without_pings(alice))["type"] == "welcome"
            await asyncio.sleep(0.1)
        await until(lambda: opened.connections == 0)
    assert beats.count(True) > 1
    assert beats[-1] is False
