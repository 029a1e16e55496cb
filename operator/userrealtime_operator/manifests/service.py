"""The Service of a user."""

from __future__ import annotations

from userrealtime_operator.config import Config
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.labels import WS_PORT
from userrealtime_operator.model.resource import UserRealtime

from .metadata import metadata_of, selector_of

CLUSTER_ADDRESS = {
    "traefik.ingress.kubernetes.io/service.nativelb": "true",
    "traefik.io/service.nativelb": "true",
}
"""Annotations for Traefik: connect to the address of the Service, not to those of its endpoints. Only kube-proxy uses
the standby endpoints of a Service, and it replaces the pod by them in one step."""
POLLING_PROTOCOL = "socketio"
"""A protocol whose clients begin with long polling: all requests of a session must reach the same pod."""

AFFINITY_S = 10800
"""Seconds since the last connection from an address for which its next one reaches the same pod."""


def service_of(resource: UserRealtime, config: Config) -> Object:
    metadata = metadata_of(resource)
    if config.activator is not None:
        metadata["annotations"] |= CLUSTER_ADDRESS
    spec: Object = {
        "selector": selector_of(resource),
        # The health port is not in the Service: kubelet and monitoring use the address of the pod.
        "ports": [{"name": "ws", "port": WS_PORT, "protocol": "TCP", "targetPort": "ws"}],
    }
    protocols = config.relay.protocols if resource.protocols is None else resource.protocols
    if resource.replicas > 1 and POLLING_PROTOCOL in protocols:
        # The address is usually that of a pod of the ingress controller. The API server rejects a Service without
        # affinity that has a configuration of it, so both fields are set and removed together.
        spec["sessionAffinity"] = "ClientIP"
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": AFFINITY_S}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
