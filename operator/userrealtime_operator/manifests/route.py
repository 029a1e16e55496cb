"""The route of a user, and its object: an HTTPRoute or an Ingress. The shared edge needs no object."""

from __future__ import annotations

from userrealtime_operator.config import Config, RouteType
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.labels import WS_PORT
from userrealtime_operator.model.resource import UserRealtime
from userrealtime_operator.model.routes import Route, RouteError, parse_url, parse_url_template
from userrealtime_operator.model.tenancy import check_host

from .metadata import metadata_of

CLUSTER_ADDRESS = {"nginx.ingress.kubernetes.io/service-upstream": "true"}
"""Annotations for ingress-nginx: connect to the address of the Service (see `service.py`)."""


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


def _route_metadata(resource: UserRealtime, config: Config) -> Object:
    metadata = metadata_of(resource)
    metadata["annotations"] = {**config.route.annotations, **metadata["annotations"]}
    return metadata


def _ingress_metadata(resource: UserRealtime, config: Config) -> Object:
    metadata = _route_metadata(resource, config)
    if config.activator is not None:
        metadata["annotations"] = {**CLUSTER_ADDRESS, **metadata["annotations"]}
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
    metadata = _ingress_metadata(resource, config)
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


ROUTE_OBJECTS = {RouteType.INGRESS: _ingress, RouteType.HTTP_ROUTE: _http_route}
