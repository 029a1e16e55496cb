"""Supabase Realtime: transcripts of the dialect, connections to a real relay, and the endpoints of broadcasts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, Final

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from testing.announcer import broadcasting
from testing.database import Database
from testing.relay.harness import PATIENCE_S, USER, client, config, eventually, is_metric, running, token
from testing.relay.http_client import Answer, request
from userrealtime_core.protocols.dialect import (
    EXPIRED,
    KEYS_UNAVAILABLE,
    MAX_CHANNELS,
    TOO_MANY_CHANNELS,
    Act,
    Authenticate,
    Broadcast,
    Close,
    Join,
    Leave,
    Mistake,
    Opening,
    Outcome,
    Publish,
    Renew,
    Say,
)
from userrealtime_core.protocols.phoenix import VERSIONS
from userrealtime_core.protocols.supabase import (
    MAX_BINDINGS,
    MAX_UNMARKED,
    NO_EVENT,
    NO_TOKEN,
    UNMATCHED,
    Supabase,
)
from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest, Resume
from userrealtime_core.wire.frames import encode_text
from userrealtime_core.wire.session import MAX_ERRORS, UNAUTHORIZED, CloseFrame
from userrealtime_core.wire.submission import Refused, Submission, Unavailable
from userrealtime_relay.protocols.supabase import MAX_MESSAGES
from userrealtime_relay.server import Relay
from userrealtime_relay.wire.frames import encode_events

from .test_phoenix import binary

# No program listens there.
NO_DATABASE: Final = "postgresql://nobody@127.0.0.1:1/none"
AT: Final = "2026-01-02 03:04:05.678901+00"
TIME: Final = "2026-01-02T03:04:05.678901Z"
LOG: Final = "realtime:log"
PATH: Final = "/realtime/v1/websocket"
CONNECTED: Final = {"type": "connected", "userId": USER, "cursor": 7, "epoch": "e", "earliest": 1}
RESET: Final = {"type": "reset", "reason": "too-old", "cursor": 7, "epoch": "e", "earliest": 5}
ANY: Final = {"event": "*", "schema": "public"}
Message = dict[str, Any]


def supabase(vsn: str = "2.0.0", bearer: str | None = None, *, broadcasts: bool = True) -> Supabase:
    request = ConnectRequest(bearer, Resume())
    return Supabase(Opening(PATH, {"vsn": vsn}, {}, (), request, False, "ab", USER, broadcasts))


def parsed(text: str | bytes) -> Message:
    """Return a message of the server, in either version."""
    fields = json.loads(text)
    if isinstance(fields, list):
        fields = dict(zip(("join_ref", "ref", "topic", "event", "payload"), fields, strict=True))
    assert isinstance(fields, dict)
    return fields


def said(acts: Sequence[Act]) -> list[Message]:
    return [parsed(act.text) for act in acts if isinstance(act, Say)]


def send(
    dialect: Supabase, event: str, payload: Any = None, topic: str = LOG, ref: str | None = "2", join_ref: str = "1"
) -> list[Act]:
    return list(dialect.receive(json.dumps([join_ref, ref, topic, event, {} if payload is None else payload])))


def join(
    dialect: Supabase, topic: str = LOG, changes: Sequence[Any] = (), ref: str = "1", bearer: str = "t", **more: Any
) -> list[Act]:
    """Join a channel with a token that is accepted, and return the acts until it is read."""
    payload = {"config": {"postgres_changes": list(changes)}, "access_token": bearer, **more}
    acts = send(dialect, "phx_join", payload, topic, ref, ref)
    if not acts or not isinstance(acts[-1], Authenticate):
        return acts
    return [*acts[:-1], *dialect.accepted(topic, 60, (7, "e"))]


def joined(dialect: Supabase, topic: str = LOG, changes: Sequence[Any] = (), **more: Any) -> list[Message]:
    """Join a channel, and return the messages until it is joined."""
    join(dialect, topic, changes, **more)
    return said(list(dialect.told(topic, CONNECTED, 7, "e")))


def answer(acts: Sequence[Act]) -> Any:
    """Return the response of the only message, which answers a push, if it is an error."""
    [message] = said(acts)
    assert message["event"] == "phx_reply"
    assert message["payload"]["status"] == "error"
    return message["payload"]["response"]


def translated(dialect: Supabase, topic: str, *events: tuple[int, str, str], epoch: str | None = "e") -> list[Message]:
    frames = b"".join(encode_events([(epoch, number, name, AT, data) for number, name, data in events]))
    return [parsed(text) for text in dialect.translate(topic, frames, epoch)]


def broadcast(event: str, data: str) -> bytes:
    return encode_text(f'{{"type":"broadcast","event":{json.dumps(event)},"data":{data}}}')


@pytest.mark.parametrize("vsn", VERSIONS)
def test_a_connection_in_each_version(vsn: str) -> None:
    dialect = supabase(vsn)

    def push(event: str, payload: Any, topic: str = LOG, ref: str = "2", join_ref: str | None = "1") -> list[Act]:
        fields = {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref}
        listed = [join_ref, ref, topic, event, payload]
        return list(dialect.receive(json.dumps(fields if vsn == "1.0.0" else listed)))

    assert list(dialect.begin(0)) == []
    [beat] = said(push("heartbeat", {}, "phoenix", "9", None))
    assert beat == {
        "join_ref": None,
        "ref": "9",
        "topic": "phoenix",
        "event": "phx_reply",
        "payload": {"status": "ok", "response": {}},
    }
    given = {"config": {"broadcast": {"ack": False, "self": False}, "presence": {"key": "", "enabled": False}}}
    assert push("phx_join", {**given, "access_token": "t"}, ref="1") == [Authenticate("t", LOG)]
    assert list(dialect.accepted(LOG, 60, (7, "e"))) == [Join(LOG, "log", "t", Resume())]
    reply, connected = said(list(dialect.told(LOG, CONNECTED, 7, "e")))
    assert (reply["event"], reply["ref"], reply["join_ref"]) == ("phx_reply", "1", "1")
    assert reply["payload"] == {"status": "ok", "response": {"postgres_changes": []}}
    assert (connected["event"], connected["ref"], connected["join_ref"]) == ("system", None, "1")
    assert connected["payload"] == {
        "extension": "userrealtime",
        "status": "ok",
        "message": "connected",
        "channel": "log",
        "cursor": 7,
        "epoch": "e",
    }
    [event] = translated(dialect, LOG, (8, "order.paid", '{"total": 1.50, "é": "\\ud83d"}'))
    assert (event["event"], event["ref"], event["join_ref"]) == ("broadcast", None, "1")
    assert event["payload"] == {
        "type": "broadcast",
        "event": "order.paid",
        "payload": {"total": 1.5, "é": "\ud83d"},
        "meta": {"id": 8, "epoch": "e", "at": TIME},
    }
    [left] = said(leaving := push("phx_leave", {}, ref="5"))
    assert (left["event"], left["ref"], left["payload"]["status"]) == ("phx_reply", "5", "ok")
    assert leaving[1:] == [Leave(LOG)]
    assert translated(dialect, LOG, (9, "a", "1")) == []
    assert list(dialect.told(LOG, RESET, 7, "e")) == []
    assert list(dialect.translate_broadcasts(LOG, broadcast("a", "1"))) == []
    assert [message["payload"]["status"] for message in said(push("phx_leave", {}))] == ["ok"]


def test_only_versions_that_exist_are_accepted() -> None:
    for vsn in ("3.0.0", "", "2"):
        status, reason = Supabase.refusal({"vsn": vsn}) or (None, "")
        assert status is HTTPStatus.BAD_REQUEST
        assert "vsn" in reason
    assert Supabase.refusal({}) is None
    assert Supabase.refusal({"vsn": "2.0.0"}) is None


@pytest.mark.parametrize("value", ["0", "false", "null", '""', "[]", "1.50", '"44"', '"\\u0001\\"\\ud800"', '"é𝄞"'])
def test_data_of_each_type(value: str) -> None:
    dialect = supabase()
    joined(dialect)
    [message] = translated(dialect, LOG, (8, "a", value), epoch=None)
    assert message["payload"]["payload"] == json.loads(value)
    assert message["payload"]["meta"] == {"id": 8, "at": TIME}


def test_a_channel_gets_its_events() -> None:
    dialect = supabase()
    joined(dialect, "realtime:C")
    events = ((8, "C#a", "1"), (9, "D#a", "2"), (10, "a", "3"), (11, "C#b#c", "4"))
    names = [message["payload"]["event"] for message in translated(dialect, "realtime:C", *events)]
    assert names == ["a", "b#c"]


def test_changes_of_postgres() -> None:
    dialect = supabase()
    changes = (
        {"event": "INSERT", "schema": "public", "table": "orders"},
        {"event": "*", "schema": "shop", "table": "orders"},
        {"event": "*", "schema": "public", "table": 'odd "name"'},
        {"event": "DELETE", "schema": "*"},
    )
    reply, subscribed, connected = joined(dialect, "realtime:any", changes)
    numbered = [{**change, "id": number} for number, change in enumerate(changes, start=1)]
    assert reply["payload"]["response"] == {"postgres_changes": numbered}
    assert subscribed["payload"] == {
        "extension": "postgres_changes",
        "status": "ok",
        "message": "Subscribed to PostgreSQL",
        "channel": "any",
    }
    assert connected["payload"]["message"] == "connected"

    def change(name: str, data: str) -> Any:
        messages = translated(dialect, "realtime:any", (8, name, data))
        assert all(message["event"] == "postgres_changes" for message in messages)
        return [message["payload"] for message in messages]

    common: Message = {"schema": "public", "table": "orders", "commit_timestamp": TIME, "columns": [], "errors": None}
    row = {"id": 1, "total": 1.5}
    data = json.dumps(row)
    assert change("orders.insert", data) == [{"ids": [1, 2], "data": {**common, "type": "INSERT", "record": row}}]
    update = {**common, "schema": "shop", "type": "UPDATE", "record": row}
    assert change("orders.update", data) == [{"ids": [2], "data": {**update, "old_record": {}}}]
    both = '{"new": {"id": 1, "total": 1.5}, "old": {"id": 1, "text": "}, \\"old\\": {"}}'
    assert change("orders.update", both) == [
        {"ids": [2], "data": {**update, "old_record": {"id": 1, "text": '}, "old": {'}}}
    ]
    delete = {**common, "schema": "shop", "type": "DELETE", "old_record": row}
    assert change("orders.delete", data) == [{"ids": [2, 4], "data": delete}]
    [other] = change('odd "name".update', data)
    assert (other["ids"], other["data"]["table"]) == ([3], 'odd "name"')
    # The channel has neither bindings for these, nor are they its own.
    for name in ("orders.truncate", "orders", ".insert", "lines.insert", "C#orders.insert", "orders.insert.x"):
        assert change(name, data) == []
    assert change("orders.insert", "[]") == []
    # An event of the channel itself fits as well.
    assert [each["ids"] for each in change("any#orders.insert", data)] == [[1, 2]]


@pytest.mark.parametrize(
    "data",
    [
        '{"new": {"id": 1}}',
        '{"new": {"id": 1}, "old": 1}',
        '{"new": {"id": 1}, "old": {"id": 1}, "x": 1}',
        '{"new": 1, "old": {"id": 1}}',
        '{"new": {"id": 1}, "odd": {"id": 1}}',
        '{"new": ' + '{"a": ' * 100_000 + "1" + "}" * 100_000 + ', "old": {}}',
    ],
)
def test_a_row_with_a_column_named_new_stays_a_row(data: str) -> None:
    dialect = supabase()
    joined(dialect, LOG, [ANY])
    frames = b"".join(encode_events([("e", 8, "orders.update", AT, data)]))
    [text] = dialect.translate(LOG, frames, "e")
    assert b'"record":%b,"old_record":{},' % data.encode() in text


def test_an_event_is_sent_once_as_a_change_or_as_a_broadcast() -> None:
    dialect = supabase()
    joined(dialect, LOG, [{"event": "INSERT", "schema": "public", "table": "orders"}])
    events = ((8, "orders.insert", "{}"), (9, "orders.update", "{}"), (10, "orders.insert", "1"), (11, "C#a", "1"))
    messages = translated(dialect, LOG, *events)
    assert [message["event"] for message in messages] == ["postgres_changes", "broadcast", "broadcast", "broadcast"]
    assert [message["payload"]["event"] for message in messages[1:]] == ["orders.update", "orders.insert", "C#a"]


@pytest.mark.parametrize(
    ("given", "resume"),
    [
        ({"last_event_id": 42, "epoch": "5f0c"}, Resume(42, "5f0c")),
        ({"last_event_id": "42", "epoch": ""}, Resume(42)),
        ({"last_event_id": "42:5f0c"}, Resume(42, "5f0c")),
        ({"last_event_id": "42", "epoch": None}, Resume(42)),
        ({"last_event_id": "", "epoch": "5f0c"}, Resume()),
        ({"last_event_id": None}, Resume()),
        ({"last_event_id": 0, "epoch": "e"}, Resume(0, "e")),
    ],
)
def test_a_client_that_passes_a_position_resumes_and_gets_positions(given: Message, resume: Resume) -> None:
    dialect, other = supabase(), supabase()
    topic = "realtime:C"
    assert join(dialect, topic, **given) == [Join(topic, "C", "t", resume)]
    joined(other, topic)
    cursor, epoch = 7 if resume.cursor is None else resume.cursor, resume.epoch or "e"
    _, connected = said(list(dialect.told(topic, {**CONNECTED, "cursor": cursor, "epoch": epoch}, cursor, epoch)))
    assert (connected["payload"]["cursor"], connected["payload"]["epoch"]) == (cursor, epoch)
    # The position moves by events of other channels as well.
    event, position = translated(dialect, topic, (43, "C#a", "1"), (44, "D#a", "2"))
    assert event["payload"]["meta"]["id"] == 43
    assert position["event"] == "system"
    assert position["payload"] == {
        "extension": "userrealtime",
        "status": "ok",
        "message": "position",
        "channel": "C",
        "cursor": 44,
        "epoch": "e",
    }
    assert dialect.translation(topic) != other.translation(topic)
    assert len(translated(other, topic, (43, "C#a", "1"), (44, "D#a", "2"))) == 1


def test_after_broadcasts_no_position_is_needed() -> None:
    dialect = supabase()
    joined(dialect, last_event_id="")
    assert [message["event"] for message in translated(dialect, LOG, (8, "a", "1"), (9, "b", "1"))] == ["broadcast"] * 2


def test_positions_come_within_a_large_batch_of_changes() -> None:
    dialect = supabase()
    joined(dialect, LOG, [ANY], last_event_id="")
    count = 2 * MAX_UNMARKED + 1
    messages = translated(dialect, LOG, *((number, "orders.insert", "{}") for number in range(1, count + 1)))
    cursors = [message["payload"]["cursor"] for message in messages if message["event"] == "system"]
    assert cursors == [MAX_UNMARKED, 2 * MAX_UNMARKED, count]
    assert len(messages) == count + len(cursors)


@pytest.mark.parametrize("given", [{"last_event_id": 3, "epoch": "e"}, {"last_event_id": 7, "epoch": "old"}])
def test_a_new_position_does_not_come_before_its_reset(given: Message) -> None:
    dialect = supabase()
    [reply] = joined(dialect, **given)
    assert reply["event"] == "phx_reply"
    [reset] = said(list(dialect.told(LOG, RESET, 7, "e")))
    assert reset["payload"] == {
        "extension": "userrealtime",
        "status": "error",
        "message": "reset: too-old",
        "channel": "log",
        "reason": "too-old",
        "cursor": 7,
        "epoch": "e",
        "earliest": 5,
    }


def test_a_replay_since_a_time() -> None:
    dialect = supabase()
    settings = {"broadcast": {"replay": {"since": 1_700_000_000_500, "limit": 5}}, "private": True}
    assert join(dialect, config=settings) == [Join(LOG, "log", "t", Resume(), 1_700_000_000.5)]
    # There may be a reset, so the position at which the session begins is not sent.
    assert [message["event"] for message in said(list(dialect.told(LOG, CONNECTED, 7, "e")))] == ["phx_reply"]
    before, after = translated(dialect, LOG, (7, "a", "1"), (8, "a", "1"))
    assert before["payload"]["meta"] == {"id": 7, "epoch": "e", "at": TIME, "replayed": True}
    assert "replayed" not in after["payload"]["meta"]
    wording = dialect.translation(LOG)
    assert list(dialect.caught_up(LOG)) == []
    assert dialect.translation(LOG) != wording
    [event] = translated(dialect, LOG, (9, "a", "1"))
    assert "replayed" not in event["payload"]["meta"]
    # The client repeats the time at each join. A position is newer.
    [*_, again] = join(dialect, config=settings, last_event_id=9, epoch="e")
    assert again == Join(LOG, "log", "t", Resume(9, "e"))
    [*_, again] = join(dialect, config=settings, last_event_id="")
    assert isinstance(again, Join)
    assert again.since == 1_700_000_000.5


def test_a_replay_before_the_log_is_known() -> None:
    dialect = supabase()
    settings = {"broadcast": {"replay": {"since": 0.0}}}
    send(dialect, "phx_join", {"config": settings, "access_token": "t"})
    assert list(dialect.accepted(LOG, 60, None)) == [Join(LOG, "log", "t", Resume(), 0.0)]
    [event] = translated(dialect, LOG, (2**62, "a", "1"))
    assert event["payload"]["meta"]["replayed"] is True


def test_broadcasts_of_the_server_have_no_position() -> None:
    dialect = supabase()
    joined(dialect, last_event_id="")
    joined(dialect, "realtime:C")
    frames = broadcast("typing", "[1]") + broadcast('C#"é', '{"at":"","data":1}') + broadcast("C#", "1")
    texts = dialect.translate_broadcasts(LOG, frames)
    assert [parsed(text)["payload"] for text in texts] == [
        {"type": "broadcast", "event": "typing", "payload": [1]},
        {"type": "broadcast", "event": 'C#"é', "payload": {"at": "", "data": 1}},
        {"type": "broadcast", "event": "C#", "payload": 1},
    ]
    [text] = dialect.translate_broadcasts("realtime:C", frames)
    message = parsed(text)
    assert (message["event"], message["join_ref"]) == ("broadcast", "1")
    assert message["payload"] == {"type": "broadcast", "event": '"é', "payload": {"at": "", "data": 1}}
    # A broker may send texts that are written in another way.
    odd = encode_text('{"event":"a","type":"broadcast","data":1}') + encode_text('{"type":"broadcast","event":"a"}')
    assert list(dialect.translate_broadcasts(LOG, odd)) == []


def test_broadcasts_of_a_client() -> None:
    dialect = supabase()
    joined(dialect, "realtime:C")
    for message in (
        binary("1", "5", "realtime:C", "typing", b'{"x":1}'),
        json.dumps(
            ["1", "5", "realtime:C", "broadcast", {"type": "broadcast", "event": "typing", "payload": {"x": 1}}]
        ),
    ):
        [act] = dialect.receive(message)
        assert act == Broadcast("C#typing", {"x": 1}, "realtime:C", "5", False)
        assert isinstance(act, Broadcast)
        # Without `ack`, the client does not wait for an answer.
        assert list(dialect.broadcasted(act, None)) == []
        [error] = said(list(dialect.broadcasted(act, "why")))
        assert error["event"] == "system"
        assert (error["payload"]["status"], error["payload"]["message"]) == ("error", "why")
    # Its data defaults to an object.
    assert send(dialect, "broadcast", {"event": "a"}, "realtime:C") == [Broadcast("C#a", {}, "realtime:C", "2", False)]
    for event in (1, "", None):
        [error] = said(send(dialect, "broadcast", {"event": event}, "realtime:C"))
        assert error["payload"]["message"] == NO_EVENT
    [error] = said(dialect.receive(binary("1", "5", "realtime:C", "typing", b"\x00", encoding=0)))
    assert "JSON" in error["payload"]["message"]
    assert answer(dialect.receive(binary("", "5", LOG, "typing", b"{}"))) == {"reason": UNMATCHED}
    send(dialect, "phx_leave", topic="realtime:C")
    assert isinstance(act, Broadcast)
    assert list(dialect.broadcasted(act, "why")) == []


def test_broadcasts_with_self_and_ack() -> None:
    dialect = supabase()
    joined(dialect, config={"broadcast": {"self": True, "ack": True}})
    [act] = dialect.receive(binary("1", "5", LOG, "typing", b"1"))
    assert act == Broadcast("typing", 1, LOG, "5", True)
    assert isinstance(act, Broadcast)
    [reply] = said(list(dialect.broadcasted(act, None)))
    assert (reply["ref"], reply["join_ref"], reply["payload"]["status"]) == ("5", "1", "ok")
    assert answer(list(dialect.broadcasted(act, "why"))) == {"reason": "why"}
    assert "JSON" in answer(dialect.receive(binary("1", "5", LOG, "typing", b"1", encoding=0)))["reason"]


@pytest.mark.parametrize("ack", [False, True])
def test_without_broadcasts_of_clients_they_are_stored(ack: bool) -> None:
    dialect = supabase(broadcasts=False)
    joined(dialect, "realtime:C", config={"broadcast": {"ack": ack}})
    [publish] = dialect.receive(binary("1", "5", "realtime:C", "note", b'{"x":1}'))
    assert isinstance(publish, Publish)
    assert publish.submission == ("supabase:ab:1", "note", '{"x":1}')
    outcomes = said(list(dialect.stored("realtime:C", publish.submission, 17)))
    assert [(each["ref"], each["payload"]["response"]) for each in outcomes] == ([("5", {"id": 17})] if ack else [])
    [failure] = said(list(dialect.stored("realtime:C", publish.submission, Refused("no"))))
    assert failure["event"] == ("phx_reply" if ack else "system")
    error, mistake = dialect.receive(binary("1", "5", "realtime:C", "x" * 254, b"1"))
    assert said([error])[0]["event"] == ("phx_reply" if ack else "system")
    assert isinstance(mistake, Mistake)


def test_a_message_for_the_application_is_answered_when_it_is_stored() -> None:
    dialect = supabase()
    joined(dialect, "realtime:C")
    fields = {"type": "publish", "event": "note", "payload": {"x": 1}}
    for number in (1, 2):
        [publish] = send(dialect, "publish", fields, "realtime:C", "5")
        submission = Submission(f"supabase:ab:{number}", "note", '{"x":1}')
        assert publish == Publish(submission, "realtime:C")
    [reply] = said(list(dialect.stored("realtime:C", submission, 17)))
    assert (reply["ref"], reply["payload"]) == ("5", {"status": "ok", "response": {"id": 17}})
    outcomes: tuple[tuple[Outcome, str], ...] = ((Refused("no"), "refused"), (Unavailable("later"), "unavailable"))
    for outcome, code in outcomes:
        response = answer(list(dialect.stored("realtime:C", submission, outcome)))
        assert response == {"reason": str(outcome), "code": code}
    # The application may choose the ref, and repeat the message.
    [publish] = send(dialect, "publish", {**fields, "ref": "mine"}, "realtime:C")
    assert isinstance(publish, Publish)
    assert publish.submission.ref == "mine"
    for wrong in ({"event": 1}, {"event": "x" * 300}, {"ref": 1}, {"ref": ""}):
        error, mistake = send(dialect, "publish", {**fields, **wrong}, "realtime:C")
        assert answer([error])["code"] == "invalid-publish"
        assert isinstance(mistake, Mistake)
    send(dialect, "phx_leave", topic="realtime:C")
    assert list(dialect.stored("realtime:C", submission, 17)) == []


def test_presence_is_refused() -> None:
    dialect = supabase()
    _, state, _ = joined(dialect, config={"presence": {"key": "", "enabled": True}})
    assert (state["event"], state["payload"]) == ("presence_state", {})
    track = {"type": "presence", "event": "track", "payload": {"x": 1}}
    assert "presence" in answer(send(dialect, "presence", track))["reason"]
    [reply] = said(send(dialect, "presence", {"type": "presence", "event": "untrack"}))
    assert reply["payload"]["status"] == "ok"


def test_a_token_is_replaced_in_place() -> None:
    dialect = supabase()
    joined(dialect)
    assert send(dialect, "access_token", {"access_token": "newer"}) == [Renew(LOG, "newer")]
    assert list(dialect.told(LOG, {"type": "renewed", "expiresIn": 60}, 7, "e")) == []
    # A client that signs out sends none, and keeps the one that it had.
    assert send(dialect, "access_token", {"access_token": None}) == []
    [error] = said(list(dialect.told(LOG, {"type": "error", "code": "unavailable", "message": "later"}, 7, "e")))
    assert (error["payload"]["extension"], error["payload"]["message"]) == ("system", "later")


@pytest.mark.parametrize(
    ("topic", "more", "reason"),
    [
        (LOG, {"access_token": None}, NO_TOKEN),
        (LOG, {"access_token": ""}, NO_TOKEN),
        (LOG, {"access_token": ["t"]}, NO_TOKEN),
        ("log", {}, "no channel"),
        ("realtime:", {}, "no channel"),
        ("realtime:a#b", {}, "no channel"),
        ("realtime:\ud800", {}, "no channel"),
        ("realtime:" + "x" * 201, {}, "no channel"),
        (LOG, {"config": []}, "config"),
        (LOG, {"config": [1]}, "config"),
        (LOG, {"config": {"broadcast": 1}}, "broadcast"),
        (LOG, {"config": {"presence": 1}}, "presence"),
        (LOG, {"config": {"postgres_changes": {"event": "*"}}}, "postgres_changes"),
        (LOG, {"config": {"postgres_changes": [ANY] * (MAX_BINDINGS + 1)}}, "postgres_changes"),
        (LOG, {"config": {"postgres_changes": [1]}}, "postgres_changes"),
        (LOG, {"config": {"postgres_changes": [{**ANY, "filter": "id=eq.1"}]}}, "filter is not supported"),
        (LOG, {"config": {"postgres_changes": [{**ANY, "select": ["id"]}]}}, "select is not supported"),
        (LOG, {"config": {"postgres_changes": [{**ANY, "event": "TRUNCATE"}]}}, "INSERT"),
        (LOG, {"config": {"postgres_changes": [{**ANY, "event": ["*"]}]}}, "INSERT"),
        (LOG, {"config": {"postgres_changes": [{**ANY, "table": 1}]}}, "table"),
        (LOG, {"config": {"postgres_changes": [{**ANY, "table": "\ud800"}]}}, "table"),
        (LOG, {"config": {"postgres_changes": [{**ANY, "schema": 1}]}}, "schema"),
        (LOG, {"config": {"broadcast": {"replay": {"since": -1}}}}, "since"),
        (LOG, {"config": {"broadcast": {"replay": {"since": True}}}}, "since"),
        (LOG, {"config": {"broadcast": {"replay": {"since": 1e18}}}}, "since"),
        (LOG, {"config": {"broadcast": {"replay": {"limit": 1}}}}, "since"),
        (LOG, {"last_event_id": -1}, "last_event_id"),
        (LOG, {"last_event_id": 1.5}, "last_event_id"),
        (LOG, {"last_event_id": True}, "last_event_id"),
        (LOG, {"last_event_id": "x"}, "last_event_id"),
        (LOG, {"last_event_id": [1]}, "last_event_id"),
        (LOG, {"last_event_id": 1, "epoch": 1}, "last_event_id"),
    ],
)
def test_a_join_is_refused_before_its_token_is_checked(topic: str, more: Message, reason: str) -> None:
    # It is answered, and not counted: the client joins again forever.
    assert reason in answer(join(supabase(), topic, **more))["reason"]


def test_a_token_of_the_handshake_is_used_if_the_join_has_none() -> None:
    assert send(supabase(bearer="h"), "phx_join") == [Authenticate("h", LOG)]
    assert send(supabase(bearer="h"), "phx_join", {"user_token": "u"}) == [Authenticate("u", LOG)]
    assert send(supabase(bearer="h"), "phx_join", {"user_token": "u", "access_token": "t"}) == [Authenticate("t", LOG)]


def test_a_token_that_is_not_accepted() -> None:
    for expired in (False, True):
        dialect = supabase()
        send(dialect, "phx_join", {"access_token": "t"}, ref="4")
        refusal, *mistakes = dialect.ending(LOG, UNAUTHORIZED, expired=expired)
        [reply] = said([refusal])
        assert reply["ref"] == "4"
        assert ("expired" in answer([refusal])["reason"]) == expired
        assert [type(act) for act in mistakes] == ([] if expired else [Mistake])
        # The channel does not exist.
        assert answer(send(dialect, "publish"))["reason"] == UNMATCHED
    dialect = supabase()
    send(dialect, "phx_join", {"access_token": "t"})
    assert answer(list(dialect.ending(LOG, KEYS_UNAVAILABLE, expired=False)))["reason"] == KEYS_UNAVAILABLE.reason
    # A token that expires between two checks.
    join(dialect)
    assert "InvalidJWTToken" in answer(list(dialect.ending(LOG, UNAUTHORIZED, expired=False))[:1])["reason"]


def test_a_channel_whose_token_expires_ends_its_connection() -> None:
    dialect = supabase()
    joined(dialect)
    message, close = dialect.ending(LOG, EXPIRED, expired=True)
    [system] = said([message])
    assert system["payload"] == {
        "extension": "system",
        "status": "error",
        "message": "Token has expired",
        "channel": "log",
    }
    assert close == Close(4001, "Token expired")
    assert list(dialect.ending(LOG, EXPIRED, expired=True)) == []
    # A new token that is not accepted.
    joined(dialect)
    message, mistake, close = dialect.ending(LOG, UNAUTHORIZED, expired=False)
    assert "InvalidJWTToken" in said([message])[0]["payload"]["message"]
    assert isinstance(mistake, Mistake)
    assert close == Close(1008, "Unauthorized")


def test_a_second_join_replaces_the_first_one() -> None:
    dialect = supabase()
    joined(dialect)
    closed, leave, again = join(dialect, ref="7")
    assert said([closed]) == [{"join_ref": "1", "ref": "1", "topic": LOG, "event": "phx_close", "payload": {}}]
    assert (leave, type(again)) == (Leave(LOG), Join)
    # Messages for the first join are late.
    assert send(dialect, "access_token", {"access_token": "x"}, join_ref="1") == []
    assert [type(act) for act in send(dialect, "phx_leave", join_ref="1")] == [Say]
    dialect.told(LOG, CONNECTED, 7, "e")
    [event] = translated(dialect, LOG, (8, "a", "1"))
    assert event["join_ref"] == "7"
    assert [type(act) for act in send(dialect, "phx_leave", join_ref="7")] == [Say, Leave]


def test_the_number_of_channels_is_limited_before_a_token_is_checked() -> None:
    dialect = supabase()
    for number in range(MAX_CHANNELS):
        joined(dialect, f"realtime:c{number}")
    assert "ChannelRateLimitReached" in answer(join(dialect))["reason"]
    assert isinstance(join(dialect, "realtime:c0", ref="3")[-1], Join)
    send(dialect, "phx_leave", topic="realtime:c1")
    join(dialect)
    assert "ChannelRateLimitReached" in answer(list(dialect.ending(LOG, TOO_MANY_CHANNELS, expired=False)))["reason"]


@pytest.mark.parametrize("code", list(CloseCode))
def test_a_connection_ends_with_the_code_of_its_reason(code: CloseCode) -> None:
    assert list(supabase().ending(None, CloseFrame(code, "x"), expired=False)) == [Close(code, "x")]


@pytest.mark.parametrize("message", [b"", "x", "{}", "[]", '[null,"1","phoenix","heartbeat",null]'])
def test_invalid_messages_are_counted(message: str | bytes) -> None:
    assert [type(act) for act in supabase().receive(message)] == [Mistake]


def test_unknown_messages_are_answered() -> None:
    dialect = supabase()
    assert answer(send(dialect, "heartbeat")) == {"reason": UNMATCHED}
    assert answer(send(dialect, "fly", topic="phoenix")) == {"reason": UNMATCHED}
    joined(dialect)
    error, mistake = send(dialect, "fly")
    assert answer([error]) == {"reason": UNMATCHED}
    assert isinstance(mistake, Mistake)


NAMES: Final = ("access_token", "config", "last_event_id", "epoch", "event", "payload", "ref")
TEXTS: Final = st.one_of(st.sampled_from((LOG, "realtime:C", "phoenix", "t", "*", "INSERT", "orders")), st.text())
JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
)
CONFIGS: Final = st.fixed_dictionaries(
    {},
    optional={
        "broadcast": JSON | st.fixed_dictionaries({}, optional={"self": JSON, "ack": JSON, "replay": JSON}),
        "postgres_changes": JSON
        | st.lists(
            st.fixed_dictionaries({"event": JSON}, optional={"schema": JSON, "table": JSON, "filter": JSON}), max_size=3
        ),
        "presence": JSON,
    },
)
PAYLOADS: Final = st.one_of(
    JSON,
    st.dictionaries(st.sampled_from(NAMES), JSON),
    st.fixed_dictionaries({"access_token": st.just("t")}, optional={"config": CONFIGS, "last_event_id": JSON}),
)
EVENTS: Final = st.one_of(
    st.sampled_from(("phx_join", "phx_leave", "heartbeat", "access_token", "broadcast", "presence", "publish")), TEXTS
)
PUSHES: Final = st.lists(st.tuples(JSON, JSON, TEXTS, EVENTS, PAYLOADS), max_size=30)


@given(PUSHES, st.sampled_from(VERSIONS))
def test_no_message_raises_an_error_and_the_state_is_limited(pushes: list[Any], vsn: str) -> None:
    dialect = supabase(vsn)
    read = set()
    for join_ref, ref, topic, event, payload in pushes:
        fields = {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref}
        listed = [join_ref, ref, topic, event, payload]
        acts = list(dialect.receive(json.dumps(fields if vsn == "1.0.0" else listed)))
        for act in acts:
            if isinstance(act, Authenticate):
                acts += dialect.accepted(act.key, 60, (7, "e"))
            elif isinstance(act, Say):
                json.loads(act.text.encode())
            elif isinstance(act, Join):
                read.add(act.key)
                assert said(list(dialect.told(act.key, CONNECTED, 7, "e")))
                for message in translated(dialect, act.key, (8, "orders.insert", "{}"), (9, "C#a", "1")):
                    assert message["topic"] == act.key
                hash(dialect.translation(act.key))
            elif isinstance(act, Leave):
                read.remove(act.key)
        assert len(read) <= MAX_CHANNELS


async def message_of(connection: ClientConnection) -> Message:
    async with asyncio.timeout(PATIENCE_S):
        return parsed(await connection.recv())


async def messages_until_close(connection: ClientConnection) -> tuple[list[Message], int]:
    """Return the messages until the connection is closed, and the close code."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(await message_of(connection))
    return messages, connection.close_code or 0


