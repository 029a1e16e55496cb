"""The pods of all users, as the watches tell of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Set
from typing import Any, Final, NamedTuple

from userrealtime_operator.kube.store import Store
from userrealtime_operator.model.labels import WS_PORT

INSTANCE: Final = "app.kubernetes.io/instance"
ANNOUNCED_S: Final = 10.0
"""Seconds within which the cluster tells the address of a pod that has told it itself; it takes one or two."""
Key = tuple[str, str]
"""A namespace, and the name of a user's objects."""


class Pod(NamedTuple):
    """A pod that has an address and is not on its way out."""

    ready: bool
    created: str
    """RFC 3339, so that they can be compared."""
    address: tuple[str, int]


class Pods(Store):
    """All pods that could be connected to."""

    def __init__(self) -> None:
        self._pods: dict[Key, dict[str, Pod]] = {}
        self._announced: dict[Key, tuple[Pod, float]] = {}
        """Whose address the cluster has not told yet, with when it must have, by the monotonic clock."""
        self._ready_at: dict[Key, float] = {}
        self._waiting: dict[Key, asyncio.Future[None]] = {}

    def best(self, key: Key) -> Pod | None:
        """A ready one of a user's, or else the newest."""
        best = max(self._pods.get(key, {}).values(), default=None)
        if best is None and key in self._announced:
            announced, until = self._announced[key]
            return announced if time.monotonic() < until else None
        return best

    def announce(self, key: Key, ip: str) -> None:
        """A user's pod says itself where it is. That counts until the cluster tells of one, or is overdue."""
        now = time.monotonic()
        self._announced = {each: known for each, known in self._announced.items() if known[1] > now}
        self._announced[key] = Pod(False, "", (ip, WS_PORT)), now + ANNOUNCED_S
        self._tell(key)

    def last_ready(self, key: Key) -> float:
        """When a user was last seen to have a ready pod, by the monotonic clock; 0 for never."""
        best = self.best(key)
        return time.monotonic() if best is not None and best.ready else self._ready_at.get(key, 0.0)

    async def changed(self, key: Key) -> None:
        """Until a user's pods are not what they are now."""
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiting)

    def put(self, body: Mapping[str, Any]) -> None:
        """A pod is there, new or changed."""
        metadata, status = body["metadata"], body.get("status", {})
        key = _key(metadata)
        ip = status.get("podIP")
        going = "deletionTimestamp" in metadata or status.get("phase") in ("Succeeded", "Failed")
        if not ip or going:
            self._set(key, metadata["name"], None)
            return
        conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}
        pod = Pod(conditions.get("Ready") == "True", metadata["creationTimestamp"], (ip, WS_PORT))
        self._set(key, metadata["name"], pod)

    def remove(self, body: Mapping[str, Any]) -> None:
        """A pod is gone."""
        self._set(_key(body["metadata"]), body["metadata"]["name"], None)

    def retain(self, namespace: str, names: Set[str], version: int) -> None:
        """Remove the pods of a namespace with other names."""
        before = [(key, name) for key, pods in self._pods.items() if key[0] == namespace for name in pods]
        for key, name in before:
            if name not in names:
                self._set(key, name, None)

    def _set(self, key: Key, name: str, pod: Pod | None) -> None:
        pods = self._pods.get(key, {})
        before = pods.get(name)
        if before == pod:
            return
        if before is not None and before.ready:
            self._ready_at[key] = time.monotonic()
        if pod is not None:
            self._pods.setdefault(key, {})[name] = pod
            self._announced.pop(key, None)
        elif len(pods) == 1:
            del self._pods[key]
        else:
            del pods[name]
        self._tell(key)

    def _tell(self, key: Key) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            waiting.set_result(None)


def _key(metadata: Mapping[str, Any]) -> Key:
    return metadata["namespace"], metadata.get("labels", {}).get(INSTANCE, "")
