"""The Deployment of a user, whose pods are relays."""

from __future__ import annotations

from userrealtime_core.environment import CREDENTIALS_DIR
from userrealtime_operator.config import Config, Trust
from userrealtime_operator.kube.quantity import canonicalize_resources
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.labels import MANAGED_BY, RELAY, WS_PORT
from userrealtime_operator.model.naming import CREDENTIALS, object_name
from userrealtime_operator.model.resource import UserRealtime
from userrealtime_operator.model.routes import Route
from userrealtime_operator.secrets.token_keys import NAMES
from userrealtime_operator.sleep.state import Asleep

from .metadata import digest, metadata_of, selector_of
from .secrets import DATABASE_URL, SERIES_DIGEST, Secrets, broker_of, credential_values

HEALTH_PORT = 3000
CREDENTIALS_DIRECTORY = "/var/run/userrealtime/credentials"
KEY_DIRECTORY = "/var/run/userrealtime/keys"
TRUST_DIRECTORY = "/var/run/userrealtime/trust"
TRUST_FILE = "ca.crt"
LAME_DUCK_S = 4
"""Seconds for which a terminating pod accepts connections before it drains. Proxies then no longer use its address:
kube-proxy applies a change of endpoints after at most 1 s, and Traefik after at most 2 s."""
# After LAME_DUCK_S, the relay closes its connections within 20 s (its DRAIN_TIMEOUT). The rest is a reserve for closing
# handshakes.
TERMINATION_GRACE_S = 30 + LAME_DUCK_S


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
        "MAX_BROADCASTS_PER_SECOND": str(resource.max_broadcasts_per_second),
        **config.relay_settings,
    }
    settings["SIGNAL"] = config.signals.of(resource.signal)
    if resource.replicas > 1 and resource.max_broadcasts_per_second:
        settings["BROADCAST_TO_PODS"] = "true"
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
    items = [{"key": name, "path": name} for name in (DATABASE_URL, *broker_of(resource, config))]
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
        "lifecycle": {"preStop": {"sleep": {"seconds": LAME_DUCK_S}}},
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
        own = {"labelSelector": {"matchLabels": selector_of(resource)}}
        spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        pod_spec["topologySpreadConstraints"] = [{**own, **spread}]
    if config.relay.image_pull_secrets:
        pod_spec["imagePullSecrets"] = [{"name": name} for name in config.relay.image_pull_secrets]
    return pod_spec


def deployment_of(
    resource: UserRealtime,
    config: Config,
    secrets: Secrets,
    route: Route | None,
    asleep: Asleep | None,
    ended: Asleep | None,
) -> Object:
    metadata = metadata_of(resource)
    metadata["annotations"][SERIES_DIGEST] = digest(secrets.token_keys.series)
    record = ended if asleep is None else asleep
    if record is not None:
        metadata["annotations"] |= record.annotations()
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": resource.replicas if asleep is None else 0,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": selector_of(resource)},
            # The new pod is ready before the old pod drains, because the clients of the old pod connect to it.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {
                    "labels": {**config.relay.pod_labels, **MANAGED_BY, **selector_of(resource)},
                    # The URLs are read once, so a new URL needs a new pod. New token keys do not, unless they
                    # have a new series: then older tokens are invalid, and the kubelet would need a minute for them.
                    "annotations": {
                        **config.relay.pod_annotations,
                        "userrealtime.dev/secret-digest": digest(
                            [secrets.token_keys.series, *credential_values(resource, config, secrets).values()]
                        ),
                    },
                },
                "spec": _pod_spec(resource, config, route),
            },
        },
    }