async def tell(connection: ClientConnection, event: str, payload: Any = None, topic: str = LOG, ref: str = "2") -> None:
    with contextlib.suppress(ConnectionClosed):
        await connection.send(json.dumps(["1", ref, topic, event, {} if payload is None else payload]))


async def enter(connection: ClientConnection, topic: str = LOG, bearer: str | None = "", **more: Any) -> Message:
    """Join a channel, and return the answer."""
    payload = more if bearer is None else {"access_token": bearer or token(), **more}
    await tell(connection, "phx_join", payload, topic, "1")
    reply = await message_of(connection)
    assert (reply["event"], reply["topic"]) == ("phx_reply", topic)
    return reply


async def system_of(connection: ClientConnection) -> Message:
    """Return the next message, which is one of `system`."""
    message = await message_of(connection)
    assert message["event"] == "system"
    payload: Message = message["payload"]
    return payload


def supabase_client(relay: Relay, path: str = PATH, vsn: str = "2.0.0") -> Any:
    """Connect as a client of Supabase does: without a token."""
    return client(relay, None, path=path, apikey="any", vsn=vsn)


async def post(relay: Relay, path: str, body: Any, bearer: str | None = "") -> Answer:
    """Send broadcasts over HTTP, as realtime-js does."""
    headers = {"Content-Type": "application/json", "apikey": "any"}
    path = f"/realtime/v1/api/broadcast{path}?apikey=any&vsn=2.0.0"
    return await request(relay, path, bearer, method="POST", body=json.dumps(body).encode(), headers=headers)


