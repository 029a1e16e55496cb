"""Finds the user whom a request is for, by its `Host` and path. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from userrealtime_operator.kube.types import NamespacedName

MAX_SEGMENTS: Final = 16
"""The number of segments of a path that are compared. The limit bounds the work for a path of slashes."""

ChildKey = tuple[str, str]
"""A namespace, and the name of a user's objects."""


class Route(NamedTuple):
    """A user, and the path of the user's endpoints."""

    user: NamespacedName
    """The resource's namespace and name."""
    user_id: str
    base_path: str
    """The path before `/ws`, `/sse`, `/poll` and `/publish` in the user's URL; empty for the whole host."""
    child_name: str
    """The name of the user's Service, Deployment and Secret."""

    @property
    def key(self) -> ChildKey:
        """The namespace and name of the user's objects."""
        return self.user.namespace, self.child_name


class RouteTable:
    """The addresses of all users, from their resources. An address that two users share leads to neither.

    The names of a user's objects are those in the resource's status. The activator does not derive them, because it
    does not have the key of opaque names. A resource without a name in its status has no objects yet.

    Args:
        default_protocols: the protocols of other systems of users whose resource has no list of them.
    """

    def __init__(self, default_protocols: Sequence[str] = ()) -> None:
        self._default_protocols = default_protocols
        self._protocols: dict[NamespacedName, Sequence[str]] = {}
        self._places: dict[NamespacedName, list[tuple[str, str]]] = {}
        self._routes: dict[tuple[str, str], set[Route]] = {}

    def put(self, body: Mapping[str, Any]) -> None:
        """Add or update a resource."""
        metadata = body["metadata"]
        user = NamespacedName(metadata["namespace"], metadata["name"])
        status = body.get("status", {})
        name = status.get("name")
        if not name:
            self.remove(user)
            return
        self._protocols[user] = tuple(body["spec"].get("protocols", self._default_protocols))
        url = urlsplit(status.get("url") or "")
        path = url.path.rstrip("/")
        route = Route(user, body["spec"]["userId"], path, name)
        service = f"{name}.{user.namespace}"
        places = [(host, "") for host in (name, service, f"{service}.svc", f"{service}.svc.cluster.local")]
        if url.hostname:
            places.append((url.hostname, path))
        if self._places.get(user) == places:
            return  # most changes of a status do not change the addresses, and these identify the user
        self._remove_places(user)
        self._places[user] = places
        for place in places:
            self._routes.setdefault(place, set()).add(route)

    def remove(self, user: NamespacedName) -> None:
        """Remove a resource."""
        self._protocols.pop(user, None)
        self._remove_places(user)

    def protocols(self, user: NamespacedName) -> Sequence[str]:
        """Return the protocols of other systems that the relay of a user serves."""
        return self._protocols.get(user, ())

    def _remove_places(self, user: NamespacedName) -> None:
        for place in self._places.pop(user, ()):
            left = {route for route in self._routes[place] if route.user != user}
            if left:
                self._routes[place] = left
            else:
                del self._routes[place]

    def find(self, host: str, path: str) -> Route | None:
        """Return the user at a `Host` and path, None if there is none. The longest prefix of whole segments wins."""
        name = host.lower()
        if ":" in name:
            name, _, port = name.rpartition(":")
            if not port.isdigit():
                return None
        name = name.removesuffix(".")
        path = "/".join(path.split("/", MAX_SEGMENTS + 1)[: MAX_SEGMENTS + 1])
        while True:
            routes = self._routes.get((name, path))
            if routes is not None:
                return next(iter(routes)) if len(routes) == 1 else None
            if not path:
                return None
            path = path.rpartition("/")[0]
