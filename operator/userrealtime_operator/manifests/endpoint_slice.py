"""The EndpointSlice that adds the activators to the Service of a user."""

from __future__ import annotations

from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.labels import SLICES_MANAGED_BY
from userrealtime_operator.model.naming import object_name
from userrealtime_operator.model.resource import UserRealtime
from userrealtime_operator.sleep.state import Endpoints

from .metadata import metadata_of


def endpoint_slice_of(resource: UserRealtime, activators: Endpoints) -> Object:
    """Return an additional slice of the user's Service, with the activators as endpoints.

    Endpoints on standby are marked as terminating and serving. A Service uses such endpoints only without a ready one.
    """
    conditions = {"ready": False, "serving": True, "terminating": True} if activators.standby else {"ready": True}
    metadata = metadata_of(resource)
    metadata["name"] = object_name("EndpointSlice", resource.child_name)
    metadata["labels"] |= {"kubernetes.io/service-name": resource.child_name, **SLICES_MANAGED_BY}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": activators.address_type,
        "endpoints": [{"addresses": [each], "conditions": dict(conditions)} for each in activators.addresses],
        "ports": [{"name": "ws", "port": activators.port, "protocol": "TCP"}],
    }
