"""Give a user a realtime pod, wait until it serves, and print what the user's client needs: a URL and a token.

    pip install kubernetes pyjwt
    python provision.py ann@example.com
    python provision.py ann@example.com --delete

Calling it again for the same user is safe, and makes a new token. In a pod it uses the pod's service account, elsewhere
the current kubeconfig; examples/signup-rbac.yaml grants what it needs. `provision_http.py` does the same in plain HTTP.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
import ssl
import sys
import time
from typing import Any

import jwt
from kubernetes import client, config, watch
from urllib3.exceptions import HTTPError

RESOURCE: dict[str, Any] = {"group": "userrealtime.dev", "version": "v1alpha1", "plural": "userrealtimes"}
# Of one request, connecting and reading, in seconds.
REQUEST_TIMEOUT = (5, 15)


class ProvisioningError(Exception):
    """The user has no realtime pod; the message says why."""


def resource_name(user_id: str) -> str:
    """The name of a user's resource, always the same: the id itself if it may be one, else a hash of it.

    Ids that begin like a hashed name are hashed too, so no user's id is the name of another's resource.
    """
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", user_id) and not user_id.startswith("u-"):
        return user_id
    return "u-" + hashlib.sha256(user_id.encode()).hexdigest()[:40]


def connect() -> client.ApiClient:
    """A client of the API server: that of the pod this runs in, or else the kubeconfig's."""
    configuration = client.Configuration()
    try:
        config.load_incluster_config(configuration)
    except config.ConfigException:
        config.load_kube_config(client_configuration=configuration)
    api = client.ApiClient(configuration)
    if configuration.verify_ssl:
        # The authorities of Amazon EKS and others lack extensions that Python 3.13 and later demand by default.
        tls = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
        tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
        api.rest_client.pool_manager.connection_pool_kw["ssl_context"] = tls
    return api


def create(api: client.CustomObjectsApi, namespace: str, user_id: str) -> None:
    """Create the user's resource, unless it is there."""
    name = resource_name(user_id)
    body = {
        "apiVersion": "userrealtime.dev/v1alpha1",
        "kind": "UserRealtime",
        "metadata": {"name": name},
        "spec": {"userId": user_id},
    }
    try:
        api.create_namespaced_custom_object(
            **RESOURCE, namespace=namespace, body=body, field_validation="Strict", _request_timeout=REQUEST_TIMEOUT
        )
    except client.ApiException as error:
        if error.status != 409:
            raise
        found: Any = api.get_namespaced_custom_object(
            **RESOURCE, namespace=namespace, name=name, _request_timeout=REQUEST_TIMEOUT
        )
        if found["spec"]["userId"] != user_id:
            raise ProvisioningError(f"the resource {name} belongs to another user") from None


def wait_ready(api: client.CustomObjectsApi, namespace: str, name: str, timeout: float) -> dict[str, Any]:
    """The resource, once its condition Ready is True for its present spec. Waits at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    reason = "NotSeen: the operator has not reported yet; does it serve this namespace?"
    while (left := deadline - time.monotonic()) > 0:
        # A watch begins with the object as it is. The server may end one early: then there is another.
        events = watch.Watch().stream(
            api.list_namespaced_custom_object,
            **RESOURCE,
            namespace=namespace,
            field_selector=f"metadata.name={name}",
            timeout_seconds=max(1, int(left)),
            _request_timeout=(5, left + 5),
        )
        try:
            for event in events:
                resource: dict[str, Any] = event["object"]
                if event["type"] == "DELETED":
                    raise ProvisioningError(f"the resource {name} was deleted meanwhile")
                for condition in resource.get("status", {}).get("conditions", []):
                    if condition["type"] == "Ready":
                        current = condition["observedGeneration"] == resource["metadata"]["generation"]
                        if condition["status"] == "True" and current:
                            return resource
                        reason = f"{condition['reason']}: {condition['message']}"
        except HTTPError:
            pass  # the connection broke
        except client.ApiException as error:
            if error.status != 410:
                raise
        time.sleep(0.5)
    raise ProvisioningError(f"{name} is not ready after {timeout:.0f} s: {reason}")


def mint(secrets: client.CoreV1Api, resource: dict[str, Any], lifetime: int) -> str:
    """A token for the user's clients, good for `lifetime` seconds."""
    reference = resource["status"]["tokenSecret"]
    secret: Any = secrets.read_namespaced_secret(
        reference["name"], resource["metadata"]["namespace"], _request_timeout=REQUEST_TIMEOUT
    )
    now = int(time.time())
    claims = {"sub": resource["spec"]["userId"], "iat": now, "exp": now + lifetime}
    return jwt.encode(claims, base64.b64decode(secret.data[reference["key"]]), algorithm="HS256")


def provision(api_client: client.ApiClient, namespace: str, user_id: str, timeout: float, lifetime: int) -> Any:
    """What to hand to the user's client."""
    api = client.CustomObjectsApi(api_client)
    create(api, namespace, user_id)
    resource = wait_ready(api, namespace, resource_name(user_id), timeout)
    if "url" not in resource["status"]:
        raise ProvisioningError("the user has no URL: routes are switched off, in the resource or in the chart")
    token = mint(client.CoreV1Api(api_client), resource, lifetime)
    return {"url": resource["status"]["url"], "token": token, "expiresIn": lifetime}


def delete(api_client: client.ApiClient, namespace: str, user_id: str) -> None:
    """Remove the user's resource, if it is there; the pod, the events and the inbox go with it."""
    try:
        client.CustomObjectsApi(api_client).delete_namespaced_custom_object(
            **RESOURCE, namespace=namespace, name=resource_name(user_id), _request_timeout=REQUEST_TIMEOUT
        )
    except client.ApiException as error:
        if error.status != 404:
            raise


def main() -> int:
    """Run the command line; the result is the exit status."""
    parser = argparse.ArgumentParser(description="Give a user a realtime pod; print its URL and a token as JSON.")
    parser.add_argument("user_id", help="as your application names the user in userrealtime.publish()")
    parser.add_argument("--namespace", default="users", help="one that the operator serves (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait (default: %(default)s)")
    parser.add_argument("--lifetime", type=int, default=3600, help="seconds the token lives (default: %(default)s)")
    parser.add_argument("--delete", action="store_true", help="remove the user instead, events and inbox included")
    options = parser.parse_args()
    try:
        with connect() as api_client:
            if options.delete:
                delete(api_client, options.namespace, options.user_id)
                return 0
            found = provision(api_client, options.namespace, options.user_id, options.timeout, options.lifetime)
            print(json.dumps(found))
    except client.ApiException as error:
        # The body is a Status object, whose message names the field of a bad spec, or the right that is missing.
        answer = error.body or ""
        message = json.loads(answer)["message"] if answer.startswith("{") else error.reason
        print(f"provision: {message}", file=sys.stderr)
        return 1
    except (ProvisioningError, HTTPError, config.ConfigException) as error:
        print(f"provision: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
