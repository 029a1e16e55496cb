"""Socket.IO: transcripts of the dialect, its packets, and connections to a real relay over both transports."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from testing.database import Database
from testing.relay.harness import PATIENCE_S, USER, client, config, metric, running, token, until
from testing.relay.http_client import Answer, request
from userrealtime_core.protocols.dialect import (
    EXPIRED,
    KEYS_UNAVAILABLE,
    TOO_MANY_ERRORS,
    Act,
    Authenticate,
    Broadcast,
    Close,
    Join,
    Mistake,
    Opening,
    Outcome,
    Publish,
    Renew,
    Say,
)
from userrealtime_core.protocols.engineio import EARLY_BYTES
from userrealtime_core.protocols.socketio import LONGEST_NAMESPACE, MAX_RENEWALS, SocketIO
from userrealtime_core.protocols.socketio_packets import MAX_PACKETS, SEPARATOR, Packet, split
from userrealtime_core.wire.broadcast import Content
from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest, Resume
from userrealtime_core.wire.frames import encode_text
from userrealtime_core.wire.session import MAX_ERRORS, TOO_MANY_MESSAGES, UNAUTHORIZED, CloseFrame
from userrealtime_core.wire.submission import Refused, Unavailable
from userrealtime_relay.protocols.socket import RESTARTING
from userrealtime_relay.protocols.socketio import SESSIONS_PER_CONNECTION
from userrealtime_relay.server import Relay
from userrealtime_relay.wire.frames import encode_events

# No program listens there.
NO_DATABASE: Final = "postgresql://nobody@127.0.0.1:1/none"
AT: Final = "2026-01-02 03:04:05.678901+00"
CONNECTED: Final = {"type": "connected", "userId": USER, "cursor": 7, "epoch": "e", "earliest": 1}
RESET: Final = {"type": "reset", "reason": "too-old", "cursor": 7, "epoch": "e", "earliest": 5}
LOG: Final = "/"


def socketio(bearer: str | None = None, identity: str = "i") -> SocketIO:
    return SocketIO(Opening("/socket.io/", {}, {}, (), ConnectRequest(bearer, Resume()), False, identity, USER))


def said(acts: Any) -> list[tuple[str, Any]]:
    """Return the messages among acts, each as its packet without data, and its data."""
    found = []
    for act in acts:
        if isinstance(act, Say):
            begin = min((act.text.index(each) for each in "[{" if each in act.text), default=len(act.text))
            found.append((act.text[:begin], json.loads(act.text[begin:] or "null")))
    return found


def connect(dialect: SocketIO, *, cursor: int = 7, epoch: str | None = "e", **auth: Any) -> str:
    """Connect with a token that is accepted, and return the `pid`."""
    [asked] = dialect.receive(f"40{json.dumps({'token': 't', **auth})}")
    assert asked == Authenticate("t")
    [join] = dialect.accepted(None, 60, (7, "e"))
    assert isinstance(join, Join)
    [(kind, data)] = said(dialect.told(LOG, {**CONNECTED, "cursor": cursor, "epoch": epoch}, cursor, epoch))
    assert kind == "40"
    return str(data["pid"])


def position_of(**auth: Any) -> Resume:
    """Return where a client begins that sends this."""
    dialect = socketio()
    dialect.receive(f"40{json.dumps({'token': 't', **auth})}")
    [join] = dialect.accepted(None, 60, (7, "e"))
    assert isinstance(join, Join)
    return join.resume


def translated(dialect: SocketIO, *events: tuple[int, str, str], epoch: str | None = "e") -> list[Any]:
    frames = b"".join(encode_events([("e", number, name, AT, data) for number, name, data in events]))
    texts = [text.decode() for text in dialect.translate(LOG, frames, epoch)]
    assert all(text.startswith("42[") for text in texts)
    return [json.loads(text[2:]) for text in texts]


def test_a_connection() -> None:
    dialect = socketio()
    assert list(dialect.begin(0)) == []
    assert list(dialect.receive('40{"token":"t"}')) == [Authenticate("t")]
    assert list(dialect.accepted(None, 60, (7, "e"))) == [Join(LOG, "log", "t", Resume())]
    assert said(dialect.told(LOG, CONNECTED, 7, "e")) == [("40", {"sid": "i", "pid": "7:e:i"})]
    assert translated(dialect, (8, "a", '{"x": [1, "é"]}'), (9, "b", "1.50")) == [
        ["a", {"x": [1, "é"]}, "8:e"],
        ["b", 1.5, "9:e"],
    ]
    assert list(dialect.receive("41")) == [Close(1000)]


def test_the_token_may_be_in_the_handshake() -> None:
    assert list(socketio("h").receive("40")) == [Authenticate("h")]
    assert list(socketio("h").receive('40{"token":"t"}')) == [Authenticate("t")]
    assert list(socketio("h").receive('40{"token":1}')) == [Authenticate("h")]


@pytest.mark.parametrize("message", ["40", "40{}", '40{"token":""}', '40{"token":null}', '40{"token":["t"]}'])
def test_a_connection_without_a_token_is_refused(message: str) -> None:
    *acts, close = socketio().receive(message)
    [(kind, data)] = said(acts)
    assert (kind, data["data"]) == ("44", {"code": "unauthorized"})
    assert "auth" in data["message"]
    assert close == Close(1008, "Unauthorized")


def test_a_token_that_is_not_accepted() -> None:
    for expired, words in ((False, "not accepted"), (True, "expired")):
        dialect = socketio()
        dialect.receive('40{"token":"t"}')
        *acts, close = dialect.ending(None, UNAUTHORIZED, expired=expired)
        [(kind, data)] = said(acts)
        assert (kind, data["data"], close) == ("44", {"code": "unauthorized"}, Close(1008, "Unauthorized"))
        assert words in data["message"]


def test_a_client_that_should_try_again_gets_no_packet() -> None:
    early, late = socketio(), socketio()
    early.receive('40{"token":"t"}')
    connect(late)
    for closing in (KEYS_UNAVAILABLE, RESTARTING, TOO_MANY_MESSAGES, CloseFrame(CloseCode.TOO_SLOW, "Too slow")):
        for dialect in (early, late):
            for key in (None, LOG):
                assert list(dialect.ending(key, closing, expired=False)) == [Close(closing.code, closing.reason)]
    assert list(late.ending(LOG, EXPIRED, expired=True)) == [Close(*EXPIRED)]
    assert list(socketio().ending(None, UNAUTHORIZED, expired=False)) == [Close(*UNAUTHORIZED)]


def test_a_client_that_must_not_try_again_is_disconnected() -> None:
    dialect = socketio()
    connect(dialect)
    assert list(dialect.ending(None, TOO_MANY_ERRORS, expired=False)) == [Say("41"), Close(*TOO_MANY_ERRORS)]


def test_positions_of_a_client() -> None:
    assert position_of() == Resume()
    assert position_of(pid="7:e:r") == Resume(7, "e")
    assert position_of(pid="7:e:r", offset="9:e") == Resume(9, "e")
    assert position_of(pid="7:e:r", offset="3:f") == Resume(3, "f")
    assert position_of(offset="9:e") == Resume(9, "e")
    assert position_of(pid="0::r") == Resume(0, None)
    assert position_of(pid="7:a:b:r", offset="8:a:b") == Resume(8, "a:b")
    # Those of another server, and nonsense.
    for pid in ("x1f2", "", "7", "-1:e:r", "7:e", ":e:r", f"{'1' * 20}:e:r", f"7:{'e' * 301}:r", 7, None, ["7:e:r"]):
        assert position_of(pid=pid, offset="abc") == Resume()
    assert position_of(pid="7:e:r", offset=9) == Resume(7, "e")


def test_a_client_that_the_log_can_serve_gets_its_pid() -> None:
    assert connect(socketio(), pid="7:e:r") == "7:e:r"
    assert connect(socketio(), cursor=9, pid="7:e:r", offset="9:e") == "7:e:r"
    assert connect(socketio(), cursor=0, epoch="e", pid="0::r") == "0::r"
    assert connect(socketio()) == "7:e:i"
    assert connect(socketio(), pid="of another server") == "7:e:i"
    assert connect(socketio(), epoch=None, cursor=0) == "0::i"
    assert connect(socketio(), cursor=9, offset="9:e") == "9:e:i"


def test_a_reset_is_repeated_until_the_client_has_received_it() -> None:
    dialect = socketio()
    pid = connect(dialect, cursor=90, epoch="f", pid="7:e:r", offset="9:e")
    assert pid == "9:e:i"  # another one, so the client has not recovered, but not a newer position
    reset = {**RESET, "cursor": 90, "epoch": "f", "reason": "epoch"}
    assert said(dialect.told(LOG, reset, 90, "f")) == [("42", ["userrealtime:reset", reset, "90:f"])]
    assert position_of(pid=pid, offset="9:e") == Resume(9, "e")  # the reset was lost
    assert position_of(pid=pid, offset="90:f") == Resume(90, "f")
    # A log that is shorter than the client's position: its number grows only with the next events.
    pid = connect(socketio(), cursor=40, pid="50:e:r", offset="50:e")
    assert position_of(pid=pid, offset="50:e") == Resume(50, "e")
    assert position_of(pid=pid, offset="40:e") == Resume(40, "e")


@pytest.mark.parametrize(
    "name", ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"]
)
def test_reserved_names_are_renamed(name: str) -> None:
    dialect = socketio()
    connect(dialect)
    events = [(8, name, "1"), (9, f"x{name}", "2"), (10, "userrealtime:x", "3"), (11, "userrealtime:event:x", "4")]
    assert [event[0] for event in translated(dialect, *events)] == [
        f"userrealtime:event:{name}",
        f"x{name}",
        "userrealtime:event:userrealtime:x",
        "userrealtime:event:userrealtime:event:x",
    ]
    broadcast = encode_text(f'{{"type":"broadcast","event":"{name}","data":1}}')
    [text] = dialect.translate_broadcasts(LOG, broadcast)
    assert json.loads(text[2:]) == [f"userrealtime:event:{name}", 1, None]


def test_an_envelope_has_the_time() -> None:
    plain, dialect = socketio(), socketio()
    connect(plain)
    connect(dialect, envelope=True)
    assert dialect.translation(LOG) != plain.translation(LOG)
    assert translated(dialect, (8, "a", "1")) == [
        ["a", {"id": 8, "at": "2026-01-02T03:04:05.678901Z", "data": 1}, "8:e"]
    ]


def test_a_log_without_an_epoch() -> None:
    dialect = socketio()
    connect(dialect)
    assert translated(dialect, (1, "a", "1"), epoch=None) == [["a", 1, "1:"]]
    assert position_of(pid="0::r", offset="1:") == Resume(1, None)


def test_the_last_argument_of_a_broadcast_is_no_position() -> None:
    dialect = socketio()
    connect(dialect)
    frames = b"".join(encode_text(Content.parse("a\"'é", data).message) for data in ("x", {"é": 1}))
    assert [json.loads(text[2:]) for text in dialect.translate_broadcasts(LOG, frames)] == [
        ["a\"'é", "x", None],
        ["a\"'é", {"é": 1}, None],
    ]


def _outcome(dialect: SocketIO, message: str, outcome: Outcome) -> list[tuple[str, Any]]:
    [publish] = dialect.receive(message)
    assert isinstance(publish, Publish)
    return said(dialect.stored(publish.key, publish.submission, outcome))


def test_messages_are_published_and_acknowledged() -> None:
    dialect = socketio()
    connect(dialect)
    [publish] = dialect.receive('425["note",{"x":1},"r"]')
    assert isinstance(publish, Publish)
    assert publish.submission == ("r", "note", '{"x":1}')
    assert said(dialect.stored(LOG, publish.submission, 17)) == [("435", [{"id": 17}])]
    assert _outcome(dialect, '42["note"]', 18) == []
    assert _outcome(dialect, '420["note"]', 19) == [("430", [{"id": 19}])]
    refused = {"error": "refused", "message": "no"}
    assert _outcome(dialect, '426["note",null,null]', Refused("no")) == [("436", [refused])]
    assert _outcome(dialect, '42["note"]', Refused("no")) == [("42", ["userrealtime:error", refused])]
    unavailable = {"error": "unavailable", "message": "later"}
    assert _outcome(dialect, '427["note"]', Unavailable("later")) == [("437", [unavailable])]


def test_messages_without_a_ref_have_different_ones() -> None:
    refs = set()
    for identity in "ij":
        dialect = socketio(identity=identity)
        connect(dialect)
        for _ in range(3):
            [publish] = dialect.receive('421["note",null]')
            assert isinstance(publish, Publish)
            assert publish.submission.data == "null"
            refs.add(publish.submission.ref)
    assert len(refs) == 6


@pytest.mark.parametrize(
    "arguments",
    [
        '"note",1,2',
        '"note",1,"r",3',
        '"note",1,""',
        '"note",1,"\\u0000"',
        '""',
        '"a\\u0007"',
        '"userrealtime:x"',
        '"userrealtime:reset",1',
        f'"{"x" * 300}"',
    ],
)
def test_invalid_messages_are_rejected_with_a_reason(arguments: str) -> None:
    dialect = socketio()
    connect(dialect)
    acts = dialect.receive(f"423[{arguments}]")
    [(kind, [error])] = said(acts)
    assert (kind, error["error"]) == ("433", "invalid-publish")
    assert isinstance(acts[-1], Mistake)
    acts = dialect.receive(f"42[{arguments}]")
    [(kind, [name, error])] = said(acts)
    assert (kind, name, error["error"]) == ("42", "userrealtime:error", "invalid-publish")


def test_binary_messages_are_rejected_with_an_explanation() -> None:
    dialect = socketio()
    connect(dialect)
    acts = dialect.receive('452-9["note",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]')
    [(kind, [error])] = said(acts)
    assert (kind, error["error"], isinstance(acts[-1], Mistake)) == ("439", "invalid-publish", True)
    assert "base64" in error["message"]
    assert [list(dialect.receive(b"x")) for _ in range(3)] == [[], [], [Mistake()]]
    assert _outcome(dialect, '421["note"]', 1) == [("431", [{"id": 1}])]
    acts = dialect.receive('461-1[{"_placeholder":true,"num":0}]')
    assert isinstance(acts[-1], Mistake)
    assert list(dialect.receive(b"x")) == []
    # A parser of the application's, such as one with MessagePack, sends even the first packet in a binary message.
    [close] = socketio().receive(b"\x83")
    assert isinstance(close, Close)
    assert "parser" in close.reason


def test_a_token_is_renewed() -> None:
    dialect = socketio()
    connect(dialect)
    assert list(dialect.receive('424["userrealtime:auth","n"]')) == [Renew(LOG, "n")]
    assert list(dialect.receive('42["userrealtime:auth","n"]')) == [Renew(LOG, "n")]
    renewed = {"type": "renewed", "expiresIn": 60}
    assert said(dialect.told(LOG, renewed, 7, "e")) == [("434", [{"expiresIn": 60}])]
    assert said(dialect.told(LOG, renewed, 7, "e")) == []
    dialect.receive('425["userrealtime:auth","n"]')
    error = {"type": "error", "code": "unavailable", "message": "later"}
    assert said(dialect.told(LOG, error, 7, "e")) == [("435", [{"error": "unavailable", "message": "later"}])]
    dialect.receive('426["userrealtime:auth","bad"]')
    acts = dialect.ending(LOG, UNAUTHORIZED, expired=False)
    assert [kind for kind, _ in said(acts)] == ["436", "41"]
    assert acts[-1] == Close(*UNAUTHORIZED)
    for message in ('427["userrealtime:auth"]', '427["userrealtime:auth",1]', '427["userrealtime:auth","a","b"]'):
        acts = dialect.receive(message)
        assert [kind for kind, _ in said(acts)] == ["437"]
        assert isinstance(acts[-1], Mistake)
    acts = [dialect.receive('427["userrealtime:auth","n"]')[-1] for _ in range(MAX_RENEWALS + 1)]
    assert acts == [Renew(LOG, "n")] * MAX_RENEWALS + [Mistake()]


def test_broadcasts_of_a_client() -> None:
    dialect = socketio()
    connect(dialect)
    [broadcast] = dialect.receive('424["userrealtime:broadcast","moved",{"x":1}]')
    assert broadcast == Broadcast("moved", {"x": 1}, LOG)
    assert said(dialect.broadcasted(broadcast, None)) == [("434", [{}])]
    [broadcast] = dialect.receive('42["userrealtime:broadcast","moved"]')
    assert broadcast == Broadcast("moved", {}, LOG)
    assert said(dialect.broadcasted(broadcast, None)) == []
    dialect.receive('425["userrealtime:broadcast","moved"]')
    error = {"error": "broadcast-refused", "message": "no"}
    assert said(dialect.broadcasted(broadcast, "no")) == [("435", [error])]
    for arguments in ("", ',"a",1,2'):
        acts = dialect.receive(f'424["userrealtime:broadcast"{arguments}]')
        assert [kind for kind, _ in said(acts)] == ["434"]
        assert isinstance(acts[-1], Mistake)


def test_other_namespaces_are_refused_with_advice() -> None:
    dialect = socketio()
    for message in ('40/urt-alice,{"token":"t"}', "40/urt-alice,", "40/urt-alice"):
        acts = dialect.receive(message)
        [(kind, error)] = said(acts)
        assert (kind, error["data"]) == ("44/urt-alice,", {"code": "invalid-namespace"})
        assert '"path"' in error["message"]
        assert isinstance(acts[-1], Mistake)
    assert list(dialect.receive('42/urt-alice,["note"]')) == [Mistake()]
    assert list(dialect.receive(f"40/{'x' * LONGEST_NAMESPACE},")) == [Mistake()]


@pytest.mark.parametrize(
    "message",
    ["", "2", "4", "5", "6", "0", "4x", "47", "42", "42{}", "42[]", "42[1]", "40[]", "44", "45", "x", "42[" * 9],
)
def test_nonsense_is_a_mistake(message: str) -> None:
    for connected in (False, True):
        dialect = socketio()
        if connected:
            connect(dialect)
        assert list(dialect.receive(message)) == [Mistake()]


def test_messages_before_the_connection_and_a_second_connection_are_mistakes() -> None:
    dialect = socketio()
    for message in ('42["note"]', '421["note"]', "43[]", '451-["a",{}]', '44"x"'):
        assert list(dialect.receive(message)) == [Mistake()]
    connect(dialect)
    assert list(dialect.receive('40{"token":"other"}')) == [Mistake()]
    assert list(dialect.receive("431[1]")) == []
    assert list(dialect.receive('44"x"')) == [Mistake()]


def test_only_the_current_version_is_accepted() -> None:
    assert SocketIO.refusal({"EIO": "4"}) is None
    for query in ({}, {"EIO": "3"}, {"EIO": "44"}):
        assert SocketIO.refusal(query) is not None


# The packets.

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=9)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=9,
)
namespaces = st.just("/") | st.text(st.characters(exclude_characters=","), max_size=9).map(lambda name: f"/a{name}")


@given(
    st.sampled_from("23"),
    namespaces,
    st.none() | st.integers(0, 10**15 - 1),
    st.lists(json_values, max_size=3),
    st.none() | st.integers(0, 99),
)
def test_packets_are_parsed_as_a_client_writes_them(
    kind: str, namespace: str, number: int | None, values: list[Any], attachments: int | None
) -> None:
    data = ["event", *values] if kind == "2" else values
    text = "4"
    if attachments is None:
        text += kind
    else:
        kind = str(int(kind) + 3)
        text += f"{kind}{attachments}-"
    text += "" if namespace == "/" else f"{namespace},"
    text += ("" if number is None else str(number)) + json.dumps(data)
    assert Packet.parse(text) == Packet(kind, attachments or 0, namespace, number, data)


@given(st.text(max_size=40) | st.text('012345678-/,[]{}"a', max_size=20).map(lambda text: f"4{text}"))
def test_any_text_is_a_packet_or_none(text: str) -> None:
    with contextlib.suppress(ValueError):
        packet = Packet.parse(text)
        assert packet.kind in "0123456"
        assert packet.namespace.startswith("/")
    connected = socketio()
    connect(connected)
    for dialect in (socketio(), connected):
        assert all(isinstance(act, Act) for act in dialect.receive(text))


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\x1e"), min_size=1) | st.binary(), max_size=9))
def test_the_packets_of_a_body(packets: list[str | bytes]) -> None:
    packets = [f"4{packet}" if isinstance(packet, str) else packet for packet in packets] or ["4"]
    encoded = [packet.encode() if isinstance(packet, str) else b"b" + base64.b64encode(packet) for packet in packets]
    assert split(SEPARATOR.join(encoded)) == packets


@given(st.binary(max_size=60))
def test_any_body_is_a_list_of_packets_or_none(body: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert all(isinstance(packet, bytes) or packet for packet in split(body))


@pytest.mark.parametrize(
    "body", [b"", SEPARATOR, b"4" + SEPARATOR, b"4\xff", b"bx", b"b\xc3", SEPARATOR.join([b"4"] * (MAX_PACKETS + 1))]
)
def test_what_is_no_list_of_packets(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"packets|decode|padding|base64|Base64|character"):
        split(body)


def test_nesting_has_a_limit() -> None:
    with pytest.raises(ValueError, match="nested"):
        Packet.parse("42" + "[" * 100_000)


# A real relay.


class Polls:
    """A session over long polling, as the client has one: polls and messages on connections of their own."""

    def __init__(self, relay: Relay, path: str = "/socket.io/") -> None:
        self._relay = relay
        self._path = f"{path}?EIO=4&transport=polling"
        self._polled = 0
        self.sid = ""
        self.open: dict[str, Any] = {}
        self.packets: list[str] = []

    async def begin(self) -> None:
        answer = await self.get()
        assert answer.status == HTTPStatus.OK
        assert answer.headers["content-type"] == "text/plain; charset=UTF-8"
        assert answer.headers["cache-control"] == "no-store"
        body = answer.body.decode()
        assert body.startswith("0{")
        self.open = json.loads(body[1:])
        self.sid = self.open["sid"]
        self._path += f"&sid={self.sid}"

    async def get(self, name: str | None = None, **options: Any) -> Answer:
        self._polled += 1
        return await request(self._relay, f"{self._path}&t={name or self._polled}", None, **options)

    async def post(self, *packets: str | bytes) -> Answer:
        body = SEPARATOR.join(packet if isinstance(packet, bytes) else packet.encode() for packet in packets)
        return await request(self._relay, self._path, None, method="POST", body=body)

    async def next(self) -> str:
        """Return the next packet. Pings are answered."""
        while True:
            while not self.packets:
                answer = await self.get()
                assert answer.status == HTTPStatus.OK, answer.body
                self.packets = answer.body.decode().split("\x1e")
            packet = self.packets.pop(0)
            if packet != "2":
                return packet
            await self.post("3")

    async def event(self) -> str:
        """Return the name of the next event. While a WebSocket takes over, polls are answered without one."""
        while (packet := await self.next()) == "6":
            pass
        return str(event_of(packet)[0])

    async def connect(self, **auth: Any) -> dict[str, Any]:
        await self.begin()
        answer = await self.post(f"40{json.dumps({'token': token(), **auth})}")
        assert (answer.status, answer.body) == (HTTPStatus.OK, b"ok")
        packet = await self.next()
        assert packet.startswith("40{"), packet
        connected: dict[str, Any] = json.loads(packet[2:])
        return connected


@asynccontextmanager
async def socketio_client(relay: Relay, path: str = "/socket.io/", **query: str) -> AsyncIterator[ClientConnection]:
    parameters: dict[str, Any] = {"EIO": "4", "transport": "websocket", **query}
    async with client(relay, None, path=path, **parameters) as connection:
        yield connection


async def receive(connection: ClientConnection) -> str:
    """Return the next packet. Pings are answered."""
    async with asyncio.timeout(PATIENCE_S):
        while (packet := str(await connection.recv())) == "2":
            await connection.send("3")
    return packet


async def opened(connection: ClientConnection, **auth: Any) -> dict[str, Any]:
    """Connect with a token, and return the answer of the server."""
    assert (await receive(connection)).startswith("0{")
    await connection.send(f"40{json.dumps({'token': token(), **auth})}")
    packet = await receive(connection)
    assert packet.startswith("40{"), packet
    connected: dict[str, Any] = json.loads(packet[2:])
    return connected


async def until_closed(connection: ClientConnection) -> tuple[list[str], int]:
    """Return the packets up to the end of a connection, and its close code."""
    packets: list[str] = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            packets.append(await receive(connection))
    assert connection.protocol.close_rcvd is not None
    return packets, connection.protocol.close_rcvd.code


@asynccontextmanager
async def unfinished(relay: Relay, path: str) -> AsyncIterator[asyncio.StreamReader]:
    """Begin a request whose body does not come to its end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.ws_port)
    try:
        writer.write(f"POST {path} HTTP/1.1\r\nHost: relay\r\nContent-Length: 9\r\n\r\n4".encode())
        await asyncio.sleep(0.2)
        yield reader
    finally:
        writer.transport.abort()


