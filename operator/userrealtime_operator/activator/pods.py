"""The pods of all users, from the watches and from registrations."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Set
from typing import Any, Final, NamedTuple

from userrealtime_operator.kube.store import Store
from userrealtime_operator.model.labels import WS_PORT

from .routes import ChildKey

INSTANCE: Final = "app.kubernetes.io/instance"
REGISTERED_S: Final = 10.0
"""Seconds for which a registered address is used. The API server reports the pod after one or two."""


class Pod(NamedTuple):
    """A pod that has an address and is not terminating."""

    ready: bool
    created: str
    """RFC 3339, which sorts by time."""
    address: tuple[str, int]


class Pods(Store):
    """The pods that accept connections, or will."""

    def __init__(self) -> None:
        self._pods: dict[ChildKey, dict[str, Pod | None]] = {}
        """The pods that are not terminating, by name; None for a pod without an address."""
        self._registered: dict[ChildKey, tuple[Pod, float]] = {}
        """The registered pods that the API server has not reported yet, with the time at which they expire."""
        self._ready_at: dict[ChildKey, float] = {}
        self._waiting: dict[ChildKey, asyncio.Future[None]] = {}

    def best(self, key: ChildKey) -> Pod | None:
        """Return a user's ready pod, otherwise the newest one, otherwise the registered one."""
        best = max((pod for pod in self._pods.get(key, {}).values() if pod is not None), default=None)
        if best is None and key in self._registered:
            registered, until = self._registered[key]
            return registered if time.monotonic() < until else None
        return best

    def exists(self, key: ChildKey) -> bool:
        """Return whether a user has a pod, even one without an address. Terminating pods do not count."""
        return key in self._pods or self.best(key) is not None

    def add_registered(self, key: ChildKey, ip: str) -> None:
        """Use the address that a user's pod has registered, until the API server reports a pod or it expires."""
        now = time.monotonic()
        self._registered = {each: known for each, known in self._registered.items() if known[1] > now}
        self._registered[key] = Pod(False, "", (ip, WS_PORT)), now + REGISTERED_S
        self._notify(key)

    def last_ready(self, key: ChildKey) -> float:
        """Return when the user last had a ready pod, by the monotonic clock; 0 for never."""
        best = self.best(key)
        return time.monotonic() if best is not None and best.ready else self._ready_at.get(key, 0.0)

    async def wait_for_change(self, key: ChildKey) -> None:
        """Wait until the user's pods change."""
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = asyncio.get_running_loop().create_future()
        await asyncio.shield(waiting)

    def put(self, body: Mapping[str, Any]) -> None:
        """Add or update a pod."""
        metadata, status = body["metadata"], body.get("status", {})
        key = _key(metadata)
        ip = status.get("podIP")
        terminating = "deletionTimestamp" in metadata or status.get("phase") in ("Succeeded", "Failed")
        if terminating:
            self._remove(key, metadata["name"])
            return
        conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", ())}
        ready = conditions.get("Ready") == "True"
        self._set(key, metadata["name"], Pod(ready, metadata["creationTimestamp"], (ip, WS_PORT)) if ip else None)

    def remove(self, body: Mapping[str, Any]) -> None:
        """Remove a pod."""
        self._remove(_key(body["metadata"]), body["metadata"]["name"])

    def retain(self, namespace: str, names: Set[str], version: int) -> None:
        """Remove the pods of a namespace with other names."""
        before = [(key, name) for key, pods in self._pods.items() if key[0] == namespace for name in pods]
        for key, name in before:
            if name not in names:
                self._remove(key, name)

    def _remove(self, key: ChildKey, name: str) -> None:
        pods = self._pods.get(key, {})
        if name in pods:
            before = pods.pop(name)
            if not pods:
                del self._pods[key]
            self._changed(key, before)

    def _set(self, key: ChildKey, name: str, pod: Pod | None) -> None:
        pods = self._pods.setdefault(key, {})
        if name in pods and pods[name] == pod:
            return
        before = pods.get(name)
        pods[name] = pod
        if pod is not None:
            self._registered.pop(key, None)
        self._changed(key, before)

    def _changed(self, key: ChildKey, before: Pod | None) -> None:
        if before is not None and before.ready:
            self._ready_at[key] = time.monotonic()
        self._notify(key)

    def _notify(self, key: ChildKey) -> None:
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            waiting.set_result(None)


def _key(metadata: Mapping[str, Any]) -> ChildKey:
    return metadata["namespace"], metadata.get("labels", {}).get(INSTANCE, "")
