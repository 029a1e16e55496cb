"""Pods and presence as the page shows them: one current status, which is sent to every open page.

A slow page skips intermediate versions and always receives the latest one, so no queue is needed.
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
    """The current status of both users. `version` increases with each change."""

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
        """Return the status for a page of this user.

        `now` is the time of the database, which events also have; `people` is null while the database does not answer.
        """
        now = datetime.fromtimestamp(datetime.now(UTC).timestamp() + self._ahead_s, UTC)
        about = describe(self._resources[user], self._pods[user])
        return {"now": now.isoformat(), "people": self._people, **about}

    async def newer(self, version: int, timeout: float) -> bool:
        """Wait at most `timeout` seconds for a newer version than this one, and return whether there is one."""
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
        """Follow the resource and, as soon as it names them, the pods."""
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
            # The name is derived from the user id, so it stays the same if the resource is created again.
            tasks.create_task(self._cluster.follow_pods(await name, pods_changed))

    async def _changed(self) -> None:
        async with self._news:
            self.version += 1
            self._news.notify_all()
