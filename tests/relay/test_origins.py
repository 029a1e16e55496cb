"""Pages of other sites: which may connect, and the headers for their browsers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from testing.database import Database
from testing.relay.harness import client, config, receive, running
from testing.relay.http_client import request, stream
from userrealtime_core.environment import ConfigError
from userrealtime_core.wire.cors import ORIGIN, validate_origin

ROOT = Path(__file__).parents[2]
APP = "https://app.example.com"
EVIL = "https://evil.example.com"


BROWSER_ORIGINS = (
    "https://app.example.com:8443",
    "http://[2001:db8::1]:8080",
    "https://xn--bcher-kva.example",
    "http://under_score.example",
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "app://obsidian.md",
    "chrome-extension://gighmmpiobklfepjocnamgkkbiglidom",
    "moz-extension://2a9a1f5c-0d0b-4d6e-8b9c-4a1f3b1c2d3e",
    "safari-web-extension://E8BEA491-9B80-45DB-8B20-3E586473BD47",
    "vscode-webview://1u5k2q3v",
    "file://",
    "null",
)
"""As browsers, their extensions and apps with a web view send them."""


@pytest.mark.parametrize("origin", BROWSER_ORIGINS)
def test_the_chart_and_the_relay_accept_every_origin_of_a_browser(origin: str) -> None:
    schema = json.loads((ROOT / "charts" / "userrealtime" / "values.schema.json").read_text())
    pattern = schema["properties"]["relay"]["properties"]["allowedOrigins"]["items"]["pattern"]
    assert pattern == f"^({ORIGIN})$"
    assert validate_origin(origin) is None
    assert config("postgresql://u@h/d", ALLOWED_ORIGINS=f"{origin},*").allowed_origins == (origin, "*")


@pytest.mark.parametrize(
    "origin",
    [
        "https://App.example.com",
        "https://a/",
        "https://a/path",
        "https://u@a",
        "app.example.com",
        "https://",
        "a b://c",
    ],
)
def test_what_no_browser_sends_is_rejected(origin: str) -> None:
    with pytest.raises(ConfigError, match="is not an origin"):
        config("postgresql://u@h/d", ALLOWED_ORIGINS=origin)


@pytest.mark.parametrize("origin", ["https://*.example.com", "http://localhost:*", "*://a"])
def test_a_wildcard_is_rejected_with_advice(origin: str) -> None:
    with pytest.raises(ConfigError, match="has a wildcard: list each origin"):
        config("postgresql://u@h/d", ALLOWED_ORIGINS=origin)


@pytest.mark.parametrize("origin", ["capacitor://localhost", "null", "file://"])
async def test_origins_that_are_no_sites_connect(migrated: Database, origin: str) -> None:
    async with running(migrated.url, ALLOWED_ORIGINS=origin) as relay:
        async with client(relay, headers={"Origin": origin}) as alice:
            assert (await receive(alice))["type"] == "connected"
        answer = await request(relay, "/poll?timeout=0", headers={"Origin": origin})
        assert answer.headers["access-control-allow-origin"] == origin
        with pytest.raises(InvalidStatus):
            async with client(relay, headers={"Origin": EVIL}):
                pass


async def test_by_default_no_cors_headers_and_any_websocket_origin(migrated: Database) -> None:
    async with running(migrated.url) as relay, client(relay, headers={"Origin": EVIL}) as alice:
        assert (await receive(alice))["type"] == "connected"
        answer = await request(relay, "/poll", headers={"Origin": EVIL})
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/sse", "/poll", "/publish", "/broadcast"])
async def test_a_preflight_allows_what_a_client_needs(migrated: Database, path: str) -> None:
    headers = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST" if path in ("/publish", "/broadcast") else "GET",
        "Access-Control-Request-Headers": "authorization,last-event-id,content-type",
    }
    async with running(migrated.url, ALLOWED_ORIGINS=f"https://other.example.com, {APP}") as relay:
        answer = await request(relay, path, None, method="OPTIONS", headers=headers)
        assert answer.status == 200
        assert answer.headers["access-control-allow-origin"] == APP
        allowed = answer.headers["access-control-allow-headers"].lower()
        assert {"authorization", "last-event-id", "content-type"} <= set(allowed.split(", "))
        refused = await request(relay, path, None, method="OPTIONS", headers={**headers, "Origin": EVIL})
        assert refused.status == 400
        assert "access-control-allow-origin" not in refused.headers


async def test_only_pages_of_allowed_origins_may_read(migrated: Database) -> None:
    async with running(migrated.url, ALLOWED_ORIGINS=APP) as relay:
        async with stream(relay, headers={"Origin": APP}) as events:
            assert events.answer.headers["access-control-allow-origin"] == APP
            assert "access-control-allow-credentials" not in events.answer.headers
            message = await events.event()
            assert message is not None
            assert message["type"] == "connected"
        unauthorized = await request(relay, "/sse", None, headers={"Origin": APP})
        assert (unauthorized.status, unauthorized.headers["access-control-allow-origin"]) == (401, APP)
        answer = await request(relay, "/poll", headers={"Origin": EVIL})
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "Origin"


async def test_a_websocket_of_an_origin_that_is_not_allowed_is_refused(migrated: Database) -> None:
    async with running(migrated.url, ALLOWED_ORIGINS=APP) as relay:
        async with client(relay, headers={"Origin": APP}) as alice:
            assert (await receive(alice))["type"] == "connected"
        async with client(relay) as no_browser:
            assert (await receive(no_browser))["type"] == "connected"
        for origin in (EVIL, "null", APP.upper(), APP + ".evil.example.com"):
            with pytest.raises(InvalidStatus) as raised:
                async with client(relay, headers={"Origin": origin}):
                    pass
            assert raised.value.response.status_code == 403
            assert "ALLOWED_ORIGINS" in json.loads(raised.value.response.body or b"")["error"]


async def test_any_origin(migrated: Database) -> None:
    async with running(migrated.url, ALLOWED_ORIGINS="*") as relay:
        async with client(relay, headers={"Origin": EVIL}) as alice:
            assert (await receive(alice))["type"] == "connected"
        answer = await request(relay, "/poll", headers={"Origin": EVIL})
        assert answer.headers["access-control-allow-origin"] == "*"
