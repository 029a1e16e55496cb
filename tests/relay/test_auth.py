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

from testing.relay.harness import KEY, USER, config, token, verifier_of
from testing.relay.tokens import GOOD, part, signed
from userrealtime_core.auth.errors import Unauthorized
from userrealtime_core.auth.tokens import TokenVerifier

NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"
LEEWAY = 5
verify = verifier_of(config(NO_DATABASE))


def unsigned(algorithm: str | None) -> str:
    return (part(json.dumps({"alg": algorithm}).encode()) + b"." + part(json.dumps(GOOD).encode()) + b".").decode()


NO_TIMES: list[Any] = ["9999999999", True, None, [1], {}, float("nan"), float("inf")]
STRANGER = "a key of a stranger's that is long enough"


def test_a_good_token_is_good_until_it_expires() -> None:
    assert verify(token(life_s=100)) == pytest.approx(100 + LEEWAY, abs=5)
    assert verify(signed({"alg": "HS256", "typ": "JWT"}, GOOD)) > 3600


def test_other_claims_do_not_matter() -> None:
    assert verify(token(aud="somebody", iss="somebody", nbf=int(time.time()), iat=int(time.time()), roles=[1])) > 0


def test_clocks_may_differ_a_little() -> None:
    assert 0 < verify(token(life_s=-LEEWAY / 2)) < LEEWAY
    assert verify(token(nbf=int(time.time() + LEEWAY / 2))) > 0


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(token(sub="bob"), id="another user"),
        pytest.param(token(key="another key that is long enough too"), id="another key"),
        pytest.param(token(life_s=-60), id="expired"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "exp": 10**400}), id="exp huge"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "iat": -(10**400)}), id="iat hugely negative"),
        pytest.param(token(nbf=int(time.time()) + 3600), id="not yet valid"),
        pytest.param(token(iat=int(time.time()) + 3600), id="of the future"),
        pytest.param(signed({"alg": "HS256"}, {"sub": USER}), id="without exp"),
        pytest.param(signed({"alg": "HS256"}, {"exp": GOOD["exp"]}), id="without sub"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "exp": "soon"}), id="exp no number"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "exp": float("inf")}), id="exp infinite"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "sub": 1}), id="sub no string"),
        pytest.param(jwt.encode(GOOD, "", algorithm="none"), id="alg none"),
        pytest.param(signed({"alg": "none"}, GOOD), id="alg none, but signed"),
        pytest.param(signed({"alg": "RS256"}, GOOD), id="alg RS256, signed with the key as a secret"),
        pytest.param(signed({"alg": "HS512"}, GOOD), id="alg HS512, signed with SHA-256"),
        pytest.param(jwt.encode(GOOD, KEY * 2, algorithm="HS512"), id="HS512"),
        pytest.param(signed({}, GOOD), id="without alg"),
        pytest.param(signed({"alg": ["HS256"]}, GOOD), id="alg a list"),
        *(pytest.param(unsigned(alg), id=f"alg {alg}, unsigned") for alg in ("none", "None", "NONE", "nOnE", "", None)),
        *(pytest.param(signed({"alg": alg}, GOOD), id=f"alg {alg}, signed") for alg in ("hs256", "HS256 ", 256, None)),
        pytest.param(signed({"alg": "EdDSA"}, GOOD), id="alg of a key pair"),
        pytest.param(signed({"alg": "HS256"}, GOOD, ""), id="signed with nothing"),
        pytest.param(signed({"alg": "HS256", "crit": ["exp"], "exp": 1}, GOOD), id="crit"),
        pytest.param(signed({"alg": "HS256", "crit": []}, GOOD), id="crit empty"),
        pytest.param(signed({"alg": "HS256", "crit": ["b64"], "b64": False}, GOOD), id="payload detached"),
        pytest.param(signed({"alg": "HS256", "typ": "logout+jwt"}, GOOD), id="another type"),
        pytest.param(signed({"alg": "HS256", "typ": ["JWT"]}, GOOD), id="type a list"),
        pytest.param(signed({"alg": "HS256", "kid": 7}, GOOD), id="kid a number"),
        *(
            pytest.param(signed({"alg": "HS256", name: value}, GOOD, STRANGER), id=f"{name}, signed with another key")
            for name, value in {
                "jku": "http://127.0.0.1:1/keys",
                "x5u": "http://127.0.0.1:1/keys",
                "jwk": {"kty": "oct", "k": base64.urlsafe_b64encode(STRANGER.encode()).decode()},
                "kid": "../../../../dev/null",
            }.items()
        ),
        pytest.param(signed({"alg": "HS256"}, b'{"sub":"bob","sub":"alice","exp":9999999999}'), id="sub twice"),
        pytest.param(signed({"alg": "HS256"}, b'{"sub":"alice","exp":1,"exp":9999999999}'), id="exp twice"),
        *(
            pytest.param(signed({"alg": "HS256"}, {**GOOD, name: value}), id=f"{name} {value!r:.20}")
            for name in ("exp", "nbf", "iat")
            for value in NO_TIMES
        ),
        pytest.param(signed({"alg": "HS256"}, b'{"sub":"alice","exp":1e999}'), id="exp beyond all floats"),
        pytest.param(signed({"alg": "HS256"}, b'{"sub":"alice","exp":' + b"9" * 5000 + b"}"), id="exp beyond all ints"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "nbf": 10**400}), id="nbf huge"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "exp": -(10**400)}), id="exp hugely negative"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "sub": [USER]}), id="sub a list"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "sub": USER.upper()}), id="sub of another case"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "sub": USER + "\0"}), id="sub with more"),
        pytest.param(signed({"alg": "HS256"}, b"[]"), id="claims a list"),
        pytest.param(signed({"alg": "HS256"}, b""), id="claims nothing"),
        pytest.param(signed({"alg": "HS256"}, b"[" * 3000), id="claims deep"),
        pytest.param(signed({"alg": "HS256"}, json.dumps(GOOD).encode("utf-16")), id="claims of another encoding"),
        pytest.param(signed({"alg": "HS256"}, {**GOOD, "more": "x" * 10_000}), id="too long"),
        pytest.param(token().replace(".", ".."), id="five segments"),
        pytest.param(token().rpartition(".")[0], id="two segments"),
        pytest.param(token().rpartition(".")[0] + ".", id="signature empty"),
        pytest.param(" " + token(), id="with a space"),
        pytest.param(token() + "\n", id="with a line's end"),
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