def event_of(packet: str) -> list[Any]:
    assert packet.startswith("42["), packet
    event: list[Any] = json.loads(packet[2:])
    return event


async def created(connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)


async def publish(connection: asyncpg.Connection, *names: str) -> None:
    for name in names:
        await connection.execute("select userrealtime.publish($1, $2, '1')", USER, name)


async def test_a_websocket_and_an_exact_recovery(migrated: Database, connection: asyncpg.Connection) -> None:
    await created(connection)
    async with running(migrated.url, PROTOCOLS="socketio", BASE_PATH="/a", PING_INTERVAL="20") as relay:
        async with socketio_client(relay, "/a/socket.io") as alice:
            first = await receive(alice)
            fields = json.loads(first[1:])
            assert (first[0], fields["upgrades"]) == ("0", [])
            assert (fields["pingInterval"], fields["pingTimeout"]) == (20_000, 20_000)
            await alice.send(f"40{json.dumps({'token': token()})}")
            connected = json.loads((await receive(alice))[2:])
            assert connected["sid"] != fields["sid"]  # the second one is a secret
            await publish(connection, "a")
            name, data, position = event_of(await receive(alice))
            assert (name, data, position.split(":")[0]) == ("a", 1, "1")
            await alice.send('421["note",{"x":1},"r"]')
            answer = await receive(alice)
            assert answer.startswith("431[")
        [row] = await connection.fetch("select id, ref, event, data from userrealtime.inbox")
        assert json.loads(answer[3:]) == [{"id": row["id"]}]
        assert (row["ref"], row["event"], json.loads(row["data"])) == ("r", "note", {"x": 1})
        await publish(connection, "b", "c")
        async with socketio_client(relay) as alice:
            assert (await opened(alice, pid=connected["pid"], offset=position))["pid"] == connected["pid"]
            assert [event_of(await receive(alice))[0] for _ in range(2)] == ["b", "c"]
        async with socketio_client(relay) as alice:
            # Before its first event, a client has only its `pid`.
            assert (await opened(alice, pid=connected["pid"]))["pid"] == connected["pid"]
            assert [event_of(await receive(alice))[0] for _ in range(3)] == ["a", "b", "c"]
        async with socketio_client(relay) as alice:
            assert (await opened(alice, pid="1:other:r", offset="1:other"))["pid"].startswith("1:other:")
            name, reset, position = event_of(await receive(alice))
            assert (name, reset["reason"], position.split(":")[0]) == ("userrealtime:reset", "epoch", "3")


