"""userrealtime on a cluster: the chart, its users, and their tokens. For `make up` and the scenarios.

Blocking calls, each with a time limit; call them through `asyncio.to_thread` where something else must go on.
"""

from __future__ import annotations

import base64
import json
import time
import urllib.error
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt

from .client import http_get
from .cluster import ClusterError, Provider, images, postgres
from .cluster.postgres import PostgresAccess
from .cluster.progress import note, step
from .patience import COMMAND_TIMEOUT_S, PATIENCE_S, WITHIN

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "userrealtime"
RELEASE = "userrealtime"
OPERATOR_NAMESPACE = "userrealtime"
USERS_NAMESPACE = "users"
DATABASE_SECRET = "userrealtime-database"
TOKEN_LIFETIME_S = 12 * 3600

NAMESPACES = f"""
apiVersion: v1
kind: Namespace
metadata:
  name: {OPERATOR_NAMESPACE}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
---
apiVersion: v1
kind: Namespace
metadata:
  name: {USERS_NAMESPACE}
  labels: {{pod-security.kubernetes.io/enforce: restricted}}
"""


@dataclass(frozen=True)
class System:
    """An installed userrealtime. `values` are the values of the chart, `namespace` is that of the users."""

    cluster: Provider
    database: PostgresAccess
    values: dict[str, Any]
    namespace: str = USERS_NAMESPACE

    def apply_user(self, name: str, **spec: Any) -> None:
        """Apply a UserRealtime. The default of `userId` is the name of the resource."""
        resource = {
            "apiVersion": "userrealtime.dev/v1alpha1",
            "kind": "UserRealtime",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {"userId": name, **spec},
        }
        self.cluster.apply(json.dumps(resource))

    def delete_user(self, name: str) -> None:
        """Delete a UserRealtime and wait until it is gone."""
        self.kubectl("delete", "urt", name, "--ignore-not-found", WITHIN)

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = COMMAND_TIMEOUT_S) -> str:
        """Run kubectl in the namespace of the users."""
        return self.cluster.kubectl("-n", self.namespace, *arguments, input=input, timeout=timeout)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object of the users' namespace."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def wait_ready(self, name: str, timeout: float = PATIENCE_S) -> dict[str, Any]:
        """Wait until the resource is Ready for its current spec, and return it.

        Raises:
            ClusterError: after `timeout` seconds, with what the resource and its pod say.
        """
        deadline = time.monotonic() + timeout
        while True:
            found = self.get("urt", name)
            status = found.get("status", {})
            conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
            if (
                status.get("observedGeneration") == found["metadata"]["generation"]
                and conditions.get("Ready", {}).get("status") == "True"
                and conditions.get("Progressing", {}).get("status") == "False"
            ):
                return found
            if time.monotonic() > deadline:
                pods = self.kubectl("describe", "pods", "-l", f"app.kubernetes.io/instance={status.get('name')}")
                raise ClusterError(f"{name} is not ready after {timeout:.0f} s: {json.dumps(status, indent=2)}\n{pods}")
            time.sleep(0.2)

    def wait_reachable(self, name: str, timeout: float = PATIENCE_S) -> None:
        """Wait until the user's route leads to the pod. The ingress knows the pod shortly after it is Ready.

        Raises:
            ClusterError: after `timeout` seconds.
        """
        url = self.get("urt", name)["status"].get("url")
        deadline = time.monotonic() + timeout
        while url:
            try:
                http_get(f"{url}/poll", {}, timeout=10).close()
                return
            except urllib.error.HTTPError as error:
                with error:
                    if error.code == 401:
                        return
                    problem = f"HTTP {error.code}"
            except OSError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise ClusterError(f"{url} does not lead to the pod after {timeout:.0f} s: {problem}")
            time.sleep(0.1)

    def websocket_url(self, name: str) -> str:
        """Return the WebSocket URL of this user through the ingress."""
        url: str = self.get("urt", name)["status"]["url"]
        return url.replace("http", "ws", 1) + "/ws"

    def token(self, name: str, **claims: Any) -> str:
        """Return a token of this user, as a signup flow creates it; `claims` are added or replaced."""
        resource = self.get("urt", name)
        reference = resource["status"]["tokenSecret"]
        secret = self.get("secret", reference["name"])
        key = base64.b64decode(secret["data"][reference["key"]]).decode()
        payload = {"sub": resource["spec"]["userId"], "exp": int(time.time()) + TOKEN_LIFETIME_S, **claims}
        return jwt.encode(payload, key, algorithm="HS256")

    def may(self, account: str, verb: str, resource: str, namespace: str) -> bool:
        """Whether RBAC lets an account do something. `resource` is as in `deployments.apps` or `pods/exec`; an empty
        namespace means all of them, or the cluster's own resources."""
        plural, _, subresource = resource.partition("/")
        plural, _, group = plural.partition(".")
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": account,
                "resourceAttributes": {
                    "verb": verb,
                    "group": group,
                    "resource": plural,
                    "subresource": subresource,
                    "namespace": namespace,
                },
            },
        }
        answer = json.loads(self.cluster.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(review)))
        allowed: bool = answer["status"]["allowed"]
        return allowed

    def restart_postgres(self) -> None:
        """End the server as a crash would, and wait until its container has restarted and answers."""
        postgres = ("-n", "postgres")
        ready = "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}"
        restarts = int(self.cluster.kubectl(*postgres, "get", "pod", "postgres-0", "-o", ready).split()[0])
        self.cluster.kubectl(*postgres, "exec", "postgres-0", "--", "sh", "-c", "kill -QUIT 1")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            count, up = self.cluster.kubectl(*postgres, "get", "pod", "postgres-0", "-o", ready).split()
            if int(count) > restarts and up == "true":
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"PostgreSQL did not come back within {PATIENCE_S:.0f} s")
            time.sleep(0.2)


