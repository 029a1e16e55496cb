"""The UserRealtime resources, as last received from the API server. Pure.

Resources are kept encoded, as the objects in `kube.store`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from userrealtime_operator.kube.store import encode, version_of
from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.labels import RESOURCE_ANNOTATIONS
from userrealtime_operator.model.naming import Naming

Place = tuple[str, str]
"""A namespace and a name."""
Condition = tuple[str, str]
"""A condition's type and status."""


ASKED = frozenset({"wakeRequestedAt"})
"""The fields of a resource's status that the activator writes."""


MAX_MANAGERS = 4
"""The number of field managers of a resource that are kept."""
MAX_ANNOTATION = 512
"""The characters of an annotation that are kept. The longest is the name of an account."""
METADATA = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
"""The metadata that the operator reads, besides its annotations and the names of field managers."""


class _Resource(NamedTuple):
    uid: str
    version: int
    managers: tuple[str, ...]
    """The field managers that set the spec or the metadata, the last one first."""
    said: bytes
    """The resource without its version and without the operator's fields of the status."""
    status: bytes
    """The operator's fields of the status."""
    child_name: str
    conditions: tuple[Condition, ...]


class Resources:
    """The UserRealtime resources by namespace and name, with an index of the resources of each child."""

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._items: dict[Place, _Resource] = {}
        self._owners: dict[Place, set[str]] = {}

    def __iter__(self) -> Iterator[Place]:
        return iter(self._items)

    def get(self, place: Place) -> Object | None:
        """Return a resource, None if it does not exist."""
        found = self._items.get(place)
        if found is None:
            return None
        item: Object = json.loads(found.said)
        item["metadata"]["resourceVersion"] = str(found.version)
        if found.managers:
            item["metadata"]["managedFields"] = [{"manager": manager} for manager in found.managers]
        item["status"] |= json.loads(found.status)
        return item

    def child_name(self, place: Place) -> str | None:
        """Return the name of a resource's children, None if the resource does not exist."""
        found = self._items.get(place)
        return found and found.child_name

    def owners(self, namespace: str, child: str) -> list[str]:
        """Return the names of the resources whose children have this name."""
        return sorted(self._owners.get((namespace, child), ()))

    def uids(self, namespace: str) -> dict[str, str]:
        """Return the names of a namespace's resources, by uid."""
        return {item.uid: name for (place, name), item in self._items.items() if place == namespace}

    def conditions(self) -> Counter[Condition]:
        """Return the number of resources by condition."""
        return Counter(condition for item in self._items.values() for condition in item.conditions)

    def put(self, item: Mapping[str, Any], *, ours: bool = False, listed: bool = False) -> bool:
        """Store a resource; return whether it must be reconciled.

        Args:
            ours: the resource is the response to a write of the status by the operator. Its own change of the status
                needs no reconciliation.
            listed: the resource is part of a list. It replaces a newer version, because the API server may have been
                restored from a backup.
        """
        metadata = item["metadata"]
        place = metadata["namespace"], metadata["name"]
        status = item.get("status", {})
        asked = {key: status[key] for key in ASKED & status.keys()}
        ours_of_it = {key: value for key, value in status.items() if key not in ASKED}
        fresh = _Resource(
            metadata["uid"],
            version_of(item),
            _managers(metadata),
            encode({**item, "metadata": {**_read_metadata(metadata), "resourceVersion": ""}, "status": asked}),
            json.dumps(ours_of_it, ensure_ascii=False).encode(),
            self._naming.child_name(item["spec"]["userId"]),
            tuple((condition["type"], condition["status"]) for condition in status.get("conditions", ())),
        )
        known = self._items.get(place)
        if known is None or known.uid != fresh.uid:
            if ours:
                return False
        elif known.version >= fresh.version and not listed:
            return False
        self._forget(place)
        self._items[place] = fresh
        self._owners.setdefault((place[0], fresh.child_name), set()).add(place[1])
        return known is None or known.said != fresh.said or not (ours or known.status == fresh.status)

    def remove(self, namespace: str, name: str, uid: str) -> None:
        """Remove a resource if it has this uid."""
        known = self._items.get((namespace, name))
        if known is not None and known.uid == uid:
            self._forget((namespace, name))

    def _forget(self, place: Place) -> None:
        if known := self._items.pop(place, None):
            owned = place[0], known.child_name
            self._owners[owned].discard(place[1])
            if not self._owners[owned]:
                del self._owners[owned]


def _read_metadata(metadata: Mapping[str, Any]) -> Object:
    """Return the metadata that the operator reads, with limited annotations: a resource can have 256 KiB of others."""
    annotations = {
        name: value[:MAX_ANNOTATION]
        for name, value in (metadata.get("annotations") or {}).items()
        if name in RESOURCE_ANNOTATIONS
    }
    kept = {name: metadata[name] for name in METADATA if name in metadata}
    return {**kept, "annotations": annotations} if annotations else kept


def _managers(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    entries = [each for each in metadata.get("managedFields") or () if not each.get("subresource")]
    entries.sort(key=lambda each: str(each.get("time", "")), reverse=True)
    return tuple(sys.intern(str(each.get("manager", ""))) for each in entries[:MAX_MANAGERS])
