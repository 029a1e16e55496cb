"""One wake for all waiting connections, and a limit for each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from testing.operator.names import child_name
from testing.operator.pods import FakePods
from testing.patience import PATIENCE_S
from testing.relay.harness import until
from userrealtime_operator.activator.metrics import Metrics
from userrealtime_operator.activator.pods import Pod
from userrealtime_operator.activator.routes import Route
from userrealtime_operator.activator.wakes import WakeFailed, Wakes
from userrealtime_operator.kube.types import NamespacedName

ALICE = Route(NamespacedName("users", "alice"), "alice", "", child_name("alice"))
BOB = Route(NamespacedName("users", "bob"), "bob", "", child_name("bob"))


async def test_all_who_wait_share_a_wake_and_who_leaves_ends_it_for_nobody() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    pods = FakePods()
    metrics = Metrics()
    wakes = Wakes(pods, metrics)
    async with server, asyncio.timeout(PATIENCE_S):
        waiting = [asyncio.create_task(wakes.wake_and_wait(ALICE)) for _ in range(100)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        pods.come(address)
        assert await asyncio.gather(*waiting[1:]) == [address] * 99
        assert pods.asked == [ALICE]
        assert await wakes.wake_and_wait(ALICE) == address
        assert pods.asked == [ALICE, ALICE]
        assert metrics.value("wake_seconds_count") == 2
        pods.come(address, ready=True)
        assert await wakes.wake_and_wait(ALICE) == address
        assert pods.asked == [ALICE, ALICE]


async def test_a_pod_that_refuses_is_tried_until_the_time_is_over() -> None:
    pods = FakePods()
    pods.come(("127.0.0.1", 1), ready=True)
    metrics = Metrics()
    with pytest.raises(WakeFailed, match=r"within 0\.2 s"):
        await Wakes(pods, metrics, timeout_s=0.2).wake_and_wait(ALICE)
    assert metrics.value("wake_failures_total", reason="no_pod") == 1


async def test_one_whose_ready_pod_goes_is_asked_for_then() -> None:
    pods = FakePods()
    pods.come(("127.0.0.1", 1), ready=True)
    task = asyncio.create_task(Wakes(pods, Metrics()).wake_and_wait(ALICE))
    await asyncio.sleep(0.1)
    assert pods.asked == []
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    async with server, asyncio.timeout(PATIENCE_S):
        pods.come(address)
        assert await task == address
    assert pods.asked == [ALICE]


async def test_a_wake_that_cannot_be_asked_for_fails_for_all() -> None:
    wakes = Wakes(FakePods(ConnectionRefusedError()), Metrics())
    results = await asyncio.gather(*(wakes.wake_and_wait(ALICE) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, WakeFailed) for result in results)


async def test_only_so_many_wait() -> None:
    wakes = Wakes(FakePods(), Metrics(), max_waiting=1, max_users=1)
    first = asyncio.create_task(wakes.wake_and_wait(ALICE))
    await asyncio.sleep(0)
    with pytest.raises(WakeFailed, match="too many clients wait for this user"):
        await wakes.wake_and_wait(ALICE)
    with pytest.raises(WakeFailed, match="too many users"):
        await wakes.wake_and_wait(BOB)
    await asyncio.sleep(0)
    await wakes.close()
    with pytest.raises(WakeFailed, match="shutting down"):
        await first
    with pytest.raises(WakeFailed, match="shutting down"):
        await wakes.wake_and_wait(ALICE)


async def test_one_who_waits_for_a_pod_without_a_wake() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    pods = FakePods()
    wakes = Wakes(pods, Metrics())
    async with server, asyncio.timeout(PATIENCE_S):
        waiting = asyncio.create_task(wakes.wait_for_pod(ALICE))
        await asyncio.sleep(0.05)
        pods.come(address)
        await asyncio.sleep(0.05)
        assert not waiting.done(), "the API server has not reported that it is ready"
        assert pods.asked == []
        waking = asyncio.create_task(wakes.wake_and_wait(ALICE))
        await asyncio.sleep(0)
        joined = asyncio.create_task(wakes.wait_for_pod(ALICE))
        assert await waking == await joined == address
        assert await wakes.wait_for_pod(ALICE) == address, "it has accepted a connection"
        pods.come(address, ready=True)
        assert await waiting == address
        assert await wakes.wait_for_pod(ALICE) == address
    assert pods.asked == [ALICE]
    pods.come(("127.0.0.1", 1))
    failing = Wakes(pods, Metrics(), timeout_s=0.2)
    waking = asyncio.create_task(failing.wake_and_wait(ALICE))
    await asyncio.sleep(0)
    with pytest.raises(WakeFailed):
        await failing.wait_for_pod(ALICE)
    with pytest.raises(WakeFailed):
        await waking


async def test_a_user_waits_for_the_turn_of_its_pod_unless_it_has_one() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    metrics = Metrics()
    pods = {name: FakePods() for name in ("a", "b", "c", "d")}
    routes = {name: Route(NamespacedName("users", name), name, "", child_name(name)) for name in pods}
    wakes = Wakes(EachTheirOwn(pods), metrics)
    async with server, asyncio.timeout(PATIENCE_S):
        waiting = {name: asyncio.create_task(wakes.wake_and_wait(route)) for name, route in routes.items()}
        await until(lambda: bool(pods["b"].asked))
        assert metrics.value("waiting_starts") == 2, "the others wait for their turn"
        pods["d"].come(address, ready=True)
        assert await waiting["d"] == address, "another activator has started its pod"
        pods["a"].come(address)
        assert not pods["c"].asked
        assert await waiting["a"] == address
        await until(lambda: bool(pods["c"].asked))
        await wakes.close()
        await asyncio.gather(*waiting.values(), return_exceptions=True)
    assert not pods["d"].asked
    assert (metrics.value("starts"), metrics.value("waiting_starts")) == (0, 0)


class EachTheirOwn:
    """Several users, by their ids."""

    def __init__(self, users: Mapping[str, FakePods]) -> None:
        self._users = users

    async def request_wake(self, route: Route) -> bool:
        return await self._users[route.user_id].request_wake(route)

    def has_pod(self, route: Route) -> bool:
        return self._users[route.user_id].has_pod(route)

    def pod(self, route: Route) -> Pod | None:
        return self._users[route.user_id].pod(route)

    def register_address(self, route: Route, ip: str) -> None:
        self._users[route.user_id].register_address(route, ip)

    async def wait_for_change(self, route: Route) -> None:
        await self._users[route.user_id].wait_for_change(route)
