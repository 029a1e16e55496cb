"""Builds the objects that serve a user from the user's resource. Pure: no cluster, no clock, no randomness.

Every value has the form in which the API server stores it, because `drift.is_subset` compares it with the live object.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from userrealtime_core.environment import CREDENTIALS_DIR
from userrealtime_operator.config import Config, RouteType, Trust
from userrealtime_operator.kube.quantity import canonicalize_resources
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.labels import MANAGED_BY, RELAY, SLICES_MANAGED_BY, WS_PORT
from userrealtime_operator.model.naming import CREDENTIALS, object_name
from userrealtime_operator.model.resource import API_VERSION, KIND, UserRealtime
from userrealtime_operator.model.routes import Route, RouteError, parse_url, parse_url_template
from userrealtime_operator.model.tenancy import check_host
from userrealtime_operator.secrets.token_keys import NAMES, TokenKeys
from userrealtime_operator.sleep.state import Asleep, Endpoints

APPLIED_DIGEST = "userrealtime.dev/applied-digest"
SERIES_DIGEST = "userrealtime.dev/token-key-series-digest"
"""An annotation of a Deployment and of a Secret with URLs: the digest of the key series with which it was written."""
DATABASE_URL = "DATABASE_URL"
HEALTH_PORT = 3000
CREDENTIALS_DIRECTORY = "/var/run/userrealtime/credentials"
KEY_DIRECTORY = "/var/run/userrealtime/keys"
TRUST_DIRECTORY = "/var/run/userrealtime/trust"
TRUST_FILE = "ca.crt"
# The relay closes its connections within 20 s (its DRAIN_TIMEOUT). The rest is a reserve for closing handshakes.
TERMINATION_GRACE_S = 30


@dataclass(frozen=True, slots=True)
class Secrets:
    """The contents of a user's two Secrets, hidden from `repr`."""

    token_keys: TokenKeys
    database_url: str
    database_annotations: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return "Secrets(...)"


def digest(value: object) -> str:
    """Return a short SHA-256 of the canonical JSON of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def route_of(resource: UserRealtime, config: Config) -> Route | None:
    """Return the route of the user, or None without a route.

    Raises:
        RouteError: the spec.route of the resource is invalid or not supported.
        HostNotAllowed: the platform does not allow the host of spec.route.url.
    """
    if not config.route.enabled:
        return None
    if config.route.type is RouteType.EDGE:
        # The edge has one rule for all Services, so an exception for one user would have no effect.
        if not resource.route_enabled:
            raise RouteError("spec.route.enabled must be true: the shared edge serves all users")
        if resource.route_url is not None:
            raise RouteError("spec.route.url is not supported: the shared edge uses one URL template for all users")
    if not resource.route_enabled:
        return None
    if resource.route_url is None:
        return parse_url_template(config.route.url).of(resource.namespace, resource.child_name)
    try:
        route = parse_url(resource.route_url).of(resource.namespace, resource.child_name)
    except RouteError as error:
        raise RouteError(f"spec.route.url {error}") from None
    check_host(route.host, config.route.allowed_hosts)
    return route


def _metadata(resource: UserRealtime) -> Object:
    return {
        "name": resource.child_name,
        "namespace": resource.namespace,
        "labels": {**MANAGED_BY, **_selector(resource), "app.kubernetes.io/component": "relay"},
        "annotations": {"userrealtime.dev/user-id": resource.user_id},
        "ownerReferences": [
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "name": resource.name,
                "uid": resource.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _selector(resource: UserRealtime) -> dict[str, str]:
    return {**RELAY, "app.kubernetes.io/instance": resource.child_name}


def _broker(resource: UserRealtime, config: Config) -> dict[str, str]:
    """Return the variable with the URL of the user's broker, empty without a broker."""
    signal = config.signals.of(resource.signal)
    return {signal.variable: config.signals.url} if signal.broker else {}


