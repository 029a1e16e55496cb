"""A release in a registry: the images and the chart are pushed, pulled by digest, and installed; an event arrives.

The chart is the one of `make release`: it names the images of ghcr.io. The nodes pull these from a registry of this
machine instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg
import pytest

from release import build
from testing.client import ResumingClient
from testing.cluster import images
from testing.cluster.errors import UnknownError
from testing.cluster.progress import step
from testing.local.registry import LocalRegistry
from testing.patience import PATIENCE_S, WITHIN
from testing.system import ROOT, System
from userrealtime_operator import __version__ as VERSION

from .conftest import RUN, uncaptured

NAMESPACE: Final = f"registry-{RUN}"
USERS: Final = f"registry-users-{RUN}"
DATABASE: Final = f"registry_{RUN}"
SECRET: Final = "database"
HOST: Final = "ghcr.io"


@dataclass(frozen=True)
class Published:
    """What a registry contains after a release.

    Attributes:
        owner: the first part of all names.
        images: the digests of the images, by their names.
        chart: the digest of the chart.
    """

    registry: LocalRegistry
    owner: str
    images: dict[str, str]
    chart: str

    @property
    def references(self) -> list[str]:
        """The references of all artifacts, by digest."""
        names = {f"userrealtime-{name}": digest for name, digest in self.images.items()}
        names["charts/userrealtime"] = self.chart
        return [f"{self.registry.address}/{self.owner}/{name}@{digest}" for name, digest in names.items()]


@pytest.fixture(scope="module")
def published(system: System, pytestconfig: pytest.Config) -> Iterator[Published]:
    """A registry with the images and the chart of a release, from which the nodes pull instead of from ghcr.io."""
    git = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=60)
    if git.returncode != 0:
        pytest.skip(f"a release is built from a commit, and this checkout has none: {git.stderr.strip()}")
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(system.cluster.mirror(HOST))
        except UnknownError as unknown:
            pytest.skip(str(unknown))
        with uncaptured(pytestconfig):
            registry = stack.enter_context(LocalRegistry(address))
            yield publish(system, registry)


def publish(system: System, registry: LocalRegistry) -> Published:
    """Push the images and the chart of a release."""
    helm = str(system.cluster.helm_path())
    digests = {}
    for image in images.build([source for source in images.SOURCES if source.name.endswith(("-operator", "-relay"))]):
        name = image.name.removeprefix("userrealtime-")
        repository = f"{build.project().owner.lower()}/{image.name}"
        with step(f"pushing {image.name}", usual="half a minute") as current:
            images.push(current, image, f"{registry.address}/{repository}:{VERSION}", tls=False)
        digests[name] = registry.digest(repository, VERSION)
    with build.source() as source, tempfile.TemporaryDirectory() as folder:
        project = build.project(source.root)
        chart = build.build_chart(source, project, build.Tools(helm), VERSION, digests, [], Path(folder))
        charts = project.charts.removeprefix(f"oci://{HOST}/")
        system.cluster.helm("push", str(chart), f"oci://{registry.address}/{charts}", "--plain-http")
    owner, _, _ = charts.partition("/")
    return Published(registry, owner, digests, registry.digest(f"{charts}/userrealtime", VERSION))


@pytest.fixture
async def empty_database(system: System, database: asyncpg.Connection) -> AsyncIterator[str]:
    """The URL for pods of an empty database."""
    await database.execute(f"create database {DATABASE}")
    yield urlsplit(system.database.url)._replace(path=f"/{DATABASE}").geturl()
    await database.execute(f"drop database if exists {DATABASE} with (force)")


@pytest.fixture
def namespaces(system: System, empty_database: str) -> Iterator[System]:
    """The system with a namespace that has the Secret of the database's URL and no release, and one for its users."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "stringData": {"DATABASE_URL": empty_database},
    }
    for name in (NAMESPACE, USERS):
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        system.cluster.apply(json.dumps(namespace))
    try:
        system.cluster.apply(json.dumps(secret))
        yield replace(system, namespace=USERS)
    finally:
        # The operator removes the finalizers of the users' objects, so their namespace is first.
        system.cluster.kubectl("delete", "namespace", USERS, WITHIN)
        system.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


async def test_a_release_is_installed_from_the_registry(
    published: Published, namespaces: System, database_url: str
) -> None:
    values = {
        "database": {"existingSecret": {"name": SECRET}},
        "route": namespaces.values["route"],
        "namespaces": [USERS],
        "crds": {"enabled": False},  # the other release of this cluster has it
    }
    chart = f"oci://{published.registry.address}/{published.owner}/charts/userrealtime"
    options = ("--version", VERSION, "--namespace", NAMESPACE, "--values", "-", "--plain-http", "--wait", WITHIN)
    await asyncio.to_thread(
        namespaces.cluster.helm, "install", "userrealtime", chart, *options, input=json.dumps(values)
    )
    await asyncio.to_thread(namespaces.cluster.helm, "test", "userrealtime", "--namespace", NAMESPACE, WITHIN)
    user = f"first-{RUN}"
    await asyncio.to_thread(namespaces.apply_user, user)
    await asyncio.to_thread(namespaces.wait_ready, user)
    await asyncio.to_thread(namespaces.wait_reachable, user)
    url, token = await asyncio.to_thread(lambda: (namespaces.websocket_url(user), namespaces.token(user)))
    connection = await asyncpg.connect(
        urlsplit(database_url)._replace(path=f"/{DATABASE}").geturl(), timeout=PATIENCE_S
    )
    try:
        async with ResumingClient(url, token) as client:
            await connection.execute("select userrealtime.publish($1, 'greeting', '{\"text\": \"hello\"}')", user)
            await client.wait_for_events(1)
            assert client.events[0]["data"] == {"text": "hello"}
    finally:
        await connection.close(timeout=PATIENCE_S)
    pods: list[dict[str, Any]] = []
    for name in (NAMESPACE, USERS):
        listed = await asyncio.to_thread(namespaces.cluster.kubectl, "-n", name, "get", "pods", "-o", "json")
        pods += json.loads(listed)["items"]
    pulled = {status["imageID"] for pod in pods for status in pod["status"].get("containerStatuses", ())}
    # The operator and the activator, and the relay.
    assert pulled == {
        f"{HOST}/{published.owner}/userrealtime-{name}@{digest}" for name, digest in published.images.items()
    }
