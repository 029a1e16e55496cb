"""The certificate authority of the cluster is rotated. On an API server without nodes."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import asyncpg
import pytest
import yaml

from testing.cluster.local import pki
from testing.local.apiserver import LocalApiServer
from testing.patience import PATIENCE_S
from userrealtime_operator.kube.client import CLUSTER

from .test_leader import LEASE, NAMESPACE, apply_users, database_url, eventually, has_deployment, replica, server

__all__ = ["database_url", "server"]


def add_authority(kubeconfig: Path, folder: Path) -> None:
    """Replace the authority of a kubeconfig by a bundle of it and another one, as during a rotation."""
    pki.make(folder, [pki.Identity("other", "/CN=other", ("DNS:other",))])
    config = yaml.safe_load(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    present = base64.b64decode(cluster["certificate-authority-data"])
    bundle = present + (folder / "ca.crt").read_bytes()
    cluster["certificate-authority-data"] = base64.b64encode(bundle).decode()
    kubeconfig.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("remembers", [True, False], ids=["with the Lease", "without the Lease"])
async def test_a_rotated_authority_has_no_effect_on_users(
    server: LocalApiServer, database_url: str, tmp_path: Path, remembers: bool
) -> None:
    """If the Lease is deleted, the identity of the cluster changes, and the users follow."""

    def deployments() -> dict[str, int]:
        found = json.loads(server.kubectl("-n", NAMESPACE, "get", "deployments", "-o", "json"))["items"]
        return {item["metadata"]["name"]: item["metadata"]["generation"] for item in found}

    def lease() -> dict[str, str]:
        name = LEASE.partition("/")[2]
        annotations = json.loads(server.kubectl("-n", NAMESPACE, "get", "lease", name, "-o", "json"))["metadata"]
        return dict(annotations.get("annotations", {}))

    database = await asyncpg.connect(database_url, timeout=PATIENCE_S)
    scopes = "select scope from userrealtime.registration union select scope from userrealtime.role"

    async def scope() -> str:
        [row] = await database.fetch(scopes)
        return str(row[0])

    with replica("first", server, database_url) as operator:
        await asyncio.to_thread(operator.wait_ready)
        apply_users(server, "alice", "bob")
        for name in ("alice", "bob"):
            await eventually(lambda: has_deployment(server, name), "both are served")  # noqa: B023
        for name in ("alice", "bob"):
            await database.execute("select userrealtime.publish($1, 'x')", name)
        await eventually(lambda: CLUSTER in lease(), "the Lease has the identity")
        before, known = await scope(), deployments()
        assert before == f"{lease()[CLUSTER]}/{NAMESPACE}"
        await asyncio.to_thread(operator.stop)
        add_authority(operator.kubeconfig, tmp_path)
        server.kubectl("-n", NAMESPACE, "delete", "urt", "bob")
        if not remembers:
            server.kubectl("-n", NAMESPACE, "delete", "lease", LEASE.partition("/")[2])
        operator.start()
        await asyncio.to_thread(operator.wait_ready)
        await eventually(operator.leads, "it leads")

        async def moved() -> bool:
            rows = [str(row[0]) for row in await database.fetch(scopes)]
            return len(rows) == 1 and (rows[0] == before) is remembers

        if remembers:
            # The user that was deleted meanwhile is removed, and the others are unchanged.
            async with asyncio.timeout(PATIENCE_S):
                while await database.fetchval("select count(*) from userrealtime.log where user_id = 'bob'"):
                    await asyncio.sleep(0.1)
            assert await moved()
            assert deployments() == known
        else:
            await database.execute("delete from userrealtime.registration where scope = $1 and user_id = 'bob'", before)
            await database.execute("delete from userrealtime.role where scope = $1 and user_id = 'bob'", before)
            async with asyncio.timeout(PATIENCE_S):
                while not await moved():
                    await asyncio.sleep(0.1)
        server.kubectl("-n", NAMESPACE, "delete", "urt", "alice")
        async with asyncio.timeout(PATIENCE_S):
            while await database.fetchval("select count(*) from userrealtime.log where user_id = 'alice'"):
                await asyncio.sleep(0.1)
    await database.execute("delete from userrealtime.log")
    await database.close(timeout=PATIENCE_S)
