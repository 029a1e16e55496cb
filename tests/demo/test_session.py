from __future__ import annotations

import time

import jwt
import pytest

from examples.demo.session import AUDIENCE, Sessions

KEY = "k" * 64
SOON = int(time.time()) + 60


def signed(key: str = KEY, **claims: object) -> str:
    return jwt.encode({"sub": "alice", "aud": AUDIENCE, "exp": SOON, **claims}, key, algorithm="HS256")


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_a_cookie_says_whose_it_is(user: str) -> None:
    sessions = Sessions(KEY)
    assert sessions.user(sessions.issue(user)) == user


def test_there_are_no_others() -> None:
    with pytest.raises(ValueError, match="not a user"):
        Sessions(KEY).issue("carol")


@pytest.mark.parametrize(
    "cookie",
    [
        None,
        "",
        "alice",
        signed("another key, which is as long as this"),
        signed(exp=int(time.time()) - 1),
        signed(sub="carol"),
        signed(aud="something else"),
        jwt.encode({"sub": "alice", "exp": SOON}, KEY, algorithm="HS256"),
        jwt.encode({"sub": "alice", "aud": AUDIENCE}, KEY, algorithm="HS256"),
        jwt.encode({"sub": "alice", "aud": AUDIENCE, "exp": SOON}, "", algorithm="none"),
        jwt.encode({"sub": "alice", "aud": AUDIENCE, "exp": SOON}, KEY, algorithm="HS512"),
    ],
)
def test_no_other_cookie_is_anybodys(cookie: str | None) -> None:
    assert Sessions(KEY).user(cookie) is None
