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


def service_of(resource: UserRealtime, config: Config) -> Object:
    metadata = metadata_of(resource)
    if config.activator is not None:
        metadata["annotations"] |= CLUSTER_ADDRESS
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "selector": selector_of(resource),
            # The health port is not in the Service: kubelet and monitoring use the address of the pod.
            "ports": [{"name": "ws", "port": WS_PORT, "protocol": "TCP", "targetPort": "ws"}],
        },
    }
