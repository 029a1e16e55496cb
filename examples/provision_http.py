"""Create a realtime pod for a user, wait until it is ready, and print the URL and a token for the user's client.

It does the same as `provision.py` with the standard library only: three HTTP requests, as a model for other languages.

    python provision_http.py ann@example.com                       # in a pod, with its service account
    python provision_http.py ann@example.com --server https://10.0.0.1:6443 --ca-file ca.crt --token-file token

It can be run again for the same user, and then creates a new token. examples/signup-rbac.yaml grants the permissions.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import http.client
import json
import os
import re
import ssl
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REQUEST_TIMEOUT_S = 15


class ProvisioningError(Exception):
    """The user has no realtime pod. The message is the reason."""


class Cluster:
    """The API server. `token_file` is read for each request, because the kubelet renews the token."""

    def __init__(self, server: str, ca_file: Path, token_file: Path) -> None:
        self._server = server.rstrip("/")
        self._token_file = token_file
        self._tls = ssl.create_default_context(cafile=str(ca_file))
        # The authorities of Amazon EKS and others lack extensions that Python 3.13 and later demand by default.
        self._tls.verify_flags &= ~ssl.VERIFY_X509_STRICT

    def open(self, method: str, path: str, body: Any = None, timeout: float = REQUEST_TIMEOUT_S) -> Any:
        """Return the open response, a context manager and a file. Raise `HTTPError` for a status of 400 or more."""
        headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}", "Accept": "application/json"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        request = Request(self._server + path, data, headers, method=method)  # noqa: S310  (the caller's own server)
        return urlopen(request, timeout=timeout, context=self._tls)  # noqa: S310

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the object in the response."""
        with self.open(method, path, body) as answer:
            return json.load(answer)


def resource_name(user_id: str) -> str:
    """Return the name of a user's resource: the id if it is a valid name, otherwise a hash of it.

    Ids that begin like a hashed name are hashed as well, so no user's id is the name of another user's resource.
    """
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", user_id) and not user_id.startswith("u-"):
        return user_id
    return "u-" + hashlib.sha256(user_id.encode()).hexdigest()[:40]


def resources(namespace: str) -> str:
    """Return the path of the resources of a namespace."""
    return f"/apis/userrealtime.dev/v1alpha1/namespaces/{quote(namespace)}/userrealtimes"


def create(cluster: Cluster, namespace: str, user_id: str) -> None:
    """Request 1: create the user's resource. After a 409, it exists, and must belong to this user."""
    name = resource_name(user_id)
    body = {
        "apiVersion": "userrealtime.dev/v1alpha1",
        "kind": "UserRealtime",
        "metadata": {"name": name},
        "spec": {"userId": user_id},
    }
    try:
        # Strict: an unknown field is an error and is not removed silently.
        cluster.call("POST", f"{resources(namespace)}?fieldValidation=Strict", body)
    except HTTPError as error:
        if error.code != 409:
            raise
        found = cluster.call("GET", f"{resources(namespace)}/{name}")
        if found["spec"]["userId"] != user_id:
            raise ProvisioningError(f"the resource {name} belongs to another user") from None


def wait_ready(cluster: Cluster, namespace: str, name: str, timeout: float) -> Any:
    """Request 2: watch the resource until its condition Ready is True for its current spec, at most `timeout` seconds.

    The response has one JSON object in each line, and begins with the current resource. The server may end it early:
    watch again.
    """
    deadline = time.monotonic() + timeout
    reason = "NotSeen: the operator has not reported yet; does it serve this namespace?"
    while (left := deadline - time.monotonic()) > 0:
        query = {"watch": "true", "fieldSelector": f"metadata.name={name}", "timeoutSeconds": max(1, int(left))}
        try:
            with cluster.open("GET", f"{resources(namespace)}?{urlencode(query)}", timeout=left + 5) as lines:
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        break
                    if event["type"] == "DELETED":
                        raise ProvisioningError(f"the resource {name} was deleted meanwhile")
                    resource = event["object"]
                    for condition in resource.get("status", {}).get("conditions", []):
                        if condition["type"] == "Ready":
                            current = condition["observedGeneration"] == resource["metadata"]["generation"]
                            if condition["status"] == "True" and current:
                                return resource
                            reason = f"{condition['reason']}: {condition['message']}"
        except HTTPError:
            raise
        except (OSError, http.client.HTTPException):
            pass  # the connection has failed: watch again
        time.sleep(0.5)
    raise ProvisioningError(f"{name} is not ready after {timeout:.0f} s: {reason}")


