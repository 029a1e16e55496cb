"""A PostgreSQL in the cluster for the tests, as a StatefulSet in the namespace `postgres`."""

import base64
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from .addons import manifest
from .errors import ClusterError
from .progress import step
from .provider import Provider

NAMESPACE = "postgres"
SERVICE = "svc/postgres"
PORT = 5432
DATABASE = "postgres"


@dataclass(frozen=True)
class PostgresAccess:
    """How to reach the database.

    Attributes:
        url: for pods, as the superuser. Holds the password: not for logs or command lines.
    """

    url: str = field(repr=False)
    password: str = field(repr=False)
    cluster: Provider = field(repr=False)

    @contextmanager
    def from_host(self) -> Iterator[str]:
        """Yield a URL that works on this machine while the block runs."""
        with self.cluster.forward(NAMESPACE, SERVICE, PORT) as (host, port):
            yield _url(self.password, host, port)


def deploy(cluster: Provider, image: str) -> PostgresAccess:
    """Install PostgreSQL, or bring it to `image`, and wait until it answers.

    Raises:
        ClusterError: it does not become ready.
    """
    with step("PostgreSQL", usual="10 s"):
        if _namespace(cluster) == "foreign":
            raise ClusterError(f"the cluster has a namespace {NAMESPACE} that is not ours: use another cluster")
        cluster.apply(manifest("namespace.yaml", name=NAMESPACE))
        password = _password(cluster)
        cluster.apply(manifest("postgres.yaml", image=image))
        cluster.wait_rolled_out(NAMESPACE, "statefulset/postgres")
    return PostgresAccess(_url(password, f"postgres.{NAMESPACE}.svc", PORT), password, cluster)


def remove(cluster: Provider) -> None:
    """Remove PostgreSQL and its data, but not a foreign namespace of the same name."""
    if _namespace(cluster) != "ours":
        return
    with step("removing PostgreSQL"):
        cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout=180)


def _namespace(cluster: Provider) -> Literal["absent", "ours", "foreign"]:
    found = cluster.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found", "-o", "json")
    if not found:
        return "absent"
    labels = json.loads(found)["metadata"].get("labels", {})
    return "ours" if labels.get("app.kubernetes.io/managed-by") == "userrealtime-e2e" else "foreign"


def _password(cluster: Provider) -> str:
    """Return the superuser's password from the Secret, or a new one without a Secret."""
    found = cluster.kubectl("-n", NAMESPACE, "get", "secret", "postgres", "--ignore-not-found", "-o", "json")
    if found:
        return base64.b64decode(json.loads(found)["data"]["password"]).decode()
    password = secrets.token_hex(16)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "postgres", "namespace": NAMESPACE},
        "stringData": {"password": password},
    }
    # Through standard input, because other users can read a command line.
    cluster.kubectl("create", "-f", "-", input=json.dumps(secret))
    return password


def _url(password: str, host: str, port: int) -> str:
    return f"postgresql://postgres:{password}@{host}:{port}/{DATABASE}"