def test_a_token_may_say_what_it_is() -> None:
    for kind in ("JWT", "jwt", "at+jwt", "application/at+jwt"):
        assert verify(signed({"alg": "HS256", "typ": kind, "kid": "any"}, GOOD)) > 0


def test_issuer_audience_user_claim_and_leeway_are_as_configured() -> None:
    strict = verifier_of(
        config(NO_DATABASE, TOKEN_ISSUER="us", TOKEN_AUDIENCE="relay", TOKEN_USER_CLAIM="name", TOKEN_LEEWAY="100")
    )
    good: dict[str, Any] = {"iss": "us", "aud": "relay", "name": USER, "sub": "somebody"}
    assert strict(token(**good, life_s=-50)) > 0
    assert strict(token(**{**good, "aud": ["other", "relay"]})) > 100
    changes: list[dict[str, Any]] = [
        {"iss": "them"},
        {"iss": ["us"]},
        {"iss": None},
        {"aud": "them"},
        {"aud": ["relays"]},
        {"aud": "relay "},
        {"aud": {"relay": 1}},
        {"aud": []},
        {"name": "somebody"},
        {"name": None},
        {"exp": int(time.time()) - 150},
    ]
    for wrong in changes:
        with pytest.raises(Unauthorized):
            strict(signed({"alg": "HS256"}, {"exp": GOOD["exp"], **good, **wrong}))
    for missing in good.keys() - {"sub"}:
        with pytest.raises(Unauthorized):
            strict(signed({"alg": "HS256"}, {"exp": GOOD["exp"], **{n: v for n, v in good.items() if n != missing}}))


def test_a_token_has_a_maximum_lifetime() -> None:
    hour = verifier_of(config(NO_DATABASE, TOKEN_MAX_LIFETIME="3600"))
    now = int(time.time())
    for good in (token(life_s=3600), token(life_s=3500, iat=now - 100), token(life_s=3600, iat=now)):
        assert hour(good) > 0
    for bad in (token(life_s=3700), token(life_s=10**9), token(life_s=60, iat=now - 3600)):
        with pytest.raises(Unauthorized, match="TOKEN_MAX_LIFETIME"):
            hour(bad)
    with pytest.raises(Unauthorized, match="TOKEN_MAX_LIFETIME"):
        verify(token(life_s=2 * 86400))
    assert verifier_of(config(NO_DATABASE, TOKEN_MAX_LIFETIME="315360000"))(token(life_s=10**8)) > 0


def test_the_claims_are_checked_without_a_key() -> None:
    verify.check_claims(token(key=STRANGER))
    for bad in (token(sub="bob"), token(life_s=-60), token(life_s=10**6), "a.b.c", "", "x" * 10_000, "\ud800.\ud800."):
        with pytest.raises(Unauthorized):
            verify.check_claims(bad)


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    for check in (verify, verify.check_claims):
        with pytest.raises(Unauthorized):
            check(text)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner)))
def test_no_claim_breaks_it(value: Any) -> None:
    for claim in ("nbf", "iat", "iss", "jti", "aud"):
        try:
            verify(signed({"alg": "HS256"}, {**GOOD, claim: value}))
        except Unauthorized:
            continue


def test_a_signature_is_valid_with_each_of_the_users_keys_and_no_other() -> None:
    content = "1.2:private-log"
    signature = hmac.new(KEY.encode(), content.encode(), hashlib.sha256).hexdigest()
    verify.check_signature(content, signature)
    first = "the current key of this user, long enough"
    settings = config(NO_DATABASE, TOKEN_KEY=first)
    verifier = TokenVerifier(settings, USER, lambda: (first, KEY))
    verifier.check_signature(content, signature)
    for bad in ("", signature[:-1], signature.upper(), hashlib.sha256(content.encode()).hexdigest()):
        with pytest.raises(Unauthorized, match="unknown signing key"):
            verifier.check_signature(content, bad)
    with pytest.raises(Unauthorized):
        verifier.check_signature(content + "\ud800", signature)


def test_a_rejected_signature_is_recorded() -> None:
    reasons = []
    settings = config(NO_DATABASE)
    verifier = TokenVerifier(settings, USER, lambda: (), rejected=lambda reason, _: reasons.append(reason))
    with pytest.raises(Unauthorized):
        verifier.check_signature("1.2:private-log", "0" * 64)
    assert reasons == ["unsupported algorithm"]


def test_a_signature_is_no_token_and_a_token_is_no_signature() -> None:
    good = token()
    content, _, encoded = good.rpartition(".")
    digest = base64.urlsafe_b64decode(encoded + "=").hex()
    verify.check_signature(content, digest)  # the same function, so the texts must differ
    assert ":" not in content
    text = "1.2:private-log"
    value = base64.urlsafe_b64encode(hmac.new(KEY.encode(), text.encode(), hashlib.sha256).digest()).rstrip(b"=")
    for forged in (f"{text}.{value.decode()}", f"{text.replace(':', '.')}.{value.decode()}"):
        with pytest.raises(Unauthorized):
            verify(forged)
