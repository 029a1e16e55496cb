"""First installations: by Helm that waits, as for Flux and Terraform, and in the order of Argo CD (docs/gitops.md)."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from string import Template
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import yaml

from testing.cluster import images
from testing.cluster.paths import MANIFESTS
from testing.patience import COMMAND_TIMEOUT_S, PATIENCE_S, WITHIN
from testing.system import CHART, System

from .conftest import RUN

RELEASE = "fresh"
SECRET = {"name": "from-elsewhere", "key": "URL"}
_numbers = itertools.count(1)
Documents = list[dict[str, Any]]


@dataclass(frozen=True)
class Target:
    """An empty database, a namespace with a NATS server and without a release, and an empty one for users."""

    system: System
    namespace: str
    database_url: str
    database: asyncpg.Connection

    def values(self, secret: bool, broker: bool) -> dict[str, Any]:
        """Return values with the database's URL in an existing Secret or plain, and signals from NATS or Postgres."""
        values = self.system.values
        return {
            "database": {"existingSecret": SECRET} if secret else {"url": self.database_url},
            "signals": {"type": "nats", "url": f"nats://nats.{self.namespace}:4222"} if broker else {},
            "namespaces": [f"{self.namespace}-users"],
            "crds": {"enabled": False},  # the running release has it
            "operator": {**values["operator"], "replicas": 1},
            "activator": {"replicas": 1},
            "relay": values["relay"],
            "route": values["route"],
            # in a range that OpenShift assigns to a namespace
            "runAsUser": 1000670000,
        }

    def kubectl(self, *arguments: str, input: str | None = None) -> str:
        """Run kubectl in the namespace."""
        return self.system.cluster.kubectl("-n", self.namespace, *arguments, input=input, timeout=COMMAND_TIMEOUT_S)

    def helm(self, *arguments: str, values: dict[str, Any]) -> str:
        """Run helm with these values."""
        given = ("--namespace", self.namespace, "--values", "-")
        return self.system.cluster.helm(*arguments, str(CHART), *given, input=json.dumps(values))

    def render(self, values: dict[str, Any]) -> Documents:
        """Return all documents of the chart, including hooks."""
        return [item for item in yaml.safe_load_all(self.helm("template", RELEASE, values=values)) if item]

    def apply_and_wait(self, documents: Documents) -> None:
        """Apply documents, and wait until each is healthy as Argo CD understands it."""
        # Each document names its namespace: roles are in the namespace for users.
        self.system.cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))
        for item in documents:
            name = f"{item['kind'].lower()}/{item['metadata']['name']}"
            if item["kind"] == "Job":
                self.kubectl("wait", "--for=condition=complete", name, WITHIN)
            elif item["kind"] == "Deployment":
                self.kubectl("rollout", "status", name, WITHIN)

    async def assert_migrated(self) -> None:
        """Assert that the schema exists."""
        assert await self.database.fetchval("select count(*) from userrealtime.migration") > 0


@pytest.fixture
async def target(system: System, database: asyncpg.Connection, database_url: str) -> AsyncIterator[Target]:
    cluster = system.cluster
    number = next(_numbers)
    name, namespace = f"fresh_{number}", f"gitops-{RUN}-{number}"
    [source] = [source for source in images.SOURCES if source.name == "userrealtime-nats"]
    image = (await asyncio.to_thread(images.load, cluster, [source]))[source.name]
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    namespaces = [namespace, f"{namespace}-users"]
    await database.execute(f"drop database if exists {name} with (force)")
    await database.execute(f"create database {name}")
    url = urlsplit(system.database.url)._replace(path=f"/{name}").geturl()
    try:
        for each in namespaces:
            metadata = {"name": each, "labels": labels}
            cluster.apply(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
        secrets = {SECRET["name"]: {SECRET["key"]: url}, "nats": {"nats.conf": "port: 4222"}}
        documents = [
            *(
                {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}, "stringData": data}
                for secret, data in secrets.items()
            ),
            *yaml.safe_load_all(Template((MANIFESTS / "nats.yaml").read_text()).substitute(image=image)),
        ]
        for item in documents:
            item["metadata"]["namespace"] = namespace
        cluster.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": documents}))
        cluster.wait_rolled_out(namespace, "deployment/nats")
        connection = await asyncpg.connect(
            urlsplit(database_url)._replace(path=f"/{name}").geturl(), timeout=PATIENCE_S
        )
        try:
            yield Target(system, namespace, url, connection)
        finally:
            await connection.close(timeout=PATIENCE_S)
    finally:
        await asyncio.to_thread(cluster.kubectl, "delete", "namespace", *namespaces, "--wait=false")
        await database.execute(f"drop database if exists {name} with (force)")


# The phases of Argo CD, and the Helm hooks that it runs in each (`helm template` prints them among the others).
PHASES = {"PreSync": {"pre-install", "pre-upgrade"}, "PostSync": {"post-install", "post-upgrade"}}


