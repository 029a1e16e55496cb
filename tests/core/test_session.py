"""The protocol, without a socket, a log or a clock."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest, Resume
from userrealtime_core.wire.position import LogState
from userrealtime_core.wire.session import MAX_EARLY, MAX_ERRORS, UNAUTHORIZED, CloseFrame, PendingLookup, Session
from userrealtime_core.wire.submission import Refused, Submission, Unavailable

LOG = LogState(head=50, earliest=11, epoch="e1")


def verify(token: str) -> float:
    """Accepts tokens that are a number of seconds."""
    try:
        return float(token)
    except ValueError:
        raise Unauthorized("no number") from None


def session(
    token: str | None = "100",  # noqa: S107
    resume: Resume | None = Resume(),  # noqa: B008
    now: float = 0,
) -> Session:
    return Session(ConnectRequest(token, resume), user_id="alice", verify=verify, auth_timeout=10, now=now)


def said(session: Session) -> list[dict[str, Any]]:
    return [json.loads(message) for message in session.take()]


def opened(resume: Resume | None = Resume(), position: LogState = LOG) -> Session:  # noqa: B008
    """Return a session that is located, without its first messages."""
    made = session(resume=resume)
    made.locate(position)
    made.take()
    return made


# --- the opening request


def opening(
    query: str = "", authorization: str = "", last_event_id: str = "", subprotocols: str = ""
) -> ConnectRequest:
    return ConnectRequest.parse(
        query=query,
        authorization=[authorization] if authorization else [],
        last_event_id=[last_event_id] if last_event_id else [],
        subprotocols=subprotocols.split(","),
    )


def test_a_request_may_say_nothing() -> None:
    assert opening() == ConnectRequest(None, Resume())


@pytest.mark.parametrize(
    ("given", "token"),
    [
        ({"authorization": "Bearer t"}, "t"),
        ({"authorization": "bearer  t "}, "t"),
        ({"subprotocols": "userrealtime.v1,bearer.t"}, "t"),
        ({"subprotocols": "bearer.t,userrealtime.v1"}, "t"),
        ({"authorization": "Bearer h", "subprotocols": "bearer.s"}, "h"),
        ({"authorization": "Basic t"}, ""),
        ({"authorization": "Bearer"}, ""),
        ({"query": "token=t"}, None),
    ],
)
def test_where_a_token_is_looked_for(given: dict[str, str], token: str | None) -> None:
    assert opening(**given).token == token


def test_a_token_in_the_url_is_optional_and_has_least_priority() -> None:
    for header, token in ([], "u"), (["Bearer h"], "h"), (["Basic b"], ""):
        parsed = ConnectRequest.parse(query="token=u", authorization=header, last_event_id=[], query_token=True)
        assert parsed.token == token
    assert ConnectRequest.parse(query="token=u", authorization=[], last_event_id=[]).token is None


@pytest.mark.parametrize(
    ("given", "resume"),
    [
        ({"query": "last_event_id=42"}, Resume(42)),
        ({"query": "last_event_id=0&epoch=e1"}, Resume(0, "e1")),
        ({"last_event_id": "42"}, Resume(42)),
        ({"last_event_id": "43", "query": "last_event_id=42"}, Resume(43)),
        ({"query": "last_event_id="}, Resume()),
        ({"query": "last_event_id=7:e1&epoch=e2"}, Resume(7, "e1")),
        ({"last_event_id": "7:e:1", "query": "last_event_id=42&epoch=e2"}, Resume(7, "e:1")),
        ({"last_event_id": "7:"}, Resume(7)),
        ({"last_event_id": ":e1"}, None),
        ({"query": "other=%FF&last_event_id=9223372036854775807"}, Resume(2**63 - 1)),
        ({"query": "last_event_id=-1"}, None),
        ({"query": "last_event_id=1.0"}, None),
        ({"query": "last_event_id=%D9%A3"}, None),
        ({"last_event_id": "x"}, None),
        ({"query": "last_event_id=" + "9" * 30}, None),
        ({"query": "&".join(["a=b"] * 100)}, None),
    ],
)
def test_where_a_cursor_is_looked_for(given: dict[str, str], resume: Resume | None) -> None:
    assert opening(**given).resume == resume


# --- pings


def test_a_ping_is_answered_once_however_many_wait() -> None:
    made = opened()
    made.receive('{"type":"ping"}', 1)
    made.receive('{"type":"ping"}', 1)
    assert said(made) == [{"type": "pong"}]
    made.receive('{"type":"ping"}', 2)
    assert said(made) == [{"type": "pong"}]


def test_a_ping_is_answered_after_the_greeting() -> None:
    made = session()
    made.receive('{"type":"ping"}', 0)
    assert said(made) == []
    made.locate(LOG)
    assert [message["type"] for message in said(made)] == ["connected", "pong"]


# --- authentication


def test_a_token_in_the_request_opens_the_session() -> None:
    made = session("100", now=5)
    assert made.authenticated
    assert made.deadline == 105
    assert made.question is PendingLookup.POSITION
    assert said(made) == []


@pytest.mark.parametrize("token", ["", "bad"])
def test_a_wrong_token_in_the_request_is_final(token: str) -> None:
    made = session(token)
    assert made.closing == UNAUTHORIZED
    made.receive('{"type":"auth","token":"100"}', 1)
    assert not made.authenticated


def test_a_token_may_be_the_first_message() -> None:
    made = session(None)
    made.receive('{"type":"auth","token":"100"}', 3)
    assert (made.authenticated, made.deadline, made.question) == (True, 103, PendingLookup.POSITION)


@pytest.mark.parametrize(
    "message",
    [
        '{"type":"auth","token":"bad"}',
        '{"type":"auth"}',
        '{"type":"auth","token":100}',
        '{"type":"resume","lastEventId":1,"token":"100"}',
        '{"token":"100"}',
        "[]",
        "not JSON",
        "[" * 50_000,
        b'{"type":"auth","token":"100"}',
    ],
)
def test_any_other_first_message_closes(message: str | bytes) -> None:
    made = session(None)
    made.receive(message, 1)
    assert made.closing == UNAUTHORIZED


def test_authentication_has_a_time_limit() -> None:
    made = session(None, now=5)
    made.tick(14.9)
    assert made.closing is None
    made.tick(15)
    assert made.closing == UNAUTHORIZED


def test_a_token_expires() -> None:
    made = session("100")
    made.tick(99.9)
    assert made.closing is None
    made.tick(100)
    assert made.closing == CloseFrame(CloseCode.TOKEN_EXPIRED, "Token expired")


def test_an_invalid_cursor_closes_after_the_token_is_verified() -> None:
    made = session(None, resume=None)
    assert made.closing is None
    made.receive('{"type":"auth","token":"100"}', 1)
    assert made.closing is not None
    assert made.closing.code == CloseCode.POLICY_VIOLATION
    assert "last_event_id" in made.closing.reason
    assert session("bad", resume=None).closing == UNAUTHORIZED


# --- the first position


def test_without_a_cursor_a_client_begins_at_the_head() -> None:
    made = session()
    assert made.locate(LOG) is None
    assert (made.question, made.cursor, made.resumes) == (None, 50, False)
    assert said(made) == [{"type": "connected", "userId": "alice", "cursor": 50, "epoch": "e1", "earliest": 11}]


def test_an_epoch_without_a_cursor_means_nothing() -> None:
    assert session(resume=Resume(None, "e0")).locate(LOG) is None


@pytest.mark.parametrize("cursor", [10, 11, 49, 50])
def test_a_cursor_that_the_log_has_is_taken(cursor: int) -> None:
    made = session(resume=Resume(cursor, "e1"))
    assert made.locate(LOG) is None
    assert (made.question, made.cursor, made.resumes) == (None, cursor, True)
    assert said(made) == [{"type": "connected", "userId": "alice", "cursor": cursor, "epoch": "e1", "earliest": 11}]


@pytest.mark.parametrize(
    ("resume", "reason"),
    [(Resume(9), "too-old"), (Resume(51), "ahead"), (Resume(20, "e0"), "epoch"), (Resume(99, "e0"), "epoch")],
)
def test_a_cursor_that_the_log_has_not_is_reset_to_the_head(resume: Resume, reason: str) -> None:
    made = session(resume=resume)
    refused = made.locate(LOG) or made.locate(LOG)  # asked again, because the first answer was uncertain
    assert refused == reason
    assert made.cursor == 50
    assert said(made) == [
        {"type": "connected", "userId": "alice", "cursor": 50, "epoch": "e1", "earliest": 11},
        {"type": "reset", "reason": reason, "cursor": 50, "epoch": "e1", "earliest": 11},
    ]


@pytest.mark.parametrize("resume", [Resume(51), Resume(20, "e2")])
def test_the_log_is_asked_before_a_client_is_called_ahead(resume: Resume) -> None:
    made = session(resume=resume)
    assert made.locate(LOG) is None
    assert [made.question, said(made)] == [PendingLookup.FRESH_POSITION, []]
    assert made.locate(LogState(60, 11, resume.epoch or "e1")) is None
    assert (made.question, made.cursor) == (None, resume.cursor)


def test_before_the_first_event_there_is_no_epoch() -> None:
    made = session(resume=Resume(0))
    assert made.locate(LogState(0, 1, None)) is None
    assert said(made) == [{"type": "connected", "userId": "alice", "cursor": 0, "epoch": None, "earliest": 1}]


def test_a_message_moves_the_cursor_at_any_time() -> None:
    made = opened()
    made.cursor = 70  # after events
    made.receive('{"type":"resume","lastEventId":30,"epoch":"e1"}', 1)
    assert made.question is PendingLookup.POSITION
    made.locate(LogState(70, 11, "e1"))
    assert (made.cursor, said(made)) == (30, [])
    made.receive('{"type":"resume","lastEventId":3}', 1)
    assert made.locate(LogState(70, 11, "e1")) == "too-old"
    assert said(made) == [{"type": "reset", "reason": "too-old", "cursor": 70, "epoch": "e1", "earliest": 11}]


def test_a_message_that_comes_before_the_log_is_known_decides() -> None:
    made = session(resume=Resume(20))
    made.receive('{"type":"resume","lastEventId":30}', 1)
    made.locate(LOG)
    assert said(made) == [{"type": "connected", "userId": "alice", "cursor": 30, "epoch": "e1", "earliest": 11}]


def test_another_log_resets() -> None:
    made = opened(Resume(20))
    assert made.reset_to_new_log(LogState(3, 1, "e2")) == "epoch"
    assert made.reset_to_new_log(LogState(2, 1, "e2")) == "ahead"
    assert made.cursor == 2
    assert said(made) == [
        {"type": "reset", "reason": "epoch", "cursor": 3, "epoch": "e2", "earliest": 1},
        {"type": "reset", "reason": "ahead", "cursor": 2, "epoch": "e2", "earliest": 1},
    ]


# --- invalid messages


def test_nothing_is_said_before_the_greeting() -> None:
    made = session()
    made.receive("nonsense", 1)
    assert said(made) == []
    made.locate(LOG)
    assert [message["type"] for message in said(made)] == ["connected", "error"]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("", "invalid-message"),
        ("nonsense", "invalid-message"),
        ("null", "invalid-message"),
        ("{}", "invalid-message"),
        ('{"type":7}', "invalid-message"),
        ("1" * 10_000, "invalid-message"),
        (b'{"type":"resume","lastEventId":1}', "invalid-message"),
        ('{"type":"publish"}', "invalid-publish"),
        ('{"type":"subscribe"}', "unknown-type"),
        ('{"type":"resume"}', "invalid-resume"),
        ('{"type":"resume","lastEventId":"42"}', "invalid-resume"),
        ('{"type":"resume","lastEventId":true}', "invalid-resume"),
        ('{"type":"resume","lastEventId":4.0}', "invalid-resume"),
        ('{"type":"resume","lastEventId":-1}', "invalid-resume"),
        ('{"type":"resume","lastEventId":1,"epoch":1}', "invalid-resume"),
    ],
)
def test_a_message_that_is_wrong_is_answered_and_changes_nothing(message: str | bytes, code: str) -> None:
    made = opened()
    made.receive(message, 1)
    [error] = said(made)
    assert (error["type"], error["code"]) == ("error", code)
    assert error["message"]
    assert (made.closing, made.question, made.cursor) == (None, None, 50)


def test_too_many_wrong_messages_close() -> None:
    made = opened()
    for _ in range(MAX_ERRORS - 1):
        made.receive("x", 1)
    assert made.closing is None
    made.receive("x", 1)
    assert made.closing == CloseFrame(CloseCode.POLICY_VIOLATION, "Too many errors")
    assert len(said(made)) == MAX_ERRORS
    made.receive("x", 1)
    assert said(made) == []


def test_the_first_reason_to_close_stays() -> None:
    made = opened()
    made.close(CloseCode.RESTARTING, "first")
    made.close(CloseCode.TOO_SLOW, "second")
    made.tick(1000)
    assert made.closing == CloseFrame(CloseCode.RESTARTING, "first")


# --- random input

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=3)
)
messages = (
    st.text()
    | st.binary()
    | st.builds(
        json.dumps,
        st.dictionaries(
            st.sampled_from(["type", "token", "lastEventId", "epoch"]), values | st.sampled_from(["resume"])
        ),
    )
    | st.builds(lambda cursor: json.dumps({"type": "resume", "lastEventId": cursor}), st.integers(0, 100))
)


@given(st.lists(messages, max_size=20), st.integers(0, 60), st.integers(1, 61), st.booleans())
def test_whatever_a_client_says_its_cursor_is_one_the_log_has(
    heard: list[str | bytes], head: int, earliest: int, authenticated: bool
) -> None:
    position = LogState(head, min(earliest, head + 1), "e1")
    made = session("100" if authenticated else None)
    sent: list[dict[str, Any]] = []
    for message in heard:
        made.receive(message, 1)
        while made.question is not None:
            made.locate(position)
            assert position.earliest - 1 <= made.cursor <= position.head or made.question is not None
        sent += said(made)
    assert made.authenticated == authenticated
    assert not sent or sent[0]["type"] == "connected"
    assert sum(message["type"] == "connected" for message in sent) <= 1
    assert sum(message["type"] == "error" for message in sent) <= MAX_ERRORS


# --- publishing, renewing, and rate limits


def test_what_is_published_is_settled_then_answered() -> None:
    made = opened()
    made.receive('{"type":"publish","ref":"r1","event":"note","data":{"a":[1,"ü"]}}', 1)
    assert made.submissions.pop(0) == Submission("r1", "note", '{"a":[1,"\\u00fc"]}')
    assert said(made) == []
    made.acknowledge("r1", 7)
    assert said(made) == [{"type": "ack", "ref": "r1", "id": 7}]
    for outcome, code in ((Refused("no"), "refused"), (Unavailable("no"), "unavailable")):
        made.receive('{"type":"publish","ref":"r2","event":"note"}', 1)
        assert made.submissions.pop(0) == Submission("r2", "note", "{}")
        made.acknowledge("r2", outcome)
        assert said(made) == [{"type": "error", "code": code, "message": "no", "ref": "r2"}]


@pytest.mark.parametrize(
    ("fields", "ref"),
    [
        ({}, None),
        ({"ref": "", "event": "e"}, None),
        ({"ref": 1, "event": "e"}, None),
        ({"ref": "r" * 254, "event": "e"}, None),
        ({"ref": "r\n", "event": "e"}, None),
        ({"ref": "\ud800", "event": "e"}, None),
        ({"ref": "r"}, "r"),
        ({"ref": "r", "event": ""}, "r"),
        ({"ref": "r", "event": {}}, "r"),
    ],
)
def test_what_cannot_be_published_is_an_error(fields: dict[str, Any], ref: str | None) -> None:
    made = opened()
    made.receive(json.dumps({"type": "publish", **fields}), 1)
    assert not made.submissions
    [error] = said(made)
    assert (error["type"], error["code"], error.get("ref")) == ("error", "invalid-publish", ref)


@pytest.mark.parametrize(
    ("data", "name", "expected"),
    [
        ("[" * 100_000 + "]" * 100_000, "publish", ("invalid-publish", "r-1 é")),
        ("1" + "0" * 5_000, "publish", ("invalid-publish", "r-1 é")),
        ("[1,]", "publish", ("invalid-publish", "r-1 é")),
        ("[1,]", "resume", ("invalid-message", None)),
    ],
    ids=["deep", "long number", "no JSON", "another type"],
)
def test_data_that_cannot_be_parsed_is_an_error_of_its_message(
    data: str, name: str, expected: tuple[str, str | None]
) -> None:
    made = opened()
    made.receive(f'{{"type":"{name}","ref":"r-1 é","event":"e","data":{data}}}', 1)
    assert not made.submissions
    [error] = said(made)
    assert (error["code"], error.get("ref")) == expected


def test_a_token_is_renewed() -> None:
    made = opened()
    made.receive('{"type":"auth","token":"500"}', 90)
    assert said(made) == [{"type": "renewed", "expiresIn": 500}]
    made.tick(100)
    assert made.closing is None
    made.tick(590)
    assert made.closing == CloseFrame(CloseCode.TOKEN_EXPIRED, "Token expired")


@pytest.mark.parametrize("token", ["nonsense", None, 1])
def test_a_renewal_that_is_none_closes(token: object) -> None:
    made = opened()
    made.receive(json.dumps({"type": "auth", "token": token}), 1)
    assert made.closing == UNAUTHORIZED


def test_too_many_messages_close() -> None:
    opening = ConnectRequest("100", Resume())
    made = Session(opening, user_id="alice", verify=verify, auth_timeout=10, now=0, messages_per_second=2)
    made.locate(LOG)
    for now in (0, 0, 1, 1):
        made.receive('{"type":"resume","lastEventId":20}', now)
        assert made.closing is None
    made.receive('{"type":"resume","lastEventId":20}', 1)
    assert made.closing == CloseFrame(CloseCode.TRY_LATER, "Too many messages")


# --- keys that must be fetched


class Keys:
    """Verifies the token "late" when it has keys."""

    def __init__(self) -> None:
        self.there = False

    def __call__(self, token: str) -> float:
        if not self.there:
            raise KeySetStale
        return verify(token)


def waiting(keys: Keys, token: str = "100") -> Session:  # noqa: S107
    made = Session(ConnectRequest(token, Resume()), user_id="alice", verify=keys, auth_timeout=10, now=0)
    assert made.question is PendingLookup.KEYS
    assert not made.authenticated
    return made


def test_a_token_may_wait_for_its_key() -> None:
    keys = Keys()
    alice = waiting(keys)
    assert alice.take() == []
    keys.there = True
    alice.retry(5)
    assert (alice.authenticated, alice.deadline, alice.question) == (True, 105, PendingLookup.POSITION)


def test_what_a_client_says_meanwhile_waits_with_it() -> None:
    keys = Keys()
    alice = waiting(keys)
    alice.receive('{"type":"resume","lastEventId":20}', 1)
    alice.receive('{"type":"what"}', 1)
    keys.there = True
    alice.retry(5)
    alice.locate(LOG)
    assert [message["type"] for message in said(alice)] == ["connected", "error"]
    assert alice.cursor == 20


def test_what_a_client_publishes_meanwhile_waits_with_it() -> None:
    keys = Keys()
    alice = waiting(keys)
    for ref in ("r1", "r2"):
        alice.receive(json.dumps({"type": "publish", "ref": ref, "event": "note"}), 1)
    assert not alice.submissions
    keys.there = True
    alice.retry(5)
    assert [submission.ref for submission in alice.submissions] == ["r1", "r2"]


def test_a_renewal_may_wait_for_its_key_and_the_old_token_stays() -> None:
    keys = Keys()
    keys.there = True
    alice = Session(ConnectRequest("100", Resume()), user_id="alice", verify=keys, auth_timeout=10, now=0)
    alice.locate(LOG)
    alice.take()
    keys.there = False
    alice.receive('{"type":"auth","token":"500"}', 50)
    assert (alice.renewing, said(alice), alice.deadline) == (True, [], 100)
    alice.renew(51)
    [error] = said(alice)
    assert (error["type"], error["code"], alice.renewing, alice.closing) == ("error", "unavailable", False, None)
    alice.receive('{"type":"auth","token":"500"}', 60)
    keys.there = True
    alice.renew(61)
    assert said(alice) == [{"type": "renewed", "expiresIn": 500}]
    assert (alice.renewing, alice.deadline) == (False, 561)


def test_a_client_may_not_say_much_meanwhile() -> None:
    alice = waiting(Keys())
    for _ in range(MAX_EARLY):
        alice.receive('{"type":"resume","lastEventId":20}', 1)
    assert alice.closing is None
    alice.receive("{}", 1)
    assert alice.closing == CloseFrame(CloseCode.POLICY_VIOLATION, "Too many messages before being authenticated")
    alice.retry(5)
    assert not alice.authenticated


def test_without_keys_it_is_not_the_clients_fault() -> None:
    alice = waiting(Keys())
    alice.retry(5)
    assert alice.closing == CloseFrame(CloseCode.TRY_LATER, "Signing keys unavailable")
    assert alice.question is None


def test_with_keys_a_token_may_turn_out_to_be_wrong() -> None:
    keys = Keys()
    mallory = waiting(keys, "wrong")
    keys.there = True
    mallory.retry(5)
    assert mallory.closing == UNAUTHORIZED


def test_waiting_for_keys_has_an_end() -> None:
    alice = waiting(Keys())
    alice.tick(10)
    assert alice.closing == UNAUTHORIZED