def _key_secret(resource: UserRealtime, secrets: Secrets) -> Object:
    """Return the Secret with the token keys. Applications and the activator read it."""
    return _secret(_metadata(resource), secrets.token_keys.annotations(), secrets.token_keys.data())


def _credential_values(resource: UserRealtime, config: Config, secrets: Secrets) -> dict[str, str]:
    return {DATABASE_URL: secrets.database_url, **_broker(resource, config)}


def _credential_secret(resource: UserRealtime, config: Config, secrets: Secrets) -> Object:
    """Return the Secret with the URLs of the database and of the broker. Only the user's pods need it."""
    metadata = _metadata(resource)
    metadata["name"] = object_name(CREDENTIALS, resource.child_name)
    # If the keys are replaced because the Secret with the keys was lost, the password is replaced with them.
    annotations = {SERIES_DIGEST: digest(secrets.token_keys.series), **secrets.database_annotations}
    return _secret(metadata, annotations, _credential_values(resource, config, secrets))


def _secret(metadata: Object, annotations: Mapping[str, str], values: Mapping[str, str]) -> Object:
    metadata["annotations"] |= annotations
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "Opaque",
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in values.items()},
    }


def _service(resource: UserRealtime) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(resource),
        "spec": {
            "selector": _selector(resource),
            # The health port is not in the Service: kubelet and monitoring use the address of the pod.
            "ports": [{"name": "ws", "port": WS_PORT, "protocol": "TCP", "targetPort": "ws"}],
        },
    }


def _endpoint_slice(resource: UserRealtime, activators: Endpoints) -> Object:
    """Return an additional slice of the user's Service, with the activators as endpoints."""
    metadata = _metadata(resource)
    metadata["name"] = object_name("EndpointSlice", resource.child_name)
    metadata["labels"] |= {"kubernetes.io/service-name": resource.child_name, **SLICES_MANAGED_BY}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": activators.address_type,
        "endpoints": [{"addresses": [each], "conditions": {"ready": True}} for each in activators.addresses],
        "ports": [{"name": "ws", "port": activators.port, "protocol": "TCP"}],
    }


def _route_metadata(resource: UserRealtime, config: Config) -> Object:
    metadata = _metadata(resource)
    metadata["annotations"] = {**config.route.annotations, **metadata["annotations"]}
    return metadata


def _http_route(resource: UserRealtime, config: Config, route: Route) -> Object:
    parent: Object = {"group": "gateway.networking.k8s.io", "kind": "Gateway", **config.route.gateway}
    backend = {"group": "", "kind": "Service", "name": resource.child_name, "port": WS_PORT, "weight": 1}
    rule: Object = {
        "matches": [{"path": {"type": "PathPrefix", "value": route.path or "/"}}],
        "backendRefs": [backend],
    }
    if config.route.request_timeout:
        rule["timeouts"] = {"request": config.route.request_timeout}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": _route_metadata(resource, config),
        "spec": {"parentRefs": [parent], "hostnames": [route.host], "rules": [rule]},
    }


def _ingress(resource: UserRealtime, config: Config, route: Route) -> Object:
    metadata = _route_metadata(resource, config)
    backend = {"service": {"name": resource.child_name, "port": {"name": "ws"}}}
    rule = {
        "host": route.host,
        "http": {"paths": [{"path": route.path or "/", "pathType": "Prefix", "backend": backend}]},
    }
    spec: Object = {"rules": [rule]}
    if config.route.class_name is not None:
        spec["ingressClassName"] = config.route.class_name
    if route.scheme == "https":
        tls: Object = {"hosts": [route.host]}
        if config.route.tls_secret_name is not None:
            tls["secretName"] = config.route.tls_secret_name
        spec["tls"] = [tls]
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec}


_ROUTE_OBJECTS = {RouteType.INGRESS: _ingress, RouteType.HTTP_ROUTE: _http_route}


