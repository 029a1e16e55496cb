"""Holding the Lease, and working only while it is held. What to do when is `lease`'s to say."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from .client import Api, ApiError
from .lease import Action, Seen, Settings, clock, decide, holder, lease_spec

logger = logging.getLogger(__name__)

# An in-flight write must be answered or given up this long before another may lead.
MARGIN_S = 1.0


class Election:
    """One candidate. `lead` is called when the Lease is ours, and cancelled when it may not be any longer."""

    def __init__(
        self, api: Api, namespace: str, name: str, me: str, lead: Callable[[], Awaitable[None]], settings: Settings
    ) -> None:
        self._api = api
        self._namespace, self._name, self._me = namespace, name, me
        self._lead = lead
        self._settings = settings
        self._renewed: float | None = None
        self._seen = Seen(None, clock())
        self._leading: asyncio.Task[None] | None = None

    @property
    def leads(self) -> bool:
        """Whether this one works."""
        return self._leading is not None

    def seconds_to_write(self) -> float:
        """In how many seconds a write that begins now must be over; 0 where none may begin."""
        if self._renewed is None or clock() >= self._renewed + self._settings.renew_deadline:
            return 0.0
        return self._renewed + self._settings.duration - MARGIN_S - clock()

    async def run(self) -> None:
        """Until cancelled; then the work is stopped, and after it the Lease let go.

        Raises:
            whatever `lead` raised.
        """
        try:
            while True:
                await self._look()
                pause = self._settings.retry * random.uniform(0.9, 1.1)  # noqa: S311  (jitter)
                if self._renewed is not None:
                    pause = min(pause, max(0.0, self._renewed + self._settings.renew_deadline - clock()))
                if self._leading is None:
                    await asyncio.sleep(pause)
                elif (await asyncio.wait([self._leading], timeout=pause))[0]:
                    await self._leading
                    raise RuntimeError("the workers ended unexpectedly")
        finally:
            held = self._leading is not None
            await self._stop()
            if held:
                await self._release()

    async def _look(self) -> None:
        """One look at the Lease, and what follows from it."""
        asked = clock()
        try:
            # While we lead, an answer is of use only up to the deadline.
            limit = self._settings.renew_deadline
            if self._renewed is not None:
                limit = max(0.0, self._renewed + self._settings.renew_deadline - asked)
            async with asyncio.timeout(min(limit, 2 * self._settings.retry)):
                lease = await self._api.get_lease(self._namespace, self._name)
                self._seen = self._seen.observe(lease, clock())
                action = decide(self._seen, self._me, self._renewed, clock(), self._settings)
                if action in (Action.ACQUIRE, Action.RENEW):
                    spec = lease_spec(lease, self._me, datetime.now(UTC), self._settings)
                    stored = await self._api.put_lease(self._namespace, self._name, lease, spec)
                    self._seen = Seen(stored, clock())
                    self._renewed = asked
        except (ApiError, TimeoutError) as error:
            # A conflict is another candidate that was quicker; the next look shows who.
            logger.log(
                logging.INFO if getattr(error, "status", 0) == 409 else logging.WARNING,
                "could not acquire the lease %s/%s, retrying: %s",
                *(self._namespace, self._name, str(error) or "the request timed out"),
            )
            action = decide(self._seen, self._me, self._renewed, clock(), self._settings)
        if action is Action.LOST:
            logger.warning("lost the lease; the holder is now %s", holder(self._seen.lease) or "nobody")
            await self._stop()
        elif self._renewed is not None and self._leading is None:
            logger.info("acquired the lease as %s", self._me)
            self._leading = asyncio.ensure_future(self._lead())

    async def _stop(self) -> None:
        """Stop the work before another may begin it. Work that does not stop ends with this process."""
        leading, self._leading = self._leading, None
        left = 0.0 if self._renewed is None else self._renewed + self._settings.duration - MARGIN_S - clock()
        self._renewed = None  # from here on no write begins
        if leading is None:
            return
        leading.cancel()
        done, _ = await asyncio.wait([leading], timeout=max(left, 0.1))
        if not done:
            logger.critical("the workers did not stop before the lease expired; exiting so that only one operator runs")
            os._exit(1)
        logger.info("stopped leading")

    async def _release(self) -> None:
        """Let the next one begin at once. Only after the work has stopped."""
        try:
            async with asyncio.timeout(self._settings.retry):
                lease = await self._api.get_lease(self._namespace, self._name)
                if lease is not None and holder(lease) == self._me:
                    spec = {**lease["spec"], "holderIdentity": ""}
                    await self._api.put_lease(self._namespace, self._name, lease, spec)
        except (ApiError, TimeoutError) as error:
            logger.warning("could not release the lease; it will expire: %s", str(error) or "the request timed out")
