"""The Kubernetes API, as the operator uses it: raw objects, server-side apply, nothing cached.

Authentication, connection pool and TLS are those of `kubernetes.aio`; its typed models are not used, since objects
go through as they are.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from .desired import MANAGER, Object
from .resource import API_VERSION, PLURAL

REQUEST_TIMEOUT_S = 30

# The kinds that the operator makes, each with its API version and plural.
CHILD_KINDS = {
    "Secret": ("v1", "secrets"),
    "Service": ("v1", "services"),
    "Deployment": ("apps/v1", "deployments"),
    "Ingress": ("networking.k8s.io/v1", "ingresses"),
    "HTTPRoute": ("gateway.networking.k8s.io/v1", "httproutes"),
}


class ApiError(RuntimeError):
    """The API server refused a request or did not answer. `status` is the HTTP status, 0 without an answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def _path(api_version: str, plural: str, namespace: str, *rest: str) -> str:
    root = "/api" if "/" not in api_version else "/apis"
    parts = (api_version, "namespaces", quote(namespace, safe=""), plural, *(quote(part, safe="") for part in rest))
    return f"{root}/{'/'.join(parts)}"


class Api:
    """One connection pool to the API server. An async context manager.

    `cluster` tells this cluster from others: a digest of the certificate authority of its API server, which can be
    known without any right. A cluster with a new authority counts as another one.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._client = ApiClient(configuration)
        authority = configuration.ssl_ca_cert
        identity = Path(authority).read_bytes() if authority else configuration.host.encode()
        self.cluster = hashlib.sha256(identity).hexdigest()[:32]

    @classmethod
    async def connect(cls) -> Self:
        """From the pod's service account, or from the kubeconfig of whoever runs this outside a cluster.

        Raises:
            ApiError: neither is there.
        """
        configuration = Configuration()
        try:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        except ConfigException:
            try:
                await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            except ConfigException as error:
                raise ApiError(0, f"no service account and no usable kubeconfig: {error}") from None
        return cls(configuration)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def apply(self, item: Object) -> Object:
        """Server-side apply, taking over fields that others have changed; gives the object as stored."""
        metadata = item["metadata"]
        path = _path(*CHILD_KINDS[item["kind"]], metadata["namespace"], metadata["name"])
        query = f"?fieldManager={MANAGER}&force=true"
        # Read as YAML, which does not know JSON's escapes beyond 16 bits: so no character is escaped. The charset is
        # there for the client, which would encode a body of the bare type itself.
        text = json.dumps(item, ensure_ascii=False)
        return await self._request("PATCH", path + query, text, "application/apply-patch+yaml; charset=utf-8")

    async def create(self, item: Object) -> Object:
        """Make a child that is not there yet; ApiError with status 409 if it is."""
        metadata = item["metadata"]
        path = _path(*CHILD_KINDS[item["kind"]], metadata["namespace"])
        return await self._request("POST", f"{path}?fieldManager={MANAGER}", item)

    async def replace(self, item: Object) -> Object:
        """Replace a child; ApiError with status 409 if it is no longer the one of `metadata.resourceVersion`."""
        metadata = item["metadata"]
        path = _path(*CHILD_KINDS[item["kind"]], metadata["namespace"], metadata["name"])
        return await self._request("PUT", f"{path}?fieldManager={MANAGER}", item)

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """A child as it is now, None where there is none."""
        try:
            return await self._request("GET", _path(*CHILD_KINDS[kind], namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete a child; one that is not there is deleted already."""
        try:
            await self._request("DELETE", _path(*CHILD_KINDS[kind], namespace, name))
        except ApiError as error:
            if error.status != 404:
                raise

    async def patch_status(self, namespace: str, name: str, status: Object) -> None:
        """Replace the named fields of a UserRealtime's status; a resource that is gone needs none."""
        path = _path(API_VERSION, PLURAL, namespace, name, "status")
        try:
            await self._request("PATCH", path, {"status": status}, "application/merge-patch+json")
        except ApiError as error:
            if error.status != 404:
                raise

    async def pods(self, namespace: str, name: str) -> list[Object]:
        """The pods of the user whose objects have this name, as the API server's cache has them."""
        selector = quote(f"app.kubernetes.io/instance={name}", safe="")
        found = await self._request(
            "GET", f"{_path('v1', 'pods', namespace)}?labelSelector={selector}&resourceVersion=0"
        )
        return list(found["items"] or ())

    async def create_event(self, namespace: str, event: Object) -> None:
        """Note an Event (events.k8s.io/v1)."""
        await self._request("POST", _path("events.k8s.io/v1", "events", namespace), event)

    async def resource_uids(self, namespace: str) -> set[str]:
        """The uids of all UserRealtimes of a namespace, straight from the API server."""
        accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
        found = await self._request("GET", _path(API_VERSION, PLURAL, namespace), accept=accept)
        return {item["metadata"]["uid"] for item in found["items"] or ()}  # null where there is none

    async def child_kinds(self) -> dict[str, tuple[str, str]]:
        """Those of CHILD_KINDS that this cluster has: not every one has the Gateway API."""
        kinds = {}
        for kind, (api_version, plural) in CHILD_KINDS.items():
            try:
                found = await self._request("GET", f"/{'apis' if '/' in api_version else 'api'}/{api_version}")
            except ApiError as error:
                if error.status != 404:
                    raise
                continue
            if plural in {resource["name"] for resource in found["resources"]}:
                kinds[kind] = (api_version, plural)
        return kinds

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | str | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        headers = {"Accept": accept, "Content-Type": content_type}
        request = await self._client.param_serialize(
            method, path, query_params=[], header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            response = await self._client.call_api(*request, _request_timeout=REQUEST_TIMEOUT_S)
            content = await response.read()  # type: ignore[no-untyped-call]
        except (OSError, TimeoutError) as error:  # aiohttp's connection errors are OSErrors
            raise ApiError(0, f"no answer from the API server: {error or type(error).__name__}") from None
        answer: Any = json.loads(content) if content else {}
        if response.status >= 400:
            raise ApiError(response.status, answer.get("message") or f"HTTP {response.status}")
        result: Object = answer
        return result
