"""The endpoints of the activators that are ready to accept the connections of sleeping users.

They are read every two seconds, with one request that the API server answers from its cache. No client waits for it.
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
"""How long no activator may be ready before all sleeping users are woken. A restart of two activators is shorter."""

logger = logging.getLogger(__name__)


class Activators:
    """Polls the endpoints of the activators. `changed` is called when `endpoints` or `gone` may have changed."""

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
        """Whether no activator has been ready for GRACE_S."""

    def endpoints(self, family: str) -> Endpoints | None:
        """Return the endpoints of an address family, None if there are none or they were not read yet."""
        addresses = self._addresses.get(family)
        return Endpoints(family, addresses, self._service.port) if addresses else None

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(INTERVAL_S)

    async def refresh(self) -> None:
        """Read the endpoints once. After a failed read, the former ones stay."""
        try:
            slices = await self._api.endpoint_slices(self._service.namespace, self._service.service)
        except ApiError as error:
            logger.warning("could not list the endpoints of the activators: %s", error)
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
            logger.info("%d activators are ready%s", count, "; sleep is disabled" if self.gone else "")
            self._changed()
