"""Long polling of Socket.IO through an activator before a real relay. Each request may reach another activator."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any, Final

import asyncpg
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from testing.database import Database
from testing.operator.activator import SERVICE, FakeCluster
from testing.patience import PATIENCE_S
from testing.relay.harness import client, publish, running, token, until
from testing.relay.http_client import Answer, request
from userrealtime_core.auth.connection_identity import HEADER
from userrealtime_core.protocols.engineio import ADOPTION_S, EARLY_BYTES, identity_in, new_sid
from userrealtime_core.protocols.socketio_packets import SEPARATOR
from userrealtime_operator.activator.proxy import polling
from userrealtime_operator.activator.proxy.polls import Polls
from userrealtime_operator.activator.proxy.proxy import ActivatorProxy
from userrealtime_relay.protocols import socketio

from .test_protocols import WRONG, protocol_gate

PATH: Final = "/socket.io/?EIO=4&transport=polling"
IDENTITY: Final = "0123456789abcdef01234567"


class Session:
    """The requests of one session of long polling."""

    def __init__(self, port: int, sid: str, **headers: str) -> None:
        self.port = port
        self.sid = sid
        self._headers = {**SERVICE, **headers}

    @classmethod
    async def begin(cls, port: int, **headers: str) -> Session:
        answer = await request(port, PATH, None, headers={**SERVICE, **headers})
        assert answer.status == HTTPStatus.OK, answer
        assert answer.body[:1] == b"0"
        packet = json.loads(answer.body[1:])
        assert packet["upgrades"] == ["websocket"]
        return cls(port, packet["sid"], **headers)

    async def post(self, body: str | bytes, **headers: str) -> Answer:
        data = body if isinstance(body, bytes) else body.encode()
        path = f"{PATH}&sid={self.sid}"
        return await request(self.port, path, None, method="POST", headers={**self._headers, **headers}, body=data)

    async def connect(self, bearer: str = "") -> Answer:
        return await self.post("40" + json.dumps({"token": bearer or token()}))

    async def poll(self) -> Answer:
        return await request(self.port, f"{PATH}&sid={self.sid}", None, headers=self._headers)

    async def packets(self) -> list[str]:
        """Return the packets of a poll, apart from those without a message."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                answer = await self.poll()
                assert answer.status == HTTPStatus.OK, answer
                if answer.body != b"6":
                    return [packet.decode() for packet in answer.body.split(SEPARATOR)]


def forget(activator: ActivatorProxy) -> None:
    """Let the activator know nothing of sessions, as another one."""
    activator._admission.polls = Polls()


def websocket_of(session: Session, **headers: str) -> AbstractAsyncContextManager[ClientConnection]:
    """Open a WebSocket that takes over a session."""
    parameters = {"EIO": "4", "transport": "websocket", "sid": session.sid}
    return client(session.port, None, path="/socket.io/", headers=headers, **parameters)


def events(packets: list[str]) -> list[Any]:
    return [json.loads(packet[2:])[1] for packet in packets if packet.startswith("42")]


async def until_connected(session: Session) -> list[str]:
    """Poll until the session is connected; return the packets after that."""
    first, *rest = await session.packets()
    assert first.startswith('40{"sid":'), first
    return rest


@pytest.mark.parametrize("other", [False, True])
async def test_a_session_wakes_the_user_and_continues_at_the_pod(
    migrated: Database, connection: asyncpg.Connection, other: bool
) -> None:
    async with protocol_gate(migrated) as (opened, cluster, _):
        session = await Session.begin(opened.port)
        waiting = asyncio.create_task(session.packets())
        await until(lambda: opened.connections == 1)
        assert cluster.wakes == 0
        if other:
            forget(opened)
        assert (await session.connect()).body == b"ok"
        assert cluster.wakes == 1
        async with asyncio.timeout(PATIENCE_S):
            [connected] = await waiting
        assert connected.startswith('40{"sid":')
        if other:
            forget(opened)
        await publish(connection, 1)
        assert len(events(await session.packets())) == 1
        answer = await session.post('42["note",{"n":1}]')
        assert answer.body == b"ok"
        async with asyncio.timeout(PATIENCE_S):
            while not await connection.fetchval("select count(*) from userrealtime.inbox"):
                await asyncio.sleep(0.01)
        # The route leads to the pod from now on, and the session is there.
        direct = Session(relay_port(cluster), session.sid)
        await publish(connection, 1)
        assert len(events(await direct.packets())) == 1


