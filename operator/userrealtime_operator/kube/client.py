"""The Kubernetes API, as the operator uses it: raw objects, server-side apply, nothing cached.

Authentication, connection pool and TLS are those of `kubernetes.aio`; its typed models are not used, since objects
go through as they are.
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
# A watch on which nothing comes for so long, not even the bookmark that comes every minute, is broken: its server may
# have died without a word.
SILENCE_S = 120.0

PODS = ResourceType("v1", "pods")
LEASES = ResourceType("coordination.k8s.io/v1", "leases")
CLUSTER = "userrealtime.dev/cluster"
"""The annotation of the Lease with the identity of the cluster."""
LEASE_UID = "userrealtime.dev/lease-uid"
"""The annotation with the uid of the Lease, so that a copy of it in another cluster is no proof of the identity."""

# Of each object of a list, no more than its metadata.
_METADATA_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"

Observer = Callable[[str, str, int, float], None]
"""Told of every request: its method, resource, HTTP status (0 without an answer) and seconds."""

# The kinds that the operator makes, each with its API version and plural.
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
    """The API server refused a request or did not answer. `status` is the HTTP status, 0 without an answer; `after_s`
    is for how many seconds a server that is overloaded asks to be left alone."""

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
    """The resource that a path is about, subresource included: `deployments`, `userrealtimes/status`."""
    _, found, rest = path.partition("?")[0].partition("/namespaces/")
    parts = rest.split("/")[1:]
    return "/".join(parts[:1] + parts[2:]) if found else "discovery"


class Api:
    """One connection pool to the API server. An async context manager.

    `cluster` tells this cluster from others. At first it is a digest of the certificate authority of its API server,
    which can be known without any permission. That changes when the authority is rotated, so the operator writes its
    first one to its Lease, and keeps to it (`known_cluster`).

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
        self._on_stored = on_stored or (lambda _item: None)
        self._may_write = may_write or (lambda: REQUEST_TIMEOUT_S)
        # Without a proxy there is nothing in the environment to look up, which would take a thread for each request.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        # As userrealtime_core.trust has it for the contexts that are not made by this client.
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
        """From the pod's service account, or from the kubeconfig of whoever runs this outside a cluster.

        `connections` is how many there may be at once; a watch holds one as long as it lasts.

        Raises:
            ApiError: neither is there.
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
        """A namespace of this cluster, told from those of other clusters that share a database."""
        return f"{self.cluster}/{namespace}"

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
        query = f"?fieldManager={FIELD_MANAGER}&force=true"
        # Read as YAML, which does not know JSON's escapes beyond 16 bits: so no character is escaped. The charset is
        # there for the client, which would encode a body of the bare type itself.
        text = json.dumps(item, ensure_ascii=False)
        return self._noted(
            await self._request("PATCH", path + query, text, "application/apply-patch+yaml; charset=utf-8")
        )

    async def create(self, item: Object) -> Object:
        """Make a child that is not there yet; ApiError with status 409 if it is."""
        metadata = item["metadata"]
        path = _path(*CHILD_KINDS[item["kind"]], metadata["namespace"])
        return self._noted(await self._request("POST", f"{path}?fieldManager={FIELD_MANAGER}", item))

    async def replace(self, item: Object) -> Object:
        """Replace a child; ApiError with status 409 if it is no longer the one of `metadata.resourceVersion`."""
        metadata = item["metadata"]
        path = _path(*CHILD_KINDS[item["kind"]], metadata["namespace"], metadata["name"])
        return self._noted(await self._request("PUT", f"{path}?fieldManager={FIELD_MANAGER}", item))

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """A child as it is now, None where there is none."""
        return await self._find(_path(*CHILD_KINDS[kind], namespace, name))

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete a child; one that is not there is deleted already."""
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
        """A page of the list of a kind with these labels: the first, or the one that `metadata.continue` of another
        page names. The objects do not say of what kind they are.

        Raises:
            ApiError: with status 410 where that took too long; the list begins anew then.
        """
        return await self._page(_path(api_version, plural, namespace), _selecting(selector), token)

    async def watch(
        self, api_version: str, plural: str, namespace: str, selector: Labels, version: str, limit_s: int
    ) -> AsyncGenerator[tuple[str, Object], None]:
        """What happens to the objects of a kind after a resourceVersion: the type of each event, and the object.

        Types are ADDED, MODIFIED, DELETED and BOOKMARK. Ends by itself after `limit_s` seconds.

        Raises:
            ApiError: with status 410 if what has happened since is not known any more: list again.
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
                # Not with a farewell of TLS, which would go on behind our back and may never be answered.
                if answer.connection is not None and answer.connection.transport is not None:
                    answer.connection.transport.abort()
                answer.close()
        except (OSError, aiohttp.ClientError, ValueError) as error:  # ValueError: of half a line
            raise ApiError(0, f"the watch failed: {error or type(error).__name__}") from None

    async def pods(self, namespace: str, name: str) -> list[Object]:
        """The pods of the user whose objects have this name, as the API server's cache has them."""
        selector = quote(f"app.kubernetes.io/instance={name}", safe="")
        found = await self._request("GET", f"{_path(*PODS, namespace)}?labelSelector={selector}&resourceVersion=0")
        return list(found["items"] or ())

    async def endpoint_slices(self, namespace: str, service: str) -> list[Object]:
        """The EndpointSlices of a Service, as the API server's cache has them."""
        selector = quote(f"kubernetes.io/service-name={service}", safe="")
        found = await self._request(
            "GET", f"{_path(*CHILD_KINDS['EndpointSlice'], namespace)}?labelSelector={selector}&resourceVersion=0"
        )
        return list(found["items"] or ())

    async def create_event(self, namespace: str, event: Object) -> None:
        """Note an Event (events.k8s.io/v1)."""
        await self._request("POST", _path("events.k8s.io/v1", "events", namespace), event)

    async def uids(self, api_version: str, plural: str, namespace: str) -> set[str]:
        """Return the uids of all objects of a kind in a namespace, read from the API server's storage."""
        uids: set[str] = set()
        token: str | None = ""
        while token is not None:
            page = await self._page(_path(api_version, plural, namespace), "", token, _METADATA_LIST)
            uids |= {item["metadata"]["uid"] for item in page["items"] or ()}  # null where there is none
            token = page["metadata"].get("continue") or None
        return uids

    async def get_lease(self, namespace: str, name: str) -> Object | None:
        """A Lease as it is now, None where there is none."""
        return await self._find(_path(*LEASES, namespace, name))

    async def known_cluster(self, namespace: str, name: str) -> str:
        """The identity of the cluster that a Lease has; that of this connection where it has none."""
        return _identity(await self.get_lease(namespace, name)) or self.cluster

    async def put_lease(self, namespace: str, name: str, previous: Object | None, spec: Object) -> Object:
        """Create a Lease, or replace the one read as `previous`; gives it as stored.

        Raises:
            ApiError: with status 409 if somebody else was quicker.
        """
        api_version, plural = LEASES
        version = {} if previous is None else {"resourceVersion": previous["metadata"]["resourceVersion"]}
        # What others have written to the Lease stays.
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
        """Those of CHILD_KINDS that this cluster has: not every one has the Gateway API."""
        return {kind: found for kind, found in CHILD_KINDS.items() if await self.has_kind(*found)}

    async def has_kind(self, api_version: str, plural: str) -> bool:
        """Whether this cluster has a kind."""
        found = await self._find(f"/{'apis' if '/' in api_version else 'api'}/{api_version}")
        return found is not None and plural in {resource["name"] for resource in found["resources"]}

    def _noted(self, item: Object) -> Object:
        self._on_stored(item)
        return item

    async def _page(self, path: str, query: str, token: str, accept: str = "application/json") -> Object:
        token = f"&continue={quote(token, safe='')}" if token else ""
        return await self._request("GET", f"{path}?limit={PAGE}{query}{token}", accept=accept)

    async def _find(self, path: str) -> Object | None:
        """What is there, None for nothing."""
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
    ) -> Object:
        limit = REQUEST_TIMEOUT_S
        if method != "GET":
            limit = min(limit, self._may_write())
            if limit <= 0:
                raise ApiError(0, "the write was not sent, because this operator does not hold the lease")
        started = time.perf_counter()
        status = 0
        try:
            response, answer = await self._exchange(method, path, body, content_type, accept, limit)
            status = response.status
        finally:
            if self._observe is not None:
                self._observe(method, _resource(path), status, time.perf_counter() - started)
        if status >= 400:
            raise _error(response, answer)
        return answer

    async def _exchange(
        self, method: str, path: str, body: Object | str | None, content_type: str, accept: str, limit: float
    ) -> tuple[aiohttp.ClientResponse, Object]:
        request = await self._serialized(method, path, body, content_type, accept)
        try:
            # Over all of it: the client's own limit does not include the body of the answer.
            async with asyncio.timeout(limit):
                response = (await self._client.call_api(*request, _request_timeout=limit)).response
                content = await response.read()
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


def _identity(lease: Object | None) -> str | None:
    """Return the identity of the cluster in a Lease, None if it has none or is the copy of another one."""
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
    # The API server gives seconds; a date, which HTTP also has, is left to our own backing off.
    after_s = min(float(after), MAX_RETRY_AFTER_S) if after.isdecimal() else 0.0
    return ApiError(response.status, answer.get("message") or f"HTTP {response.status}", after_s)
