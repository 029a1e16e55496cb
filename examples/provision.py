"""Create a realtime pod for a user, wait until it is ready, and print the URL and a token for the user's client.

    pip install kubernetes pyjwt
    python provision.py ann@example.com
    python provision.py ann@example.com --delete

It can be run again for the same user, and then creates a new token. In a pod it uses the service account of the pod,
otherwise the current kubeconfig. examples/signup-rbac.yaml grants the permissions. `provision_http.py` does the same in
plain HTTP.
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
# Seconds for connecting and for reading, of one request.
REQUEST_TIMEOUT = (5, 15)


class ProvisioningError(Exception):
    """The user has no realtime pod. The message is the reason."""


def resource_name(user_id: str) -> str:
    """Return the name of a user's resource: the id if it is a valid name, otherwise a hash of it.

    Ids that begin like a hashed name are hashed as well, so no user's id is the name of another user's resource.
    """
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", user_id) and not user_id.startswith("u-"):
        return user_id
    return "u-" + hashlib.sha256(user_id.encode()).hexdigest()[:40]


def connect() -> client.ApiClient:
    """Return a client of the API server, from the service account of the pod or from the kubeconfig."""
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
    """Create the user's resource, if it does not exist."""
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
    """Return the resource when its condition Ready is True for its current spec. Wait at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    reason = "NotSeen: the operator has not reported yet; does it serve this namespace?"
    while (left := deadline - time.monotonic()) > 0:
        # A watch begins with the current object. The server may end it early: watch again.
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
            pass  # the connection has failed: watch again
        except client.ApiException as error:
            if error.status != 410:
                raise
        time.sleep(0.5)
    raise ProvisioningError(f"{name} is not ready after {timeout:.0f} s: {reason}")


def mint(secrets: client.CoreV1Api, resource: dict[str, Any], lifetime: int) -> str:
    """Return a token for the user's clients, valid for `lifetime` seconds."""
    reference = resource["status"]["tokenSecret"]
    secret: Any = secrets.read_namespaced_secret(
        reference["name"], resource["metadata"]["namespace"], _request_timeout=REQUEST_TIMEOUT
    )
    now = int(time.time())
    claims = {"sub": resource["spec"]["userId"], "iat": now, "exp": now + lifetime}
    return jwt.encode(claims, base64.b64decode(secret.data[reference["key"]]), algorithm="HS256")


def provision(api_client: client.ApiClient, namespace: str, user_id: str, timeout: float, lifetime: int) -> Any:
    """Return the values for the user's client."""
    api = client.CustomObjectsApi(api_client)
    create(api, namespace, user_id)
    resource = wait_ready(api, namespace, resource_name(user_id), timeout)
    if "url" not in resource["status"]:
        raise ProvisioningError("the user has no URL: routes are disabled in the resource or in the chart")
    token = mint(client.CoreV1Api(api_client), resource, lifetime)
    return {"url": resource["status"]["url"], "token": token, "expiresIn": lifetime}


def delete(api_client: client.ApiClient, namespace: str, user_id: str) -> None:
    """Delete the user's resource, if it exists, and with it the pod, the events and the inbox."""
    try:
        client.CustomObjectsApi(api_client).delete_namespaced_custom_object(
            **RESOURCE, namespace=namespace, name=resource_name(user_id), _request_timeout=REQUEST_TIMEOUT
        )
    except client.ApiException as error:
        if error.status != 404:
            raise


def main() -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(description="Create a realtime pod for a user. Print its URL and a token as JSON.")
    parser.add_argument("user_id", help="the user_id that your application passes to userrealtime.publish()")
    parser.add_argument("--namespace", default="users", help="one that the operator serves (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait (default: %(default)s)")
    parser.add_argument("--lifetime", type=int, default=3600, help="lifetime of the token in s (default: %(default)s)")
    parser.add_argument("--delete", action="store_true", help="delete the user with their events and inbox instead")
    options = parser.parse_args()
    try:
        with connect() as api_client:
            if options.delete:
                delete(api_client, options.namespace, options.user_id)
                return 0
            found = provision(api_client, options.namespace, options.user_id, options.timeout, options.lifetime)
            print(json.dumps(found))
    except client.ApiException as error:
        # The body is a Status object. Its message names the invalid field, or the missing permission.
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
