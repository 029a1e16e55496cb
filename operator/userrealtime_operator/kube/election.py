"""Holds the Lease, and runs the work only while it is held. `lease` decides when."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from .client import Api, ApiError
from .lease import Action, Seen, Settings, boot_clock, decide, holder, lease_spec

logger = logging.getLogger(__name__)

# A write in flight ends this long before another candidate may lead.
MARGIN_S = 1.0


class Election:
    """One candidate for the Lease.

    Args:
        me: the identity of this candidate.
        clock: seconds; only its differences count.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        me: str,
        settings: Settings,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        self._api = api
        self._namespace, self._name, self._me = namespace, name, me
        self._clock = clock
        self._settings = settings
        self._renewed: float | None = None
        self._seen = Seen(None, self._clock())
        self._leading: asyncio.Task[None] | None = None

    @property
    def leads(self) -> bool:
        """Whether this candidate leads."""
        return self._leading is not None

    def seconds_to_write(self) -> float:
        """Return the seconds within which a write that starts now must end; 0 if none may start."""
        if self._renewed is None or self._clock() >= self._renewed + self._settings.renew_deadline:
            return 0.0
        return self._renewed + self._settings.duration - MARGIN_S - self._clock()

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Run `lead` while the Lease is held. When cancelled, stop the work, and then release the Lease.

        Raises:
            Exception: `lead` failed or returned.
        """
        try:
            while True:
                await self._check(lead)
                pause = self._settings.retry * random.uniform(0.9, 1.1)  # noqa: S311  (jitter)
                if self._renewed is not None:
                    pause = min(pause, max(0.0, self._renewed + self._settings.renew_deadline - self._clock()))
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

    async def _check(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Read the Lease once, and acquire, renew or lose it."""
        asked = self._clock()
        try:
            # While this candidate leads, a response is useful only until the deadline.
            limit = self._settings.renew_deadline
            if self._renewed is not None:
                limit = max(0.0, self._renewed + self._settings.renew_deadline - asked)
            async with asyncio.timeout(min(limit, 2 * self._settings.retry)):
                lease = await self._api.get_lease(self._namespace, self._name)
                self._seen = self._seen.observe(lease, self._clock())
                action = decide(self._seen, self._me, self._renewed, self._clock(), self._settings)
                if action in (Action.ACQUIRE, Action.RENEW):
                    spec = lease_spec(lease, self._me, datetime.now(UTC), self._settings)
                    stored = await self._api.put_lease(self._namespace, self._name, lease, spec)
                    self._seen = Seen(stored, self._clock())
                    self._renewed = asked
        except (ApiError, TimeoutError) as error:
            # After a conflict, the next check shows the candidate that was faster.
            logger.log(
                logging.INFO if getattr(error, "status", 0) == 409 else logging.WARNING,
                "could not acquire the lease %s/%s, retrying: %s",
                *(self._namespace, self._name, str(error) or "the request timed out"),
            )
            action = decide(self._seen, self._me, self._renewed, self._clock(), self._settings)
        if action is Action.LOST:
            logger.warning("lost the lease; the holder is now %s", holder(self._seen.lease) or "nobody")
            await self._stop()
        elif self._renewed is not None and self._leading is None:
            logger.info("acquired the lease as %s", self._me)
            self._leading = asyncio.ensure_future(lead())

    async def _stop(self) -> None:
        """Stop the work before another candidate may start it. If it does not stop, end the process."""
        leading, self._leading = self._leading, None
        left = 0.0 if self._renewed is None else self._renewed + self._settings.duration - MARGIN_S - self._clock()
        self._renewed = None  # from now on, no write starts
        if leading is None:
            return
        leading.cancel()
        done, _ = await asyncio.wait([leading], timeout=max(left, 0.1))
        if not done:
            logger.critical("the workers did not stop before the lease expired; exiting so that only one operator runs")
            os._exit(1)
        logger.info("stopped leading")

    async def _release(self) -> None:
        """Release the Lease after the work has stopped, which lets the next candidate start immediately."""
        try:
            async with asyncio.timeout(self._settings.retry):
                lease = await self._api.get_lease(self._namespace, self._name)
                if lease is not None and holder(lease) == self._me:
                    spec = {**lease["spec"], "holderIdentity": ""}
                    await self._api.put_lease(self._namespace, self._name, lease, spec)
        except (ApiError, TimeoutError) as error:
            logger.warning("could not release the lease; it will expire: %s", str(error) or "the request timed out")


class NoLeader(RuntimeError):
    """No operator has renewed the Lease in time. The message has the reason."""


async def wait_for_leader(api: Api, namespace: str, name: str, patience_s: float, retry_s: float = 0.5) -> str:
    """Return the leader once it has renewed the Lease, so it is alive.

    Raises:
        NoLeader: it has not within `patience_s` seconds.
    """
    place = f"{namespace}/{name}"
    problem = f"the Lease {place} was not read"
    before: tuple[str, str] | None = None
    try:
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    lease = await api.get_lease(namespace, name)
                except ApiError as error:
                    problem = f"the Lease {place} cannot be read: {error}"
                else:
                    leader = holder(lease)
                    if lease is None:
                        problem = f"the Lease {place} does not exist"
                    elif not leader:
                        problem = f"no operator holds the Lease {place}"
                    else:
                        now = (leader, str(lease["spec"].get("renewTime")))
                        if before is not None and before[0] == leader and before != now:
                            return leader
                        problem = f"{leader} holds the Lease {place} and does not renew it"
                        before = now
                await asyncio.sleep(retry_s)
    except TimeoutError:
        raise NoLeader(f"{problem} (waited {patience_s:g} s)") from None
