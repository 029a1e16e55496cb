"""Keys from JWKS_URL: when they are fetched, which are accepted, and the tokens that they sign or do not sign."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import json
import os
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from testing.database import Database
from testing.relay.harness import (
    KEY,
    PATIENCE_S,
    client,
    closed,
    config,
    environment,
    receive,
    running,
    token,
    until,
    verifier_of,
)
from testing.relay.http_client import request
from testing.relay.issuer import EC, ED25519, OTHER_RSA, RSA, PrivateKey, endpoint, jwk, sign
from testing.relay.tokens import GOOD, signed
from userrealtime_core.auth import jwks
from userrealtime_core.auth.errors import KeySetStale, Unauthorized
from userrealtime_core.auth.tokens import TokenVerifier

NO_DATABASE = "postgresql://nobody@127.0.0.1:1/none"
ANY_AUDIENCE = {"TOKEN_AUDIENCE": "*"}
KEY_SET_ALONE = {"TOKEN_KEY": "", **ANY_AUDIENCE}
ALL = (jwk(RSA, "r"), jwk(EC, "e"), jwk(ED25519, "d"))


def verifier(url: str, **changes: str) -> TokenVerifier:
    return verifier_of(config(NO_DATABASE, JWKS_URL=url, **{**KEY_SET_ALONE, **changes}))


async def judge(verify: TokenVerifier, token: str) -> float:
    """Verify a token as a session does: a second time after a refresh of the keys."""
    try:
        return verify(token)
    except KeySetStale:
        await verify.refresh()
        return verify(token)


@pytest.mark.parametrize(("key", "kid"), [(RSA, "r"), (EC, "e"), (ED25519, "d"), (RSA, None), (EC, None)])
async def test_a_token_of_a_published_key_is_good(key: PrivateKey, kid: str | None) -> None:
    async with endpoint(*ALL) as issuer:
        verify = verifier(issuer.url)
        with pytest.raises(KeySetStale):
            verify(sign(key, kid))
        assert await judge(verify, sign(key, kid)) > 3000
        assert verify(sign(key, kid)) > 3000
        assert len(issuer.requests) == 1
        assert issuer.requests[0].startswith("GET /keys?all=1 HTTP/1.1\r\n")


PUBLIC_PEM = (
    RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
)


def by_hand(header: dict[str, Any], key: str) -> str:
    return signed(header, GOOD, key)


ATTACKS: dict[str, Callable[[], str]] = {
    "another key under a known kid": lambda: sign(OTHER_RSA, "r"),
    "a key of another algorithm under a known kid": lambda: sign(EC, "r"),
    "unknown kid": lambda: sign(RSA, "x"),
    "kid a path": lambda: sign(RSA, "../../../../etc/passwd"),
    "kid a URL": lambda: sign(RSA, "http://127.0.0.1:1/keys"),
    "kid with SQL": lambda: sign(RSA, "r' or '1'='1"),
    "jku": lambda: sign(OTHER_RSA, "x", {"jku": "http://127.0.0.1:1/keys"}),
    "x5u": lambda: sign(OTHER_RSA, "x", {"x5u": "http://127.0.0.1:1/keys"}),
    "jwk": lambda: sign(OTHER_RSA, "x", {"jwk": jwk(OTHER_RSA, "x")}),
    "jwk under a known kid": lambda: sign(OTHER_RSA, "r", {"jwk": jwk(OTHER_RSA, "r")}),
    "crit": lambda: sign(RSA, "r", {"crit": ["exp"], "exp": 1}),
    "another type": lambda: sign(RSA, "r", {"typ": "logout+jwt"}),
    "HS256 with the public key as PEM": lambda: by_hand({"alg": "HS256", "kid": "r"}, PUBLIC_PEM),
    "HS256 with the public key's number": lambda: by_hand({"alg": "HS256", "kid": "r"}, str(jwk(RSA, "r")["n"])),
    "HS256 with an empty key": lambda: by_hand({"alg": "HS256", "kid": "r"}, ""),
    "HS256 with a good key of elsewhere": lambda: token(),
    "RS256 that is an HMAC": lambda: by_hand({"alg": "RS256", "kid": "r"}, PUBLIC_PEM),
    "ES256 without a signature": lambda: sign(EC, "e").rpartition(".")[0] + ".",
    "ES256 of zeros": lambda: sign(EC, "e").rpartition(".")[0] + "." + "A" * 86,
    "expired": lambda: sign(RSA, "r", exp=1),
    "another user": lambda: sign(RSA, "r", sub="bob"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_any_other_is_refused(attack: str) -> None:
    async with endpoint(*ALL) as issuer:
        verify = verifier(issuer.url)
        with pytest.raises(Unauthorized):
            await judge(verify, ATTACKS[attack]())
        assert len(issuer.requests) <= 2
        assert await judge(verify, sign(RSA, "r")) > 0


async def test_hs256_stays_if_there_is_a_key_for_it() -> None:
    async with endpoint(*ALL) as issuer:
        verify = verifier(issuer.url, TOKEN_KEY=KEY)
        assert verify(token()) > 0
        assert issuer.requests == []
        assert await judge(verify, sign(RSA, "r")) > 0
        with pytest.raises(Unauthorized):
            await judge(verify, by_hand({"alg": "HS256"}, PUBLIC_PEM))


async def test_a_new_key_is_found_without_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "COOLDOWN", 0)
    async with endpoint(jwk(RSA, "1")) as issuer:
        verify = verifier(issuer.url)
        assert await judge(verify, sign(RSA, "1")) > 0
        issuer.publish(jwk(RSA, "1"), jwk(OTHER_RSA, "2"))
        assert await judge(verify, sign(OTHER_RSA, "2")) > 0
        issuer.publish(jwk(OTHER_RSA, "2"))
        monkeypatch.setattr(jwks, "LIFETIME", 0)
        monkeypatch.setattr(jwks, "COOLDOWN", 600)
        with pytest.raises(Unauthorized):
            await judge(verify, sign(RSA, "1"))


async def test_strangers_cause_one_request_at_a_time() -> None:
    async with endpoint(*ALL) as issuer:
        verify = verifier(issuer.url)

        async def attack(number: int) -> None:
            with pytest.raises(Unauthorized):
                await judge(verify, sign(EC, f"made-up-{number}"))

        await asyncio.gather(*(attack(number) for number in range(50)))
        await asyncio.gather(*(attack(number) for number in range(50)))
        assert len(issuer.requests) == 1


async def test_one_who_leaves_takes_nothing_from_the_others() -> None:
    async with endpoint(*ALL) as issuer:
        verify = verifier(issuer.url)
        leaving, staying = asyncio.create_task(verify.refresh()), asyncio.create_task(verify.refresh())
        await until(lambda: len(issuer.requests) == 1)
        leaving.cancel()
        await staying
        assert verify(sign(EC, "e")) > 0
        assert len(issuer.requests) == 1


@pytest.mark.parametrize("failure", ["status", "redirect", "no json", "no set", "too big", "cut", "no http", "away"])
async def test_while_the_endpoint_fails_the_last_keys_stay(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "COOLDOWN", 0)
    async with endpoint(*ALL) as issuer, endpoint(jwk(OTHER_RSA, "2")) as elsewhere:
        verify = verifier(issuer.url)
        assert await judge(verify, sign(RSA, "r")) > 0
        monkeypatch.setattr(jwks, "COOLDOWN", 600)
        monkeypatch.setattr(jwks, "LIFETIME", 0)
        good = json.dumps({"keys": [jwk(OTHER_RSA, "2")]}).encode()
        match failure:
            case "status":
                issuer.status, issuer.body = 500, good
            case "redirect":
                issuer.status, issuer.headers = 302, f"Location: {elsewhere.url}\r\n"
            case "no json":
                issuer.body = b"<html>"
            case "no set":
                issuer.body = b"[" * 100_000
            case "too big":
                issuer.body = good + b" " * jwks.MAX_SET_BYTES
            case "cut":
                issuer.headers = "Content-Length: 7\r\n"
            case "no http":
                issuer.headers = "\x00\r\n"
            case "away":
                issuer.stop()
        assert await judge(verify, sign(RSA, "r")) > 0
        assert elsewhere.requests == []
        # It is unknown whether such a key is published: not the client's fault.
        with pytest.raises(KeySetStale):
            await judge(verify, sign(OTHER_RSA, "2"))


async def test_an_endpoint_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT", 0.2)
    async with endpoint(*ALL) as issuer:
        issuer.silent = True
        verify = verifier(issuer.url)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(KeySetStale):
                await judge(verify, sign(RSA, "r"))
        assert len(issuer.requests) == 1


SMALL = rsa.generate_private_key(65537, 1024)  # noqa: S505
P384 = ec.generate_private_key(ec.SECP384R1())


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param({"kty": "oct", "k": "c2VjcmV0", "kid": "x"}, id="a secret"),
        pytest.param(jwk(RSA, "x", use="enc"), id="to encrypt"),
        pytest.param(jwk(RSA, "x", key_ops=["encrypt"]), id="operations"),
        pytest.param(jwk(RSA, "x", key_ops="verify"), id="operations no list"),
        pytest.param(jwk(RSA, "x", alg="RS512"), id="another algorithm"),
        pytest.param(jwk(RSA, "x", alg="HS256"), id="an algorithm of secrets"),
        pytest.param(jwk(RSA, "x", n="!"), id="no number"),
        pytest.param(jwk(RSA, "x", n=7), id="a number"),
        pytest.param(jwk(RSA, "x", n="A" * 100_000), id="a huge number"),
        pytest.param(jwk(RSA, "x", e="A" * 1000), id="a huge exponent"),
        pytest.param(jwk(RSA, "x", e=None), id="no exponent"),
        pytest.param(jwk(RSA, "x", e=3), id="an exponent no text"),
        pytest.param(jwk(RSA, "x", crv="P-256"), id="two kinds"),
        pytest.param({**jwk(RSA, "x"), "kid": 7}, id="kid no string"),
        pytest.param({**jwk(RSA, "x"), "kty": ["RSA"]}, id="kind no string"),
        pytest.param(jwk(P384, "x"), id="another curve"),
        pytest.param(jwk(EC, "x", x="AAAA"), id="no point"),
        pytest.param("x", id="no object"),
    ],
)
async def test_keys_of_no_use_are_passed_over(entry: Any) -> None:
    assert [key.kid for key in jwks.parse(json.dumps({"keys": [entry, jwk(EC, "good")]}).encode())] == ["good"]


async def test_a_short_key_verifies_nothing() -> None:
    async with endpoint(jwk(SMALL, "x")) as issuer:
        with pytest.warns(Warning, match="below"):
            short = sign(SMALL, "x")
        with pytest.raises(Unauthorized):
            await judge(verifier(issuer.url), short)


async def test_a_kid_that_two_keys_have_names_none() -> None:
    async with endpoint(jwk(RSA, "x"), jwk(OTHER_RSA, "x"), jwk(EC, "x")) as issuer:
        verify = verifier(issuer.url)
        for ambiguous in (sign(RSA, "x"), sign(OTHER_RSA, "x"), sign(RSA, None)):
            with pytest.raises(Unauthorized):
                await judge(verify, ambiguous)
        assert verify(sign(EC, "x")) > 0  # for this algorithm there is only one


def test_private_halves_are_not_kept() -> None:
    private = {**jwk(EC, "x"), "d": "AAAA"}
    [key] = jwks.parse(json.dumps({"keys": [private]}).encode())
    assert isinstance(key.key.key, ec.EllipticCurvePublicKey)


def test_no_more_than_so_many_keys_are_taken() -> None:
    body = json.dumps({"keys": [jwk(EC, str(number)) for number in range(jwks.MAX_KEYS + 1)]}).encode()
    assert len(jwks.parse(body)) == jwks.MAX_KEYS


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = st.sampled_from(["kty", "crv", "n", "e", "x", "y", "d", "kid", "alg", "use", "key_ops"])
VALUES = st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "AQAB", "AA", "sig", *jwk(EC, None).values()]) | JSON


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_breaks_it(body: bytes) -> None:
    with contextlib.suppress(jwks.JwksError):
        assert isinstance(jwks.parse(body), list)


@given(st.lists(st.dictionaries(NAMES, VALUES)))
def test_no_entry_breaks_it(entries: list[dict[str, Any]]) -> None:
    assert len(jwks.parse(json.dumps({"keys": entries}).encode())) <= len(entries)


async def test_the_endpoints_certificate_must_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = tmp_path / "certificate.pem"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_for("localhost", certificate))
    async with endpoint(*ALL, context=context) as issuer:
        url = f"https://localhost:{issuer.port}/keys"
        with pytest.raises(KeySetStale):
            await judge(verifier(url), sign(RSA, "r"))
        assert issuer.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert await judge(verifier(url), sign(RSA, "r")) > 0
        with pytest.raises(KeySetStale):
            await judge(verifier(url.replace("localhost", "127.0.0.1")), sign(RSA, "r"))


def certificate_for(host: str, path: Path) -> Path:
    """A self-signed certificate with its key in one file."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(EC.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(EC, hashes.SHA256())
    )
    key = EC.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(key + certificate.public_bytes(serialization.Encoding.PEM))
    return path