async def test_long_polling(migrated: Database, connection: asyncpg.Connection) -> None:
    await created(connection)
    async with running(migrated.url, PROTOCOLS="socketio") as relay:
        alice = Polls(relay)
        connected = await alice.connect()
        assert alice.open["upgrades"] == ["websocket"]
        assert connected["pid"].startswith("0:")
        waiting = asyncio.create_task(alice.next())
        await publish(connection, "a")
        assert event_of(await waiting)[:2] == ["a", 1]
        await alice.post('421["note",1]', '422["note",2]')
        assert [(await alice.next())[:3] for _ in range(2)] == ["431", "432"]
        assert await connection.fetchval("select count(*) from userrealtime.inbox") == 2
        await publish(connection, *"bcd")
        assert [event_of(await alice.next())[0] for _ in range(3)] == list("bcd")
        # The client ends the session: the poll that waits is answered with a packet without a meaning.
        waiting = asyncio.create_task(alice.next())
        await until(lambda: relay.clients.connected == 1)
        await asyncio.sleep(0.1)
        assert (await alice.post("1")).body == b"ok"
        assert await waiting == "6"
        await until(lambda: relay.clients.connected == 0)
        assert (await alice.get()).json["code"] == 1
        again = Polls(relay)
        recovered = await again.connect(pid=connected["pid"], offset=f"2:{connected['pid'].split(':')[1]}")
        assert recovered["pid"] == connected["pid"]
        assert [event_of(await again.next())[0] for _ in range(2)] == list("cd")


