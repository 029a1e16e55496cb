"""The HTTP server of the demo: the page, its state, and a POST for each button."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from .cluster import Cluster, ClusterError
from .config import Config
from .database import LONGEST_TEXT, Database, DatabaseError
from .feed import Feed
from .session import COOKIE, LIFETIME_S, USERS, Sessions
from .traffic import Traffic
from .view import Object
from .web import Allowance, SameOrigin, SecurityHeaders, refused, small_body, unavailable

PAGE = Path(__file__).parent / "page"
MAX_WATCHERS = 50
WATCH_S = 600
KEEP_ALIVE_S = 15
# Changes of pods arrive in bursts. One message for each burst is enough.
GATHER_S = 0.1
ACTIONS_PER_SECOND = 10
TRAFFIC_S = 30
TRAFFIC_AT_KILL_S = 10


class Demo:
    """The routes, and the objects that they share."""

    def __init__(self, config: Config, cluster: Cluster, database: Database) -> None:
        self._config = config
        self._cluster = cluster
        self._database = database
        self._sessions = Sessions(config.session_key)
        self.feed = Feed(cluster, database)
        self.traffic = Traffic(database)
        self._cookie: dict[str, Any] = {
            "path": config.path or "/",
            "secure": config.secure,
            "httponly": True,
            "samesite": "strict",
        }
        self._watchers = 0
        self._allowance = Allowance(ACTIONS_PER_SECOND)

    def app(self) -> Starlette:
        """The ASGI application."""
        path = self._config.path
        actions = {
            "publish": self._publish,
            "traffic": self._start_traffic,
            "kill": self._kill,
            "sleep": self._sleep,
            "wake": self._wake,
        }
        routes = [
            Route("/", self._page),
            Route("/me", self._me),
            Route("/token", self._token),
            Route("/state", self._state),
            Route("/watch", self._watch),
            Route("/login", self._login, methods=["POST"]),
            Route("/logout", self._logout, methods=["POST"]),
            *(Route(f"/{name}", self._action(action), methods=["POST"]) for name, action in actions.items()),
            Mount("/page", StaticFiles(directory=PAGE)),
        ]
        bare = [Route(path, RedirectResponse(f"{self._config.origin}{path}/"))] if path else []
        return Starlette(
            routes=[Route("/health", _health), *bare, Mount(path, routes=routes)],
            middleware=[
                Middleware(SecurityHeaders, socket_origin=self._config.socket_origin),
                Middleware(SameOrigin, origin=self._config.origin),
            ],
            exception_handlers={HTTPException: refused, ClusterError: unavailable, DatabaseError: unavailable},
        )

    async def _page(self, request: Request) -> Response:
        return FileResponse(PAGE / "index.html")

    async def _login(self, request: Request) -> Response:
        self._allow()
        user = (await small_body(request)).get("user")
        if user not in USERS:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "user must be alice or bob")
        await self._cluster.provision(user)
        response = JSONResponse(_about(user))
        response.set_cookie(COOKIE, self._sessions.issue(user), max_age=LIFETIME_S, **self._cookie)
        return response

    async def _logout(self, request: Request) -> Response:
        response = Response(status_code=HTTPStatus.NO_CONTENT)
        response.delete_cookie(COOKIE, **self._cookie)
        return response

    async def _me(self, request: Request) -> Response:
        """Return the user of the session, or null without a session, which is not an error."""
        user = self._sessions.user(request.cookies.get(COOKIE))
        return JSONResponse(_about(user))

    async def _token(self, request: Request) -> Response:
        user = self._user(request)
        self._allow()
        return JSONResponse(await self._cluster.token(user))

    async def _state(self, request: Request) -> Response:
        user = self._user(request)
        self._allow()
        return Response(await self._database.state(user), media_type="application/json")

    async def _watch(self, request: Request) -> Response:
        user = self._user(request)
        if self._watchers >= MAX_WATCHERS:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "too many pages are open")
        return StreamingResponse(self._states(user), media_type="text/event-stream")

    async def _states(self, user: str) -> AsyncIterator[str]:
        """Yield Server-Sent Events with the content of the page, for a limited time. The browser then reconnects."""
        self._watchers += 1
        try:
            ends = time.monotonic() + WATCH_S
            yield "retry: 1000\n\n"
            seen = -1
            while (left := ends - time.monotonic()) > 0:
                if await self.feed.newer(seen, min(left, KEEP_ALIVE_S)):
                    seen = self.feed.version
                    yield f"data: {json.dumps(self.feed.state(user))}\n\n"
                    await asyncio.sleep(GATHER_S)
                else:
                    yield ":\n\n"
        finally:
            self._watchers -= 1

    async def _publish(self, user: str, body: Object) -> None:
        recipient, text = body.get("to", user), body.get("text")
        if recipient not in USERS:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "to must be alice or bob")
        if not isinstance(text, str) or not 1 <= len(text) <= LONGEST_TEXT or "\0" in text:
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"text must have 1 to {LONGEST_TEXT} characters")
        await self._database.send(recipient, user, text)

    async def _start_traffic(self, user: str, body: Object) -> None:
        self.traffic.start(user, TRAFFIC_S)

    async def _kill(self, user: str, body: Object) -> None:
        if not await self._cluster.kill(user):
            raise HTTPException(HTTPStatus.CONFLICT, "there is no pod to kill")
        self.traffic.start(user, TRAFFIC_AT_KILL_S)

    async def _sleep(self, user: str, body: Object) -> None:
        self.traffic.stop(user)
        await self._cluster.sleep(user)

    async def _wake(self, user: str, body: Object) -> None:
        await self._cluster.wake(user)

    def _action(self, action: Callable[[str, Object], Awaitable[None]]) -> Callable[[Request], Awaitable[Response]]:
        """Return the endpoint of a POST that requires a session."""

        async def endpoint(request: Request) -> Response:
            user = self._user(request)
            self._allow()
            await action(user, await small_body(request))
            return Response(status_code=HTTPStatus.NO_CONTENT)

        return endpoint

    def _user(self, request: Request) -> str:
        user = self._sessions.user(request.cookies.get(COOKIE))
        if user is None:
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "log in first")
        return user

    def _allow(self) -> None:
        if not self._allowance.take(time.monotonic()):
            raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, "too many requests: wait a moment")


def _about(user: str | None) -> Object:
    return {"user": user, "users": USERS}


async def _health(request: Request) -> Response:
    return Response(status_code=HTTPStatus.NO_CONTENT)
