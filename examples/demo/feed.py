"""What the page shows of pods and presence, live: one state, of which every open page gets the latest.

A page that is slow misses states in between, never the last one: so there is no queue.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from .cluster import Cluster
from .database import Database, DatabaseError
from .session import USERS
from .view import Object, describe

PRESENCE_INTERVAL_S = 1.0


class Feed:
    """Knows the state of both users. `version` grows whenever it changes."""

    def __init__(self, cluster: Cluster, database: Database) -> None:
        self._cluster = cluster
        self._database = database
        self._resources: dict[str, Object | None] = dict.fromkeys(USERS)
        self._pods: dict[str, list[Object]] = {user: [] for user in USERS}
        self._people: dict[str, Object] | None = None
        self._ahead_s = 0.0
        self.version = 0
        self._news = asyncio.Condition()

    def state(self, user: str) -> Object:
        """What a page of this user shows.

        `now` is the database's clock, by which events are dated; `people` is null while the database does not answer.
        """
        now = datetime.fromtimestamp(datetime.now(UTC).timestamp() + self._ahead_s, UTC)
        about = describe(self._resources[user], self._pods[user])
        return {"now": now.isoformat(), "people": self._people, **about}

    async def newer(self, version: int, timeout: float) -> bool:
        """Wait until there is a newer state than this version, at most `timeout` seconds; whether there is."""
        try:
            async with asyncio.timeout(timeout), self._news:
                await self._news.wait_for(lambda: self.version > version)
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Follow the cluster and the database. Never ends."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_presence())
            for user in USERS:
                tasks.create_task(self._follow_user(user))

    async def _follow_presence(self) -> None:
        while True:
            try:
                presence = await self._database.presence()
            except DatabaseError:
                people = None
            else:
                people = presence.users
                self._ahead_s = (presence.now - datetime.now(UTC)).total_seconds()
            if people != self._people:
                self._people = people
                await self._changed()
            await asyncio.sleep(PRESENCE_INTERVAL_S)

    async def _follow_user(self, user: str) -> None:
        """The resource, and as soon as it has a name for them, the pods."""
        name: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def resource_changed(resource: Object | None) -> None:
            self._resources[user] = resource
            found = (resource or {}).get("status", {}).get("name")
            if found and not name.done():
                name.set_result(found)
            await self._changed()

        async def pods_changed(pods: list[Object]) -> None:
            self._pods[user] = pods
            await self._changed()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._cluster.follow_resource(user, resource_changed))
            # The name is made of the user's id: it stays, whatever becomes of the resource.
            tasks.create_task(self._cluster.follow_pods(await name, pods_changed))

    async def _changed(self) -> None:
        async with self._news:
            self.version += 1
            self._news.notify_all()
