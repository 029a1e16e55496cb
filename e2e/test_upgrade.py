"""Upgrades of the chart: from an earlier version with connected users, and a failed upgrade that is corrected."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from testing import previous
from testing.client import ResumingClient
from testing.cluster import images
from testing.patience import PATIENCE_S, WITHIN
from testing.system import OPERATOR_NAMESPACE, RELEASE, USERS_NAMESPACE, System, install, prepare, uninstall, upgrade
from testing.waiting import eventually
from userrealtime_operator.model.conditions import deployment_progress
from userrealtime_operator.postgres.migrate import load_schema

AT_ONCE = 2
PUBLISH_INTERVAL_S = 0.05
MakeUser = Callable[..., str]


@contextmanager
def watched_deployments(system: System) -> Iterator[list[dict[str, Any]]]:
    """Record every state of every Deployment of the users, in order; read it after the block."""
    history: list[dict[str, Any]] = []
    command = [str(system.cluster.kubectl_path()), "-n", USERS_NAMESPACE]
    command += ["get", "deployments", "--watch", "--output-watch-events", "-o", "json"]
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, env=system.cluster.environment(), stdout=output) as process:
            try:
                yield history
                assert process.poll() is None, "the watch ended early"
            finally:
                process.terminate()
                process.wait(timeout=PATIENCE_S)
        output.seek(0)
        text = output.read()
    decoder, position = json.JSONDecoder(), 0
    while position < len(text) and text[position] == "{":
        try:
            event, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError:
            break  # the last one, cut off by the end of the watch
        history.append(event)
        position += len(text[position:]) - len(text[position:].lstrip())


def rolling(history: list[dict[str, Any]]) -> tuple[int, set[str]]:
    """Return the largest number of simultaneous rollouts, and the Deployments that had one."""
    now: set[str] = set()
    most, all_of_them = 0, set[str]()
    for event in history:
        deployment = event["object"]
        name = deployment["metadata"]["name"]
        if event["type"] != "DELETED" and deployment_progress(deployment).true:
            now.add(name)
        else:
            now.discard(name)
        most = max(most, len(now))
        all_of_them |= now
    return most, all_of_them


class Crowd:
    """Connected users, for whom events are published continuously."""

    def __init__(self, clients: dict[str, ResumingClient], database_url: str) -> None:
        self.clients = clients
        self.published = dict.fromkeys(clients, 0)
        self.stopping = False
        self._database_url = database_url

    async def publish(self) -> None:
        """Publish to all users in turn, until `stopping` is set."""
        connection = await asyncpg.connect(self._database_url, timeout=PATIENCE_S)
        try:
            while not self.stopping:
                for user in self.clients:
                    await connection.execute("select userrealtime.publish($1, 'tick')", user, timeout=30)
                    self.published[user] += 1
                    await asyncio.sleep(PUBLISH_INTERVAL_S)
        finally:
            await connection.close(timeout=PATIENCE_S)

    async def have_it_all(self) -> None:
        """Assert that every client has every event once and in order, and that no client received a `reset`."""
        for user, client in self.clients.items():
            await client.wait_for_events(self.published[user])
            assert client.ids == list(range(1, self.published[user] + 1))
            assert client.resets == []
            assert self.published[user] > 0


@asynccontextmanager
async def crowd(system: System, names: list[str], database_url: str) -> AsyncIterator[Crowd]:
    """Connect these users and publish while the block runs. At its end, they must have all events."""
    async with AsyncExitStack() as stack:
        clients = {}
        for name in names:
            url = await asyncio.to_thread(system.websocket_url, name)
            token = await asyncio.to_thread(system.token, name)
            clients[name] = await stack.enter_async_context(ResumingClient(url, token))
        found = Crowd(clients, database_url)
        publishing = asyncio.create_task(found.publish())
        try:
            yield found
        finally:
            found.stopping = True
            async with asyncio.timeout(PATIENCE_S):
                await publishing
        await found.have_it_all()


@pytest.fixture
def previous_chart(system: System) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The chart of the earlier version and its values, with images built from its sources."""
    with previous.source(previous.revision_or_skip()) as folder:
        sources = [
            dataclasses.replace(source, name=f"previous-{source.name}", root=folder)
            for source in images.SOURCES
            if source.name in ("userrealtime-operator", "userrealtime-relay")
        ]
        references = images.load(system.cluster, sources)
        values = {key: system.values[key] for key in ("database", "namespaces", "route")}
        for part in ("operator", "relay"):
            repository, _, tag = references[f"previous-userrealtime-{part}"].rpartition(":")
            values[part] = {"image": {"repository": repository, "tag": tag}}
        yield folder / "charts" / "userrealtime", values


@pytest.fixture
def restored(system: System) -> Iterator[list[str]]:
    """Restore the current version with its usual values after the test, and remove the listed users."""
    names: list[str] = []
    yield names
    install(system.cluster)
    for name in names:
        system.delete_user(name)


def all_settled(system: System, names: list[str]) -> bool:
    """Return whether each of these users is Ready with its newest pod."""
    for name in names:
        conditions = system.get("urt", name).get("status", {}).get("conditions", [])
        found = {c["type"]: c["status"] for c in conditions}
        if (found.get("Ready"), found.get("Progressing")) != ("True", "False"):
            return False
    return True


def pod_images(system: System) -> list[str]:
    """Return the images of the users' pods that are not terminating."""
    pods = json.loads(system.kubectl("get", "pods", "-o", "json"))["items"]
    return [pod["spec"]["containers"][0]["image"] for pod in pods if "deletionTimestamp" not in pod["metadata"]]


