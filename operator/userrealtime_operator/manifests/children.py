"""Builds the objects that serve a user from the user's resource. Pure: no cluster, no clock, no randomness.

Every value has the form in which the API server stores it, because `drift.is_subset` compares it with the live object.
"""

from __future__ import annotations

from userrealtime_operator.config import Config
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.resource import UserRealtime
from userrealtime_operator.sleep.state import Asleep, Endpoints

from .deployment import deployment_of
from .disruption_budget import disruption_budget_of
from .endpoint_slice import endpoint_slice_of
from .metadata import digest
from .route import ROUTE_OBJECTS, route_of
from .secrets import Secrets, credential_secret_of, key_secret_of
from .service import service_of

APPLIED_DIGEST = "userrealtime.dev/applied-digest"


def desired_objects(
    resource: UserRealtime,
    config: Config,
    secrets: Secrets,
    asleep: Asleep | None = None,
    activators: Endpoints | None = None,
    ended: Asleep | None = None,
) -> tuple[Object, ...]:
    """Return all objects of one user in the order of their application, each with the digest of its contents.

    Args:
        asleep: the sleep of the user; None if the user is awake.
        activators: additional endpoints for the user's connections; None without a ready activator.
        ended: the last sleep of a user that is awake, whose record stays in the Deployment.

    Raises:
        RouteError, SignalError: the route or the signal of the resource is not supported.
    """
    route = route_of(resource, config)
    objects = [
        key_secret_of(resource, secrets),
        credential_secret_of(resource, config, secrets),
        service_of(resource, config),
    ]
    if activators is not None:  # before the pod is removed
        objects.append(endpoint_slice_of(resource, activators))
    objects.append(deployment_of(resource, config, secrets, route, asleep, ended))
    if route is not None and config.route.type in ROUTE_OBJECTS:
        objects.append(ROUTE_OBJECTS[config.route.type](resource, config, route))
    if resource.replicas > 1:  # with a single pod, a budget would block every drain
        objects.append(disruption_budget_of(resource))
    for item in objects:
        item["metadata"]["annotations"][APPLIED_DIGEST] = digest(_without_replicas(item))
    return tuple(objects)


def _without_replicas(item: Object) -> Object:
    """Return a manifest without the number of pods, which changes alone when a user wakes."""
    if item["kind"] != "Deployment":
        return item
    return {**item, "spec": {name: value for name, value in item["spec"].items() if name != "replicas"}}
