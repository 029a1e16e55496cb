"""Signals from a broker, on a cluster: the chart's bridges, users' pods that do not listen, and failures."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator
from string import Template
from urllib.parse import urlsplit

import asyncpg
import pytest

from testing.client import ResumingClient
from testing.cluster import images
from testing.cluster.local import pki
from testing.cluster.paths import MANIFESTS
from testing.patience import COMMAND_TIMEOUT_S, PATIENCE_S, WITHIN
from testing.system import OPERATOR_NAMESPACE, RELEASE, System, upgrade
from testing.waiting import eventually
from userrealtime_operator.model.naming import CREDENTIALS_SUFFIX

from .test_faults import assert_all_arrived, publishing

MakeUser = Callable[..., str]
ROLE = "userrealtime_bridge"


def secret(name: str, **values: str) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": OPERATOR_NAMESPACE},
            "stringData": values,
        }
    )


def operators(system: System, *arguments: str, timeout: float = COMMAND_TIMEOUT_S) -> str:
    """Run kubectl in the operator's namespace."""
    return system.cluster.kubectl("-n", OPERATOR_NAMESPACE, *arguments, timeout=timeout)


def execute(database_url: str, statements: str) -> None:
    async def connected() -> None:
        connection = await asyncpg.connect(database_url, timeout=PATIENCE_S)
        try:
            await connection.execute(statements)
        finally:
            await connection.close(timeout=PATIENCE_S)

    asyncio.run(connected())


@pytest.fixture(scope="module")
def over_nats(system: System, database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """The release with a separate NATS as its broker (TLS), and bridges with a restricted database role."""
    folder = tmp_path_factory.mktemp("nats")
    host = f"nats.{OPERATOR_NAMESPACE}"
    # Private authorities often lack extensions that only Python 3.13 requires.
    pki.make(folder, [pki.Identity("server", "/CN=nats", (f"DNS:{host}",))], pki.Extensions.MINIMAL)
    password, bridge_password, database_password = (secrets.token_hex(16) for _ in range(3))
    # As docs/signals.md has them.
    relay = '{ publish: { deny: ">" }, subscribe: "userrealtime.>" }'
    bridge = '{ publish: "userrealtime.>", subscribe: { deny: ">" } }'
    config = (
        "port: 4222\nauthorization { users: [\n"
        f'{{ user: relay, password: "{password}", permissions: {relay} }}\n'
        f'{{ user: bridge, password: "{bridge_password}", permissions: {bridge} }}\n'
        "] }\n"
        "tls { cert_file: /config/server.crt, key_file: /config/server.key }\n"
    )
    files = {name: (folder / name).read_text() for name in ("server.crt", "server.key")}
    [source] = [source for source in images.SOURCES if source.name == "userrealtime-nats"]
    image = images.load(system.cluster, [source])[source.name]
    execute(
        database_url,
        f"do $$ begin if to_regrole('{ROLE}') is not null then drop owned by {ROLE}; end if; end $$; "
        f"drop role if exists {ROLE}; create role {ROLE} login password '{database_password}'; "
        f"select userrealtime.grant_bridge('{ROLE}')",
    )
    url = urlsplit(system.database.url)
    place = url.netloc.rpartition("@")[2]
    bridge_url = url._replace(netloc=f"{ROLE}:{database_password}@{place}").geturl()
    system.cluster.apply(secret("nats", **{"nats.conf": config}, **files))
    system.cluster.apply(secret("broker", BROKER_URL=f"tls://relay:{password}@{host}:4222"))
    system.cluster.apply(secret("bridge-broker", BROKER_URL=f"tls://bridge:{bridge_password}@{host}:4222"))
    system.cluster.apply(secret("bridge-database", DATABASE_URL=bridge_url))
    system.cluster.apply(Template((MANIFESTS / "nats.yaml").read_text()).substitute(image=image))
    signals = {
        "type": "nats",
        "existingSecret": {"name": "broker"},
        "idleAfter": "1s",
        "bridge": {
            "broker": {"existingSecret": {"name": "bridge-broker"}},
            "database": {"existingSecret": {"name": "bridge-database"}},
        },
    }
    trust = {"certificates": (folder / "ca.crt").read_text()}
    try:
        operators(system, "rollout", "status", "deployment/nats", WITHIN)
        upgrade(system, {**system.values, "signals": signals, "trust": trust})
        yield system
    finally:
        upgrade(system, system.values)
        operators(system, "delete", "deployment/nats", "service/nats", "secret/nats", "secret/broker")
        operators(system, "delete", "secret/bridge-broker", "secret/bridge-database")
        execute(database_url, f"drop owned by {ROLE}; drop role {ROLE}")


async def test_a_broker_that_is_not_set_up_is_said(system: System) -> None:
    system.apply_user("pigeon", relay={"signal": "redis"})
    try:

        def said() -> bool:
            status = system.get("urt", "pigeon").get("status", {})
            return any(condition["reason"] == "InvalidSignal" for condition in status.get("conditions", []))

        await asyncio.to_thread(eventually, said, "InvalidSignal is said")
    finally:
        system.delete_user("pigeon")


async def test_events_arrive_while_broker_and_bridges_are_killed(
    over_nats: System, users: MakeUser, database: asyncpg.Connection, database_url: str
) -> None:
    alice = await asyncio.to_thread(users, "alice")
    name = over_nats.get("urt", alice)["status"]["name"]
    [container] = over_nats.get("deployment", name)["spec"]["template"]["spec"]["containers"]
    assert operators(over_nats, "get", "configmap", f"{RELEASE}-trust-migrate", "--ignore-not-found") == ""
    env = {entry["name"]: entry for entry in container["env"]}
    assert env["SIGNAL"]["value"] == "nats"
    assert "NATS_URL" not in env
    assert over_nats.get("secret", name + CREDENTIALS_SUFFIX)["data"].keys() == {"DATABASE_URL", "NATS_URL"}
    async with ResumingClient(over_nats.websocket_url(alice), over_nats.token(alice)) as client:
        async with publishing(database_url, alice) as publisher:
            await client.wait_for_more(50)
            for selector in ("app=nats", "app.kubernetes.io/name=userrealtime-bridge"):
                await asyncio.to_thread(operators, over_nats, "delete", "pod", "-l", selector, "--now", "--wait=false")
                await client.wait_for_more(50, timeout=PATIENCE_S)
        await assert_all_arrived(client, publisher, database_url, alice)

    async def connections() -> dict[str, int]:
        rows = await database.fetch(
            "select application_name, count(*) from pg_stat_activity "
            "where usename like 'urt_%' or usename = $1 group by 1",
            ROLE,
        )
        return {row["application_name"]: row["count"] for row in rows}

    # Each bridge holds two connections with a restricted role; the relay holds none.
    async with asyncio.timeout(PATIENCE_S):
        while (now := await connections()).get("userrealtime-relay") or now.get("userrealtime-bridge") != 2 * 2:
            await asyncio.sleep(0.2)


async def test_a_user_may_keep_to_postgres(over_nats: System, users: MakeUser, database_url: str) -> None:
    alice = await asyncio.to_thread(lambda: users("alice", relay={"signal": "listen"}))
    resource = over_nats.get("urt", alice)
    urls = over_nats.get("secret", resource["status"]["name"] + CREDENTIALS_SUFFIX)["data"]
    assert urls.keys() == {"DATABASE_URL"}
    async with ResumingClient(over_nats.websocket_url(alice), over_nats.token(alice)) as client:
        async with publishing(database_url, alice) as publisher:
            await client.wait_for_more(20)
        await assert_all_arrived(client, publisher, database_url, alice)
