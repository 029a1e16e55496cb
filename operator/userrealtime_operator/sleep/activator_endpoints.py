"""The activators that are ready to take the connections of users who sleep.

Looked at every two seconds, with one request that the API server answers from its cache. Nothing that a client waits
for depends on it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from userrealtime_operator.config import Activator
from userrealtime_operator.kube.client import Api, ApiError

from .state import Endpoints, ready_addresses

INTERVAL_S: Final = 2.0
GRACE_S: Final = 10.0
"""For so long none may be ready before all who sleep are woken: two that restart at once are back sooner."""

logger = logging.getLogger(__name__)


class Activators:
    """`changed` is called whenever `endpoints` or `gone` may say something else than before."""

    def __init__(
        self,
        api: Api,
        service: Activator,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._service = service
        self._changed = changed
        self._clock = clock
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._none_since: float | None = None
        self.gone = False
        """Whether it is known that there is none, and has been none for GRACE_S."""

    def endpoints(self, family: str) -> Endpoints | None:
        """Those with an address of a family, None if there is none, or if it is not known yet."""
        addresses = self._addresses.get(family)
        return Endpoints(family, addresses, self._service.port) if addresses else None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(INTERVAL_S)

    async def look(self) -> None:
        """Look once. What cannot be read stays as it was."""
        try:
            slices = await self._api.endpoint_slices(self._service.namespace, self._service.service)
        except ApiError as error:
            logger.warning("the activators cannot be looked at: %s", error)
            return
        before = self._addresses, self.gone
        self._addresses = ready_addresses(slices)
        if self._addresses:
            self._none_since = None
        elif self._none_since is None:
            self._none_since = self._clock()
        self.gone = self._none_since is not None and self._clock() >= self._none_since + GRACE_S
        if (self._addresses, self.gone) != before:
            count = sum(len(each) for each in self._addresses.values())
            logger.info("%d activators are ready%s", count, ", so that nobody may sleep" if self.gone else "")
            self._changed()
