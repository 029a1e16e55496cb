"""The registration of a relay with the activators."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest

from testing.database import Database
from testing.relay.harness import KEY, PATIENCE_S, USER, config, running, token, verifier_of
from userrealtime_core.auth.errors import Unauthorized
from userrealtime_core.environment import ConfigError
from userrealtime_core.registration import AUDIENCE, TYPE, BadRegistration, read, sign
from userrealtime_relay.process import registration

OTHER = "another key of this user's that is long"
DEAD = "http://127.0.0.1:1/users/urt-alice"


class Activator:
    """Receives registrations, and responds with 204 unless it is silent."""

    def __init__(self, *, silent: bool = False) -> None:
        self.requests: asyncio.Queue[bytes] = asyncio.Queue()
        self._silent = silent

    async def hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.put_nowait(await reader.readuntil(b"\r\n\r\n"))
        if self._silent:
            await reader.read()
        else:
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()


@asynccontextmanager
async def listening(activator: Activator) -> AsyncIterator[str]:
    server = await asyncio.start_server(activator.hear, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/users/urt-alice"


def signed(key: str = KEY, typ: str | None = TYPE, **changes: Any) -> str:
    claims = {"aud": AUDIENCE, "address": "10.0.0.1", "exp": int(time.time()) + 30, **changes}
    given = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(given, key, algorithm="HS256", headers={"typ": typ})


def test_what_one_of_the_keys_has_signed_is_read() -> None:
    assert read(sign(KEY, "10.0.0.1"), (OTHER, KEY)) == "10.0.0.1"
    assert read(signed(), (KEY,)) == "10.0.0.1"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "x",
        "a.b.c",
        signed(OTHER),
        signed(typ="JWT"),
        signed(typ=None),
        signed(exp=1),
        signed(exp=None),
        signed(aud="somebody else"),
        signed(aud=None),
        signed(address=None),
        token(),
        token(aud=AUDIENCE, address="10.0.0.1"),
        jwt.encode({"aud": AUDIENCE, "address": "10.0.0.1", "exp": 2**31}, "", "none", {"typ": TYPE}),
    ],
)
def test_anything_else_is_refused(said: str) -> None:
    with pytest.raises(BadRegistration):
        read(said, (KEY,))
    with pytest.raises(BadRegistration):
        read(sign(KEY, "10.0.0.1"), ())


@pytest.mark.parametrize("claims", [{}, {"sub": USER}])
def test_no_client_is_let_in_by_it(claims: dict[str, Any]) -> None:
    verify = verifier_of(config("postgresql://"))
    with pytest.raises(Unauthorized):
        verify(signed(**claims))
    with pytest.raises(Unauthorized):
        verify(sign(KEY, "10.0.0.1"))


async def test_a_relay_says_where_it_listens_once(migrated: Database) -> None:
    activator = Activator()
    async with listening(activator) as url, running(migrated.url, ANNOUNCE_URL=url, POD_IP="127.0.0.1"):
        async with asyncio.timeout(PATIENCE_S):
            head, *lines = (await activator.requests.get()).decode().splitlines()
        await asyncio.sleep(0.2)
        assert activator.requests.empty()
    assert head == "POST /users/urt-alice HTTP/1.1"
    headers = dict(line.split(": ", 1) for line in lines if line)
    assert headers["Host"] == url.removeprefix("http://").partition("/")[0]
    assert read(headers["Authorization"].removeprefix("Bearer "), (KEY,)) == "127.0.0.1"


@pytest.mark.parametrize("missing", ["ANNOUNCE_URL", "POD_IP", "TOKEN_KEY"])
async def test_it_says_nothing_without_all_that_it_takes(migrated: Database, missing: str) -> None:
    activator = Activator()
    async with listening(activator) as url:
        issuer = {"JWKS_URL": "https://issuer.example/keys", "TOKEN_AUDIENCE": "*"}
        settings = {"ANNOUNCE_URL": url, "POD_IP": "127.0.0.1", **issuer, missing: ""}
        async with running(migrated.url, None, **settings):
            await asyncio.sleep(0.3)
        assert activator.requests.empty()


async def test_activators_that_are_away_or_silent_are_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registration, "TIMEOUT", 0.2)
    async with listening(Activator(silent=True)) as silent, asyncio.timeout(PATIENCE_S):
        for url in (DEAD, silent, "http://nowhere.invalid:8081/x"):
            await registration.register_address(url, "127.0.0.1", KEY)


async def test_a_relay_ends_while_it_still_tells(migrated: Database) -> None:
    activator = Activator(silent=True)
    async with (
        asyncio.timeout(PATIENCE_S),
        listening(activator) as url,
        running(migrated.url, ANNOUNCE_URL=url, POD_IP="127.0.0.1"),
    ):
        await activator.requests.get()


@pytest.mark.parametrize("url", ["https://a.svc/x", "a.svc:80", "http://a b/", "http://u:p@a.svc/", "http://a/x?y"])
def test_a_url_that_is_none_of_a_service_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="ANNOUNCE_URL"):
        config("postgresql://", ANNOUNCE_URL=url)