async def test_clients_connect_with_it(migrated: Database) -> None:
    async with endpoint(*ALL) as issuer, running(migrated.url, None, JWKS_URL=issuer.url, **KEY_SET_ALONE) as relay:
        async with client(relay, sign(EC, "e")) as alice:
            assert (await receive(alice))["type"] == "connected"
        async with client(relay, sign(EC, "x")) as mallory:
            assert await closed(mallory) == (1008, "Unauthorized")
        async with client(relay, None) as alice:
            await alice.send(json.dumps({"type": "auth", "token": sign(ED25519, "d")}))
            await alice.send(json.dumps({"type": "resume", "lastEventId": 0}))
            assert (await receive(alice))["type"] == "connected"
        assert len(issuer.requests) == 1


@pytest.mark.parametrize("path", ["/sse", "/poll", "/publish"])
async def test_requests_wait_for_the_keys(migrated: Database, path: str) -> None:
    method, body = ("POST", b'{"ref":"r","event":"e"}') if path == "/publish" else ("GET", b"")
    async with endpoint(*ALL) as issuer, running(migrated.url, None, JWKS_URL=issuer.url, **KEY_SET_ALONE) as relay:
        assert (await request(relay, path, sign(EC, "e"), method=method, body=body)).status == 200
        assert (await request(relay, path, sign(EC, "x"), method=method, body=body)).status == 401
        assert len(issuer.requests) == 1
    async with endpoint() as issuer, running(migrated.url, None, JWKS_URL=issuer.url, **KEY_SET_ALONE) as relay:
        issuer.status = 503
        answer = await request(relay, path, sign(EC, "e"), method=method, body=body)
        assert (answer.status, answer.json) == (503, {"error": "Signing keys unavailable"})
        assert "retry-after" in answer.headers