def sign(claims: dict[str, Any], key: bytes) -> str:
    """Return a JSON Web Token with HS256 (RFC 7519). Any JWT library does the same."""

    def encoded(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    signed = encoded(b'{"alg":"HS256","typ":"JWT"}') + b"." + encoded(json.dumps(claims).encode())
    return (signed + b"." + encoded(hmac.digest(key, signed, "sha256"))).decode()


def mint(cluster: Cluster, resource: Any, lifetime: int) -> str:
    """Request 3: read the Secret with the user's key. Return a token signed with it, valid for `lifetime` seconds."""
    reference = resource["status"]["tokenSecret"]
    secret = cluster.call("GET", f"/api/v1/namespaces/{resource['metadata']['namespace']}/secrets/{reference['name']}")
    now = int(time.time())
    claims = {"sub": resource["spec"]["userId"], "iat": now, "exp": now + lifetime}
    return sign(claims, base64.b64decode(secret["data"][reference["key"]]))


def provision(cluster: Cluster, namespace: str, user_id: str, timeout: float, lifetime: int) -> Any:
    """Return the values for the user's client."""
    create(cluster, namespace, user_id)
    resource = wait_ready(cluster, namespace, resource_name(user_id), timeout)
    if "url" not in resource["status"]:
        raise ProvisioningError("the user has no URL: routes are disabled in the resource or in the chart")
    return {"url": resource["status"]["url"], "token": mint(cluster, resource, lifetime), "expiresIn": lifetime}


def delete(cluster: Cluster, namespace: str, user_id: str) -> None:
    """Delete the user's resource, if it exists, and with it the pod, the events and the inbox."""
    try:
        cluster.call("DELETE", f"{resources(namespace)}/{resource_name(user_id)}")
    except HTTPError as error:
        if error.code != 404:
            raise


def main() -> int:
    """Run the command line, and return the exit status."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    in_pod = None if host is None else f"https://{f'[{host}]' if ':' in host else host}:{port}"
    parser = argparse.ArgumentParser(description="Create a realtime pod for a user. Print its URL and a token as JSON.")
    parser.add_argument("user_id", help="the user_id that your application passes to userrealtime.publish()")
    parser.add_argument("--namespace", default="users", help="one that the operator serves (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait (default: %(default)s)")
    parser.add_argument("--lifetime", type=int, default=3600, help="lifetime of the token in s (default: %(default)s)")
    parser.add_argument("--delete", action="store_true", help="delete the user with their events and inbox instead")
    parser.add_argument(
        "--server", default=in_pod, required=in_pod is None, help="URL of the API server (default: the pod's)"
    )
    parser.add_argument("--ca-file", type=Path, default=SERVICE_ACCOUNT / "ca.crt", help="its CA (default: the pod's)")
    parser.add_argument(
        "--token-file", type=Path, default=SERVICE_ACCOUNT / "token", help="a bearer token (default: the pod's)"
    )
    options = parser.parse_args()
    try:
        cluster = Cluster(options.server, options.ca_file, options.token_file)
        if options.delete:
            delete(cluster, options.namespace, options.user_id)
            return 0
        print(json.dumps(provision(cluster, options.namespace, options.user_id, options.timeout, options.lifetime)))
    except HTTPError as error:
        # The body is a Status object. Its message names the invalid field, or the missing permission.
        with error:
            answer = error.read().decode(errors="replace")
        message = json.loads(answer)["message"] if answer.startswith("{") else error.reason
        print(f"provision: {message}", file=sys.stderr)
        return 1
    except (ProvisioningError, OSError) as error:
        print(f"provision: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
