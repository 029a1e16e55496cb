from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.relay.support import KEY, USER, token
from userrealtime_relay.auth import LEEWAY, TokenVerifier, Unauthorized
from userrealtime_relay.config import Secret

verify = TokenVerifier(Secret(KEY), USER)


def signed(header: dict[str, Any], claims: dict[str, Any], key: str = KEY) -> str:
    """A token of any header, signed by hand with SHA-256."""

    def part(content: bytes) -> bytes:
        return base64.urlsafe_b64encode(content).rstrip(b"=")

    head = part(json.dumps(header).encode()) + b"." + part(json.dumps(claims).encode())
    return (head + b"." + part(hmac.digest(key.encode(), head, hashlib.sha256))).decode()


GOOD = {"sub": USER, "exp": int(time.time()) + 3600}


def test_a_good_token_is_good_until_it_expires() -> None:
    assert verify(token(life_s=100)) == pytest.approx(100 + LEEWAY, abs=5)
    assert verify(signed({"alg": "HS256", "typ": "JWT"}, GOOD)) > 3000


def test_other_claims_do_not_matter() -> None:
    assert verify(token(aud="somebody", iss="somebody", nbf=int(time.time()), iat=int(time.time()), roles=[1])) > 0


def test_an_expiry_beyond_all_floats_is_good_for_years() -> None:
    assert verify(signed({"alg": "HS256"}, {**GOOD, "exp": 10**400})) > 9 * 365 * 86400


def test_clocks_may_differ_a_little() -> None:
    assert 0 < verify(token(life_s=-LEEWAY / 2)) < LEEWAY
    assert verify(token(nbf=int(time.time() + LEEWAY / 2))) > 0


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(token(sub="bob"), id="another user"),
        pytest.param(token(key="another key that is long enough too"), id="another key"),
        pytest.param(token(life_s=-60), id="expired"),
        pytest.param(token(nbf=int(time.time()) + 3600), id="not yet valid"),
        pytest.param(token(iat=int(time.time()) + 3600), id="of the future"),
        pytest.param(signed({"alg": "HS256"}, {"sub": USER}), id="without exp"),
        pytest.param(signed({"alg": "HS256"}, {"exp": GOOD["exp"]}), id="without sub"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "exp": "soon"}), id="exp no number"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "exp": float("inf")}), id="exp infinite"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "sub": 1}), id="sub no string"),
        pytest.param(jwt.encode(GOOD, None, algorithm="none"), id="alg none"),
        pytest.param(signed({"alg": "none"}, GOOD), id="alg none, but signed"),
        pytest.param(signed({"alg": "RS256"}, GOOD), id="alg RS256, signed with the key as a secret"),
        pytest.param(signed({"alg": "HS512"}, GOOD), id="alg HS512, signed with SHA-256"),
        pytest.param(jwt.encode(GOOD, KEY * 2, algorithm="HS512"), id="HS512"),
        pytest.param(signed({}, GOOD), id="without alg"),
        pytest.param(signed({"alg": ["HS256"]}, GOOD), id="alg a list"),
        pytest.param(token() + "x", id="changed"),
        pytest.param("", id="empty"),
        pytest.param("a.b.c", id="no token"),
        pytest.param("\ud800.\ud800.\ud800", id="no text"),
    ],
)
def test_any_other_token_is_refused_without_being_quoted(bad: str) -> None:
    with pytest.raises(Unauthorized) as raised:
        verify(bad)
    assert raised.value.__cause__ is None
    assert "." not in str(raised.value)
    assert USER not in str(raised.value)


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    with pytest.raises(Unauthorized):
        verify(text)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner)))
def test_no_claim_breaks_it(value: Any) -> None:
    for claim in ("nbf", "iat", "iss", "jti", "aud"):
        try:
            verify(signed({"alg": "HS256"}, {**GOOD, claim: value}))
        except Unauthorized:
            continue
