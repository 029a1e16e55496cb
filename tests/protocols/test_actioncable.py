"""Action Cable: transcripts of the dialect, and a connection to a real relay."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, Final

import asyncpg
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from testing.announcer import broadcasting
from testing.database import Database
from testing.relay.harness import (
    PATIENCE_S,
    USER,
    client,
    closed,
    config,
    eventually,
    is_metric,
    receive,
    running,
    token,
)
from userrealtime_core.protocols.actioncable import EXTENDED, PLAIN, RAILS, ActionCable
from userrealtime_core.protocols.dialect import (
    MAX_CHANNELS,
    Act,
    Authenticate,
    Broadcast,
    Close,
    Join,
    Leave,
    Mistake,
    Opening,
    Publish,
    Say,
)
from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest, Resume
from userrealtime_core.wire.frames import encode_text
from userrealtime_core.wire.session import MAX_ERRORS, TOO_MANY_MESSAGES, UNAUTHORIZED, CloseFrame
from userrealtime_core.wire.submission import Refused
from userrealtime_relay.server import Relay
from userrealtime_relay.wire.frames import encode_events

LOG = json.dumps({"channel": "Log"})
# No program listens there.
NO_DATABASE: Final = "postgresql://nobody@127.0.0.1:1/none"
AT = "2026-01-02 03:04:05.678901+00"


def cable(*offered: str, broadcasts: bool = False, **query: str) -> ActionCable:
    request = ConnectRequest("t", Resume())
    return ActionCable(Opening("/cable", query, {}, offered, request, False, "random", USER, broadcasts))


def said(acts: Any) -> list[dict[str, Any]]:
    return [json.loads(act.text) for act in acts if isinstance(act, Say)]


def send(dialect: ActionCable, **fields: Any) -> list[Act]:
    return list(dialect.receive(json.dumps(fields)))


def joined(dialect: ActionCable, identifier: str = LOG, **more: Any) -> Join:
    confirm, join = send(dialect, command="subscribe", identifier=identifier, **more)
    assert said([confirm]) == [{"type": "confirm_subscription", "identifier": identifier}]
    assert isinstance(join, Join)
    return join


def test_the_plain_protocol() -> None:
    dialect = cable(PLAIN, RAILS)
    assert list(dialect.begin(0)) == [Authenticate("t")]
    assert said(dialect.accepted(None, 60, (7, "e"))) == [{"type": "welcome"}]
    assert said(dialect.beat(12.5)) == [{"type": "ping", "message": 12}]
    assert joined(dialect) == Join(LOG, "log", "t", Resume())
    again = send(dialect, command="subscribe", identifier=LOG)
    assert said(again) == [{"type": "confirm_subscription", "identifier": LOG}]
    assert len(again) == 1
    [text] = dialect.translate(LOG, b"".join(encode_events([("e", 8, "a", AT, "[1]")])), "e")
    assert json.loads(text) == {
        "identifier": LOG,
        "message": {"type": "event", "id": 8, "event": "a", "at": "2026-01-02T03:04:05.678901Z", "data": [1]},
    }
    [publish] = send(dialect, command="message", identifier=LOG, data='{"action":"note","ref":"r","x":1}')
    assert isinstance(publish, Publish)
    assert publish.submission == ("r", "note", '{"x":1}')
    assert said(dialect.stored(LOG, publish.submission, 3))[0]["message"] == {"type": "ack", "ref": "r", "id": 3}
    assert said(dialect.stored(LOG, publish.submission, Refused("no")))[0]["message"]["code"] == "refused"
    assert send(dialect, command="unsubscribe", identifier=LOG) == [Leave(LOG)]


def test_the_extended_protocol_resumes_by_stream_then_by_session() -> None:
    dialect = cable(EXTENDED, sid="5:e:x")
    assert said(dialect.accepted(None, 60, (7, "e"))) == [{"type": "welcome", "sid": "5:e:random"}]
    streams = {"log": {"offset": 6, "epoch": "e"}}
    assert joined(dialect, history={"since": 1, "streams": streams}).resume == Resume(6, "e")
    assert said(dialect.caught_up(LOG)) == [{"type": "confirm_history", "identifier": LOG}]
    other = json.dumps({"channel": "$pubsub", "stream_name": "C"})
    assert joined(dialect, other)[1:4] == ("C", "t", Resume(5, "e"))
    [text] = dialect.translate(other, b"".join(encode_events([("e", 8, "a", AT, "1"), ("e", 9, "C#b", AT, "2")])), "e")
    message = json.loads(text)
    assert (message["stream_id"], message["epoch"], message["offset"]) == ("C", "e", 9)
    assert message["message"]["event"] == "b"


def test_without_a_position_it_begins_at_the_time_of_the_page() -> None:
    dialect = cable(EXTENDED)
    assert said(dialect.accepted(None, 60, (7, "e"))) == [{"type": "welcome", "sid": "7:e:random"}]
    assert joined(dialect, history={"since": 12}).since == 12
    reset = {"type": "reset", "reason": "too-old", "cursor": 7}
    assert [each.get("type", "message") for each in said(dialect.told(LOG, reset, 7, "e"))] == [
        "reject_history",
        "message",
    ]
    assert joined(cable(EXTENDED), history={"since": False}).since is None


@pytest.mark.parametrize(
    "identifier", ["x", "[]", '{"channel":"a#b"}', '{"channel":"$pubsub","signed_stream_name":"x"}']
)
def test_other_channels_are_rejected(identifier: str) -> None:
    acts = send(cable(PLAIN), command="subscribe", identifier=identifier)
    assert said(acts) == [{"type": "reject_subscription", "identifier": identifier}]


@pytest.mark.parametrize("message", [b"{}", "x", "[]", "{}", '{"command":"fly","identifier":"x"}'])
def test_invalid_messages_are_counted(message: str | bytes) -> None:
    assert list(cable(PLAIN).receive(message)) == [Mistake()]


ROOM = json.dumps({"channel": "Room"})


@pytest.mark.parametrize("protocol", [PLAIN, EXTENDED])
def test_a_broadcast_is_a_message_without_a_position(protocol: str) -> None:
    dialect = cable(protocol)
    joined(dialect)
    joined(dialect, ROOM)
    names = ("typing", "Room#typing", "Other#typing")
    frames = b"".join(
        encode_text(f'{{"type":"broadcast","event":"{name}","data":{place}}}') for place, name in enumerate(names)
    )
    assert [json.loads(text) for text in dialect.translate_broadcasts(LOG, frames)] == [
        {"identifier": LOG, "message": {"type": "broadcast", "event": name, "data": place}}
        for place, name in enumerate(names)
    ]
    assert [json.loads(text) for text in dialect.translate_broadcasts(ROOM, frames)] == [
        {"identifier": ROOM, "message": {"type": "broadcast", "event": "typing", "data": 1}}
    ]
    send(dialect, command="unsubscribe", identifier=ROOM)
    assert list(dialect.translate_broadcasts(ROOM, frames)) == []


def test_a_whisper_is_a_broadcast_where_clients_may_send_some() -> None:
    dialect = cable(EXTENDED, broadcasts=True)
    joined(dialect)
    joined(dialect, ROOM)
    assert send(dialect, command="whisper", identifier=LOG, data={"n": 1}) == [Broadcast("whisper", {"n": 1}, LOG)]
    assert send(dialect, command="whisper", identifier=ROOM, data=None) == [Broadcast("Room#whisper", None, ROOM)]
    assert list(dialect.broadcasted(Broadcast("whisper", 1, LOG), "too many")) == []
    assert send(dialect, command="whisper", identifier="other", data=1) == [Mistake()]


def test_a_whisper_is_stored_where_clients_may_send_no_broadcasts() -> None:
    dialect = cable(EXTENDED)
    joined(dialect)
    [publish] = send(dialect, command="whisper", identifier=LOG, data=[1])
    assert isinstance(publish, Publish)
    assert (publish.submission.event, publish.submission.data) == ("whisper", "[1]")


def test_how_it_ends() -> None:
    restarting = CloseFrame(CloseCode.RESTARTING, "Restarting")
    assert said(cable(PLAIN, RAILS).ending(None, restarting, expired=False))[0]["reconnect"] is True
    assert list(cable(EXTENDED).ending(None, restarting, expired=False)) == [Close(1012, "Restarting")]
    [message] = said(cable(EXTENDED).ending(None, UNAUTHORIZED, expired=True))
    assert (message["reason"], message["reconnect"]) == ("token_expired", False)
    [message] = said(cable(PLAIN, RAILS).ending(None, UNAUTHORIZED, expired=True))
    assert (message["reason"], message["reconnect"]) == ("unauthorized", False)


async def message_of(connection: ClientConnection) -> dict[str, Any]:
    """Return the next message that is not a ping."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            message: dict[str, Any] = json.loads(await connection.recv())
            if message.get("type") != "ping":
                return message


