"""Follows all objects of a kind in a namespace: a list, then what happens to them, for as long as it is wanted.

For processes that need no more than that, and not kopf.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from .client import Api, ApiError, Labels

WATCH_S: Final = 60
"""Seconds after which a watch is begun anew, so that one whose server has died silently ends."""
RETRY_S: Final = (0.2, 5.0)
"""Seconds between two tries, at first and at most."""

_logger = logging.getLogger(__name__)


class Followed(Protocol):
    """What is told of the objects."""

    def put(self, body: Mapping[str, Any]) -> None:
        """An object is there, new or changed."""

    def remove(self, body: Mapping[str, Any]) -> None:
        """An object is gone."""

    def replace(self, namespace: str, bodies: Iterable[Mapping[str, Any]]) -> None:
        """These are all objects of a namespace."""


async def follow(
    api: Api, kind: tuple[str, str], namespace: str, selector: Labels, followed: Followed, listed: asyncio.Event
) -> None:
    """Follow until cancelled; `listed` is set once all objects there were are known.

    Args:
        kind: API version and plural.
        selector: labels that the objects must have.
    """
    version = ""
    retry_s = RETRY_S[0]
    while True:
        try:
            if not version:
                bodies, version = await api.all_of(*kind, namespace, selector)
                followed.replace(namespace, bodies)
                listed.set()
            async for event, body in api.watch(*kind, namespace, selector, version, WATCH_S):
                if event == "DELETED":
                    followed.remove(body)
                elif event != "BOOKMARK":
                    followed.put(body)
                version = body["metadata"]["resourceVersion"]
                retry_s = RETRY_S[0]
        except ApiError as error:
            if error.status not in (0, 429):  # such as 410, that the version is not known any more
                version = ""
            fields = {"kind": kind[1], "namespace": namespace, "error": str(error)}
            _logger.warning("watch failed, retrying", extra={"fields": fields})
            await asyncio.sleep(max(error.after_s, retry_s * random.uniform(0.5, 1)))  # noqa: S311  (no secret)
            retry_s = min(2 * retry_s, RETRY_S[1])