async def test_events_of_a_real_relay_and_an_exact_resume(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    await connection.execute("create table orders (id int primary key, owner text)")
    await connection.execute(
        "create trigger publish after insert or update or delete on orders "
        "for each row execute function userrealtime.capture('owner', 'orders', 'update=both')"
    )
    changes = {"postgres_changes": [{"event": "*", "schema": "public", "table": "orders"}]}
    async with running(migrated.url, PROTOCOLS="supabase", BASE_PATH="/a") as relay:
        async with supabase_client(relay, f"/a{PATH}") as alice:
            assert (await enter(alice, bearer=None))["payload"]["response"] == {"reason": NO_TOKEN}
            assert (await enter(alice, last_event_id="", config=changes))["payload"]["status"] == "ok"
            assert (await system_of(alice))["message"] == "Subscribed to PostgreSQL"
            first = await system_of(alice)
            assert (first["message"], first["cursor"]) == ("connected", 0)
            await connection.execute("select userrealtime.publish($1, 'a', '\"44\"')", USER)
            event = (await message_of(alice))["payload"]
            assert (event["event"], event["payload"]) == ("a", "44")
            assert (event["meta"]["id"], event["meta"]["epoch"]) == (1, first["epoch"])
            seen = []
            for change in ("insert into orders values (1, $1)", "update orders set id = 2 where owner = $1"):
                await connection.execute(change, USER)
                # Events that the relay reads together have a single position.
                seen += [await message_of(alice), await message_of(alice)]
            data = [each["payload"]["data"] for each in seen if each["event"] == "postgres_changes"]
            assert [each["type"] for each in data] == ["INSERT", "UPDATE"]
            assert (data[1]["record"]["id"], data[1]["old_record"]["id"]) == (2, 1)
            assert [each["payload"]["cursor"] for each in seen if each["event"] == "system"] == [2, 3]
            await tell(alice, "publish", {"type": "publish", "event": "note", "payload": {"x": 1}, "ref": "mine"})
            reply = (await message_of(alice))["payload"]
            assert reply["status"] == "ok"
        [row] = await connection.fetch("select id, ref, event, data from userrealtime.inbox")
        assert (row["id"], row["ref"], row["event"]) == (reply["response"]["id"], "mine", "note")
        assert json.loads(row["data"]) == {"x": 1}
        await connection.execute("select userrealtime.publish($1, 'b', '2')", USER)
        async with supabase_client(relay, vsn="1.0.0") as alice:
            join_message = {"topic": LOG, "event": "phx_join", "ref": "1", "join_ref": "1"}
            payload = {"access_token": token(), "last_event_id": 3, "epoch": first["epoch"]}
            await alice.send(json.dumps({**join_message, "payload": payload}))
            seen = [await message_of(alice) for _ in range(3)]
            assert [each["event"] for each in seen] == ["phx_reply", "system", "broadcast"]
            assert seen[2]["payload"]["meta"]["id"] == 4
        async with supabase_client(relay) as alice:
            assert (await enter(alice, last_event_id=1, epoch="other"))["payload"]["status"] == "ok"
            reset = await system_of(alice)
            assert (reset["message"], reset["reason"], reset["cursor"]) == ("reset: epoch", "epoch", 4)


async def test_a_replay_of_a_real_relay(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    for number in range(4):
        await connection.execute("select userrealtime.publish($1, 'a', $2)", USER, str(number))
    await connection.execute(
        "update userrealtime.event set at = at - interval '1 hour' * (4 - id) where user_id = $1", USER
    )
    since = await connection.fetchval("select extract(epoch from at) * 1000 from userrealtime.event where id = 3")
    async with running(migrated.url, PROTOCOLS="supabase") as relay, supabase_client(relay) as alice:
        replay: Message = {"broadcast": {"replay": {"since": int(since), "limit": 25}}, "private": True}
        await enter(alice, config=replay)
        metas = [(await message_of(alice))["payload"]["meta"] for _ in range(2)]
        assert [(meta["id"], meta.get("replayed")) for meta in metas] == [(3, True), (4, True)]
        await connection.execute("select userrealtime.publish($1, 'a', '4')", USER)
        assert "replayed" not in (await message_of(alice))["payload"]["meta"]
    # Older events than the log has.
    await connection.execute("delete from userrealtime.event where id < 3")
    async with running(migrated.url, PROTOCOLS="supabase") as relay, supabase_client(relay) as alice:
        await enter(alice, config={"broadcast": {"replay": {"since": 0}}})
        assert (await system_of(alice))["message"] == "reset: too-old"


async def test_a_connection_without_a_token_gets_no_events() -> None:
    # There is no database: a connection without a valid token causes no query.
    async with Relay(config(NO_DATABASE, PROTOCOLS="supabase", AUTH_TIMEOUT="1")) as relay:
        async with supabase_client(relay) as alice:
            for bad in ("nonsense", token(sub="bob"), token(key="other" * 10), token(life_s=-60)):
                reply = await enter(alice, bearer=bad)
                assert reply["payload"]["status"] == "error"
                assert "oken" in reply["payload"]["response"]["reason"]
            for event in ("broadcast", "publish", "access_token", "presence"):
                await tell(alice, event, {"event": "a", "payload": {}, "access_token": token()})
                assert (await message_of(alice))["payload"]["response"] == {"reason": UNMATCHED}
            assert await messages_until_close(alice) == ([], 1008)
        async with supabase_client(relay) as alice:
            for _ in range(MAX_ERRORS + 2):
                await tell(alice, "phx_join", ref="1")  # without a token, these are not counted
            replies = [await message_of(alice) for _ in range(MAX_ERRORS + 2)]
            assert {reply["payload"]["response"]["reason"] for reply in replies} == {NO_TOKEN}
            for _ in range(MAX_ERRORS):
                await tell(alice, "phx_join", {"access_token": "x"}, ref="1")
            messages, code = await messages_until_close(alice)
            assert (len(messages), code) == (MAX_ERRORS, 1008)
        for path in ("", "/log/events/a"):
            assert (await post(relay, path, {"messages": []}, None)).status == HTTPStatus.UNAUTHORIZED
            assert (await post(relay, path, {"messages": []}, token(sub="bob"))).status == HTTPStatus.UNAUTHORIZED


async def test_only_known_versions_are_accepted() -> None:
    async with Relay(config(NO_DATABASE, PROTOCOLS="supabase")) as relay:
        with pytest.raises(InvalidStatus, match="400"):
            async with supabase_client(relay, vsn="3.0.0"):
                pass


async def test_a_token_that_is_replaced_in_time_causes_no_gap(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    async with running(migrated.url, PROTOCOLS="supabase", TOKEN_LEEWAY="0") as relay:
        async with supabase_client(relay) as alice:
            await enter(alice, bearer=token(life_s=2))
            await system_of(alice)
            await tell(alice, "access_token", {"access_token": token(life_s=5)})
            await asyncio.sleep(2.5)
            await connection.execute("select userrealtime.publish($1, 'a', '1')", USER)
            assert (await message_of(alice))["payload"]["meta"]["id"] == 1
            assert (await system_of(alice))["message"] == "Token has expired"
            assert await messages_until_close(alice) == ([], 4001)
        async with supabase_client(relay) as alice:
            await enter(alice)
            await system_of(alice)
            await tell(alice, "access_token", {"access_token": "x"})
            assert "InvalidJWTToken" in (await system_of(alice))["message"]
            assert await messages_until_close(alice) == ([], 1008)


async def test_broadcasts_reach_the_other_clients_of_all_protocols(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    async with (
        broadcasting(migrated.url),
        running(migrated.url, PROTOCOLS="supabase", MAX_BROADCASTS_PER_SECOND="100") as relay,
        supabase_client(relay) as alice,
        supabase_client(relay) as other,
        client(relay) as own,
    ):
        assert json.loads(await own.recv())["type"] == "connected"
        for each, topic in ((alice, "realtime:C"), (alice, LOG), (other, "realtime:C"), (other, LOG)):
            await enter(each, topic, config={"broadcast": {"ack": True, "self": each is other}})
            await system_of(each)

        async def heard(each: ClientConnection, name: str) -> None:
            messages = [await message_of(each) for _ in range(2)]
            assert {(message["topic"], message["payload"]["event"]) for message in messages} == {
                ("realtime:C", name),
                (LOG, f"C#{name}"),
            }
            assert all("meta" not in message["payload"] for message in messages)

        await alice.send(binary("1", "5", "realtime:C", "typing", b'{"x": 1}'))
        await heard(other, "typing")
        assert json.loads(await own.recv()) == {"type": "broadcast", "event": "C#typing", "data": {"x": 1}}
        reply = await message_of(alice)
        assert (reply["event"], reply["ref"], reply["payload"]["status"]) == ("phx_reply", "5", "ok")
        await own.send('{"type":"broadcast","event":"C#reply","data":1}')
        await heard(alice, "reply")
        await heard(other, "reply")
        # With `self`, the channels of the sender receive it as well.
        await other.send(binary("1", "6", "realtime:C", "echo", b"1"))
        assert (await message_of(other))["event"] == "phx_reply"
        await heard(other, "echo")
        await heard(alice, "echo")
        assert json.loads(await own.recv())["event"] == "C#echo"
        # From the database, and over HTTP.
        await connection.execute("select userrealtime.broadcast($1, 'C#server', '1')", USER)
        assert (await post(relay, "/C/events/a%2Fb", [1])).status == HTTPStatus.ACCEPTED
        messages = {"messages": [{"topic": "C", "event": "m1", "payload": 1}, {"topic": "realtime:C", "event": "m2"}]}
        assert (await post(relay, "", messages)).status == HTTPStatus.ACCEPTED
        for each in (alice, other):
            seen = [await message_of(each) for _ in range(8)]
            names = {message["payload"]["event"] for message in seen if message["topic"] == "realtime:C"}
            assert names == {"server", "a/b", "m1", "m2"}


async def test_by_default_broadcasts_of_clients_are_messages_to_the_application(
    migrated: Database, connection: asyncpg.Connection
) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    async with (
        running(migrated.url, PROTOCOLS="supabase", MAX_MESSAGES_PER_SECOND="20") as relay,
        supabase_client(relay) as alice,
    ):
        await enter(alice, "realtime:C", config={"broadcast": {"ack": True, "self": True}})
        await system_of(alice)
        await alice.send(binary("1", "5", "realtime:C", "note", b"1"))
        reply = (await message_of(alice))["payload"]
        assert reply["status"] == "ok"
        assert (await post(relay, "/C/events/note", 2)).status == HTTPStatus.ACCEPTED
        messages = [{"topic": "C", "event": "note", "payload": number} for number in (3, 4)]
        assert (await post(relay, "", {"messages": messages})).status == HTTPStatus.ACCEPTED
        rows = await connection.fetch("select id, event, data::int from userrealtime.inbox order by id")
        assert [tuple(row) for row in rows] == [(reply["response"]["id"] + n, "note", n + 1) for n in range(4)]
        too_long = {"messages": [{"topic": "C", "event": "x" * 254}]}
        assert (await post(relay, "", too_long)).status == HTTPStatus.BAD_REQUEST
        assert (await post(relay, "", {"messages": [1]})).status == HTTPStatus.BAD_REQUEST
        assert (await post(relay, "", {"messages": messages[:1] * 30})).status == HTTPStatus.TOO_MANY_REQUESTS
        assert await connection.fetchval("select count(*) from userrealtime.inbox") == 4
        # No client has received them.
        await tell(alice, "heartbeat", topic="phoenix", ref="9")
        assert (await message_of(alice))["ref"] == "9"


async def test_broadcasts_have_a_limit(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    async with (
        running(migrated.url, PROTOCOLS="supabase", MAX_BROADCASTS_PER_SECOND="3") as relay,
        supabase_client(relay) as alice,
    ):
        await enter(alice, config={"broadcast": {"ack": True}})
        await system_of(alice)
        await alice.send(binary("1", "5", LOG, "", b"{}"))
        assert (await message_of(alice))["payload"]["response"]["reason"] == NO_EVENT
        await alice.send(binary("1", "5", LOG, "x" * 254, b"{}"))
        assert "253" in (await message_of(alice))["payload"]["response"]["reason"]
        await alice.send(binary("1", "5", LOG, "large", json.dumps("x" * 7000).encode()))
        assert "7000" in (await message_of(alice))["payload"]["response"]["reason"]
        reasons: list[str] = []
        while not reasons:
            await alice.send(binary("1", "5", LOG, "typing", b"{}"))
            reply = (await message_of(alice))["payload"]
            reasons += [reply["response"]["reason"]] if reply["status"] == "error" else []
        assert "too many broadcasts" in reasons[0]
        many = {"messages": [{"topic": "log", "event": "a"}] * 4}
        assert (await post(relay, "", many)).status == HTTPStatus.TOO_MANY_REQUESTS


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("", {}, 400),
        ("", [], 400),
        ("", {"messages": []}, 400),
        ("", {"messages": [{"topic": "log", "event": "a"}] * (MAX_MESSAGES + 1)}, 400),
        ("", {"messages": [1]}, 400),
        ("", {"messages": [{"event": "a"}]}, 400),
        ("", {"messages": [{"topic": "a#b", "event": "a"}]}, 400),
        ("", {"messages": [{"topic": "log"}]}, 400),
        ("", {"messages": [{"topic": "log", "event": "a", "payload": "x" * 7000}]}, 413),
        ("/log/events/", {}, 400),
        ("/a%23b/events/a", {}, 400),
        ("/log/events/a", "x" * 7000, 413),
        ("/log", {}, 404),
    ],
)
async def test_an_invalid_request_sends_nothing(path: str, body: Any, status: int) -> None:
    limits = {"MAX_BROADCASTS_PER_SECOND": "100", "PROTOCOLS": "supabase"}
    async with Relay(config(NO_DATABASE, **limits)) as relay:
        assert (await post(relay, path, body)).status == status
        assert not await is_metric(relay, 'client_broadcasts_total{outcome="sent"}', 1)


async def test_the_endpoints_answer_only_post() -> None:
    async with Relay(config(NO_DATABASE, PROTOCOLS="supabase")) as relay:
        answered = await request(relay, "/realtime/v1/api/broadcast")
        assert (answered.status, answered.headers["allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "POST")


async def test_a_connection_has_limits(migrated: Database, connection: asyncpg.Connection) -> None:
    await connection.execute("insert into userrealtime.log (user_id) values ($1)", USER)
    async with running(migrated.url, PROTOCOLS="supabase", MAX_CONNECTIONS="1") as relay:
        async with supabase_client(relay) as alice:
            for number in range(MAX_CHANNELS):
                assert (await enter(alice, f"realtime:c{number}"))["payload"]["status"] == "ok"
                await system_of(alice)
            assert "ChannelRateLimitReached" in (await enter(alice))["payload"]["response"]["reason"]
            async with supabase_client(relay) as second:
                await tell(second, "phx_join", {"access_token": token()}, ref="1")
                assert await messages_until_close(second) == ([], 1013)
            for _ in range(MAX_ERRORS):
                await tell(alice, "fly", topic="realtime:c0")
            messages, code = await messages_until_close(alice)
            assert ({each["payload"]["response"]["reason"] for each in messages}, code) == ({UNMATCHED}, 1008)
        await eventually(lambda: is_metric(relay, "connections", 0))
    async with running(
        migrated.url, PROTOCOLS="supabase", MAX_MESSAGES_PER_SECOND="5", MAX_MESSAGE_BYTES="2000"
    ) as relay:
        async with supabase_client(relay) as alice:
            await enter(alice)
            for _ in range(20):
                await tell(alice, "heartbeat", topic="phoenix")
            assert (await messages_until_close(alice))[1] == 1013
        async with supabase_client(relay) as alice:
            await enter(alice)
            await tell(alice, "publish", {"event": "a", "payload": "x" * 2000})
            assert (await messages_until_close(alice))[1] == 1009


async def test_pages_of_other_origins_may_send_the_key(migrated: Database) -> None:
    async with Relay(config(NO_DATABASE, PROTOCOLS="supabase", ALLOWED_ORIGINS="https://app.example.com")) as relay:
        headers = {
            "Origin": "https://app.example.com",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "apikey,authorization,content-type",
        }
        answered = await request(relay, "/realtime/v1/api/broadcast", None, method="OPTIONS", headers=headers)
        assert answered.status == HTTPStatus.OK
