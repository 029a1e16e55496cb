"""Client of the Kubernetes API: raw objects, server-side apply, no cache.

Authentication, connection pool and TLS come from `kubernetes.aio`. Its typed models are not used, because the operator
works with the JSON of the objects.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote
from urllib.request import getproxies

import aiohttp
from kubernetes.aio.client.api_client import ApiClient, RequestSerialized
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from userrealtime_core.trust import kept_current

from .types import FIELD_MANAGER, Object, ResourceType, TryLater

REQUEST_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 10.0
MAX_RETRY_AFTER_S = 60.0
PAGE = 100
"""The objects of a page of a list, as long as pages are small."""
MAX_PAGE_BYTES = 4 << 20
"""The size of a page with several objects. A larger one is not read to its end, and is requested with fewer objects."""
# A watch without an event for this long is broken, because the API server sends a bookmark every minute: its server may
# have died without closing the connection.
SILENCE_S = 120.0

PODS = ResourceType("v1", "pods")
LEASES = ResourceType("coordination.k8s.io/v1", "leases")
CLUSTER = "userrealtime.dev/cluster"
"""The annotation of the Lease with the identity of the cluster."""
LEASE_UID = "userrealtime.dev/lease-uid"
"""The annotation with the uid of the Lease. It invalidates the identity in a copy of the Lease in another cluster."""

# Requests a list that contains only the metadata of each object.
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"

Observer = Callable[[str, str, int, float], None]
"""Called after every request with the method, the resource, the HTTP status (0 without a response) and the seconds."""

# The kinds that the operator creates, each with its API version and plural.
CHILD_KINDS = {
    "Secret": ResourceType("v1", "secrets"),
    "Service": ResourceType("v1", "services"),
    "EndpointSlice": ResourceType("discovery.k8s.io/v1", "endpointslices"),
    "Deployment": ResourceType("apps/v1", "deployments"),
    "Ingress": ResourceType("networking.k8s.io/v1", "ingresses"),
    "HTTPRoute": ResourceType("gateway.networking.k8s.io/v1", "httproutes"),
    "PodDisruptionBudget": ResourceType("policy/v1", "poddisruptionbudgets"),
}


Labels = Mapping[str, str]


class ApiError(TryLater):
    """The API server rejected a request or did not respond.

    `status` is the HTTP status, 0 without a response. `after_s` is the `Retry-After` of an overloaded server.
    """

    def __init__(self, status: int, message: str, after_s: float = 0.0) -> None:
        super().__init__(message, after_s)
        self.status = status


def _path(api_version: str, plural: str, namespace: str, *rest: str) -> str:
    root = "/api" if "/" not in api_version else "/apis"
    parts = (api_version, "namespaces", quote(namespace, safe=""), plural, *(quote(part, safe="") for part in rest))
    return f"{root}/{'/'.join(parts)}"


def _selecting(labels: Labels) -> str:
    text = ",".join(f"{name}={value}" for name, value in labels.items())
    return f"&labelSelector={quote(text, safe='')}" if text else ""


def _resource(path: str) -> str:
    """Return the resource of a path, with its subresource: `deployments`, `userrealtimes/status`."""
    _, found, rest = path.partition("?")[0].partition("/namespaces/")
    parts = rest.split("/")[1:]
    return "/".join(parts[:1] + parts[2:]) if found else "discovery"


class Api:
    """One connection pool to the API server. An async context manager.

    `cluster` identifies this cluster. Its initial value is a digest of the certificate authority of the API server,
    which is readable without any permission. The digest changes when the authority is rotated, so the operator stores
    the first value in its Lease and uses it from then on (`known_cluster`).

    Args:
        observe: called after every request.
        on_stored: called with each child and UserRealtime that was written, as the API server returned it.
        may_write: returns the seconds within which a write that starts now must end; with 0, no write starts.
    """

    def __init__(
        self,
        configuration: Configuration,
        observe: Observer | None = None,
        *,
        on_stored: Callable[[Object], None] | None = None,
        may_write: Callable[[], float] | None = None,
    ) -> None:
        self._observe = observe
        self._page_size = PAGE
        self._on_stored = on_stored or (lambda _item: None)
        self._may_write = may_write or (lambda: REQUEST_TIMEOUT_S)
        # Reading the environment takes a thread for each request, so it is read only if a proxy is configured.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        # As in userrealtime_core.trust, for the contexts that are not created by this client.
        configuration.disable_strict_ssl_verification = True
        self._client = ApiClient(configuration)
        authority = configuration.ssl_ca_cert
        if authority:
            kept_current(self._client.rest_client.ssl_context, authority)
        identity = Path(authority).read_bytes() if authority else configuration.host.encode()
        self.cluster = hashlib.sha256(identity).hexdigest()[:32]

    @classmethod
    async def connect(
        cls,
        observe: Observer | None = None,
        connections: int = 100,
        *,
        on_stored: Callable[[Object], None] | None = None,
        may_write: Callable[[], float] | None = None,
    ) -> Self:
        """Return a client that uses the pod's service account or, outside a cluster, the current user's kubeconfig.

        `connections` is the size of the connection pool. An open watch occupies one connection.

        Raises:
            ApiError: there is neither a service account nor a usable kubeconfig.
        """
        configuration = Configuration(connection_pool_maxsize=connections)
        try:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        except ConfigException:
            try:
                await load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            except ConfigException as error:
                raise ApiError(0, f"no service account and no usable kubeconfig: {error}") from None
        return cls(configuration, observe, on_stored=on_stored, may_write=may_write)

    def scope(self, namespace: str) -> str:
        """Return a name for a namespace that is unique among the clusters that share a database."""
        return f"{self.cluster}/{namespace}"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def apply(self, item: Object) -> Object:
        """Apply an object with server-side apply and return it as stored. Conflicting fields are taken over."""
        metadata = item["metadata"]
        path = _path(*CHILD_KINDS[item["kind"]], metadata["namespace"], metadata["name"])
        query = f"?fieldManager={FIELD_MANAGER}&force=true"
        # The server parses this as YAML, which does not support JSON's surrogate pairs, so no character is escaped.
        # With the charset in the content type, the client sends the text unchanged instead of encoding it as JSON.
        text = json.dumps(item, ensure_ascii=False)
        return self._noted(
            await self._request("PATCH", path + query, text, "application/apply-patch+yaml; charset=utf-8")
        )

    async def create(self, item: Object) -> Object:
        """Create a child and return it as stored.

        Raises:
            ApiError: with status 409 if the child exists.
        """
        metadata = item["metadata"]
        path = _path(*CHILD_KINDS[item["kind"]], metadata["namespace"])
        return self._noted(await self._request("POST", f"{path}?fieldManager={FIELD_MANAGER}", item))

    async def replace(self, item: Object) -> Object:
        """Replace a child and return it as stored.

        Raises:
            ApiError: with status 409 if the child has another resourceVersion than `metadata.resourceVersion`.
        """
        metadata = item["metadata"]
        path = _path(*CHILD_KINDS[item["kind"]], metadata["namespace"], metadata["name"])
        return self._noted(await self._request("PUT", f"{path}?fieldManager={FIELD_MANAGER}", item))

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return a child as the API server has it, None if it does not exist."""
        return await self._find(_path(*CHILD_KINDS[kind], namespace, name))

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete a child. Do nothing if it does not exist."""
        try:
            await self._request("DELETE", _path(*CHILD_KINDS[kind], namespace, name))
        except ApiError as error:
            if error.status != 404:
                raise

    async def merge_status(self, api_version: str, plural: str, namespace: str, name: str, patch: Object) -> Object:
        """Merge `patch` into an object through its subresource `status`, and return the object as stored.

        A `metadata.resourceVersion` in the patch makes the write conditional.

        Raises:
            ApiError: for example with status 409 if the object has another resourceVersion.
        """
        path = _path(api_version, plural, namespace, name, "status")
        return self._noted(await self._request("PATCH", path, patch, "application/merge-patch+json"))

    async def page(self, api_version: str, plural: str, namespace: str, selector: Labels, token: str = "") -> Object:
        """Return a page of the objects of a kind with these labels.

        `token` is `metadata.continue` of the previous page, empty for the first page. The objects contain neither
        `kind` nor `apiVersion`.

        Raises:
            ApiError: with status 410 if the token has expired: list again from the first page.
        """
        return await self._page(_path(api_version, plural, namespace), _selecting(selector), token)

    async def watch(
        self, api_version: str, plural: str, namespace: str, selector: Labels, version: str, limit_s: int
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """Yield the type and the object of each event of a kind after a resourceVersion.

        Types are ADDED, MODIFIED, DELETED and BOOKMARK. The API server ends the watch after `limit_s` seconds.

        Raises:
            ApiError: with status 410 if the resourceVersion has expired: list again.
        """
        query = f"?watch=1&allowWatchBookmarks=true&timeoutSeconds={limit_s}&resourceVersion={quote(version, safe='')}"
        path = _path(api_version, plural, namespace) + query + _selecting(selector)
        request = await self._serialized("GET", path, None, "application/json", "application/json")
        limit = aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S)
        try:
            answer = (await self._client.call_api(*request, _request_timeout=limit)).response
            try:
                if answer.status >= 400:
                    raise _error(answer, _parsed(await answer.read()))
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        said = event["object"]
                        raise ApiError(said.get("code") or 500, said.get("message") or "no reason")
                    yield event["type"], event["object"]
            finally:
                # Abort without the TLS shutdown, which continues in the background and may never be answered.
                if answer.connection is not None and answer.connection.transport is not None:
                    answer.connection.transport.abort()
                answer.close()
        except (OSError, aiohttp.ClientError, ValueError) as error:  # ValueError: the last line is incomplete
            raise ApiError(0, f"the watch failed: {error or type(error).__name__}") from None

    async def pods(self, namespace: str, name: str) -> list[Object]:
        """Return the pods of the user whose objects have this name, from the API server's cache."""
        selector = quote(f"app.kubernetes.io/instance={name}", safe="")
        found = await self._request("GET", f"{_path(*PODS, namespace)}?labelSelector={selector}&resourceVersion=0")
        return list(found["items"] or ())

    async def endpoint_slices(self, namespace: str, service: str) -> list[Object]:
        """Return the EndpointSlices of a Service, from the API server's cache."""
        selector = quote(f"kubernetes.io/service-name={service}", safe="")
        found = await self._request(
            "GET", f"{_path(*CHILD_KINDS['EndpointSlice'], namespace)}?labelSelector={selector}&resourceVersion=0"
        )
        return list(found["items"] or ())

    async def create_event(self, namespace: str, event: Object) -> None:
        """Create an Event (events.k8s.io/v1)."""
        await self._request("POST", _path("events.k8s.io/v1", "events", namespace), event)

    async def uids(self, api_version: str, plural: str, namespace: str) -> set[str]:
        """Return the uids of all objects of a kind in a namespace, read from the API server's storage."""
        uids: set[str] = set()
        token: str | None = ""
        while token is not None:
            page = await self._page(_path(api_version, plural, namespace), "", token, _METADATA_LIST)
            uids |= {item["metadata"]["uid"] for item in page["items"] or ()}  # null in an empty list
            token = page["metadata"].get("continue") or None
        return uids

    async def get_lease(self, namespace: str, name: str) -> Object | None:
        """Return a Lease as the API server has it, None if it does not exist."""
        return await self._find(_path(*LEASES, namespace, name))

    async def known_cluster(self, namespace: str, name: str) -> str:
        """Return the identity of the cluster that is stored in a Lease, or `cluster` if the Lease has none."""
        return _identity(await self.get_lease(namespace, name)) or self.cluster

    async def put_lease(self, namespace: str, name: str, previous: Object | None, spec: Object) -> Object:
        """Create a Lease, or replace `previous`, and return it as stored.

        Raises:
            ApiError: with status 409 if another client has changed the Lease since.
        """
        api_version, plural = LEASES
        version = {} if previous is None else {"resourceVersion": previous["metadata"]["resourceVersion"]}
        # Keep the labels and annotations of other writers.
        metadata = {} if previous is None else previous["metadata"]
        annotations = dict(metadata.get("annotations", {}))
        if previous is not None:  # a new one has no uid yet
            annotations |= {CLUSTER: _identity(previous) or self.cluster, LEASE_UID: metadata["uid"]}
        kept = {"labels": metadata.get("labels", {}), "annotations": annotations}
        lease = {
            "apiVersion": api_version,
            "kind": "Lease",
            "metadata": {"name": name, "namespace": namespace, **kept, **version},
            "spec": spec,
        }
        method, rest = ("POST", ()) if previous is None else ("PUT", (name,))
        return await self._request(method, _path(api_version, plural, namespace, *rest), lease)

    async def child_kinds(self) -> dict[str, ResourceType]:
        """Return the entries of CHILD_KINDS that this cluster serves. The Gateway API may be missing."""
        return {kind: found for kind, found in CHILD_KINDS.items() if await self.has_kind(*found)}

    async def has_kind(self, api_version: str, plural: str) -> bool:
        """Return whether this cluster serves a kind."""
        found = await self._find(f"/{'apis' if '/' in api_version else 'api'}/{api_version}")
        return found is not None and plural in {resource["name"] for resource in found["resources"]}

    def _noted(self, item: Object) -> Object:
        self._on_stored(item)
        return item

    async def _page(self, path: str, query: str, token: str, accept: str = "application/json") -> Object:
        token = f"&continue={quote(token, safe='')}" if token else ""
        while True:
            size = self._page_size
            most = MAX_PAGE_BYTES if size > 1 else None
            try:
                page = await self._request("GET", f"{path}?limit={size}{query}{token}", accept=accept, most=most)
            except _TooLarge:
                self._page_size = max(1, min(self._page_size, size // 4))
                continue
            # The sizes of the next objects are unknown, so the size grows again step by step.
            self._page_size = min(PAGE, max(self._page_size, 2 * size))
            return page

    async def _find(self, path: str) -> Object | None:
        """Return the object at a path, None if it does not exist."""
        try:
            return await self._request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | str | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        most: int | None = None,
    ) -> Object:
        limit = REQUEST_TIMEOUT_S
        if method != "GET":
            limit = min(limit, self._may_write())
            if limit <= 0:
                raise ApiError(0, "the write was not sent, because this operator does not hold the lease")
        started = time.perf_counter()
        status = 0
        try:
            response, answer = await self._exchange(method, path, body, content_type, accept, limit, most)
            status = response.status
        finally:
            if self._observe is not None:
                self._observe(method, _resource(path), status, time.perf_counter() - started)
        if status >= 400:
            raise _error(response, answer)
        return answer

    async def _exchange(
        self,
        method: str,
        path: str,
        body: Object | str | None,
        content_type: str,
        accept: str,
        limit: float,
        most: int | None,
    ) -> tuple[aiohttp.ClientResponse, Object]:
        request = await self._serialized(method, path, body, content_type, accept)
        try:
            # The client's own timeout does not cover the body of the response.
            async with asyncio.timeout(limit):
                response = (await self._client.call_api(*request, _request_timeout=limit)).response
                content = await response.read() if most is None else await _read(response, most)
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(0, f"no answer from the API server: {error or type(error).__name__}") from None
        return response, _parsed(content)

    async def _serialized(
        self, method: str, path: str, body: Object | str | None, content_type: str, accept: str
    ) -> RequestSerialized:
        headers = {"Accept": accept, "Content-Type": content_type}
        return await self._client.param_serialize(
            method, path, query_params=[], header_params=headers, body=body, auth_settings=["BearerToken"]
        )


class _TooLarge(Exception):
    """A response exceeds the limit of its request."""


async def _read(response: aiohttp.ClientResponse, most: int) -> bytes:
    """Return the body of a response.

    Raises:
        _TooLarge: it is larger than `most`. The rest is not read.
    """
    content = bytearray()
    async for piece in response.content.iter_any():
        content += piece
        if len(content) > most:
            response.close()
            raise _TooLarge
    return bytes(content)


def _identity(lease: Object | None) -> str | None:
    """Return the identity of the cluster in a Lease, None if it has none or was copied from another cluster."""
    metadata = {} if lease is None else lease["metadata"]
    annotations = metadata.get("annotations", {})
    found: str | None = annotations.get(CLUSTER)
    return found if annotations.get(LEASE_UID) == metadata.get("uid") else None


def _parsed(content: bytes) -> Object:
    try:
        answer: Object = json.loads(content) if content else {}
    except ValueError:  # a proxy's page, or the plain text of an overloaded server
        answer = {"message": content[:200].decode(errors="replace").strip()}
    return answer


def _error(response: aiohttp.ClientResponse, answer: Object) -> ApiError:
    after = response.headers.get("Retry-After", "")
    # The API server sends seconds. A date, which HTTP also allows, is ignored: the caller's backoff applies.
    after_s = min(float(after), MAX_RETRY_AFTER_S) if after.isdecimal() else 0.0
    return ApiError(response.status, answer.get("message") or f"HTTP {response.status}", after_s)
