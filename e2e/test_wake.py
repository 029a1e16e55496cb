"""Sleeping users are woken by their clients through the ingress and the activator, without a lost event."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import urllib.error
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import asyncpg
import pytest
from websockets.exceptions import ConnectionClosed

from testing.client import ResumingClient, http_get, open_connection, receive
from testing.patience import PATIENCE_S, WITHIN
from testing.sleeping import SELECTOR, SOON, activator_pods, activator_total, asleep, slices, wait_asleep, wait_direct
from testing.system import OPERATOR_NAMESPACE, System
from testing.waiting import eventually

from .test_status import WRONG_IMAGE

WAKE_LIMIT_S = 45
"""Longer than the 30 s that the activator waits for a pod."""
OPERATOR = "app.kubernetes.io/name=userrealtime-operator"
MakeUser = Callable[..., str]


async def publish(database: asyncpg.Connection, user: str, count: int) -> None:
    for number in range(count):
        await database.execute(
            "select userrealtime.publish($1, 'asleep', jsonb_build_object('n', $2::int))", user, number
        )


async def by_websocket(url: str, token: str) -> AsyncGenerator[dict[str, Any], None]:
    """Return the messages on one connection that resumes after event 1."""
    connection = await open_connection(
        f"{url.replace('http', 'ws', 1)}/ws", token, last_event_id=1, open_timeout=WAKE_LIMIT_S
    )
    async with connection:
        while True:
            yield await receive(connection)


async def by_stream(url: str, token: str) -> AsyncGenerator[dict[str, Any], None]:
    headers = {"Authorization": f"Bearer {token}", "Last-Event-ID": "1"}
    answer = await asyncio.to_thread(http_get, f"{url}/sse", headers, WAKE_LIMIT_S)
    with answer:
        while True:
            line = await asyncio.to_thread(answer.readline)
            assert line, "the stream has ended"
            if line.startswith(b"data:"):
                yield json.loads(line[5:])


async def by_poll(url: str, token: str) -> AsyncGenerator[dict[str, Any], None]:
    """Receive by polls, of which the first one wakes the user."""
    cursor = "1"
    while True:
        headers = {"Authorization": f"Bearer {token}"}
        with await asyncio.to_thread(http_get, f"{url}/poll?last_event_id={cursor}", headers, WAKE_LIMIT_S) as answer:
            found = json.loads(await asyncio.to_thread(answer.read))
        for event in found["events"]:
            yield event
        cursor = str(found["cursor"])


TRANSPORTS = {"websocket": by_websocket, "sse": by_stream, "poll": by_poll}


@pytest.mark.parametrize("transport", list(TRANSPORTS))
async def test_what_came_while_asleep_arrives_on_the_connection_that_wakes(
    system: System, sleeper: str, database: asyncpg.Connection, transport: str
) -> None:
    await publish(database, sleeper, 3)
    carried = await asyncio.to_thread(activator_total, system, 'outcomes_total{outcome="forwarded"}')
    url = (await asyncio.to_thread(system.get, "urt", sleeper))["status"]["url"]
    token = await asyncio.to_thread(system.token, sleeper)
    ids: list[int] = []
    async with asyncio.timeout(PATIENCE_S), contextlib.aclosing(TRANSPORTS[transport](url, token)) as messages:
        async for message in messages:
            if message["type"] != "event":
                assert message["type"] == "connected"
                continue
            ids.append(message["id"])
            if ids == [2, 3]:
                # From here on there is a pod: new events arrive on the same connection.
                await publish(database, sleeper, 1)
            if message["id"] == 4:
                break
    assert ids == [2, 3, 4]

    await asyncio.to_thread(wait_direct, system, sleeper)
    # When the ingress knows the pod's address, the activator receives no new connection.
    async with asyncio.timeout(PATIENCE_S):
        while True:
            before = await asyncio.to_thread(activator_total, system, 'outcomes_total{outcome="forwarded"}')
            assert before > carried
            async with await open_connection(f"{url.replace('http', 'ws', 1)}/ws", token) as connection:
                assert (await receive(connection))["type"] == "connected"
            if await asyncio.to_thread(activator_total, system, 'outcomes_total{outcome="forwarded"}') == before:
                break
            await asyncio.sleep(1)


async def first_type(url: str, token: str) -> str:
    """Connect, and return the type of the first message."""
    async with await open_connection(url, token, open_timeout=WAKE_LIMIT_S) as connection:
        kind: str = (await receive(connection, WAKE_LIMIT_S))["type"]
        return kind


async def test_a_hundred_clients_at_once_cost_one_wake(system: System, sleeper: str) -> None:
    url = await asyncio.to_thread(system.websocket_url, sleeper)
    token = await asyncio.to_thread(system.token, sleeper)
    requested = await asyncio.to_thread(activator_total, system, "wakes_requested_total")
    assert len(await asyncio.to_thread(activator_pods, system)) == 2

    with watching(system, sleeper, "{.status.wakeRequestedAt}") as moments:
        assert await asyncio.gather(*(first_type(url, token) for _ in range(100))) == ["connected"] * 100
        await asyncio.to_thread(wait_direct, system, sleeper)
    assert len({moment for moment in moments() if moment}) == 1
    assert await asyncio.to_thread(activator_total, system, "wakes_requested_total") == requested + 1


def announcements(system: System) -> dict[str, float]:
    """Return the numbers of registrations at all activators, by outcome."""
    outcomes = ("accepted", "not_waiting", "rejected")
    return {each: activator_total(system, f'announcements_total{{outcome="{each}"}}') for each in outcomes}


async def test_a_woken_pod_announces_itself_to_all_activators(system: System, sleeper: str) -> None:
    before = await asyncio.to_thread(announcements, system)
    url = await asyncio.to_thread(system.websocket_url, sleeper)
    token = await asyncio.to_thread(system.token, sleeper)
    assert await first_type(url, token) == "connected"

    def heard() -> bool:
        now = announcements(system)
        assert now["rejected"] == before["rejected"]
        return sum(now.values()) >= sum(before.values()) + len(activator_pods(system))

    await asyncio.to_thread(eventually, heard, "all activators hear the pod")


@contextlib.contextmanager
def watching(system: System, name: str, path: str) -> Iterator[Callable[[], list[str]]]:
    """Record the values of a field in all versions of a resource; read them after the block."""
    command = [str(system.cluster.kubectl_path()), "-n", "users", "get", "urt", name, "--watch"]
    process = subprocess.Popen(
        [*command, "-o", f"jsonpath={path}{{'\\n'}}"],
        env=system.cluster.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    values: list[str] = []
    try:
        assert process.stdout is not None
        values.append(process.stdout.readline().strip())  # it watches
        yield lambda: values
    finally:
        process.terminate()
        values += process.communicate(timeout=PATIENCE_S)[0].split("\n")


async def test_a_bad_token_wakes_nobody(system: System, sleeper: str) -> None:
    url = (await asyncio.to_thread(system.get, "urt", sleeper))["status"]["url"]
    expired = await asyncio.to_thread(system.token, sleeper, exp=1)
    other = await asyncio.to_thread(system.token, sleeper, sub="somebody-else")
    requested = await asyncio.to_thread(activator_total, system, "wakes_requested_total")
    for token in (expired, other, "none"):
        async with await open_connection(f"{url.replace('http', 'ws', 1)}/ws", token) as connection:
            with pytest.raises(ConnectionClosed) as closed:
                await receive(connection)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "Unauthorized")
        for path in ("sse", "poll"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(http_get, f"{url}/{path}", {"Authorization": f"Bearer {token}"})
            refused.value.close()
            assert refused.value.code == 401
    assert await asyncio.to_thread(asleep, system, sleeper)
    assert "wakeRequestedAt" not in (await asyncio.to_thread(system.get, "urt", sleeper))["status"]
    assert await asyncio.to_thread(activator_total, system, "wakes_requested_total") == requested


async def test_pods_that_cannot_start_do_not_hold_up_other_users(system: System, users: MakeUser) -> None:
    broken = [await asyncio.to_thread(users, "broken", idle=SOON) for _ in range(3)]
    healthy = [await asyncio.to_thread(users, "healthy", idle=SOON) for _ in range(4)]
    await asyncio.to_thread(wait_asleep, system, *broken, *healthy)
    for name in broken:
        await asyncio.to_thread(system.apply_user, name, idle=SOON, relay=WRONG_IMAGE)

    async def visit(name: str) -> str:
        url = await asyncio.to_thread(system.websocket_url, name)
        return await first_type(url, await asyncio.to_thread(system.token, name))

    requested = await asyncio.to_thread(activator_total, system, "wakes_requested_total")

    def started() -> bool:
        return activator_total(system, "wakes_requested_total") >= requested + 2

    waiting = [asyncio.create_task(visit(name)) for name in broken]
    try:
        # Each activator starts at least two pods at the same time.
        await asyncio.to_thread(eventually, started, "the broken pods start")
        assert await asyncio.gather(*map(visit, healthy)) == ["connected"] * len(healthy)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def ended() -> bool:
        return activator_total(system, "starts") == 0 == activator_total(system, "waiting_starts")

    await asyncio.to_thread(eventually, ended, "no start is counted any more")


async def test_a_wake_that_fails_is_said_and_the_next_one_works(system: System, sleeper: str) -> None:
    url = (await asyncio.to_thread(system.get, "urt", sleeper))["status"]["url"]
    token = await asyncio.to_thread(system.token, sleeper)
    broken: dict[str, Any] = {"idle": SOON, "relay": WRONG_IMAGE}
    await asyncio.to_thread(system.apply_user, sleeper, **broken)

    async def by_http() -> None:
        with pytest.raises(urllib.error.HTTPError) as refused:
            await asyncio.to_thread(http_get, f"{url}/sse", {"Authorization": f"Bearer {token}"}, WAKE_LIMIT_S)
        with refused.value as answer:
            assert answer.code == 503
            assert int(answer.headers["Retry-After"]) > 0

    async def as_websocket() -> None:
        socket = f"{url.replace('http', 'ws', 1)}/ws"
        async with await open_connection(socket, token, open_timeout=WAKE_LIMIT_S) as connection:
            with pytest.raises(ConnectionClosed) as closed:
                await receive(connection)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1013

    await asyncio.gather(by_http(), as_websocket())
    await asyncio.to_thread(system.apply_user, sleeper, idle=SOON)
    async with await open_connection(
        f"{url.replace('http', 'ws', 1)}/ws", token, open_timeout=WAKE_LIMIT_S
    ) as connection:
        assert (await receive(connection, WAKE_LIMIT_S))["type"] == "connected"


async def test_an_activator_that_is_replaced_sends_its_clients_on(
    system: System, sleeper: str, database: asyncpg.Connection
) -> None:
    url = await asyncio.to_thread(system.websocket_url, sleeper)
    token = await asyncio.to_thread(system.token, sleeper)
    async with await open_connection(url, token, open_timeout=WAKE_LIMIT_S) as connection:
        assert (await receive(connection, WAKE_LIMIT_S))["type"] == "connected"
        await asyncio.to_thread(
            system.cluster.kubectl,
            *("-n", OPERATOR_NAMESPACE, "rollout", "restart", "deployment/userrealtime-activator"),
        )
        with pytest.raises(ConnectionClosed) as closed:
            await receive(connection, 60)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    await asyncio.to_thread(wait_direct, system, sleeper)
    async with await open_connection(url, token) as connection:
        assert (await receive(connection))["type"] == "connected"


async def test_the_slice_has_the_activators_that_are_there(system: System, sleeper: str) -> None:
    """During their replacement, it has no other address: no client is routed to an address without a pod."""
    await asyncio.to_thread(
        system.cluster.kubectl, *("-n", OPERATOR_NAMESPACE, "rollout", "restart", "deployment/userrealtime-activator")
    )
    url = (await asyncio.to_thread(system.get, "urt", sleeper))["status"]["url"]
    rolled_out = asyncio.create_task(
        asyncio.to_thread(
            system.cluster.kubectl,
            *("-n", OPERATOR_NAMESPACE, "rollout", "status", "deployment/userrealtime-activator", WITHIN),
        )
    )
    while not rolled_out.done():
        with pytest.raises(urllib.error.HTTPError) as refused:
            await asyncio.to_thread(http_get, f"{url}/poll", {})
        refused.value.close()
        assert refused.value.code == 401
        await asyncio.sleep(0.2)
    await rolled_out

    def current() -> bool:
        pods = json.loads(
            system.cluster.kubectl("-n", OPERATOR_NAMESPACE, "get", "pods", "-l", SELECTOR, "-o", "json")
        )["items"]
        there = {pod["status"]["podIP"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}
        return {each["addresses"][0] for each in slices(system, sleeper)[0]["endpoints"]} == there

    await asyncio.to_thread(eventually, current, "the slice has the new activators alone")


# The activators last: without them, the operator would wake the sleepers of further tests.
@pytest.mark.parametrize("victim", ["pod", "operator", "activator"])
async def test_a_kill_in_the_middle_loses_nothing(
    system: System, sleeper: str, database: asyncpg.Connection, victim: str
) -> None:
    url = await asyncio.to_thread(system.websocket_url, sleeper)
    token = await asyncio.to_thread(system.token, sleeper)
    child = (await asyncio.to_thread(system.get, "urt", sleeper))["status"]["name"]
    namespace, selector = {
        "activator": (OPERATOR_NAMESPACE, SELECTOR),
        "operator": (OPERATOR_NAMESPACE, OPERATOR),
        "pod": ("users", f"app.kubernetes.io/instance={child}"),
    }[victim]
    await publish(database, sleeper, 20)

    async def kill() -> None:
        kill_now = ("delete", "pod", "-l", selector, "--force", "--grace-period=0", "--wait=false")
        await asyncio.to_thread(system.cluster.kubectl, "-n", namespace, *kill_now)

    async def requested() -> None:
        while "wakeRequestedAt" not in (await asyncio.to_thread(system.get, "urt", sleeper))["status"]:
            await asyncio.sleep(0.05)

    client = ResumingClient(url, token, last_event_id=0, open_timeout=WAKE_LIMIT_S)
    async with asyncio.timeout(180):
        killing = asyncio.create_task(requested())
        async with client:
            await killing
            # The wake is in progress, or the pod already exists.
            for _ in range(3):
                await kill()
                await publish(database, sleeper, 20)
                await asyncio.sleep(1)
            await client.wait_for_events(80, timeout=PATIENCE_S)
    assert client.ids == list(range(1, 81))
    assert client.resets == []
    for workload in ("userrealtime", "userrealtime-activator"):
        await asyncio.to_thread(
            system.cluster.kubectl,
            *("-n", OPERATOR_NAMESPACE, "rollout", "status", f"deployment/{workload}", WITHIN),
        )
