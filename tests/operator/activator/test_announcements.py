"""Registrations of pods: which are accepted, and that waiting connections are served."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import ClientSession

from testing.operator.activator import secret
from testing.operator.names import child_name
from testing.operator.pods import FakePods
from testing.relay.harness import KEY, PATIENCE_S, token
from userrealtime_core.registration import sign
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_operator.activator import announcements
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.routes import Route
from userrealtime_operator.activator.tokens import Tokens
from userrealtime_operator.activator.wakes import Wakes
from userrealtime_operator.kube.types import NamespacedName
from userrealtime_relay.process.registration import register_address

ALICE = Route(NamespacedName("users", "alice"), "alice", "", child_name("alice"))
PATH = f"/users/{ALICE.child_name}"


class Place:
    """The server that receives registrations, and the port of a pod."""

    def __init__(self, url: str, pods: FakePods, wakes: Wakes, tokens: Tokens, metrics: Metrics) -> None:
        self.url, self.pods, self.wakes, self.tokens, self.metrics = url, pods, wakes, tokens, metrics

    async def say(self, announcement: str, path: str = PATH, scheme: str = "Bearer") -> int:
        async with (
            ClientSession() as session,
            session.post(self.url + path, headers={"Authorization": f"{scheme} {announcement}"}) as answer,
        ):
            return answer.status

    def counted(self, outcome: str) -> float:
        return self.metrics.value("announcements_total", outcome=outcome)


@asynccontextmanager
async def place(*keys: str) -> AsyncIterator[Place]:
    async def read(_: Route) -> dict[str, object]:
        return secret(*keys)

    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    pods, metrics = FakePods(port=server.sockets[0].getsockname()[1]), Metrics()
    wakes, tokens = Wakes(pods, metrics), Tokens(RelaySettings.from_environment({}), read)
    async with server, announcements.serve("127.0.0.1", 0, wakes, tokens, metrics) as port:
        yield Place(f"http://127.0.0.1:{port}", pods, wakes, tokens, metrics)
        await wakes.close()


async def test_who_waits_is_led_to_the_pod_that_speaks() -> None:
    async with place(KEY) as here, asyncio.timeout(PATIENCE_S):
        await here.tokens.check(ALICE, token())  # the first client of a user has sent a token
        waiting = asyncio.create_task(here.wakes.wake_and_wait(ALICE))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await register_address(here.url + PATH, "127.0.0.1", KEY)
        assert await waiting == ("127.0.0.1", here.pods.port)
        assert here.counted("accepted") == 1
        # No client waits any more.
        assert await here.say(sign(KEY, "127.0.0.1")) == 404
        assert here.counted("not_waiting") == 1


async def test_nobody_else_is_believed() -> None:
    async with place(KEY) as here, asyncio.timeout(PATIENCE_S):
        waiting = asyncio.create_task(here.wakes.wake_and_wait(ALICE))
        await asyncio.sleep(0.05)
        # A registration does not cause a read of the keys.
        assert await here.say(sign(KEY, "127.0.0.1")) == 401
        await here.tokens.check(ALICE, token())
        assert await here.say(sign("a stranger's key that is long enough", "127.0.0.1")) == 401
        assert await here.say(token()) == 401
        assert await here.say(sign(KEY, "127.0.0.1"), scheme="Basic") == 401
        # A replayed registration comes from another address.
        assert await here.say(sign(KEY, "10.0.0.1")) == 403
        assert here.counted("rejected") == 5
        assert await here.say(sign(KEY, "127.0.0.1"), path="/others/" + ALICE.child_name) == 404
        assert await here.say(sign(KEY, "127.0.0.1"), path="/users/urt-bob") == 404
        assert await here.say(sign(KEY, "127.0.0.1"), path="/") == 404
        assert not waiting.done()
        assert await here.say(sign(KEY, "127.0.0.1")) == 204
        await waiting


async def test_without_keys_of_users_nobody_is() -> None:
    settings = {"JWKS_URL": "https://issuer.example/keys", "TOKEN_AUDIENCE": "*"}
    tokens = Tokens(RelaySettings.from_environment(settings), None)
    pods, metrics = FakePods(), Metrics()
    wakes = Wakes(pods, metrics)
    async with announcements.serve("127.0.0.1", 0, wakes, tokens, metrics) as port, asyncio.timeout(PATIENCE_S):
        waiting = asyncio.create_task(wakes.wake_and_wait(ALICE))
        await asyncio.sleep(0.05)
        here = Place(f"http://127.0.0.1:{port}", pods, wakes, tokens, metrics)
        assert await here.say(sign(KEY, "127.0.0.1")) == 401
        await wakes.close()
        await asyncio.wait([waiting])


async def test_a_port_that_is_taken_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="address already in use"):
            async with announcements.serve("127.0.0.1", port, Wakes(FakePods(), Metrics()), None, Metrics()):  # type: ignore[arg-type]
                pass