async def test_a_websocket_takes_over_a_session(migrated: Database, connection: asyncpg.Connection) -> None:
    await created(connection)
    async with running(migrated.url, PROTOCOLS="socketio") as relay:
        alice = Polls(relay)
        await alice.connect()
        waiting = asyncio.create_task(alice.next())
        await asyncio.sleep(0.1)
        async with socketio_client(relay, sid=alice.sid) as websocket:
            await websocket.send("2probe")
            assert await receive(websocket) == "3probe"
            assert await waiting == "6"
            async with socketio_client(relay, sid=alice.sid) as second:
                assert (await until_closed(second))[1] == 1002
            await publish(connection, "a")
            assert await alice.event() == "a"  # until the upgrade, polls are answered
            await publish(connection, "b", "c")
            await websocket.send("5")
            assert [event_of(await receive(websocket))[0] for _ in range(2)] == ["b", "c"]
            for answer in (await alice.get(), await alice.post("3")):
                assert (answer.status, answer.json["code"]) == (HTTPStatus.BAD_REQUEST, 3)
            await websocket.send('421["note"]')
            assert (await receive(websocket)).startswith("431")
            assert relay.clients.connected == 1
        await until(lambda: relay.clients.connected == 0)
        with pytest.raises(InvalidStatus, match="400"):
            async with socketio_client(relay, sid=alice.sid):
                pass


