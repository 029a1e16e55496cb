"""The objects of all users, as last received from the API server. Pure.

Objects are kept encoded, without the fields that nothing here reads: as dictionaries they need several times the
memory, and each is read rarely. A version that is older than the known one is ignored: the response to a write can
arrive before the watch event for it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, Final

from .types import Object, ObjectKey, ResourceType

MAX_ANNOTATION_BYTES: Final = 16 << 10
MAX_OBJECT_BYTES: Final = 64 << 10
"""Limits of what is kept of one object. The objects of the operator need less than a tenth of either."""
OWN_ANNOTATIONS: Final = "userrealtime.dev/"
IDENTITY: Final = ("name", "namespace", "uid", "resourceVersion", "generation", "deletionTimestamp")


class Store(ABC):
    """Receives the objects of a kind from a Reflector."""

    @abstractmethod
    def put(self, item: Object) -> None:
        """Add an object, or replace an older version of it."""

    @abstractmethod
    def remove(self, item: Object) -> None:
        """Remove a deleted object; `item` is its last version."""

    @abstractmethod
    def retain(self, namespace: str, names: Set[str], version: int) -> None:
        """Remove the objects of a namespace with other names: a list of this version is complete."""

    def begin_list(self, version: int) -> None:  # noqa: B027  (optional)
        """A list of this version begins. Its objects are `put` next."""

    def advance(self, version: int) -> None:  # noqa: B027  (optional)
        """Record that all changes up to this version have arrived."""


def version_of(item: Mapping[str, Any]) -> int:
    """Return the version of an object or a list. Of two versions of one API server, the greater is the later one."""
    return int(item["metadata"]["resourceVersion"])


def encode(item: Mapping[str, Any]) -> bytes:
    """Return an object as JSON, without what nothing here reads and with a limited size.

    Other accounts can add annotations, or create objects with the operator's labels. Of annotations that exceed
    `MAX_ANNOTATION_BYTES`, the operator's own and the shortest ones are kept. Of an object that still exceeds
    `MAX_OBJECT_BYTES`, only the identity is kept: it differs from its manifest, and is then read from the API server.
    """
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    if annotations := metadata.get("annotations"):
        metadata["annotations"] = _limited(annotations)
    encoded = _json({**item, "metadata": metadata})
    if len(encoded) <= MAX_OBJECT_BYTES:
        return encoded
    controllers = [each for each in metadata.get("ownerReferences", ()) if each.get("controller")]
    identity = {key: value for key, value in metadata.items() if key in IDENTITY}
    return _json(
        {
            **{key: value for key, value in item.items() if key in ("apiVersion", "kind")},
            "metadata": {**identity, "ownerReferences": controllers},
            "spec": {},
        }
    )


def _limited(annotations: Mapping[str, str]) -> Mapping[str, str]:
    ordered = sorted(annotations.items(), key=lambda each: (not each[0].startswith(OWN_ANNOTATIONS), len(each[1])))
    kept, size = {}, 0
    for name, value in ordered:
        size += len(name) + len(value)
        if size <= MAX_ANNOTATION_BYTES:
            kept[name] = value
    return kept


def _json(item: Mapping[str, Any]) -> bytes:
    return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()


class ObjectStore:
    """Objects of any kind. The versions of one kind and namespace arrive in order."""

    def __init__(self) -> None:
        self._items: dict[ObjectKey, tuple[int, bytes]] = {}
        self._versions: dict[tuple[str, str], int] = {}
        """The version up to which all changes are known, by kind and namespace."""

    def __iter__(self) -> Iterator[ObjectKey]:
        return iter(self._items)

    def get(self, key: ObjectKey) -> Object | None:
        """Return an object, None if there is none."""
        found = self._items.get(key)
        return None if found is None else json.loads(found[1])

    def put(self, key: ObjectKey, item: Mapping[str, Any], *, ours: bool = False) -> bool:
        """Add or replace an object; return whether the object has changed.

        Args:
            ours: the object is the response to a write of this process. The watch may already have reported this
                version, and a deletion after it.
        """
        version, known = version_of(item), self._items.get(key)
        if (known is not None and known[0] >= version) or (ours and self._versions.get(key[:2], 0) >= version):
            return False
        self._items[key] = version, encode(item)
        return True

    def remove(self, key: ObjectKey, version: int) -> bool:
        """Remove an object that was deleted at `version`; return whether it was there."""
        known = self._items.get(key)
        if known is None or known[0] > version:
            return False
        del self._items[key]
        return True

    def advance(self, kind: str, namespace: str, version: int) -> None:
        """Record that all changes of a kind and namespace up to a version have arrived."""
        self._versions[kind, namespace] = version

    def retain(self, kind: str, namespace: str, names: Set[str], version: int) -> list[str]:
        """Remove the objects of a kind and namespace that do not exist at `version`; return their names.

        Args:
            names: the names of all objects that exist at `version`.
        """
        gone = [
            key
            for key, (known, _) in self._items.items()
            if key[:2] == (kind, namespace) and key[2] not in names and known <= version
        ]
        for key in gone:
            del self._items[key]
        self.advance(kind, namespace, version)
        return [name for _, _, name in gone]

    def begin_list(self, kind: str, namespace: str, version: int) -> None:
        """Prepare for the objects of a list.

        If the list is older than the known objects, the API server was restored from a backup, and all known objects of
        the kind and namespace are removed.
        """
        if version < self._versions.get((kind, namespace), 0):
            self._items = {key: item for key, item in self._items.items() if key[:2] != (kind, namespace)}
            del self._versions[kind, namespace]


class KindStore(Store):
    """The part of an ObjectStore with one kind and namespace, for a Reflector. Calls `on_change` after each change."""

    def __init__(
        self,
        objects: ObjectStore,
        kind: str,
        resource_type: ResourceType,
        namespace: str,
        on_change: Callable[[ObjectKey], None],
    ) -> None:
        self._objects = objects
        self._kind = kind
        self._api_version = resource_type.api_version
        self._namespace = namespace
        self._on_change = on_change

    def put(self, item: Object) -> None:
        key = self._key(item["metadata"]["name"])
        # The items of a list have neither field.
        whole = {"apiVersion": self._api_version, "kind": self._kind, **item}
        if self._objects.put(key, whole):
            self._on_change(key)

    def remove(self, item: Object) -> None:
        key = self._key(item["metadata"]["name"])
        if self._objects.remove(key, version_of(item)):
            self._on_change(key)

    def retain(self, namespace: str, names: Set[str], version: int) -> None:
        for name in self._objects.retain(self._kind, namespace, names, version):
            self._on_change(self._key(name))

    def begin_list(self, version: int) -> None:
        self._objects.begin_list(self._kind, self._namespace, version)

    def advance(self, version: int) -> None:
        self._objects.advance(self._kind, self._namespace, version)

    def _key(self, name: str) -> ObjectKey:
        return ObjectKey(self._kind, self._namespace, name)
