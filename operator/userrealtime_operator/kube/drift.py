"""Whether a live object still is what was applied, without a request to the API server.

A dry-run apply would cost as much as a create, so two other things are compared. Each applied object has the digest of
its manifest, which also detects fields that are no longer desired. And all desired fields must be in the live object.
Fields, and items of associative lists, that other managers added are left unchanged: server-side apply keeps them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

# Mappings that are replaced as a whole: selectors by the API server, a Secret's data by the operator. An added key
# changes their meaning.
ATOMIC: Final = frozenset({"selector", "data"})

# Lists of a Deployment and of a Service whose items the API server merges by these fields, of which an item has some.
MERGE_KEYS: Final = {
    "containers": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "initContainers": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port", "protocol"),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
_MERGED_KINDS: Final = frozenset({"Deployment", "Service"})


def is_subset(desired: Any, live: Any) -> bool:
    """Return whether `live` has everything that `desired` has.

    Mappings of `live` may have more keys, and associative lists of a Deployment or a Service more items in any order.
    Other lists and plain values must be equal. An empty mapping or list of `desired` may be absent in `live`.
    """
    return not differences(desired, live)


def differences(desired: Any, live: Any) -> frozenset[str]:
    """Return the paths of the fields of `desired` that `live` lacks or has with another value.

    Such a path is `spec.template.spec.containers[relay].image`.
    """
    merges = isinstance(desired, dict) and desired.get("kind") in _MERGED_KINDS
    return frozenset(_differences(desired, live, "", "", merges))


def _differences(desired: Any, live: Any, path: str, field: str, merges: bool) -> Iterator[str]:
    if isinstance(desired, dict | list) and not desired and live is None:
        return
    if isinstance(desired, dict) and isinstance(live, dict):
        for key, value in desired.items():
            place = f"{path}.{key}" if path else key
            if key not in ATOMIC:
                yield from _differences(value, live.get(key), place, key, merges)
            elif live.get(key) != value:
                yield place
    elif isinstance(desired, list) and isinstance(live, list):
        keys = MERGE_KEYS.get(field) if merges else None
        if keys is not None:
            items = {_identity(item, keys): item for item in live}
            for wanted in desired:
                identity = _identity(wanted, keys)
                name = "/".join(str(part) for part in identity if part is not None)
                yield from _differences(wanted, items.get(identity), f"{path}[{name}]", "", merges)
        elif len(desired) == len(live):
            for index, (wanted, actual) in enumerate(zip(desired, live, strict=True)):
                yield from _differences(wanted, actual, f"{path}[{index}]", "", merges)
        else:
            yield path
    elif desired != live:
        yield path


def _identity(item: Any, keys: tuple[str, ...]) -> tuple[Any, ...]:
    return tuple(item.get(key) for key in keys) if isinstance(item, dict) else (item,)
