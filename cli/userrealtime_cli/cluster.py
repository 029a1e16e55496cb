"""Read access to a cluster with the kubeconfig and the permissions of the user of the command."""

from __future__ import annotations

import json
import ssl
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, list_kube_config_contexts, load_kube_config
from urllib3.exceptions import HTTPError

from userrealtime_core.trust import client_context
from userrealtime_operator.model.resource import API_VERSION, PLURAL

from .errors import CommandError

Object = dict[str, Any]

REQUEST_TIMEOUT_S = 15
PAGE = 500


def _context(configuration: Configuration) -> ssl.SSLContext:
    context = client_context(configuration.ssl_ca_cert, configuration.ca_cert_data)
    if not configuration.verify_ssl:  # insecure-skip-tls-verify
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Cluster:
    """One namespace of one cluster. Every method can raise CommandError, whose message contains advice."""

    def __init__(self, client: ApiClient, namespace: str) -> None:
        self._client = client
        self.namespace = namespace

    @classmethod
    def connect(cls, *, kubeconfig: Path | None, context: str | None, namespace: str | None) -> Self:
        """Return the cluster of a context. The default namespace is the context's."""
        file = str(kubeconfig) if kubeconfig else None
        configuration = Configuration()
        try:
            contexts, current = list_kube_config_contexts(file)  # type: ignore[no-untyped-call]
            chosen = current if context is None else next((c for c in contexts if c["name"] == context), None)
            load_kube_config(  # type: ignore[no-untyped-call]
                file, context=context, client_configuration=configuration, persist_config=False
            )
        except (ConfigException, OSError) as error:
            raise CommandError(
                f"no usable kubeconfig: {error} (set KUBECONFIG, or --kubeconfig and --context)"
            ) from None
        configuration.retries = False
        found = ((chosen or {}).get("context") or {}).get("namespace")
        client = ApiClient(configuration)
        # The client has no setting for the SSL context, and the default of urllib3 is strict on Python 3.13 and later.
        client.rest_client.pool_manager.connection_pool_kw["ssl_context"] = _context(configuration)
        return cls(client, namespace or found or "default")

    def resource(self, name: str) -> Object:
        """Return the UserRealtime with a name."""
        found = self._get(f"/apis/{API_VERSION}", PLURAL, name)
        if found is None:
            raise CommandError(
                f"there is no UserRealtime {name!r} in namespace {self.namespace} "
                "(see: kubectl get urt --all-namespaces; another namespace: --namespace)"
            )
        return found

    def resource_of(self, user_id: str) -> Object:
        """Return the UserRealtime with a userId."""
        more = ""
        while True:
            page = self._get(f"/apis/{API_VERSION}", PLURAL, query=f"?limit={PAGE}{more}") or {
                "items": [],
                "metadata": {},
            }
            for item in page["items"]:
                if item["spec"]["userId"] == user_id:
                    found: Object = item
                    return found
            if not page["metadata"].get("continue"):
                break
            more = f"&continue={quote(page['metadata']['continue'], safe='')}"
        raise CommandError(f"there is no UserRealtime with userId {user_id!r} in namespace {self.namespace}")

    def secret(self, name: str) -> Object:
        """Return a Secret."""
        found = self._get("/api/v1", "secrets", name)
        if found is None:
            raise CommandError(f"the Secret {name} does not exist; is the operator running? It recreates the Secret")
        return found

    def _get(self, root: str, plural: str, name: str = "", query: str = "") -> Object | None:
        """Return an object or a list, or None if there is no object with the name."""
        path = f"{root}/namespaces/{quote(self.namespace, safe='')}/{plural}"
        if name:
            path += f"/{quote(name, safe='')}"
        request = self._client.param_serialize(
            "GET", path + query, header_params={"Accept": "application/json"}, auth_settings=["BearerToken"]
        )
        try:
            response = self._client.call_api(*request, _request_timeout=REQUEST_TIMEOUT_S)
            content = response.read()  # type: ignore[no-untyped-call]
        except ApiException as error:  # TLS
            raise CommandError(f"the request to the API server failed: {error.reason}") from None
        except (HTTPError, OSError) as error:
            host = self._client.configuration.host
            raise CommandError(f"no answer from the API server {host}: {error or type(error).__name__}") from None
        return self._understood(response.status, content, f"{plural} {name}".rstrip())

    def _understood(self, status: int, content: bytes, what: str) -> Object | None:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):  # the answer of a proxy, or of a server without this API
            answer = {"message": content[:200].decode(errors="replace").strip()}
            status = status if status >= HTTPStatus.BAD_REQUEST else HTTPStatus.BAD_GATEWAY
        if status == HTTPStatus.OK:
            found: Object = answer
            return found
        message = answer.get("message") or f"HTTP {status}"
        match status:
            case HTTPStatus.NOT_FOUND if answer.get("details", {}).get("name"):
                return None
            case HTTPStatus.NOT_FOUND:
                raise CommandError(f"the cluster has no API for {what}: is userrealtime installed? ({message})")
            case HTTPStatus.UNAUTHORIZED:
                raise CommandError(f"the cluster rejected your credentials: log in again ({message})")
            case HTTPStatus.FORBIDDEN:
                raise CommandError(
                    f"permission denied; the command needs get and list on the objects in this message: {message}"
                )
            case _:
                raise CommandError(f"the API server rejected the request for {what}: {message}")
