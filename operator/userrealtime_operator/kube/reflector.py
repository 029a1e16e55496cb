"""Keep a store up to date with the API server: list, then watch, as client-go's Reflector does.

A list is read in pages, and each page is put into the store as it arrives, to save memory. An interrupted watch resumes
at the last resourceVersion. Only if the API server no longer has that version, the objects are listed again.

`kubernetes.aio` has a watch and an informer, but the informer is synchronous, and the watch uses a separate client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import Final

from .client import Api, ApiError, Labels
from .store import Store
from .types import ResourceType

logger = logging.getLogger(__name__)

WATCH_TIMEOUT_S: Final = 240
"""Seconds after which the API server ends a watch."""
FIRST_DELAY_S: Final = 0.1
LAST_DELAY_S: Final = 5.0
"""The shortest and the longest delay before a retry."""


class Reflector:
    """Lists and watches the objects of one kind in one namespace that have the given labels."""

    def __init__(
        self,
        api: Api,
        resource_type: ResourceType,
        namespace: str,
        labels: Labels,
        store: Store,
        *,
        timeout_s: int = WATCH_TIMEOUT_S,
    ) -> None:
        self._api = api
        self._type = resource_type
        self._namespace = namespace
        self._labels = labels
        self._store = store
        self._timeout_s = timeout_s
        self._version: str | None = None
        self._failures = 0
        self._synced = asyncio.Event()
        self._known = asyncio.Event()
        self.refused = False
        """Whether the last request was answered by 403 or 404: no permission, or no such namespace or kind."""
        self._reported = ""

    @property
    def has_synced(self) -> bool:
        """Whether the store has received the first complete list."""
        return self._synced.is_set()

    async def wait_for_sync(self) -> None:
        """Wait until `has_synced`."""
        await self._synced.wait()

    async def wait_until_known(self) -> None:
        """Wait for the first complete list, or until the API server refuses to list.

        A namespace that is deleted, or where permissions are missing, must not delay the others.
        """
        await self._known.wait()

    async def run(self) -> None:
        """List and watch until cancelled. Errors of the API server are logged, and retried with an increasing delay."""
        while True:
            delay = FIRST_DELAY_S
            try:
                if self._version is None:
                    self._version = await self._list()
                    self._synced.set()
                    self._known.set()
                self.refused = False
                await self._watch(self._version)
                self._failures, self._reported = 0, ""
            except ApiError as error:
                if error.status not in (0, 429):  # for example 410: the version is too old
                    self._version = None
                delay = max(error.after_s, min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures, 16)))
                self.refused = error.status in (403, 404)
                if self.refused:
                    self._known.set()
                self._failures += 1
                # An error that repeats is logged once.
                level = logging.INFO if error.status == 410 else logging.WARNING
                level = logging.DEBUG if self._reported == str(error) else level
                self._reported = str(error)
                logger.log(
                    level,
                    "watch of %s in %s failed, retrying in %.1f s: %s",
                    *(self._type.plural, self._namespace, delay, error),
                )
            await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311  (jitter)

    async def _list(self) -> str:
        """Put all objects into the store; return the version of the list."""
        names: set[str] = set()
        version = token = ""
        while not version or token:
            page = await self._api.page(*self._type, self._namespace, self._labels, token)
            if not version:
                self._store.begin_list(int(page["metadata"]["resourceVersion"]))
            version, token = page["metadata"]["resourceVersion"], page["metadata"].get("continue", "")
            for item in page["items"] or ():  # null in an empty list
                names.add(item["metadata"]["name"])
                self._store.put(item)
        self._store.retain(self._namespace, names, int(version))
        return version

    async def _watch(self, version: str) -> None:
        """Apply changes until the API server ends the watch, as it does after some minutes."""
        watch = self._api.watch(*self._type, self._namespace, self._labels, version, self._timeout_s)
        async with contextlib.aclosing(watch) as events:
            async for event, item in events:
                version = item["metadata"]["resourceVersion"]
                if event == "DELETED":
                    self._store.remove(item)
                elif event != "BOOKMARK":
                    self._store.put(item)
                self._store.advance(int(version))
                self._version = version
                self._failures = 0
