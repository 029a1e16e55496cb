"""Random input of clients and of the environment causes only declared errors, without a secret in their text."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testing.relay.harness import KEY, USER, config, token, verifier_of
from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.environment import ConfigError
from userrealtime_core.wire.broadcast import Content, InvalidBroadcast, Sender, parse, split_sender, with_sender
from userrealtime_core.wire.connect_request import CloseCode, ConnectRequest, Resume
from userrealtime_core.wire.position import LogState
from userrealtime_core.wire.rate_limit import TokenBucket
from userrealtime_core.wire.session import MAX_EARLY, MAX_ERRORS, PendingLookup, Session
from userrealtime_relay.config import Config

NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"
GOOD = token(life_s=80_000)
HEADER, CLAIMS, SIGNATURE = GOOD.split(".")
HS256 = verifier_of(config(NO_DATABASE))
EITHER = verifier_of(config(NO_DATABASE, JWKS_URL="http://127.0.0.1:1/", TOKEN_AUDIENCE="*"))

JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # also lone surrogates


# --- tokens


@st.composite
def changed(draw: st.DrawFn) -> str:
    """A valid token with a part replaced."""
    begin = draw(st.integers(0, len(GOOD)))
    end = draw(st.integers(begin, len(GOOD)))
    return GOOD[:begin] + draw(ANY_TEXT) + GOOD[end:]


@given(changed() | ANY_TEXT | st.lists(st.sampled_from([HEADER, CLAIMS, SIGNATURE, ""])).map(".".join))
def test_only_the_good_token_is_good(text: str) -> None:
    for verify in (HS256, EITHER):
        if text.replace("=", "") == GOOD:  # correct padding is accepted
            with contextlib.suppress(Unauthorized):
                assert verify(text) > 0
        else:
            with pytest.raises((Unauthorized, KeySetStale)) as raised:
                verify(text)
            assert raised.value.__cause__ is None
            assert SIGNATURE not in str(raised.value)
            assert CLAIMS not in str(raised.value)


HEADERS = st.dictionaries(st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk"]), JSON | st.just("HS256"))
TIMES = st.integers() | st.floats() | st.just(10**11) | JSON
CLAIM_SETS = st.fixed_dictionaries(
    {}, optional={"sub": st.just(USER) | JSON, "exp": TIMES, "nbf": TIMES, "iat": TIMES, "aud": JSON}
)


@given(HEADERS | JSON, CLAIM_SETS | JSON)
def test_no_signed_content_breaks_it(header: Any, claims: Any) -> None:
    if isinstance(header, dict):
        header = {"alg": "HS256", **header}

    def part(content: bytes) -> bytes:
        return base64.urlsafe_b64encode(content).rstrip(b"=")

    head = part(json.dumps(header).encode()) + b"." + part(json.dumps(claims).encode())
    made = (head + b"." + part(hmac.digest(KEY.encode(), head, hashlib.sha256))).decode()
    for verify in (HS256, EITHER):
        with contextlib.suppress(Unauthorized, KeySetStale):
            remaining = verify(made)
            assert isinstance(claims, dict)
            assert claims["sub"] == USER
            assert 0 < remaining < 11 * 365 * 86400


def test_the_good_token_is_good() -> None:
    assert HS256(GOOD) > 0
    assert EITHER(GOOD) > 0


# --- the opening request and what follows


@given(ANY_TEXT, st.lists(ANY_TEXT | ANY_TEXT.map("Bearer ".__add__)), st.lists(ANY_TEXT), st.lists(ANY_TEXT))
def test_no_request_breaks_it(query: str, authorization: list[str], cursors: list[str], offered: list[str]) -> None:
    opening = ConnectRequest.parse(
        query=query, authorization=authorization, last_event_id=cursors, subprotocols=[*offered, "bearer.last"]
    )
    assert opening.token is not None
    assert opening.token == "last" or any(opening.token in text for text in (*authorization, *offered))
    cursor = opening.resume.cursor if opening.resume is not None else None
    assert cursor is None or 0 <= cursor < 10**19


SECRET = "hunter2-hunter2"
FIELDS = st.fixed_dictionaries(
    {"type": st.sampled_from(["auth", "resume", "publish", "broadcast"]) | JSON},
    optional={
        "event": JSON,
        "data": JSON,
        "token": st.sampled_from([SECRET, "good", "later"]) | JSON,
        "lastEventId": JSON,
        "epoch": JSON,
    },
)
MESSAGES = st.lists(FIELDS.map(json.dumps) | JSON.map(json.dumps) | ANY_TEXT | st.binary(), max_size=30)
TOKENS = st.sampled_from([None, "good", "later", SECRET])


@given(TOKENS, MESSAGES, st.integers(0, 30), st.booleans())
def test_no_message_breaks_a_session(token: str | None, messages: list[str | bytes], pause: int, found: bool) -> None:
    asked = False

    def verify(token: str) -> float:
        if token == "later" and not (asked and found):
            raise KeySetStale
        if token in ("good", "later"):
            return 100
        raise Unauthorized("wrong")

    allowed = TokenBucket(5, 0)
    session = Session(
        ConnectRequest(token, Resume()), user_id=USER, verify=verify, auth_timeout=10, now=0, broadcasts=allowed
    )
    said: list[str] = []
    for number, message in enumerate(messages):
        session.receive(message, 1)
        if number >= pause:
            if session.question is PendingLookup.KEYS:
                asked = True
                session.retry(1)
            while session.question is not None:
                session.locate(LogState(50, 11, "e1"))
        said += session.take()
    for text in said:
        assert SECRET not in text
        assert json.loads(text)["type"] in ("connected", "reset", "error", "renewed")
    errors = [json.loads(text)["code"] for text in said if json.loads(text)["type"] == "error"]
    assert sum("broadcast" not in code for code in errors) <= MAX_ERRORS
    assert len(session.broadcasts) <= 10  # a burst at each of the two times
    assert len(session._early) <= MAX_EARLY + 1
    if session.closing is not None:
        assert session.closing.code in (CloseCode.POLICY_VIOLATION, CloseCode.TRY_LATER)
        assert SECRET not in session.closing.reason


# --- broadcasts of clients


@given(ANY_TEXT | JSON, JSON | st.floats())
def test_a_broadcast_of_a_client_is_one_line_that_every_part_accepts(event: Any, data: Any) -> None:
    try:
        text = Content.parse(event, data).message
    except InvalidBroadcast:
        return
    assert parse(text.encode()) == text
    assert split_sender(text) == (text, None)
    sender = Sender("0123456789ab", "device-1")
    assert split_sender(with_sender(text, sender)) == (text, sender)
    assert len(with_sender(text, sender).encode()) <= 7200  # the limit of userrealtime.forward_broadcasts
    assert json.loads(text) == {"type": "broadcast", "event": event, "data": data}


# --- the environment


NAMES = [field.name.upper() for field in fields(Config) if field.name != "token_keys"]
SECRETS = ("TOKEN_KEY", "TOKEN_KEY_PREVIOUS", "DATABASE_URL", "JWKS_URL")
SHAPES = st.sampled_from(
    ["{}", "postgresql://u:{}@h/d", "http://u:{}@localhost", "https://h/{}", "-----BEGIN{}", "[{}"]
)


@given(
    st.dictionaries(st.sampled_from([*NAMES, "TOKEN_KEY_DIR"]), ANY_TEXT),
    st.dictionaries(
        st.sampled_from(SECRETS), st.builds(lambda shape, text: shape.format(SECRET + text), SHAPES, ANY_TEXT)
    ),
)
def test_no_environment_breaks_it(variables: dict[str, str], secrets: dict[str, str]) -> None:
    environment = {"USER_ID": USER, **variables, **secrets}
    try:
        read = Config.from_environment(environment)
    except ConfigError as error:
        shown = str(error)
    else:
        shown = repr(read).replace(repr(read.jwks_url), "")
    assert SECRET not in shown