def relay_port(cluster: FakeCluster) -> int:
    pod = cluster._pod
    assert pod is not None
    return pod.address[1]


async def test_the_token_in_a_header(migrated: Database) -> None:
    async with protocol_gate(migrated) as (opened, cluster, _):
        session = await Session.begin(opened.port, Authorization=f"Bearer {token()}")
        assert (await session.post("40")).body == b"ok"
        assert await until_connected(session) == []
        assert cluster.wakes == 1


@pytest.mark.parametrize("other", [False, True])
async def test_a_wrong_token_is_reported_by_a_poll(
    migrated: Database, other: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "HOLD_S", 0.05)
    async with protocol_gate(migrated) as (opened, cluster, _):
        session = await Session.begin(opened.port)
        if not other:
            waiting = asyncio.create_task(session.packets())
            await until(lambda: opened.connections == 1)
        assert (await session.connect(WRONG)).body == b"ok"
        if other:
            known = opened._admission.polls
            forget(opened)
            assert (await session.poll()).body == b"6"  # and the client asks again
            opened._admission.polls = known
            waiting = asyncio.create_task(session.packets())
        error, end = await waiting
        assert json.loads(error[2:])["data"] == {"code": "unauthorized"}
        assert end == "1"
        assert cluster.wakes == 0


async def test_a_websocket_takes_over_the_session(migrated: Database, connection: asyncpg.Connection) -> None:
    """As the client from npm does it: at the same time as its first poll, before the pod is there."""
    async with protocol_gate(migrated) as (opened, cluster, _):
        session = await Session.begin(opened.port)

        async def upgrade() -> None:
            async with websocket_of(session) as websocket:
                await websocket.send("2probe")
                assert await websocket.recv() == "3probe"
                await connected
                await websocket.send("5")
                await publish(connection, 1)
                assert str(await websocket.recv()).startswith("42")

        connected = asyncio.ensure_future(until_connected(session))
        upgrading = asyncio.create_task(upgrade())
        await until(lambda: opened.connections == 2)
        assert (await session.connect()).body == b"ok"
        async with asyncio.timeout(PATIENCE_S):
            await upgrading
        assert cluster.wakes == 1


async def test_what_has_no_token_wakes_nobody(migrated: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "HOLD_S", 0.05)
    async with protocol_gate(migrated, request_s=0.1) as (opened, cluster, _):
        session = await Session.begin(opened.port)
        assert (await session.poll()).body == b"6"
        for body in ("3", '42["a"]', "40/other,", "nonsense"):
            answer = await session.post(body)
            assert (answer.status, answer.json["code"]) == (400, 1), body
        assert (await session.post(b"\x1e")).json["code"] == 3
        assert (await session.post("40")).body == b"ok"  # without a token
        assert (await session.packets())[0].startswith('44{"message":"Unauthorized')
        with pytest.raises(InvalidStatus, match="503"):
            async with websocket_of(session):
                pass
        assert cluster.wakes == 0


async def test_requests_that_are_rejected(migrated: Database) -> None:
    async with protocol_gate(migrated) as (opened, cluster, _):
        session = await Session.begin(opened.port)
        for path, code in (
            ("/socket.io/?EIO=3&transport=polling", 5),
            ("/socket.io/?EIO=4&transport=websocket", 3),
            ("/socket.io/?EIO=4&transport=carrier", 0),
            (f"{PATH}&j=0", 3),
            (f"{PATH}&sid=unknown", 1),
            (f"{PATH}&sid={new_sid(IDENTITY, time.time() - ADOPTION_S - 5)}", 1),
        ):
            answer = await request(opened.port, path, None, headers=SERVICE)
            assert (answer.status, answer.json["code"]) == (400, code), path
        assert (await request(opened.port, PATH, None, method="PUT", headers=SERVICE)).json["code"] == 2
        assert (await session.post("4" * (EARLY_BYTES + 1))).status == 413
        chunked = {"Transfer-Encoding": "chunked", "Content-Length": ""}
        assert (await session.post("2\r\n40\r\n0\r\n\r\n", **chunked)).status >= 400
        assert cluster.wakes == 0