def _probe(path: str, **timing: int) -> Object:
    return {"httpGet": {"path": path, "port": "health", "scheme": "HTTP"}, **timing}


def _environment(resource: UserRealtime, config: Config, route: Route | None) -> list[Object]:
    settings = {
        "USER_ID": resource.user_id,
        "BASE_PATH": route.path if route else "",
        "WS_PORT": str(WS_PORT),
        "HEALTH_PORT": str(HEALTH_PORT),
        "TOKEN_KEY_DIR": KEY_DIRECTORY,
        CREDENTIALS_DIR: CREDENTIALS_DIRECTORY,
        "MAX_CONNECTIONS": str(resource.max_connections),
        "MAX_MESSAGE_BYTES": str(resource.max_message_bytes),
        "MAX_MESSAGES_PER_SECOND": str(resource.max_messages_per_second),
        **config.relay_settings,
    }
    settings["SIGNAL"] = config.signals.of(resource.signal)
    announce_url = config.activator.announce_url if config.activator is not None else ""
    if announce_url:
        settings["ANNOUNCE_URL"] = f"{announce_url}/{resource.namespace}/{resource.child_name}"
    if resource.log_level is not None:
        settings["LOG_LEVEL"] = resource.log_level
    if resource.protocols is not None:
        settings["PROTOCOLS"] = ",".join(resource.protocols)
    if config.trust is not None:
        # The variable of OpenSSL, and the variable of libpq, which ignores the former.
        settings |= dict.fromkeys(("SSL_CERT_FILE", "PGSSLROOTCERT"), f"{TRUST_DIRECTORY}/{TRUST_FILE}")
    # The kubelet expands $(NAME) in values, and replaces $$ with $.
    env: list[Object] = [{"name": name, "value": value.replace("$", "$$")} for name, value in settings.items() if value]
    own_ip = {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}}
    return [*env, *([own_ip] if announce_url else [])]


def _key_volume(resource: UserRealtime) -> Object:
    """Return a volume with the token keys as files, which the kubelet updates."""
    # A single source, because all files must belong to one version of the Secret. Optional, because most keys are.
    items = [{"key": name, "path": name} for name in NAMES]
    source = {"secretName": resource.child_name, "items": items, "optional": True, "defaultMode": 0o444}
    return {"name": "keys", "secret": source}


def _credential_volume(resource: UserRealtime, config: Config) -> Object:
    """Return a volume with the URLs as files, which the relay reads when it starts."""
    items = [{"key": name, "path": name} for name in (DATABASE_URL, *_broker(resource, config))]
    source = {
        "secretName": object_name(CREDENTIALS, resource.child_name),
        "items": items,
        "defaultMode": 0o444,
    }
    return {"name": "credentials", "secret": source}


def _trust_volume(trust: Trust) -> Object:
    """Return a volume with the certificates as a file, which the kubelet updates."""
    source = {"name": trust.config_map, "items": [{"key": trust.key, "path": TRUST_FILE}], "defaultMode": 0o444}
    return {"name": "trust", "configMap": source}


