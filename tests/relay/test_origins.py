"""Pages of other sites: which may connect, and what their browsers are told."""

from __future__ import annotations

import json

import pytest
from websockets.exceptions import InvalidStatus

from tests.conftest import Database
from tests.relay.http_client import request, stream
from tests.relay.support import client, receive, running

APP = "https://app.example.com"
EVIL = "https://evil.example.com"


async def test_by_default_there_is_no_cors_and_a_websocket_may_come_from_anywhere(migrated: Database) -> None:
    async with running(migrated.url) as relay, client(relay, headers={"Origin": EVIL}) as alice:
        assert (await receive(alice))["type"] == "connected"
        answer = await request(relay, "/poll", headers={"Origin": EVIL})
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/sse", "/poll", "/publish"])
async def test_a_preflight_allows_what_a_client_needs(migrated: Database, path: str) -> None:
    headers = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST" if path == "/publish" else "GET",
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
