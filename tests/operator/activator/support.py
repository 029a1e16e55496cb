"""An activator in the test's own loop, before a real relay that starts when somebody is woken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.relay.support import USER, config, running
from userrealtime_operator.activator.directory import Directory, Target
from userrealtime_operator.activator.gate import Gate, Limits
from userrealtime_operator.activator.wakes import Address, Wakes
from userrealtime_operator.naming import child_name
from userrealtime_relay.auth import TokenVerifier

SERVICE = {"Host": f"{child_name(USER)}.users.svc.cluster.local:8080"}


def resource(user_id: str = USER, *, namespace: str = "users", name: str = "alice", url: str = "") -> dict[str, Any]:
    return {
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"userId": user_id},
        "status": {"url": url} if url else {},
    }


class House:
    """The cluster, with one user: a wake starts a relay, a while later. `wakes` counts what was asked for."""

    def __init__(self, database_url: str, *, comes: bool = True) -> None:
        self.wakes = 0
        self._url = database_url
        self._comes = comes
        self._address: asyncio.Future[Address] = asyncio.get_running_loop().create_future()
        self._stack = contextlib.AsyncExitStack()

    async def request_wake(self, target: Target) -> None:
        assert target.user_id == USER
        self.wakes += 1
        if self._comes and not self._address.done():
            await asyncio.sleep(0.1)
            relay = await self._stack.enter_async_context(running(self._url))
            self._address.set_result(("127.0.0.1", relay.ws_port))

    async def address(self, target: Target) -> Address:
        assert target.user_id == USER
        return await asyncio.shield(self._address)

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def gate(
    database_url: str, *, comes: bool = True, patience_s: float = 20, **limits: Any
) -> AsyncIterator[tuple[Gate, House]]:
    """An activator whose one user sleeps."""
    house = House(database_url, comes=comes)
    verifier = TokenVerifier(config(database_url))

    async def verifier_of(_: Target) -> TokenVerifier:
        return verifier

    directory = Directory()
    directory.put(resource(url="http://127.0.0.1"))
    opened = Gate(directory, Wakes(house, patience_s=patience_s), verifier_of, Limits(**limits))
    await opened.listen("127.0.0.1", 0)
    try:
        yield opened, house
    finally:
        await opened.drain(0)
        await house.close()