async def test_users_stay_connected_during_an_upgrade(
    system: System, previous_chart: tuple[Path, dict[str, Any]], restored: list[str], database_url: str
) -> None:
    chart, values = previous_chart
    await asyncio.to_thread(uninstall, system.cluster)
    database = await asyncpg.connect(database_url, timeout=PATIENCE_S)
    await database.execute("drop schema userrealtime cascade")
    await asyncio.to_thread(prepare, system)
    await asyncio.to_thread(upgrade, system, values, chart)

    names = [f"upgraded-{number}" for number in range(6)]
    restored.extend(names)
    for name in names:
        await asyncio.to_thread(system.apply_user, name)
    for name in names:
        await asyncio.to_thread(system.wait_ready, name)
    image = "{repository}:{tag}".format_map(system.values["relay"]["image"])
    assert image not in pod_images(system)
    keys = {name: system.get("secret", system.get("urt", name)["status"]["tokenSecret"]["name"]) for name in names}

    async with crowd(system, names, database_url) as users:
        with watched_deployments(system) as history:
            for client in users.clients.values():
                await client.wait_for_events(3)
            relay = {**system.values["relay"], "maxConcurrentRollouts": AT_ONCE}
            await asyncio.to_thread(upgrade, system, {**system.values, "relay": relay})

            def upgraded() -> bool:
                return pod_images(system) == [image] * len(names) and all_settled(system, names)

            await asyncio.to_thread(eventually, upgraded, "all users at the new version")
            for client in users.clients.values():
                await client.wait_for_connections(2)
                await client.wait_for_more(3)
        most, rolled = rolling(history)
        # A downgrade on the newer schema; the earlier operator did not count rollouts.
        connections = {name: client.connections for name, client in users.clients.items()}
        earlier = ("rollback", RELEASE, "1", "--namespace", OPERATOR_NAMESPACE, "--wait", WITHIN)
        await asyncio.to_thread(system.cluster.helm, *earlier)
        for name, client in users.clients.items():
            await client.wait_for_connections(connections[name] + 1)
            await client.wait_for_more(3)
        await asyncio.to_thread(eventually, lambda: image not in pod_images(system), "all users at the earlier version")
    assert (most, len(rolled)) == (AT_ONCE, len(names))
    # Tokens from before the upgrade stay valid.
    for name in names:
        secret = system.get("secret", keys[name]["metadata"]["name"])
        assert secret["data"]["TOKEN_KEY"] == keys[name]["data"]["TOKEN_KEY"]
    newest = load_schema().migrations[-1].version
    assert await database.fetchval("select max(version) from userrealtime.migration") == newest
    newest = load_schema().migrations[-1].version
    assert await database.fetchval("select max(version) from userrealtime.migration") == newest
    await database.close(timeout=PATIENCE_S)


async def test_a_broken_relay_image_stops_the_rollout_and_recovers(
    system: System, users: MakeUser, restored: list[str], database_url: str
) -> None:
    names = await asyncio.gather(*(asyncio.to_thread(users, "careful") for _ in range(4)))

    def reasons() -> list[str]:
        found = []
        for item in json.loads(system.kubectl("get", "urt", "-o", "json"))["items"]:
            conditions = {c["type"]: c for c in item["status"]["conditions"]}
            assert conditions["Ready"]["status"] == "True"
            found.append(conditions["Progressing"]["reason"])
        return sorted(found)

    everybody = [item["metadata"]["name"] for item in json.loads(system.kubectl("get", "urt", "-o", "json"))["items"]]
    await asyncio.to_thread(eventually, lambda: all_settled(system, everybody), "no rollout from before goes on")
    others = len(everybody) - len(names)  # such as the first user of `make up`
    stopped = sorted(["ImagePullFailed"] * AT_ONCE + ["RolloutWaiting"] * (len(names) + others - AT_ONCE))
    relay = {**system.values["relay"], "maxConcurrentRollouts": AT_ONCE}
    wrong = {**relay, "image": {"repository": "127.0.0.1:1/no-such-image", "tag": "1"}}
    async with crowd(system, names, database_url) as connected:
        with watched_deployments(system) as history:
            await asyncio.to_thread(upgrade, system, {**system.values, "relay": wrong})
            await asyncio.to_thread(eventually, lambda: reasons() == stopped, f"{stopped}")
            # A restarted operator does not begin further rollouts.
            await asyncio.to_thread(
                system.cluster.kubectl,
                *("-n", OPERATOR_NAMESPACE, "delete", "pods", "-l", "app.kubernetes.io/name=userrealtime-operator"),
            )
            await asyncio.to_thread(system.cluster.wait_rolled_out, OPERATOR_NAMESPACE, "deployment/userrealtime")
            for client in connected.clients.values():
                await client.wait_for_more(60)
            assert reasons() == stopped
            assert [client.connections for client in connected.clients.values()] == [1] * len(names)

            await asyncio.to_thread(upgrade, system, {**system.values, "relay": relay})
            await asyncio.to_thread(eventually, lambda: all_settled(system, names), "all users well again")
            for client in connected.clients.values():
                await client.wait_for_more(3)
        # without the users of the previous test, whose objects are being deleted
        children = {system.get("urt", name)["status"]["name"] for name in everybody}
        most, _ = rolling([event for event in history if event["object"]["metadata"]["name"] in children])
        # The pods already have the correct image: no client had to reconnect.
        assert [client.connections for client in connected.clients.values()] == [1] * len(names)
    assert most == AT_ONCE
