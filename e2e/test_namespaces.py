"""A namespace or the CRD is missing when the operator starts, or is deleted while it works. Without nodes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from testing.cluster import ClusterError
from testing.local.apiserver import LocalApiServer
from testing.local.operator import LocalOperator
from testing.patience import WITHIN

from .test_leader import CRD, LEASE, MAY_LEAD, MAY_WORK, NAMESPACE, database_url, eventually

__all__ = ["database_url"]

OTHER = "team-b"
ACCOUNT = "operator"


@pytest.fixture
def server() -> Iterator[LocalApiServer]:
    """An API server with two namespaces and without the CRD. The operator has its permissions in each namespace."""
    with LocalApiServer() as api:
        for name, rule in {"work": MAY_WORK, "lead": MAY_LEAD}.items():
            rules = [{**rule, "resources": ["*"], "verbs": ["*"]}]
            role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}}
            api.kubectl("create", "-f", "-", input=json.dumps({**role, "rules": rules}))
        for namespace in (NAMESPACE, OTHER):
            api.kubectl("create", "namespace", namespace)
            allow(api, namespace, "work")
        allow(api, NAMESPACE, "lead")
        yield api


def allow(server: LocalApiServer, namespace: str, role: str) -> None:
    """Give the operator its permissions in a namespace."""
    server.kubectl("-n", namespace, "create", "rolebinding", role, f"--clusterrole={role}", f"--user={ACCOUNT}")


def install_crd(server: LocalApiServer) -> None:
    server.kubectl("apply", "--server-side", "-f", str(CRD))
    server.kubectl("wait", "--for=condition=Established", WITHIN, "-f", str(CRD))


def operator(server: LocalApiServer, url: str) -> LocalOperator:
    kubeconfig = server.kubeconfig_for(server.port, ACCOUNT)
    return LocalOperator(kubeconfig, url, NAMESPACE, OTHER, instance=ACCOUNT, lease=LEASE)


def apply_user(server: LocalApiServer, namespace: str, name: str) -> None:
    resource = {
        "apiVersion": "userrealtime.dev/v1alpha1",
        "kind": "UserRealtime",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"userId": name},
    }
    server.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(resource))


def is_served(server: LocalApiServer, namespace: str, name: str) -> bool:
    return f"/urt-{name}-" in server.kubectl("-n", namespace, "get", "deployments", "-o", "name")


async def test_a_namespace_without_permissions_affects_only_its_own_users(
    server: LocalApiServer, database_url: str
) -> None:
    install_crd(server)
    available = "userrealtime_operator_namespace_available"
    with operator(server, database_url) as running:
        await asyncio.to_thread(running.wait_ready)
        for name, namespace in (("early", NAMESPACE), ("other", OTHER)):
            apply_user(server, namespace, name)
            await eventually(lambda: is_served(server, namespace, name), "both are served")  # noqa: B023
        server.kubectl("-n", OTHER, "delete", "rolebinding", "work")
        for name in ("running", "restarted"):
            apply_user(server, OTHER, f"waiting-{name}")
            apply_user(server, NAMESPACE, f"meanwhile-{name}")
            await eventually(lambda: is_served(server, NAMESPACE, f"meanwhile-{name}"), "the other is served")  # noqa: B023
            if name == "running":
                await asyncio.to_thread(running.stop)
                running.start()
                await asyncio.to_thread(running.wait_ready)
        assert running.metric(available, served_namespace=OTHER) == 0
        assert running.metric(available, served_namespace=NAMESPACE) == 1
        assert not is_served(server, OTHER, "waiting-restarted")
        pid = running.pid
        await asyncio.to_thread(allow, server, OTHER, "work")
        for name in ("running", "restarted"):
            await eventually(lambda: is_served(server, OTHER, f"waiting-{name}"), "it is served again")  # noqa: B023
        await eventually(lambda: running.metric(available, served_namespace=OTHER) == 1, "the metric shows it")
        assert running.process is not None
        assert (running.pid, running.process.poll()) == (pid, None)


async def test_a_crd_that_comes_late_or_is_replaced_is_detected(server: LocalApiServer, database_url: str) -> None:
    with operator(server, database_url) as running:

        def waits() -> bool:
            return "waiting for it" in running.log.read_text()

        await eventually(waits, "the operator waits for the CRD")
        with pytest.raises(ClusterError, match="not ready"):
            await asyncio.to_thread(running.wait_ready, 1.0)
        await asyncio.to_thread(install_crd, server)
        apply_user(server, NAMESPACE, "first")
        taken = await eventually(lambda: is_served(server, NAMESPACE, "first"), "a user is served")
        print(f"\nthe CRD installed late: a user was served after {taken:.1f} s")

        await asyncio.to_thread(server.kubectl, "delete", "-f", str(CRD), WITHIN)
        assert running.process is not None
        # The process ends, and the kubelet starts it again.
        await asyncio.to_thread(running.process.wait, 60)
        running.start()
        await asyncio.to_thread(install_crd, server)
        apply_user(server, NAMESPACE, "second")
        taken = await eventually(lambda: is_served(server, NAMESPACE, "second"), "a user is served again")
        print(f"the CRD deleted and installed again: a user was served after {taken:.1f} s")