def values_for(cluster: Provider, references: dict[str, str]) -> dict[str, Any]:
    """Return the chart's values for a cluster and its references of the images."""

    def image(name: str) -> dict[str, str]:
        repository, _, tag = references[name].rpartition(":")
        return {"repository": repository, "tag": tag}

    ingress = urlsplit(cluster.ingress_url)
    port = f":{ingress.port}" if ingress.port else ""
    # A host that is an IP address is no valid host of an Ingress.
    host = "localhost" if ingress.hostname == "127.0.0.1" else ingress.hostname
    return {
        "database": {"existingSecret": {"name": DATABASE_SECRET}},
        # tests/security/test_parking.py has the role that an activator needs.
        "activator": {"database": {"existingSecret": {"name": DATABASE_SECRET}}},
        "namespaces": [USERS_NAMESPACE],
        "operator": {"image": image("userrealtime-operator")},
        # Images that cannot be pulled, which tests select.
        "relay": {"image": image("userrealtime-relay"), "allowedImages": ["127.0.0.1:1/*", "nowhere.invalid/*"]},
        "route": {"url": f"{ingress.scheme}://{host}{port}/{{name}}"},
        "edge": {"image": image("userrealtime-haproxy"), "ipFamily": cluster.ip_version},
    }


def install(cluster: Provider) -> System:
    """Bring up the cluster, and install or update everything on it."""
    cluster.up()
    references = images.load(cluster)
    database = postgres.deploy(cluster, references["userrealtime-postgres"])
    system = System(cluster, database, values_for(cluster, references))
    with step("userrealtime", usual="15 s", hint="check the pods of the namespace userrealtime"):
        prepare(system)
        upgrade(system, system.values)
    return system


def prepare(system: System) -> None:
    """Create the prerequisites of the chart: the namespaces, and the Secret with the database's URL."""
    system.cluster.apply(NAMESPACES)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": DATABASE_SECRET, "namespace": OPERATOR_NAMESPACE},
        "stringData": {"DATABASE_URL": system.database.url},
    }
    system.cluster.apply(json.dumps(secret))


def uninstall(cluster: Provider) -> None:
    """Remove everything that `install` has created on an existing cluster."""
    with step("removing userrealtime", usual="30 s"):
        # The users first, while the operator still runs and can clean up.
        namespaces = cluster.kubectl("get", "namespaces", "-o", "name")
        if f"namespace/{USERS_NAMESPACE}\n" in namespaces:
            cluster.kubectl("delete", "urt", "-n", USERS_NAMESPACE, "--all", WITHIN)
        release = ("--namespace", OPERATOR_NAMESPACE, "--ignore-not-found", "--wait", WITHIN)
        cluster.helm("uninstall", RELEASE, *release)
        names = (OPERATOR_NAMESPACE, USERS_NAMESPACE)
        cluster.kubectl("delete", "namespace", *names, "--ignore-not-found")


def upgrade(system: System, values: dict[str, Any], chart: Path = CHART) -> None:
    """Install the chart, or upgrade it, with these values (JSON is YAML); waits for the operator.

    A release that an interrupted helm left pending is brought back first.
    """
    try:
        _upgrade(system, values, chart)
    except ClusterError as error:
        # Helm's messages for a pending release, with or without a running helm.
        if "another operation" not in str(error) or not recover(system.cluster):
            raise
        _upgrade(system, values, chart)


def _upgrade(system: System, values: dict[str, Any], chart: Path) -> None:
    system.cluster.helm(
        *("upgrade", "--install", RELEASE, str(chart), "--namespace", OPERATOR_NAMESPACE),
        *("--values", "-", "--wait", WITHIN),
        input=json.dumps(values),
    )


def recover(cluster: Provider) -> bool:
    """End what an interrupted helm left pending; whether there was something.

    An installation is removed, and an upgrade is rolled back to the revision before it.
    """
    release = ("--namespace", OPERATOR_NAMESPACE)
    status = json.loads(cluster.helm("status", RELEASE, *release, "-o", "json"))["info"]["status"]
    if status in ("pending-install", "uninstalling"):
        cluster.helm("uninstall", RELEASE, *release, "--no-hooks", "--wait", WITHIN)
    elif status in ("pending-upgrade", "pending-rollback"):
        cluster.helm("rollback", RELEASE, *release, "--no-hooks", WITHIN)
    else:
        return False
    note(f"the release {RELEASE} was {status} after an interruption: brought back")
    return True
