"""Pods of users, as the API server and as the activator's wakes report them."""

from __future__ import annotations

import asyncio
from typing import Any

from userrealtime_operator.activator.pods import Pod
from userrealtime_operator.activator.routes import Route
from userrealtime_operator.activator.wakes import Address


def pod(
    name: str = "a", ip: str = "10.0.0.1", *, ready: bool = False, created: int = 0, going: bool = False, **status: Any
) -> dict[str, Any]:
    """Return a pod of alice, as the API server has it."""
    metadata: dict[str, Any] = {
        "namespace": "users",
        "name": name,
        "labels": {"app.kubernetes.io/instance": "urt-alice"},
        "creationTimestamp": f"2026-01-01T00:00:{created:02}Z",
    }
    if going:
        metadata["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {"metadata": metadata, "status": {"conditions": conditions, **({"podIP": ip} if ip else {}), **status}}


class FakePods:
    """Users whose pods start when the test starts them."""

    def __init__(self, error: OSError | None = None, port: int = 0) -> None:
        self.port = port
        """The registered address of the pod."""
        self.asked: list[Route] = []
        self._pod: Pod | None = None
        self._change = asyncio.Event()
        self._error = error

    def come(self, address: Address, *, ready: bool = False) -> None:
        self._pod = Pod(ready, "", address)
        self._change.set()
        self._change.clear()

    async def request_wake(self, route: Route) -> bool:
        self.asked.append(route)
        if self._error is not None:
            raise self._error
        return True

    def has_pod(self, _: Route) -> bool:
        return self._pod is not None

    def pod(self, route: Route) -> Pod | None:
        return self._pod

    def register_address(self, route: Route, ip: str) -> None:
        self.come((ip, self.port))

    async def wait_for_change(self, route: Route) -> None:
        await self._change.wait()
