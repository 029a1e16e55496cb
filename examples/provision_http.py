"""Give a user a realtime pod, wait until it serves, and print what the user's client needs: a URL and a token.

The same as `provision.py`, in plain HTTP with the standard library alone: three requests, as any language makes them.

    python provision_http.py ann@example.com                       # in a pod, with its service account
    python provision_http.py ann@example.com --server https://10.0.0.1:6443 --ca-file ca.crt --token-file token

Calling it again for the same user is safe, and makes a new token. examples/signup-rbac.yaml grants what it needs.
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
    """The user has no realtime pod; the message says why."""


class Cluster:
    """The API server. `token_file` is read for each request, since the kubelet renews it."""

    def __init__(self, server: str, ca_file: Path, token_file: Path) -> None:
        self._server = server.rstrip("/")
        self._token_file = token_file
        self._tls = ssl.create_default_context(cafile=str(ca_file))
        # The authorities of Amazon EKS and others lack extensions that Python 3.13 and later demand by default.
        self._tls.verify_flags &= ~ssl.VERIFY_X509_STRICT

    def open(self, method: str, path: str, body: Any = None, timeout: float = REQUEST_TIMEOUT_S) -> Any:
        """The open response: a context manager, to be read as a file. `HTTPError` for a status of 400 or more."""
        headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}", "Accept": "application/json"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        request = Request(self._server + path, data, headers, method=method)  # noqa: S310  (the caller's own server)
        return urlopen(request, timeout=timeout, context=self._tls)  # noqa: S310

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The object that is answered."""
        with self.open(method, path, body) as answer:
            return json.load(answer)


def resource_name(user_id: str) -> str:
    """The name of a user's resource, always the same: the id itself if it may be one, else a hash of it.

    Ids that begin like a hashed name are hashed too, so no user's id is the name of another's resource.
    """
    if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", user_id) and not user_id.startswith("u-"):
        return user_id
    return "u-" + hashlib.sha256(user_id.encode()).hexdigest()[:40]


def resources(namespace: str) -> str:
    """The path of the resources of a namespace."""
    return f"/apis/userrealtime.dev/v1alpha1/namespaces/{quote(namespace)}/userrealtimes"


def create(cluster: Cluster, namespace: str, user_id: str) -> None:
    """Request 1: create the user's resource. 409 says that it is there, and then it has to be this user's."""
    name = resource_name(user_id)
    body = {
        "apiVersion": "userrealtime.dev/v1alpha1",
        "kind": "UserRealtime",
        "metadata": {"name": name},
        "spec": {"userId": user_id},
    }
    try:
        # Strict: a field that the resource does not have is an error, not silently left out.
        cluster.call("POST", f"{resources(namespace)}?fieldValidation=Strict", body)
    except HTTPError as error:
        if error.code != 409:
            raise
        found = cluster.call("GET", f"{resources(namespace)}/{name}")
        if found["spec"]["userId"] != user_id:
            raise ProvisioningError(f"the resource {name} belongs to another user") from None


def wait_ready(cluster: Cluster, namespace: str, name: str, timeout: float) -> Any:
    """Request 2: watch the resource until its condition Ready is True for its present spec, at most `timeout` seconds.

    The answer has one JSON object a line, and begins with the resource as it is. The server may end it early: then
    there is another.
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
            pass  # the connection broke
        time.sleep(0.5)
    raise ProvisioningError(f"{name} is not ready after {timeout:.0f} s: {reason}")


def sign(claims: dict[str, Any], key: bytes) -> str:
    """A JSON Web Token by HS256 (RFC 7519); any JWT library does the same."""

    def encoded(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    signed = encoded(b'{"alg":"HS256","typ":"JWT"}') + b"." + encoded(json.dumps(claims).encode())
    return (signed + b"." + encoded(hmac.digest(key, signed, "sha256"))).decode()


def mint(cluster: Cluster, resource: Any, lifetime: int) -> str:
    """Request 3: the Secret with the user's key, and a token signed by it that is good for `lifetime` seconds."""
    reference = resource["status"]["tokenSecret"]
    secret = cluster.call("GET", f"/api/v1/namespaces/{resource['metadata']['namespace']}/secrets/{reference['name']}")
    now = int(time.time())
    claims = {"sub": resource["spec"]["userId"], "iat": now, "exp": now + lifetime}
    return sign(claims, base64.b64decode(secret["data"][reference["key"]]))


def provision(cluster: Cluster, namespace: str, user_id: str, timeout: float, lifetime: int) -> Any:
    """What to hand to the user's client."""
    create(cluster, namespace, user_id)
    resource = wait_ready(cluster, namespace, resource_name(user_id), timeout)
    if "url" not in resource["status"]:
        raise ProvisioningError("the user has no URL: routes are switched off, in the resource or in the chart")
    return {"url": resource["status"]["url"], "token": mint(cluster, resource, lifetime), "expiresIn": lifetime}


def delete(cluster: Cluster, namespace: str, user_id: str) -> None:
    """Remove the user's resource, if it is there; the pod, the events and the inbox go with it."""
    try:
        cluster.call("DELETE", f"{resources(namespace)}/{resource_name(user_id)}")
    except HTTPError as error:
        if error.code != 404:
            raise


def main() -> int:
    """Run the command line; the result is the exit status."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    in_pod = None if host is None else f"https://{f'[{host}]' if ':' in host else host}:{port}"
    parser = argparse.ArgumentParser(description="Give a user a realtime pod; print its URL and a token as JSON.")
    parser.add_argument("user_id", help="as your application names the user in userrealtime.publish()")
    parser.add_argument("--namespace", default="users", help="one that the operator serves (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=60, help="seconds to wait (default: %(default)s)")
    parser.add_argument("--lifetime", type=int, default=3600, help="seconds the token lives (default: %(default)s)")
    parser.add_argument("--delete", action="store_true", help="remove the user instead, events and inbox included")
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
        # A Status object, whose message names the field of a bad spec, or the right that is missing.
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