async def test_a_real_relay(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    async with running(migrated.url, PROTOCOLS="actioncable", BASE_PATH="/a") as relay:
        async with client(relay, path="/a/cable", subprotocols=[Subprotocol(EXTENDED)]) as alice:
            assert alice.subprotocol == EXTENDED
            welcome = await message_of(alice)
            await alice.send(json.dumps({"command": "subscribe", "identifier": LOG}))
            assert (await message_of(alice))["type"] == "confirm_subscription"
        await connection.execute("select userrealtime.publish($1, 'a', '1')", USER)
        async with client(relay, path="/cable", subprotocols=[Subprotocol(EXTENDED)], sid=welcome["sid"]) as alice:
            assert (await message_of(alice))["type"] == "welcome"
            await alice.send(json.dumps({"command": "subscribe", "identifier": LOG, "history": {}}))
            assert (await message_of(alice))["type"] == "confirm_subscription"
            seen = [await message_of(alice), await message_of(alice)]
            [event] = [each for each in seen if "message" in each]
            assert (event["offset"], event["message"]["data"]) == (1, 1)
        async with client(relay, token(life_s=-60), path="/cable", subprotocols=[Subprotocol(PLAIN)]) as alice:
            assert (await message_of(alice))["reason"] == "token_expired"
            assert (await closed(alice))[0] == 1008


async def messages_until_close(connection: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """Return the messages other than pings until the connection is closed, and the close code."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(PATIENCE_S):
            while True:
                messages.append(await message_of(connection))
    return messages, connection.close_code or 0


@pytest.mark.parametrize("bearer", ["nonsense", token(sub="bob"), token(key="other" * 10)])
async def test_a_cable_needs_a_token(bearer: str) -> None:
    # There is no database: a connection without a valid token causes no query.
    async with Relay(config(NO_DATABASE, PROTOCOLS="actioncable")) as relay:
        for name in (PLAIN, EXTENDED):
            async with client(relay, bearer, path="/cable", subprotocols=[Subprotocol(name)]) as alice:
                # Messages before the token are not processed.
                with contextlib.suppress(ConnectionClosed):
                    await alice.send(json.dumps({"command": "subscribe", "identifier": LOG}))
                messages, code = await messages_until_close(alice)
            assert messages == [{"type": "disconnect", "reason": "unauthorized", "reconnect": False}]
            assert code == CloseCode.POLICY_VIOLATION


async def test_a_cable_has_limits(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    plain: dict[str, Any] = {"path": "/cable", "subprotocols": [Subprotocol(PLAIN)]}
    async with (
        running(migrated.url, PROTOCOLS="actioncable", MAX_CONNECTIONS="1") as relay,
        client(relay, **plain) as alice,
    ):
        assert (await message_of(alice))["type"] == "welcome"
        for number in range(MAX_CHANNELS + 1):
            identifier = json.dumps({"channel": f"c{number}"})
            await alice.send(json.dumps({"command": "subscribe", "identifier": identifier}))
        kinds = [(await message_of(alice))["type"] for _ in range(MAX_CHANNELS + 1)]
        assert kinds == ["confirm_subscription"] * MAX_CHANNELS + ["reject_subscription"]
        async with client(relay, **plain) as second:
            assert await messages_until_close(second) == ([], CloseCode.TRY_LATER)
        with contextlib.suppress(ConnectionClosed):
            for _ in range(MAX_ERRORS):
                await alice.send("{}")
        messages, code = await messages_until_close(alice)
        assert [message["reason"] for message in messages] == ["invalid_request"]
        assert code == CloseCode.POLICY_VIOLATION
    async with (
        running(migrated.url, PROTOCOLS="actioncable", MAX_MESSAGES_PER_SECOND="2") as relay,
        client(relay, **plain) as alice,
    ):
        assert (await message_of(alice))["type"] == "welcome"
        with contextlib.suppress(ConnectionClosed):
            for _ in range(200):
                await alice.send('{"command":"pong"}')
        assert (await messages_until_close(alice))[1] == TOO_MANY_MESSAGES.code


async def is_received(connection: asyncpg.Connection, alice: ClientConnection) -> bool:
    """Send a broadcast, and return whether one arrives soon: a relay begins to listen some time after its start."""
    await connection.execute("select userrealtime.broadcast($1, 'first')", USER)
    try:
        async with asyncio.timeout(0.2):
            return bool((await message_of(alice))["message"]["event"] == "first")
    except TimeoutError:
        return False


async def test_broadcasts_in_both_directions(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    variables = {"PROTOCOLS": "actioncable", "MAX_BROADCASTS_PER_SECOND": "5"}
    extended: dict[str, Any] = {"path": "/cable", "subprotocols": [Subprotocol(EXTENDED)]}
    async with (
        broadcasting(migrated.url),
        running(migrated.url, None, **variables) as relay,
        client(relay, **extended) as alice,
        client(relay, **extended) as other,
        client(relay) as native,
    ):
        assert (await receive(native))["type"] == "connected"
        for each in (alice, other):
            assert (await message_of(each))["type"] == "welcome"
            await each.send(json.dumps({"command": "subscribe", "identifier": ROOM}))
            assert (await message_of(each))["type"] == "confirm_subscription"
        await alice.send(json.dumps({"command": "subscribe", "identifier": LOG}))
        assert (await message_of(alice))["type"] == "confirm_subscription"
        await eventually(lambda: is_received(connection, alice))
        # It reaches the other clients in this channel and in the whole log, and none of the channels of its sender.
        for number in range(2):
            await alice.send(json.dumps({"command": "whisper", "identifier": ROOM, "data": {"n": number}}))
        for number in range(2):
            whisper = {"type": "broadcast", "event": "whisper", "data": {"n": number}}
            assert await message_of(other) == {"identifier": ROOM, "message": whisper}
            while (found := await receive(native))["event"] == "first":
                pass
            assert found == {**whisper, "event": "Room#whisper"}
        await native.send('{"type":"broadcast","event":"Room#typing","data":1}')
        typing = {"type": "broadcast", "event": "typing", "data": 1}
        assert await message_of(other) == {"identifier": ROOM, "message": typing}
        answers: list[dict[str, Any]] = []
        while len(answers) < 2:
            message = await message_of(alice)
            if message["message"]["event"] != "first":
                answers.append(message)
        assert sorted(answers, key=lambda each: len(each["identifier"])) == [
            {"identifier": LOG, "message": {**typing, "event": "Room#typing"}},
            {"identifier": ROOM, "message": typing},
        ]
        # Those over the limit, and those that are too large, are dropped without an answer.
        for _ in range(20):
            await alice.send(json.dumps({"command": "whisper", "identifier": ROOM, "data": "x" * 7000}))
        await alice.send(json.dumps({"command": "presence", "identifier": ROOM}))
        while (message := await message_of(alice)).get("type") != "presence":
            assert message["message"]["event"] == "first"
        assert not await is_metric(relay, 'client_broadcasts_total{outcome="invalid"}', 0)
        assert not await is_metric(relay, 'client_broadcasts_total{outcome="limited"}', 0)
        assert await connection.fetchval("select count(*) from userrealtime.inbox") == 0
