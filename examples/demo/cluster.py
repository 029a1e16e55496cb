"""The demo's operations in Kubernetes: create users, sign their tokens, watch and delete their pods."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt
from kubernetes.aio import client, config, watch

from .view import Object

RESOURCE: dict[str, Any] = {"group": "userrealtime.dev", "version": "v1alpha1", "plural": "userrealtimes"}
MERGE_PATCH = "application/merge-patch+json"
REQUEST_TIMEOUT_S = 10
# Short: an open page shows the renewal, and a copied token soon expires.
TOKEN_LIFETIME_S = 300
WATCH_S = 240
RETRY_S = 2.0
# The shortest grace period of the kubelet. It is too short for a graceful shutdown.
KILL_GRACE_S = 1
SOON = "3s"

_logger = logging.getLogger(__name__)


class ClusterError(Exception):
    """The API server rejected a request or did not answer. The message is shown on the page."""


class Cluster:
    """The users of one namespace. Each user has the name of their resource."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._api = api
        self._resources = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)
        self._namespace = namespace

    @classmethod
    @asynccontextmanager
    async def connect(cls, namespace: str) -> AsyncIterator[Cluster]:
        """Connect with the service account of the pod, or with the current kubeconfig outside of a cluster."""
        configuration = client.Configuration()
        try:
            config.load_incluster_config(configuration)
        except config.ConfigException:
            await config.load_kube_config(client_configuration=configuration)
        # The authorities of Amazon EKS and others lack extensions that Python 3.13 and later demand by default.
        configuration.disable_strict_ssl_verification = True
        async with client.ApiClient(configuration) as api:
            yield cls(api, namespace)

    async def provision(self, user: str) -> None:
        """Create the user's resource, if it does not exist."""
        body = {
            "apiVersion": "userrealtime.dev/v1alpha1",
            "kind": "UserRealtime",
            "metadata": {"name": user},
            "spec": {"userId": user},
        }
        async with _explained():
            try:
                await self._resources.create_namespaced_custom_object(
                    **RESOURCE,
                    namespace=self._namespace,
                    body=body,
                    field_validation="Strict",
                    _request_timeout=REQUEST_TIMEOUT_S,
                )
            except client.ApiException as error:
                if error.status != 409:
                    raise
        if (await self._resource(user))["spec"]["userId"] != user:
            raise ClusterError(f"the resource {user} belongs to another user")

    async def token(self, user: str) -> Object:
        """Return what the user's client needs to connect: `url`, `token`, and `expiresIn` in seconds."""
        resource = await self._resource(user)
        status = resource.get("status", {})
        if "url" not in status or "tokenSecret" not in status:
            raise ClusterError(f"{user} has no URL or no key yet: check that the operator is running")
        reference = status["tokenSecret"]
        async with _explained():
            secret = await self._core.read_namespaced_secret(
                reference["name"], self._namespace, _request_timeout=REQUEST_TIMEOUT_S
            )
        encoded = (secret.data or {}).get(reference["key"])
        if encoded is None:
            raise ClusterError(f"the Secret of {user} has no key: check that the operator is running")
        key = base64.b64decode(encoded)
        # Without `iat`: a relay rejects it if the clock of this machine is ahead.
        claims = {"sub": resource["spec"]["userId"], "exp": int(time.time()) + TOKEN_LIFETIME_S}
        token = jwt.encode(claims, key, algorithm="HS256")
        return {"url": status["url"], "token": token, "expiresIn": TOKEN_LIFETIME_S}

    async def kill(self, user: str) -> int:
        """Delete the user's pods with the shortest grace period, and return their number."""
        async with _explained():
            names = await self._pod_names(user)
            for name in names:
                try:
                    await self._core.delete_namespaced_pod(
                        name,
                        self._namespace,
                        grace_period_seconds=KILL_GRACE_S,
                        _request_timeout=REQUEST_TIMEOUT_S,
                    )
                except client.ApiException as error:
                    if error.status != 404:
                        raise
            return len(names)

    async def sleep(self, user: str) -> None:
        """Put the user's pod to sleep soon after the last client has disconnected."""
        await self._set_idle(user, {"after": SOON})

    async def wake(self, user: str) -> None:
        """Restore the operator's own setting for sleep. The next connection wakes the pod."""
        await self._set_idle(user, None)

    async def follow_resource(self, user: str, changed: Callable[[Object | None], Awaitable[None]]) -> None:
        """Call `changed` with the user's resource or None, now and after each change. Never ends."""
        select = {**RESOURCE, "namespace": self._namespace, "field_selector": f"metadata.name={user}"}
        await self._follow(
            self._resources.list_namespaced_custom_object, select, lambda found: changed(next(iter(found), None))
        )

    async def follow_pods(self, name: str, changed: Callable[[list[Object]], Awaitable[None]]) -> None:
        """Call `changed` with the user's pods in the same way. `name` is the resource's `status.name`."""
        select = {"namespace": self._namespace, "label_selector": _of(name)}
        await self._follow(self._core.list_namespaced_pod, select, changed)

    async def _resource(self, user: str) -> Object:
        async with _explained():
            found: Any = await self._resources.get_namespaced_custom_object(
                **RESOURCE, namespace=self._namespace, name=user, _request_timeout=REQUEST_TIMEOUT_S
            )
        resource: Object = found
        return resource

    async def _pod_names(self, user: str) -> list[str]:
        name = (await self._resource(user)).get("status", {}).get("name")
        if name is None:
            raise ClusterError(f"{user} has no pod yet: check that the operator is running")
        found = await self._core.list_namespaced_pod(
            self._namespace, label_selector=_of(name), _request_timeout=REQUEST_TIMEOUT_S
        )
        return [pod.metadata.name for pod in found.items if pod.metadata and pod.metadata.name]

    async def _set_idle(self, user: str, idle: Object | None) -> None:
        async with _explained():
            await self._resources.patch_namespaced_custom_object(
                **RESOURCE,
                namespace=self._namespace,
                name=user,
                body={"spec": {"idle": idle}},
                field_validation="Strict",
                _content_type=MERGE_PATCH,
                _request_timeout=REQUEST_TIMEOUT_S,
            )

    async def _follow(
        self,
        list_objects: Callable[..., Any],
        select: dict[str, Any],
        changed: Callable[[list[Object]], Awaitable[None]],
    ) -> None:
        """List, then watch from the version of the list. List again after the watch ends or fails."""
        while True:
            try:
                # Objects as dictionaries, also of kinds for which the client has no class.
                listing = self._api.sanitize_for_serialization(
                    await list_objects(**select, _request_timeout=REQUEST_TIMEOUT_S)
                )
                found = {item["metadata"]["uid"]: item for item in listing["items"]}
                await changed([*found.values()])
                async with watch.Watch().stream(
                    list_objects,
                    **select,
                    resource_version=listing["metadata"]["resourceVersion"],
                    timeout_seconds=WATCH_S,
                    _request_timeout=WATCH_S + REQUEST_TIMEOUT_S,
                ) as events:
                    async for event in events:
                        if isinstance(event, str):
                            break  # an incomplete line: the connection has ended
                        item = event["raw_object"]
                        found[item["metadata"]["uid"]] = item
                        if event["type"] == "DELETED":
                            del found[item["metadata"]["uid"]]
                        await changed([*found.values()])
            except client.ApiException as error:
                if error.status != 410:  # the version of the list has expired: list again
                    _logger.warning("a watch failed, and starts again in %s s: %s", RETRY_S, _message(error))
                await asyncio.sleep(RETRY_S)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                _logger.warning("a watch failed, and starts again in %s s: %s", RETRY_S, error or type(error).__name__)
                await asyncio.sleep(RETRY_S)


def _of(name: str) -> str:
    return f"app.kubernetes.io/instance={name}"


@asynccontextmanager
async def _explained() -> AsyncIterator[None]:
    """Convert errors of the Kubernetes client to ClusterError."""
    try:
        yield
    except client.ApiException as error:
        raise ClusterError(_message(error)) from None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise ClusterError(f"no answer from the API server: {error or type(error).__name__}") from None


def _message(error: client.ApiException) -> str:
    """Return the message of the API server."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {error.status} {error.reason}"
