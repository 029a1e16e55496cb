"""The Service of a user."""

from __future__ import annotations

from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.labels import WS_PORT
from userrealtime_operator.model.resource import UserRealtime

from .metadata import metadata_of, selector_of


def service_of(resource: UserRealtime) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata_of(resource),
        "spec": {
            "selector": selector_of(resource),
            # The health port is not in the Service: kubelet and monitoring use the address of the pod.
            "ports": [{"name": "ws", "port": WS_PORT, "protocol": "TCP", "targetPort": "ws"}],
        },
    }
