"""Keeping a cache of the children as the API server has them: listed in pages, then watched.

A watch that breaks goes on from where it was, and lists anew only if the API server no longer knows that place.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable

from userrealtime_operator.model.labels import owned_labels
from userrealtime_operator.reconcile.resources import Children

from .client import CHILD_KINDS, Api, ApiError
from .types import Object, ObjectKey

logger = logging.getLogger(__name__)

WATCH_S = 240
PAUSE_S = 0.1
LAST_PAUSE_S = 5.0


class Reflector:
    """One kind of children in one namespace. `changed` is told the names of those of which there is news.

    `filled` is set once the cache has all of them.
    """

    def __init__(
        self, api: Api, kind: str, namespace: str, children: Children, changed: Callable[[ObjectKey], None]
    ) -> None:
        self._api = api
        self._kind = kind
        self._namespace = namespace
        self._children = children
        self._changed = changed
        self._labels = owned_labels(kind)
        self._version: str | None = None
        self._failures = 0
        self.filled = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            pause = PAUSE_S
            try:
                if self._version is None:
                    self._version = await self._list()
                    self.filled.set()
                await self._watch(self._version)
                self._failures = 0
            except ApiError as error:
                if error.status not in (0, 429):  # such as 410, that the place is not known any more
                    self._version = None
                level = logging.INFO if error.status == 410 else logging.WARNING
                logger.log(level, "watch of %s in %s failed, retrying: %s", self._kind, self._namespace, error)
                pause = max(error.after_s, min(LAST_PAUSE_S, PAUSE_S * 2.0 ** min(self._failures, 16)))
                self._failures += 1
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311  (jitter)

    async def _list(self) -> str:
        names: set[str] = set()
        version = token = ""
        while not version or token:
            page = await self._api.page(*CHILD_KINDS[self._kind], self._namespace, self._labels, token)
            version, token = page["metadata"]["resourceVersion"], page["metadata"].get("continue", "")
            if not names:
                self._children.rewind(self._kind, self._namespace, int(version))
            for item in page["items"] or ():
                names.add(item["metadata"]["name"])
                self._put(item)
        for name in self._children.retain(self._kind, self._namespace, names, int(version)):
            self._changed(ObjectKey(self._kind, self._namespace, name))
        return version

    async def _watch(self, version: str) -> None:
        """Until the API server ends it, as it does after some minutes."""
        watch = self._api.watch(*CHILD_KINDS[self._kind], self._namespace, self._labels, version, WATCH_S)
        async with contextlib.aclosing(watch) as events:
            async for event, item in events:
                version = item["metadata"]["resourceVersion"]
                if event == "DELETED":
                    key = ObjectKey(self._kind, self._namespace, item["metadata"]["name"])
                    if self._children.remove(key, int(version)):
                        self._changed(key)
                elif event != "BOOKMARK":
                    self._put(item)
                self._children.tell(self._kind, self._namespace, int(version))
                self._version = version
                self._failures = 0

    def _put(self, item: Object) -> None:
        key = ObjectKey(self._kind, self._namespace, item["metadata"]["name"])
        # What is in a list does not say what it is.
        whole = {"apiVersion": CHILD_KINDS[self._kind][0], "kind": self._kind, **item}
        if self._children.put(key, whole):
            self._changed(key)
