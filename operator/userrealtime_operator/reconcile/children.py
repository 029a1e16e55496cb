"""Writes the objects of a user, and compares them with the live ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from userrealtime_operator.kube.client import Api, ApiError
from userrealtime_operator.kube.drift import differences, is_subset
from userrealtime_operator.kube.types import Object, ObjectKey
from userrealtime_operator.manifests.children import APPLIED_DIGEST
from userrealtime_operator.model.errors import Conflict
from userrealtime_operator.model.resource import GROUP, ResourceIdentity

logger = logging.getLogger(__name__)

Live = Mapping[str, Any] | None
"""An object as the API server has it, None if there is none."""


def owner_uid(item: Mapping[str, Any]) -> str | None:
    """Return the uid of an object's controller, None if it has no controller."""
    for owner in item["metadata"].get("ownerReferences", ()):
        if owner.get("controller"):
            uid: str = owner["uid"]
            return uid
    return None


def check_owner(resource: ResourceIdentity, kind: str, live: Live) -> None:
    """Check that an object belongs to a resource, or to none.

    Raises:
        Conflict: it belongs to another resource.
    """
    if live is not None and owner_uid(live) not in (None, resource.uid):
        raise Conflict(f"{kind} {resource.child_name} belongs to another UserRealtime with userId {resource.user_id!r}")


def is_up_to_date(live: Live, item: Object) -> bool:
    """Return whether a live object matches its manifest.

    An object that is being deleted counts as up to date: it is created again later.
    """
    if live is None or live["metadata"].get("deletionTimestamp"):
        return live is not None
    annotations = live["metadata"].get("annotations", {})
    return annotations.get(APPLIED_DIGEST) == item["metadata"]["annotations"][APPLIED_DIGEST] and is_subset(item, live)


def is_applied(live: Live, digest: str) -> bool:
    """Return whether the manifest with this digest is the last one that was applied to an object."""
    return live is not None and live["metadata"].get("annotations", {}).get(APPLIED_DIGEST) == digest


def drift(live: Live, item: Object) -> frozenset[str]:
    """Return the fields in which a live object differs from its manifest; none if there is no object."""
    return frozenset() if live is None else differences(item, live)


class ChildWriter:
    """Writes the objects of users. All methods raise ApiError."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def create(self, item: Object) -> Object | None:
        """Create an object; return it as stored, or None if one exists that the cache does not have yet."""
        try:
            stored = await self._api.create(item)
        except ApiError as error:
            if error.status != 409:
                raise
            return None
        _log_applied(item)
        return stored

    async def write(self, live: Live, item: Object) -> Object:
        """Apply an object, and return it as stored.

        A Secret is created or replaced instead, which removes the fields of other managers.
        """
        if item["kind"] != "Secret":
            stored = await self._api.apply(item)
        elif live is None:
            stored = await self._api.create(item)
        else:
            stored = await self._api.replace(_replacement(live, item))
        _log_applied(item)
        return stored

    async def delete(self, key: ObjectKey, reason: str = "") -> None:
        """Delete an object."""
        await self._api.delete(*key)
        logger.info("deleted %s %s/%s%s", *key, reason)


def _log_applied(item: Object) -> None:
    logger.info("applied %s %s/%s", item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])


def _replacement(live: Mapping[str, Any], item: Object) -> Object:
    """Return an object that replaces `live`, with the labels and annotations that other managers added."""
    metadata, wanted = live["metadata"], item["metadata"]
    theirs = {name: text for name, text in metadata.get("annotations", {}).items() if not name.startswith(f"{GROUP}/")}
    return {
        **item,
        "metadata": {
            **metadata,
            **wanted,
            "labels": {**metadata.get("labels", {}), **wanted["labels"]},
            "annotations": {**theirs, **wanted["annotations"]},
        },
    }