async def test_the_keys_cannot_be_read(migrated: Database) -> None:
    """The client has to try again, so it gets no error that is final."""

    def keys() -> tuple[str, ...]:
        raise OSError("no answer")

    async with protocol_gate(migrated, keys=keys) as (opened, _, _):
        session = await Session.begin(opened.port)
        assert (await session.connect()).body == b"ok"
        assert await session.packets() == ["1"]


async def test_a_pod_that_does_not_come(migrated: Database) -> None:
    async with protocol_gate(migrated, comes=False, timeout_s=0.2) as (opened, cluster, _):
        session = await Session.begin(opened.port)
        assert (await session.connect()).status == 503
        assert cluster.wakes == 1


async def test_sessions_of_a_pod_are_forwarded_to_it(migrated: Database, connection: asyncpg.Connection) -> None:
    """While the route changes, requests of a session at a pod reach an activator."""
    async with protocol_gate(migrated) as (opened, cluster, _):
        relay = await cluster.start()
        cluster.ready(relay.ws_port)
        direct = await Session.begin(relay.ws_port)
        assert identity_in(direct.sid, time.time()) is None
        through = Session(opened.port, direct.sid)
        assert (await through.connect()).body == b"ok"
        assert (await until_connected(through)) == []
        await publish(connection, 1)
        assert len(events(await through.packets())) == 1
        assert cluster.wakes == 0


async def test_a_session_with_a_token_is_not_evicted(migrated: Database) -> None:
    async with protocol_gate(migrated, unauthenticated=1) as (opened, _, _):
        session = await Session.begin(opened.port)
        assert (await session.connect()).body == b"ok"
        assert await until_connected(session) == []
        await until(lambda: opened.connections == 0)
        waiting = asyncio.create_task(session.poll())
        await until(lambda: opened.connections == 1 and opened._admission.unauthenticated == 0)
        for _ in range(3):
            await Session.begin(opened.port)
        await asyncio.sleep(0.1)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_pages_of_other_origins(migrated: Database) -> None:
    origin = "https://app.example.com"
    async with protocol_gate(migrated, relay={"ALLOWED_ORIGINS": origin}) as (opened, _, _):
        answer = await request(opened.port, PATH, None, headers={**SERVICE, "Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        answer = await request(opened.port, PATH, None, headers={**SERVICE, "Origin": "https://evil.test"})
        assert "access-control-allow-origin" not in answer.headers


async def test_a_relay_takes_over_only_sessions_that_come_from_an_activator(
    migrated: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socketio, "SESSIONS_PER_CONNECTION", 1)
    async with running(migrated.url, PROTOCOLS="socketio", MAX_CONNECTIONS="1") as relay:
        now = time.time()
        for sid, headers in (
            (new_sid(IDENTITY, now), {}),
            (new_sid(IDENTITY, now), {HEADER: "0" * 24}),
            (new_sid(IDENTITY, now - ADOPTION_S - 5), {HEADER: IDENTITY}),
            (IDENTITY, {HEADER: IDENTITY}),
        ):
            answer = await Session(relay.ws_port, sid, **headers).connect()
            assert (answer.status, answer.json["code"]) == (400, 1)
        adopted = Session(relay.ws_port, new_sid(IDENTITY, now), **{HEADER: IDENTITY})
        assert (await adopted.connect()).body == b"ok"
        # They are counted as those that begin at the relay.
        other = Session(relay.ws_port, new_sid("1" * 24, now), **{HEADER: "1" * 24})
        assert (await other.connect()).status == 503
        with pytest.raises(InvalidStatus, match="400"):
            async with websocket_of(other, **{HEADER: "1" * 24}):
                pass