def _pod_spec(resource: UserRealtime, config: Config, route: Route | None) -> Object:
    resources = resource.resources if resource.resources is not None else config.relay.resources
    volumes = {KEY_DIRECTORY: _key_volume(resource), CREDENTIALS_DIRECTORY: _credential_volume(resource, config)}
    if config.trust is not None:
        volumes[TRUST_DIRECTORY] = _trust_volume(config.trust)
    container = {
        "name": "relay",
        "image": resource.image or config.relay.image,
        "imagePullPolicy": config.relay.image_pull_policy,
        "env": _environment(resource, config, route),
        "ports": [
            {"name": "ws", "containerPort": WS_PORT, "protocol": "TCP"},
            {"name": "health", "containerPort": HEALTH_PORT, "protocol": "TCP"},
        ],
        "volumeMounts": [
            {"name": volume["name"], "mountPath": path, "readOnly": True} for path, volume in volumes.items()
        ],
        "readinessProbe": _probe("/ready", periodSeconds=1, timeoutSeconds=2, failureThreshold=3),
        "livenessProbe": _probe("/health", initialDelaySeconds=10, periodSeconds=10, timeoutSeconds=5),
        "resources": canonicalize_resources(resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    pod_spec: Object = {
        **config.relay.pod_spec,
        "containers": [container],
        "volumes": list(volumes.values()),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": TERMINATION_GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            **(dict.fromkeys(("runAsUser", "runAsGroup"), user) if (user := config.relay.run_as_user) else {}),
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    if "topologySpreadConstraints" in pod_spec:
        # Most users have one pod, so the default is to spread the pods of all users.
        pod_spec["topologySpreadConstraints"] = [
            {"labelSelector": {"matchLabels": RELAY}, **constraint}
            for constraint in pod_spec["topologySpreadConstraints"]
        ]
    elif resource.replicas > 1:
        # Several pods of one user must survive the failure of a node.
        own = {"labelSelector": {"matchLabels": _selector(resource)}}
        spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        pod_spec["topologySpreadConstraints"] = [{**own, **spread}]
    if config.relay.image_pull_secrets:
        pod_spec["imagePullSecrets"] = [{"name": name} for name in config.relay.image_pull_secrets]
    return pod_spec


def _deployment(
    resource: UserRealtime, config: Config, secrets: Secrets, route: Route | None, asleep: Asleep | None
) -> Object:
    metadata = _metadata(resource)
    metadata["annotations"][SERIES_DIGEST] = digest(secrets.token_keys.series)
    if asleep is not None:
        metadata["annotations"] |= asleep.annotations()
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": resource.replicas if asleep is None else 0,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": _selector(resource)},
            # The new pod is ready before the old pod drains, because the clients of the old pod connect to it.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {
                    "labels": {**config.relay.pod_labels, **MANAGED_BY, **_selector(resource)},
                    # The URLs are read once, so a new URL needs a new pod. New token keys do not, unless they
                    # have a new series: then older tokens are invalid, and the kubelet would need a minute for them.
                    "annotations": {
                        **config.relay.pod_annotations,
                        "userrealtime.dev/secret-digest": digest(
                            [secrets.token_keys.series, *_credential_values(resource, config, secrets).values()]
                        ),
                    },
                },
                "spec": _pod_spec(resource, config, route),
            },
        },
    }


def _disruption_budget(resource: UserRealtime) -> Object:
    """Return the PodDisruptionBudget, which lets a drain evict at most one pod at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(resource),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": _selector(resource)},
            # A pod that serves no client, because the database is unavailable, does not block a drain.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def desired_objects(
    resource: UserRealtime,
    config: Config,
    secrets: Secrets,
    asleep: Asleep | None = None,
    activators: Endpoints | None = None,
) -> tuple[Object, ...]:
    """Return all objects of one user in the order of their application, each with the digest of its contents.

    `activators` are additional endpoints for the user's connections; None while only pods serve the user.

    Raises:
        RouteError, SignalError: the route or the signal of the resource is not supported.
    """
    route = route_of(resource, config)
    objects = [
        _key_secret(resource, secrets),
        _credential_secret(resource, config, secrets),
        _service(resource),
    ]
    if activators is not None:  # before the pod is removed
        objects.append(_endpoint_slice(resource, activators))
    objects.append(_deployment(resource, config, secrets, route, asleep))
    if route is not None and config.route.type in _ROUTE_OBJECTS:
        objects.append(_ROUTE_OBJECTS[config.route.type](resource, config, route))
    if resource.replicas > 1:  # with a single pod, a budget would block every drain
        objects.append(_disruption_budget(resource))
    for item in objects:
        item["metadata"]["annotations"][APPLIED_DIGEST] = digest(item)
    return tuple(objects)
