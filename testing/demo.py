"""The demo application on a cluster: its image, its role in Postgres, its Secrets and its manifests."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import yaml

from .cluster import images
from .cluster.progress import step
from .cluster.provider import Provider
from .system import ROOT, USERS_NAMESPACE, System

NAMESPACE = "userrealtime-demo"
PATH = "/demo"
ROLE = "userrealtime_demo"
MANIFESTS = ROOT / "examples" / "demo" / "manifests.yaml"
SCHEMA = ROOT / "examples" / "demo" / "schema.sql"

# As docs/demo.md has them.
GRANTS = f"""
grant usage on schema userrealtime, userrealtime_demo to {ROLE};
grant execute on function userrealtime.publish, userrealtime.position to {ROLE};
grant select, update (done) on userrealtime.inbox to {ROLE};
grant select on userrealtime.online to {ROLE};
grant select, insert, delete on userrealtime_demo.message to {ROLE};
grant select, insert, update on userrealtime_demo.counter to {ROLE};
"""


def url(system: System) -> str:
    """Where a browser on this machine finds the demo: on the host of the users' own URLs."""
    parts = urlsplit(system.values["route"]["url"])
    return f"{parts.scheme}://{parts.netloc}{PATH}"


def install(system: System) -> str:
    """Install or update the demo, wait until it is served, and return its URL.

    Raises:
        ClusterError: it does not become ready.
    """
    (image,) = images.load(system.cluster, [images.DEMO]).values()
    with step("the demo", usual="5 s", hint=f"check the pods of the namespace {NAMESPACE}"):
        namespace, *objects = manifests(image, url(system))
        system.cluster.apply(json.dumps(namespace))
        secret = password(system.cluster) or secrets.token_hex(24)
        with system.database.from_host() as address:
            asyncio.run(_prepare_role(address, secret))
        _apply_secret(system.cluster, "database", DATABASE_URL=as_role(system.database.url, secret))
        key = _known(system.cluster, "session", "SESSION_KEY") or secrets.token_hex(32)
        _apply_secret(system.cluster, "session", SESSION_KEY=key)
        # One document: kubectl before 1.33 reads no stream of JSON documents.
        system.cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        system.cluster.wait_rolled_out(NAMESPACE, "deployment/demo")
        return url(system)


def uninstall(cluster: Provider) -> None:
    """Remove the demo from a cluster that stays. Its users go with the others, its role with the database."""
    with step("removing the demo"):
        cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=180)
        rights = ("role/demo", "rolebinding/demo")
        cluster.kubectl("-n", USERS_NAMESPACE, "delete", *rights, "--ignore-not-found", timeout=60)


def manifests(image: str, public_url: str) -> list[dict[str, Any]]:
    """The objects of manifests.yaml, with this image and this URL; the namespace first."""
    objects = list(yaml.safe_load_all(MANIFESTS.read_text()))
    for item in objects:
        if item["kind"] == "Deployment":
            (container,) = item["spec"]["template"]["spec"]["containers"]
            container["image"] = image
            next(variable for variable in container["env"] if variable["name"] == "PUBLIC_URL")["value"] = public_url
        elif item["kind"] == "Ingress":
            (rule,) = item["spec"]["rules"]
            rule["host"] = urlsplit(public_url).hostname
    return objects


async def prepare_database(connection: asyncpg.Connection) -> None:
    """Create the demo's role and tables, where they are missing, and grant the role its permissions."""
    if not await connection.fetchval("select true from pg_roles where rolname = $1", ROLE):
        await connection.execute(f"create role {ROLE} login connection limit 12")
    await connection.execute(SCHEMA.read_text())
    await connection.execute(GRANTS)


async def _prepare_role(address: str, password: str) -> None:
    connection = await asyncpg.connect(address, timeout=10)
    try:
        await prepare_database(connection)
        # The password is hexadecimal, so it needs no quoting.
        await connection.execute(f"alter role {ROLE} password '{password}'")
    finally:
        await connection.close(timeout=5)


def password(cluster: Provider) -> str | None:
    """The password of the demo's role; None where it was never installed."""
    known = _known(cluster, "database", "DATABASE_URL")
    return urlsplit(known).password if known else None


def as_role(address: str, password: str) -> str:
    """A database's URL, for the demo's role."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{ROLE}:{quote(password, safe='')}@{host}"))


def _known(cluster: Provider, name: str, key: str) -> str | None:
    """What a Secret says already: sessions and connections so outlive another `make up`."""
    found = cluster.kubectl("-n", NAMESPACE, "get", "secret", name, "--ignore-not-found", "-o", "json")
    value = json.loads(found).get("data", {}).get(key) if found else None
    return None if value is None else base64.b64decode(value).decode()


def _apply_secret(cluster: Provider, name: str, **values: str) -> None:
    metadata = {"name": name, "namespace": NAMESPACE}
    cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": values}))
