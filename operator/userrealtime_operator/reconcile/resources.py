"""What the API server holds, as last heard of: the resources, and the children of all users. Pure.

Objects are kept encoded, without the bookkeeping that nothing here reads: as dictionaries they take several times the
memory, and each is looked at seldom. What is older than what is known is no news: the answer to a write of our own may
come before the watch has told of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import Any, NamedTuple

from userrealtime_operator.kube.types import Object
from userrealtime_operator.model.naming import child_name

Place = tuple[str, str]
"""A namespace and a name."""
Key = tuple[str, str, str]
"""A kind, a namespace and a name."""
Condition = tuple[str, str]
"""A condition's type and status."""


def version_of(item: Mapping[str, Any]) -> int:
    """An object's or a list's version: one with a greater number is later, of whatever kind of this API server."""
    return int(item["metadata"]["resourceVersion"])


def _encoded(item: Mapping[str, Any]) -> bytes:
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    return json.dumps({**item, "metadata": metadata}, ensure_ascii=False, separators=(",", ":")).encode()


class Children:
    """Objects of any kind, by their names. Of one kind and namespace, news come in the order of versions."""

    def __init__(self) -> None:
        self._items: dict[Key, tuple[int, bytes]] = {}
        self._told: dict[tuple[str, str], int] = {}
        """The version up to which all is known, by kind and namespace."""

    def __iter__(self) -> Iterator[Key]:
        return iter(self._items)

    def get(self, key: Key) -> Object | None:
        """An object, None where there is none."""
        found = self._items.get(key)
        return None if found is None else json.loads(found[1])

    def put(self, key: Key, item: Mapping[str, Any], *, ours: bool = False) -> bool:
        """Note an object; whether that is news. `ours` is the answer to a write of our own: the watch may have told of
        it already, and of its end."""
        version, known = version_of(item), self._items.get(key)
        if (known is not None and known[0] >= version) or (ours and self._told.get(key[:2], 0) >= version):
            return False
        self._items[key] = version, _encoded(item)
        return True

    def remove(self, key: Key, version: int) -> bool:
        """Note that an object is gone since `version`; whether that is news."""
        known = self._items.get(key)
        if known is None or known[0] > version:
            return False
        del self._items[key]
        return True

    def tell(self, kind: str, namespace: str, version: int) -> None:
        """All of a kind and namespace is known up to a version."""
        self._told[kind, namespace] = version

    def retain(self, kind: str, namespace: str, names: Set[str], version: int) -> list[str]:
        """All of a kind and namespace that exist at a version have these names; gives those that are gone."""
        gone = [
            key
            for key, (known, _) in self._items.items()
            if key[:2] == (kind, namespace) and key[2] not in names and known <= version
        ]
        for key in gone:
            del self._items[key]
        self.tell(kind, namespace, version)
        return [name for _, _, name in gone]

    def rewind(self, kind: str, namespace: str, version: int) -> None:
        """A list has this version. If that is earlier than what is known, the API server was set back, and all that is
        known of this kind and namespace is void."""
        if version < self._told.get((kind, namespace), 0):
            self._items = {key: item for key, item in self._items.items() if key[:2] != (kind, namespace)}
            del self._told[kind, namespace]


ASKED = frozenset({"wakeRequestedAt"})
"""What others write into a resource's status."""


class _Resource(NamedTuple):
    uid: str
    version: int
    said: bytes
    """All but the version and what is ours of the status."""
    status: bytes
    """What is ours."""
    child_name: str
    conditions: tuple[Condition, ...]


class Resources:
    """The UserRealtimes, and which of them stand for a child."""

    def __init__(self) -> None:
        self._items: dict[Place, _Resource] = {}
        self._owners: dict[Place, set[str]] = {}

    def __iter__(self) -> Iterator[Place]:
        return iter(self._items)

    def get(self, place: Place) -> Object | None:
        """A resource, None where there is none."""
        found = self._items.get(place)
        if found is None:
            return None
        item: Object = json.loads(found.said)
        item["metadata"]["resourceVersion"] = str(found.version)
        item["status"] |= json.loads(found.status)
        return item

    def owners(self, namespace: str, child: str) -> list[str]:
        """The names of the resources whose children have this name."""
        return sorted(self._owners.get((namespace, child), ()))

    def uids(self, namespace: str) -> dict[str, str]:
        """The names of a namespace's resources, by uid."""
        return {item.uid: name for (place, name), item in self._items.items() if place == namespace}

    def conditions(self) -> Counter[Condition]:
        """How many resources have which condition."""
        return Counter(condition for item in self._items.values() for condition in item.conditions)

    def put(self, item: Mapping[str, Any], *, ours: bool = False, listed: bool = False) -> bool:
        """Note a resource; whether that is news. `ours` is the answer to a status of our own. One that was `listed`
        holds even if it is older: the API server may have been set back."""
        metadata = item["metadata"]
        place = metadata["namespace"], metadata["name"]
        status = item.get("status", {})
        asked = {key: status[key] for key in ASKED & status.keys()}
        ours_of_it = {key: value for key, value in status.items() if key not in ASKED}
        fresh = _Resource(
            metadata["uid"],
            version_of(item),
            _encoded({**item, "metadata": {**metadata, "resourceVersion": ""}, "status": asked}),
            json.dumps(ours_of_it, ensure_ascii=False).encode(),
            child_name(item["spec"]["userId"]),
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
        """Note that the resource of this uid is gone."""
        known = self._items.get((namespace, name))
        if known is not None and known.uid == uid:
            self._forget((namespace, name))

    def _forget(self, place: Place) -> None:
        if known := self._items.pop(place, None):
            owned = place[0], known.child_name
            self._owners[owned].discard(place[1])
            if not self._owners[owned]:
                del self._owners[owned]