def hooks(item: dict[str, Any]) -> set[str]:
    """Return the Helm hooks of a document; none for an ordinary one."""
    annotation: str = item["metadata"].get("annotations", {}).get("helm.sh/hook", "")
    return {hook.strip() for hook in annotation.split(",") if hook}


def phase(documents: Documents, name: str) -> Iterator[Documents]:
    """Return the documents of a phase of Argo CD, grouped by weight, in order."""

    def weight(item: dict[str, Any]) -> int:
        return int(item["metadata"]["annotations"].get("helm.sh/hook-weight", "0"))

    found = [item for item in documents if hooks(item) & PHASES[name]]
    for _, items in itertools.groupby(sorted(found, key=weight), key=weight):
        yield list(items)


def references(pod: dict[str, Any]) -> set[tuple[str, str]]:
    """Return the kinds and names of the objects that a pod needs to start."""
    found = {("Secret", each["name"]) for each in pod.get("imagePullSecrets", ())}
    if account := pod.get("serviceAccountName"):
        found.add(("ServiceAccount", account))
    for volume in pod.get("volumes", ()):
        if "configMap" in volume:
            found.add(("ConfigMap", volume["configMap"]["name"]))
        if "secret" in volume:
            found.add(("Secret", volume["secret"]["secretName"]))
        for source in volume.get("projected", {}).get("sources", ()):
            found.add(("Secret", source["secret"]["name"]))
    for entry in (each for container in pod["containers"] for each in container["env"]):
        source = entry.get("valueFrom", {})
        found |= {("Secret", ref["name"]) for key, ref in source.items() if key == "secretKeyRef"}
        found |= {("ConfigMap", ref["name"]) for key, ref in source.items() if key == "configMapKeyRef"}
    return found


@pytest.mark.parametrize("signal", ["", "auto", "listen", "poll", "nats", "redis", "kafka"])
@pytest.mark.parametrize("existing", [True, False])
def test_a_hook_refers_to_nothing_that_comes_later(system: System, signal: str, existing: bool) -> None:
    certificate = "-----BEGIN CERTIFICATE-----\nMAo=\n-----END CERTIFICATE-----\n"
    name = {"existingSecret": {"name": "existing"}}
    broker = signal in ("nats", "redis", "kafka")
    values = {
        "database": name if existing else {"url": "postgresql://h/d"},
        "namespaces": ["users"],
        "signals": {"type": signal, **({} if not broker else name if existing else {"url": f"{signal}://h"})},
        "trust": {"existingConfigMap": {"name": "existing"}} if existing else {"certificates": certificate},
        "imagePullSecrets": ["existing"],
    }
    rendered = system.cluster.helm("template", RELEASE, str(CHART), "--values", "-", input=json.dumps(values))
    documents = [item for item in yaml.safe_load_all(rendered) if item]
    there = {("Secret", "existing"), ("ConfigMap", "existing")}
    jobs = []
    for items in phase(documents, "PreSync"):
        there |= {(item["kind"], item["metadata"]["name"]) for item in items if item["kind"] != "Job"}
        for job in (item for item in items if item["kind"] == "Job"):
            assert references(job["spec"]["template"]["spec"]) <= there
            jobs.append(job["metadata"]["name"])
    assert jobs == [f"{RELEASE}-userrealtime-migrate"]
    # Hooks of the last phase run when everything is ready: nothing may need them to become ready.
    assert list(phase(documents, "PostSync")) == []
    # Objects that exist only in a hook are deleted with the hook.
    removed = {"before-hook-creation", "hook-succeeded"}
    for item in (item for item in documents if hooks(item)):
        assert removed <= set(item["metadata"]["annotations"]["helm.sh/hook-delete-policy"].split(","))


async def test_helm_waits_for_an_installation_on_an_empty_database(target: Target) -> None:
    values = target.values(secret=False, broker=True)
    for command in ("install", "upgrade"):
        await asyncio.to_thread(target.helm, command, RELEASE, "--wait", WITHIN, values=values)
        await target.assert_migrated()
        # The Job's copy of the URL is deleted.
        secrets = await asyncio.to_thread(target.kubectl, "get", "secrets", "-o", "name")
        assert f"secret/{RELEASE}-userrealtime-database" in secrets.split()
        assert "migrate" not in secrets
    await asyncio.to_thread(
        target.system.cluster.helm, "uninstall", RELEASE, "--namespace", target.namespace, "--wait", WITHIN
    )


@pytest.mark.parametrize("secret", [True, False], ids=["existingSecret", "url"])
async def test_the_first_sync_of_argo_cd_succeeds(target: Target, secret: bool) -> None:
    documents = await asyncio.to_thread(target.render, target.values(secret=secret, broker=secret))
    for items in phase(documents, "PreSync"):
        await asyncio.to_thread(target.apply_and_wait, items)
    await target.assert_migrated()
    done = [f"{item['kind']}/{item['metadata']['name']}" for items in phase(documents, "PreSync") for item in items]
    await asyncio.to_thread(target.kubectl, "delete", *done)
    await asyncio.to_thread(target.apply_and_wait, [item for item in documents if not hooks(item)])
