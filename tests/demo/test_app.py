"""The server, as a browser speaks to it, on a real PostgreSQL and without an API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import asyncpg
import pytest
import uvicorn
from kubernetes.aio import client

from examples.demo.app import ACTIONS_PER_SECOND, MAX_WATCHERS, Demo
from examples.demo.cluster import Cluster
from examples.demo.config import Config
from examples.demo.database import Database
from examples.demo.session import COOKIE, Sessions
from examples.demo.web import MOST_BODY_BYTES
from testing.local.ports import free_port
from testing.patience import PATIENCE_S

KEY = "k" * 64
POSTS = ("login", "logout", "publish", "traffic", "kill", "sleep", "wake")


class Site:
    """The server at work, and a browser that has, or has not, a cookie."""

    def __init__(self, demo: Demo, session: aiohttp.ClientSession, url: str) -> None:
        self.demo = demo
        self.url = url
        self._session = session
        self._origin = url.removesuffix("/demo")

    async def get(self, path: str, user: str | None = None, **more: Any) -> tuple[int, str, Any]:
        async with self._session.get(f"{self.url}/{path}", headers=self.cookie(user), **more) as answer:
            return answer.status, await answer.text(), answer.headers

    async def post(
        self, path: str, body: Any = None, user: str | None = None, origin: str | None = "own"
    ) -> tuple[int, Any, Any]:
        headers = self.cookie(user)
        if origin is not None:
            headers["Origin"] = self._origin if origin == "own" else origin
        content = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        async with self._session.post(f"{self.url}/{path}", data=content, headers=headers) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None, answer.headers

    def cookie(self, user: str | None) -> dict[str, str]:
        return {} if user is None else {"Cookie": f"{COOKIE}={Sessions(KEY).issue(user)}"}


@pytest.fixture
async def site(database: Database, demo_url: str) -> AsyncIterator[Site]:
    port = free_port()
    config = Config(f"http://127.0.0.1:{port}", "/demo", "users", port, demo_url, KEY)
    nobody = client.Configuration(host=f"http://127.0.0.1:{free_port()}", retries=False)
    async with client.ApiClient(nobody) as api, aiohttp.ClientSession() as session:
        demo = Demo(config, Cluster(api, "users"), database)
        options = {"ws": "none", "lifespan": "off", "log_level": "warning", "timeout_graceful_shutdown": 1}
        server = uvicorn.Server(uvicorn.Config(demo.app(), host="127.0.0.1", port=port, **options))  # type: ignore[arg-type]
        serving = asyncio.create_task(server.serve())
        async with asyncio.timeout(PATIENCE_S):
            while not server.started:
                await asyncio.sleep(0.01)
        yield Site(demo, session, f"http://127.0.0.1:{port}/demo")
        server.should_exit = True
        await serving


async def test_the_page_and_what_belongs_to_it(site: Site) -> None:
    status, text, headers = await site.get("")
    assert status == 200
    assert "<title>userrealtime demo</title>" in text
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert f"connect-src 'self' {site.url.replace('http', 'ws').removesuffix('/demo')};" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    for name, kind in (("demo.css", "text/css"), ("demo.js", "javascript"), ("icon.svg", "image/svg+xml")):
        status, _, headers = await site.get(f"page/{name}")
        assert status == 200, name
        assert kind in headers["Content-Type"]
    assert (await site.get("page/../app.py"))[0] == 404
    assert (await site.get("page/%2e%2e/app.py"))[0] == 404


async def test_without_its_last_slash_it_is_found_too(site: Site) -> None:
    status, _, headers = await site.get("../demo", allow_redirects=False)
    assert (status, headers["Location"]) == (307, f"{site.url}/")


@pytest.mark.parametrize("origin", [None, "null", "http://127.0.0.1:1", "https://evil.example"])
async def test_nothing_is_changed_from_another_page(site: Site, origin: str | None) -> None:
    for path in POSTS:
        status, answer, _ = await site.post(path, {"user": "alice", "text": "x"}, user="alice", origin=origin)
        assert status == 403, path
        assert "from the page" in answer["error"]


async def test_who_is_not_logged_in_changes_nothing(site: Site) -> None:
    for path in {*POSTS} - {"login", "logout"}:
        assert (await site.post(path))[:2] == (401, {"error": "log in first"}), path


async def test_who_is_not_logged_in_sees_nothing(site: Site) -> None:
    assert (await site.get("token"))[0] == 401
    assert (await site.get("state"))[0] == 401
    assert (await site.get("watch"))[0] == 401
    assert json.loads((await site.get("me"))[1]) == {"user": None, "users": ["alice", "bob"]}


async def test_nobody_else_may_log_in(site: Site) -> None:
    for body in ({}, {"user": "carol"}, {"user": None}, {"user": ["alice"]}):
        status, answer, headers = await site.post("login", body)
        assert (status, answer) == (400, {"error": "user must be alice or bob"})
        assert "Set-Cookie" not in headers


async def test_a_cluster_that_is_away_is_told(site: Site) -> None:
    status, answer, headers = await site.post("login", {"user": "alice"})
    assert status == 503
    assert answer["error"].startswith("no answer from the API server")
    assert "Set-Cookie" not in headers
    assert (await site.get("token", "alice"))[0] == 503


async def test_logging_out_removes_the_cookie(site: Site) -> None:
    status, _, headers = await site.post("logout", user="alice")
    assert status == 204
    cookie = headers["Set-Cookie"].lower()
    assert "max-age=0" in cookie
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "path=/demo" in cookie


async def test_an_application_publishes_to_either_user(site: Site, connection: asyncpg.Connection) -> None:
    assert (await site.post("publish", {"text": "to me"}, user="alice"))[0] == 204
    assert (await site.post("publish", {"text": "to you", "to": "bob"}, user="alice"))[0] == 204
    rows = await connection.fetch("select user_id, event, data from userrealtime.event order by user_id")
    notes = [(row["user_id"], row["event"], json.loads(row["data"])) for row in rows]
    assert [(user, event, data["from"], data["text"]) for user, event, data in notes] == [
        ("alice", "note", "alice", "to me"),
        ("bob", "note", "alice", "to you"),
    ]
    for user, _, data in notes:
        status, text, headers = await site.get("state", user)
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert json.loads(text)["state"] == {"messages": [data], "ticks": 0}
        assert json.loads(text)["position"].startswith("1:")


async def test_what_is_published_is_looked_at(site: Site, connection: asyncpg.Connection) -> None:
    for body in ({}, {"text": ""}, {"text": 1}, {"text": "x" * 501}, {"text": "\0"}, {"text": "x", "to": "carol"}):
        status, answer, _ = await site.post("publish", body, user="alice")
        assert status == 400, body
        assert "must" in answer["error"]
    assert await connection.fetchval("select count(*) from userrealtime.event") == 0


async def test_a_body_is_small_and_an_object(site: Site) -> None:
    for body in (b"[]", b"{", b"\xff", b"[" * 8000):
        assert (await site.post("publish", body, user="alice"))[0] == 400, body
    assert (await site.post("publish", b" " * (MOST_BODY_BYTES + 1), user="alice"))[0] == 413


async def test_actions_are_limited(site: Site) -> None:
    answers = await asyncio.gather(*(site.post("traffic", user="alice") for _ in range(3 * ACTIONS_PER_SECOND)))
    statuses = {status for status, *_ in answers}
    assert statuses == {204, 429}


async def test_traffic_is_published_until_it_is_stopped(site: Site, connection: asyncpg.Connection) -> None:
    running = asyncio.create_task(site.demo.traffic.run())
    try:
        assert (await site.post("traffic", user="bob"))[0] == 204
        async with asyncio.timeout(PATIENCE_S):
            while await connection.fetchval("select count(*) from userrealtime.event") < 3:
                await asyncio.sleep(0.01)
        site.demo.traffic.stop("bob")
    finally:
        running.cancel()
        await asyncio.wait([running])
    rows = await connection.fetch("select user_id, event, data from userrealtime.event order by id limit 3")
    numbers = [json.loads(row["data"])["number"] for row in rows]
    assert numbers == [1, 2, 3]
    assert {(row["user_id"], row["event"]) for row in rows} == {("bob", "tick")}


async def test_the_state_is_told_and_told_again(site: Site, connection: asyncpg.Connection) -> None:
    running = asyncio.create_task(site.demo.feed.run())
    headers = site.cookie("alice")
    try:
        async with (
            asyncio.timeout(PATIENCE_S),
            aiohttp.ClientSession() as session,
            session.get(f"{site.url}/watch", headers=headers) as answer,
        ):
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            states = (json.loads(line[6:]) async for line in answer.content if line.startswith(b"data: "))
            async for state in states:
                if state["people"]:
                    break
            assert (state["state"], state["pods"]) == ("missing", [])
            assert state["people"]["bob"]["clients"] == 0
            await connection.execute("select userrealtime.present('bob', 'pod', 1)")
            async for state in states:
                if state["people"]["bob"]["clients"] == 1:
                    break
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_only_so_many_look_on(site: Site) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        headers = site.cookie("alice")
        answers = [await session.get(f"{site.url}/watch", headers=headers) for _ in range(MAX_WATCHERS)]
        for answer in answers:
            await answer.content.readline()
        status, text, _ = await site.get("watch", "alice")
        assert (status, json.loads(text)) == (503, {"error": "too many pages are open"})
        for answer in answers:
            answer.close()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with aiohttp.ClientSession() as session, session.get(f"{site.url}/watch", headers=headers) as answer:
                if answer.status == 200:
                    break
            await asyncio.sleep(0.05)
