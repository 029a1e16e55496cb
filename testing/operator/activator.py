"""An activator in the event loop of the test, and a real relay that starts when the user is woken."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from testing.operator.names import child_name
from testing.patience import PATIENCE_S
from testing.relay.harness import KEY, USER, running
from userrealtime_core.relay_settings import RelaySettings
from userrealtime_core.secret import Secret
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.parking.heads import Heads
from userrealtime_operator.activator.parking.parking import Parking
from userrealtime_operator.activator.pods import Pod
from userrealtime_operator.activator.proxy.admission import Admission, Limits
from userrealtime_operator.activator.proxy.origins import Origins
from userrealtime_operator.activator.proxy.proxy import ActivatorProxy
from userrealtime_operator.activator.routes import Route, RouteTable
from userrealtime_operator.activator.tokens import Tokens
from userrealtime_operator.activator.wakes import Wakes
from userrealtime_operator.kube.types import NamespacedName
from userrealtime_relay.notify.listen import listen
from userrealtime_relay.server import Relay

SERVICE = {"Host": f"{child_name(USER)}.users.svc.cluster.local:8080"}


def resource(user_id: str = USER, *, namespace: str = "users", name: str = "alice", url: str = "") -> dict[str, Any]:
    """Return a resource whose objects exist."""
    return {
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"userId": user_id},
        "status": {"name": child_name(user_id), **({"url": url} if url else {})},
    }


def secret(*keys: str) -> dict[str, Any]:
    """Return a user's Secret with these keys: the current, the next and the previous one."""
    names = ("TOKEN_KEY", "TOKEN_KEY_NEXT", "TOKEN_KEY_PREVIOUS")
    return {"data": {name: base64.b64encode(key.encode()).decode() for name, key in zip(names, keys, strict=False)}}


class FakeCluster:
    """A cluster with one user: a wake starts a relay after some time. `wakes` counts the requests.

    Args:
        host: the address of loopback that its relays have, of IPv4 or IPv6.
        ghosts: the number of pods that accept a connection and end without a response, before the relay is ready.
        port: of a relay that runs elsewhere. It is the pod after a wake.
    """

    def __init__(
        self,
        database_url: str,
        *,
        comes: bool = True,
        ghosts: int = 0,
        host: str = "127.0.0.1",
        port: int | None = None,
        **relay: str,
    ) -> None:
        self._port = port
        self.wakes = 0
        self.host = host
        self.unpark: Callable[[NamespacedName], None] = lambda _: None
        self._url = database_url
        self._comes = comes
        self._ghosts = ghosts
        self._relay = relay
        self.parked = False
        """Whether the user is parked. A wake ends it."""
        self._pod: Pod | None = None
        self._change = asyncio.Event()
        self._stack = contextlib.AsyncExitStack()

    async def request_wake(self, route: Route) -> bool:
        assert route.user_id == USER
        self.wakes += 1
        self.parked = False
        if self._comes and self._pod is None:
            await asyncio.sleep(0.1)
            if self._port is not None:
                self._show(self._port)
            elif self._ghosts:
                await self._haunt()
            else:
                await self.start()
        return True

    async def start(self) -> Relay:
        """Start a relay without a wake request."""
        relay = await self._stack.enter_async_context(running(self._url, listen, HOST=self.host, **self._relay))
        self._show(relay.ws_port)
        return relay

    def has_pod(self, _: Route) -> bool:
        return self._pod is not None

    def pod(self, route: Route) -> Pod | None:
        assert route.user_id == USER
        return self._pod

    def register_address(self, route: Route, ip: str) -> None:
        raise AssertionError("nothing announces itself here")

    async def wait_for_change(self, route: Route) -> None:
        await self._change.wait()

    def is_parked(self, user: NamespacedName) -> bool:
        assert user.name == "alice"
        return self.parked

    async def stop(self) -> None:
        """Stop the relay, as after the user was put to sleep."""
        self._pod = None
        await self._stack.aclose()

    async def close(self) -> None:
        await self._stack.aclose()

    def ready(self, port: int) -> None:
        """Report that the relay at this port is ready."""
        self._show(port, ready=True)

    def _show(self, port: int, *, ready: bool = False) -> None:
        self._pod = Pod(ready, "", (self.host, port))
        self._change.set()
        self._change.clear()

    async def _haunt(self) -> None:
        async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if await reader.read(1):  # and not a connection that only checks the port
                self._ghosts -= 1
                if not self._ghosts:
                    await self.start()
            writer.close()

        server = await asyncio.start_server(vanish, self.host, 0)
        self._stack.callback(server.close)
        self._show(server.sockets[0].getsockname()[1])


@asynccontextmanager
async def gate(
    database_url: str,
    *,
    comes: bool = True,
    ghosts: int = 0,
    timeout_s: float = 20,
    host: str = "127.0.0.1",
    port: int | None = None,
    path: str = "",
    relay: dict[str, str] | None = None,
    parking: bool | str = False,
    keys: Callable[[], tuple[str, ...]] = lambda: (KEY,),
    **limits: Any,
) -> AsyncIterator[tuple[ActivatorProxy, FakeCluster, Metrics]]:
    """An activator whose one user sleeps.

    Args:
        port: of a relay that runs elsewhere, in place of a new one.
        path: of the user's URL.
        relay: settings of all relays.
        parking: the user is parked; or the URL of the database for the activator.
        keys: returns the keys of the user.
    """
    cluster = FakeCluster(database_url, comes=comes, ghosts=ghosts, host=host, port=port, **(relay or {}))
    common = RelaySettings.from_environment(relay or {})

    async def read(route: Route) -> dict[str, Any]:
        assert route.user_id == USER
        return secret(*keys())

    routes = RouteTable(common.protocols)
    routes.put(resource(url=f"http://127.0.0.1{path}"))
    metrics = Metrics()
    wakes = Wakes(cluster, metrics, timeout_s=timeout_s)
    bounds = Limits(**limits)
    tokens = Tokens(common, read)
    admission = Admission(
        routes, Origins(common.allowed_origins), tokens, bounds, cluster.is_parked, common.ping_interval
    )
    async with contextlib.AsyncExitStack() as stack:
        parked = None
        if parking:
            cluster.parked = True
            url = database_url if parking is True else parking
            heads = Heads(Secret(url), "activator", Parking.wake)
            parked = Parking(heads, tokens, cluster.is_parked, common, metrics)
            cluster.unpark = parked.unpark
            for work in (heads.run(), parked.run()):
                task = asyncio.create_task(work)
                stack.callback(task.cancel)
            async with asyncio.timeout(PATIENCE_S):
                while not heads.connected:
                    await asyncio.sleep(0.01)
        opened = ActivatorProxy(admission, wakes, metrics, bounds.idle_s, parked)
        await opened.listen(host, 0)
        try:
            yield opened, cluster, metrics
        finally:
            await opened.drain(0)
            await cluster.close()