async def test_a_token_is_renewed_by_one_of_another_key(migrated: Database) -> None:
    async with (
        endpoint(*ALL) as issuer,
        running(migrated.url, None, JWKS_URL=issuer.url, **ANY_AUDIENCE) as relay,
        client(relay) as alice,
    ):
        await receive(alice)
        assert issuer.requests == []
        await alice.send(json.dumps({"type": "auth", "token": sign(EC, "e")}))
        assert (await receive(alice))["type"] == "renewed"
        assert len(issuer.requests) == 1


async def test_while_there_are_no_keys_clients_are_told_to_come_back(migrated: Database) -> None:
    async with endpoint() as issuer, running(migrated.url, None, JWKS_URL=issuer.url, **KEY_SET_ALONE) as relay:
        issuer.status = 503
        async with client(relay, sign(EC, "e")) as alice:
            assert await closed(alice) == (1013, "Signing keys unavailable")
        async with client(relay, sign(EC, "e", exp=1)) as alice:
            assert await closed(alice) == (1013, "Signing keys unavailable")


@pytest.mark.parametrize("with_it", [False, True])
async def test_only_who_has_a_key_set_pays_for_it(with_it: bool) -> None:
    """PyJWT imports `cryptography`, which a relay without JWKS_URL does not need."""
    async with endpoint(*ALL) as issuer:
        changes = {"JWKS_URL": issuer.url, **ANY_AUDIENCE} if with_it else {}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "userrealtime_relay",
            env={**os.environ, **environment(NO_DATABASE, **changes)},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(PATIENCE_S):
                assert b"listening" in await process.stdout.readline()
            mapped = await asyncio.to_thread(Path(f"/proc/{process.pid}/maps").read_text)
            assert ("/cryptography/" in mapped) is with_it
            assert "/asyncpg/" in mapped
        finally:
            process.kill()
            await process.communicate()
