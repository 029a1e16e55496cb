"""The objects that `helm uninstall` leaves, and the reinstallation: docs/lifecycle.md, Removing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import asyncpg
import pytest

from testing.client import ResumingClient
from testing.patience import PATIENCE_S, WITHIN
from testing.system import DATABASE_SECRET, OPERATOR_NAMESPACE, RELEASE, System, install, upgrade
from testing.waiting import eventually

from .test_resource import CHILDREN

MakeUser = Callable[..., str]


@pytest.fixture
def reinstall(system: System) -> Iterator[Callable[[], None]]:
    """A function that installs everything again. It is called after the test if the test has not come to it."""
    done = False

    def again() -> None:
        nonlocal done
        install(system.cluster)
        done = True

    yield again
    if not done:
        again()


def helm_uninstall(system: System) -> None:
    system.cluster.helm(*("uninstall", RELEASE, "--namespace", OPERATOR_NAMESPACE, "--wait", WITHIN))
    left = system.cluster.kubectl("-n", OPERATOR_NAMESPACE, "get", "deployments,configmaps,secrets", "-o", "name")
    assert f"secret/{DATABASE_SECRET}\n" in left
    assert f"deployment.apps/{RELEASE}\n" not in left
    assert f"configmap/{RELEASE}\n" not in left


async def test_uninstall_removes_resources_and_keeps_logs(
    system: System, reinstall: Callable[[], None], users: MakeUser, database: asyncpg.Connection
) -> None:
    user = await asyncio.to_thread(users, "dropped")
    await database.execute("select userrealtime.publish($1, 'x')", user)
    name = system.get("urt", user)["status"]["name"]
    await asyncio.to_thread(helm_uninstall, system)

    def gone() -> bool:
        left = system.kubectl("get", CHILDREN, "-l", f"app.kubernetes.io/instance={name}", "-o", "name")
        return "userrealtime" not in system.cluster.kubectl("get", "crds", "-o", "name") and not left.strip()

    await asyncio.to_thread(eventually, gone, "neither the CRD nor anything of the user")
    events = "select count(*) from userrealtime.event where user_id = $1"
    assert await database.fetchval(events, user) == 1
    # No resource exists now, and the sweep must still work.
    await asyncio.to_thread(reinstall)
    async with asyncio.timeout(PATIENCE_S):
        while await database.fetchval(events, user):
            await asyncio.sleep(0.2)


async def test_users_are_served_without_the_operator_where_the_crd_is_kept(
    system: System, reinstall: Callable[[], None], users: MakeUser, database: asyncpg.Connection
) -> None:
    user = await asyncio.to_thread(users, "kept")
    await asyncio.to_thread(upgrade, system, {**system.values, "crds": {"keep": True}})
    async with ResumingClient(system.websocket_url(user), system.token(user)) as client:
        uid = system.get("urt", user)["metadata"]["uid"]
        await asyncio.to_thread(helm_uninstall, system)
        await database.execute("select userrealtime.publish($1, 'still')", user)
        await client.wait_for_events(1)
        await asyncio.to_thread(reinstall)
        await asyncio.to_thread(system.wait_ready, user)
        assert system.get("urt", user)["metadata"]["uid"] == uid
        await database.execute("select userrealtime.publish($1, 'again')", user)
        await client.wait_for_events(2)
        assert (client.ids, client.connections) == ([1, 2], 1)