async def test_a_websocket_that_does_not_take_over_leaves_the_session(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await created(connection)
    async with running(migrated.url, PROTOCOLS="socketio") as relay:
        alice = Polls(relay)
        await alice.connect()
        for packets in (["5"], ["2probe", "4"], ["2probe"], []):
            async with socketio_client(relay, sid=alice.sid) as websocket:
                for packet in packets:
                    await websocket.send(packet)
                if packets in (["5"], ["2probe", "4"]):
                    assert (await until_closed(websocket))[1] == 1002
            await publish(connection, "a")
            assert await alice.event() == "a"


async def test_requests_that_may_have_lost_messages_end_the_session(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await created(connection)
    async with running(migrated.url, PROTOCOLS="socketio") as relay:
        # A second poll while one waits.
        alice = Polls(relay)
        await alice.connect()
        waiting = asyncio.create_task(alice.get())
        await asyncio.sleep(0.1)
        assert (await alice.get()).status == HTTPStatus.BAD_REQUEST
        assert (await waiting).body == b"6"
        await until(lambda: relay.clients.connected == 0)
        # A poll that a proxy repeats, since it has not received the response.
        alice = Polls(relay)
        await alice.connect()
        await publish(connection, "a", "b")
        assert (await alice.get("x")).body.startswith(b"42")
        assert (await alice.get("x")).status == HTTPStatus.BAD_REQUEST
        await until(lambda: relay.clients.connected == 0)
        # A poll that is given up.
        alice = Polls(relay)
        await alice.connect()
        waiting = asyncio.create_task(alice.get())
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await until(lambda: relay.clients.connected == 0)
        # Two requests with messages at the same time.
        alice = Polls(relay)
        await alice.connect()
        path = f"/socket.io/?EIO=4&transport=polling&sid={alice.sid}"
        async with unfinished(relay, path):
            assert (await alice.post("3")).status == HTTPStatus.BAD_REQUEST
            await until(lambda: relay.clients.connected == 0)
        # A request with messages that is not complete when its session ends.
        alice = Polls(relay)
        await alice.connect()
        async with unfinished(relay, f"/socket.io/?EIO=4&transport=polling&sid={alice.sid}") as reader:
            for session in _sessions(relay):
                session.abort()
            async with asyncio.timeout(PATIENCE_S):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
        # Bodies that are no lists of packets, and too long ones.
        for body in (b"4" + SEPARATOR, b"\xff", b"4" * (relay.clients.config.max_message_bytes + 1)):
            alice = Polls(relay)
            await alice.connect()
            answer = await alice.post(body)
            assert answer.status in (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            await until(lambda: relay.clients.connected == 0)
            assert (await alice.get()).json["code"] == 1


async def test_broadcasts_in_both_directions(migrated: Database, connection: asyncpg.Connection) -> None:
    await created(connection)
    limited: dict[str, Any] = {"PROTOCOLS": "socketio", "MAX_BROADCASTS_PER_SECOND": "5"}
    async with (
        running(migrated.url, **limited) as relay,
        socketio_client(relay) as alice,
        client(relay) as native,
    ):
        polls = Polls(relay)
        await opened(alice)
        await polls.connect()
        assert json.loads(await native.recv())["type"] == "connected"
        await alice.send('421["userrealtime:broadcast","moved",{"x":"é"}]')
        assert await receive(alice) == "431[{}]"  # it does not receive its own one
        assert event_of(await polls.next()) == ["moved", {"x": "é"}, None]
        assert json.loads(await native.recv()) == {"type": "broadcast", "event": "moved", "data": {"x": "é"}}
        await native.send('{"type":"broadcast","event":"connect","data":2}')
        for packet in (await receive(alice), await polls.next()):
            assert event_of(packet) == ["userrealtime:event:connect", 2, None]
        for _ in range(20):
            await polls.post('421["userrealtime:broadcast","moved"]')
        answers = [json.loads((await polls.next())[3:]) for _ in range(20)]
        assert {} in [answer for [answer] in answers]
        assert answers[-1][0]["error"] == "broadcast-refused"
        assert await connection.fetchval("select count(*) from userrealtime.inbox") == 0
    async with running(migrated.url, PROTOCOLS="socketio") as relay, socketio_client(relay) as alice:
        await opened(alice)
        await alice.send('421["userrealtime:broadcast","moved"]')
        [answer] = json.loads((await receive(alice))[3:])
        assert answer["error"] == "broadcast-refused"  # by default, clients may not send any


async def test_requests_that_are_rejected() -> None:
    # There is no database: a request without a session causes no query.
    async with Relay(config(NO_DATABASE, PROTOCOLS="socketio")) as relay:
        for query, method, code in (
            ("", "GET", 5),
            ("EIO=3&transport=polling", "GET", 5),
            ("EIO=4", "GET", 0),
            ("EIO=4&transport=webtransport", "GET", 0),
            ("EIO=4&transport=websocket", "GET", 3),
            ("EIO=4&transport=polling&j=0", "GET", 3),
            ("EIO=4&transport=polling", "POST", 2),
            ("EIO=4&transport=polling", "PUT", 2),
            ("EIO=4&transport=polling&sid=x", "GET", 1),
            ("EIO=4&transport=polling&sid=", "POST", 1),
        ):
            for path in ("/socket.io/", "/socket.io"):
                answer = await request(relay, f"{path}?{query}", None, method=method)
                assert (answer.status, answer.json["code"]) == (HTTPStatus.BAD_REQUEST, code)
        answer = await request(relay, "/socket.io/?EIO=4&transport=polling", None, body=b"x")
        assert answer.json["code"] == 3
        alice = Polls(relay)
        await alice.begin()
        assert (await alice.get(method="DELETE")).json["code"] == 2
        for parameters in ({"EIO": "3"}, {"transport": "polling"}, {"sid": "x"}):
            with pytest.raises(InvalidStatus, match="400"):
                async with socketio_client(relay, **parameters):
                    pass


@pytest.mark.parametrize("bad", ["", "nonsense", token(sub="bob"), token(key="other" * 10), token(life_s=-60)])
async def test_a_connection_needs_a_token(bad: str) -> None:
    # There is no database: a connection without a valid token causes no query.
    async with Relay(config(NO_DATABASE, PROTOCOLS="socketio")) as relay:
        async with socketio_client(relay) as alice:
            await receive(alice)
            await alice.send('42["note"]')
            await alice.send(f"40{json.dumps({'token': bad})}")
            packets, code = await until_closed(alice)
            assert (len(packets), packets[0][:3], code) == (1, "44{", 1008)
        polls = Polls(relay)
        await polls.begin()
        await polls.post(f"40{json.dumps({'token': bad})}")
        answer = await polls.get()
        assert answer.headers["connection"] == "close"
        first, last = answer.body.decode().split("\x1e")
        assert (first[:3], last) == ("44{", "1")
        await until(lambda: len(relay.clients) == 0)


async def test_a_connection_without_a_token_ends_soon() -> None:
    async with Relay(config(NO_DATABASE, PROTOCOLS="socketio", AUTH_TIMEOUT="1")) as relay:
        polls = Polls(relay)
        await polls.begin()
        assert await polls.next() == "1"
        async with socketio_client(relay) as alice:
            packets, code = await until_closed(alice)
            assert (len(packets), code) == (1, 1008)
        await until(lambda: len(relay.clients) == 0)
        # The body of a session that has not authenticated is limited, and a token still fits.
        polls = Polls(relay)
        await polls.begin()
        assert (await polls.post(b"4" * (EARLY_BYTES + 1))).status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        await until(lambda: len(relay.clients) == 0)


async def test_sessions_without_a_token_are_limited() -> None:
    async with Relay(config(NO_DATABASE, PROTOCOLS="socketio", MAX_CONNECTIONS="3")) as relay:
        sessions = [Polls(relay) for _ in range(9)]
        for each in sessions:
            await each.begin()
        # The newest ones stay.
        await until(lambda: len(relay.clients) <= 3)
        assert [(await each.post("43[]")).status for each in sessions] == [HTTPStatus.BAD_REQUEST] * 6 + [
            HTTPStatus.OK
        ] * 3


async def test_sessions_that_are_being_closed_are_limited(migrated: Database) -> None:
    async with running(migrated.url, PROTOCOLS="socketio", MAX_CONNECTIONS="1") as relay:
        await Polls(relay).connect()
        for _ in range(SESSIONS_PER_CONNECTION - 1):
            each = Polls(relay)
            await each.begin()
            await each.post(f"40{json.dumps({'token': token()})}")  # one too many, and its answer is not fetched
        answer = await Polls(relay).get()
        assert (answer.status, answer.json["code"]) == (HTTPStatus.SERVICE_UNAVAILABLE, 4)
        assert await metric(relay, 'limited_total{limit="connections"}') == 1


async def test_a_connection_has_limits(migrated: Database, connection: asyncpg.Connection) -> None:
    await created(connection)
    one: dict[str, Any] = {"PROTOCOLS": "socketio", "MAX_CONNECTIONS": "1"}
    async with running(migrated.url, **one) as relay, socketio_client(relay) as alice:
        await opened(alice)
        async with socketio_client(relay) as second:
            await receive(second)
            await second.send(f"40{json.dumps({'token': token()})}")
            assert await until_closed(second) == ([], 1013)
        polls = Polls(relay)
        await polls.begin()
        await polls.post(f"40{json.dumps({'token': token()})}")
        assert await polls.next() == "1"
        for _ in range(MAX_ERRORS):
            await alice.send("nonsense")
        assert await until_closed(alice) == (["41"], 1008)
    async with running(migrated.url, PROTOCOLS="socketio", MAX_MESSAGES_PER_SECOND="2") as relay:
        async with socketio_client(relay) as alice:
            await opened(alice)
            for _ in range(50):
                await alice.send("431[]")
            assert await until_closed(alice) == ([], 1013)
        polls = Polls(relay)
        await polls.connect()
        await polls.post(*["431[]"] * 50)
        assert await polls.next() == "1"


async def test_a_client_that_does_not_poll_gets_no_more_than_a_part(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await created(connection)
    settings: dict[str, Any] = {"PROTOCOLS": "socketio", "SEND_TIMEOUT": "2", "RING_BYTES": str(8 << 20)}
    async with running(migrated.url, **settings) as relay:
        alice = Polls(relay)
        await alice.connect()
        for _ in range(30):
            await connection.execute(
                "select userrealtime.publish($1, 'a', to_jsonb(repeat('x', 10000))) from generate_series(1, 10)", USER
            )
        await until(lambda: relay.tail.ring.head == 300)
        [session] = _sessions(relay)
        await until(lambda: session.paused)
        assert session.unsent < 200_000
        first = await alice.next()
        assert event_of(first)[2].startswith("1:")
        await until(lambda: relay.clients.connected == 0)  # it is too slow


def _sessions(relay: Relay) -> list[Any]:
    endpoints = relay.websockets._endpoints
    return list(endpoints["/socket.io/"].sessions.values())  # type: ignore[attr-defined]


async def test_a_client_that_answers_no_ping_is_closed(migrated: Database, connection: asyncpg.Connection) -> None:
    await created(connection)
    async with running(migrated.url, PROTOCOLS="socketio", PING_INTERVAL="1") as relay:
        alice, silent, absent = Polls(relay), Polls(relay), Polls(relay)
        for each in (alice, silent, absent):
            await each.connect()
        polling = asyncio.create_task(alice.next())
        async with socketio_client(relay) as websocket:
            await opened(websocket)
            assert (await silent.get()).body == b"2"
            assert (await silent.get()).body == b"1"
            async with asyncio.timeout(PATIENCE_S):
                while str(await websocket.recv()) != "2":
                    pass
            packets: list[str] = []
            with contextlib.suppress(ConnectionClosed):
                while True:
                    packets.append(str(await websocket.recv()))
            assert packets == []
        await until(lambda: relay.clients.connected == 1)  # the one that answers
        await publish(connection, "a")
        assert event_of(await polling)[0] == "a"
        # An answer to no ping is a mistake.
        for _ in range(MAX_ERRORS):
            await alice.post("3")
        assert await alice.next() == "41"


async def test_a_token_that_expires_and_a_drain(migrated: Database, connection: asyncpg.Connection) -> None:
    await created(connection)
    async with running(migrated.url, PROTOCOLS="socketio", TOKEN_LEEWAY="0") as relay:
        polls = Polls(relay)
        await polls.connect(token=token(life_s=2))
        async with socketio_client(relay) as alice:
            await opened(alice, token=token(life_s=2))
            assert await until_closed(alice) == ([], 4001)
        assert await polls.next() == "1"
        async with socketio_client(relay) as alice:
            await opened(alice)
            polls = Polls(relay)
            await polls.connect()
            draining = asyncio.create_task(relay.drain())
            assert await until_closed(alice) == ([], 1012)
            answer = await polls.get()
            assert (answer.body, answer.headers["connection"]) == (b"1", "close")
            await draining
            answer = await Polls(relay).get()
            assert (answer.status, answer.json["code"]) == (HTTPStatus.SERVICE_UNAVAILABLE, 4)
            async with socketio_client(relay) as second:
                assert (await until_closed(second))[1] == 1012


async def test_pages_of_other_origins_poll_if_they_are_allowed() -> None:
    allowed, other = "https://app.example.com", "https://other.example.com"
    async with Relay(config(NO_DATABASE, PROTOCOLS="socketio", ALLOWED_ORIGINS=allowed)) as relay:
        for origin in (allowed, other):
            polls = Polls(relay)
            await polls.begin()
            for answer in (
                await polls.get(headers={"Origin": origin}, method="POST", body=b"3"),
                await Polls(relay).get(headers={"Origin": origin}),
            ):
                assert answer.status == HTTPStatus.OK
                assert ("access-control-allow-origin" in answer.headers) == (origin == allowed)
        with pytest.raises(InvalidStatus, match="403"):
            async with client(
                relay, None, path="/socket.io/", headers={"Origin": other}, EIO="4", transport="websocket"
            ):
                pass
