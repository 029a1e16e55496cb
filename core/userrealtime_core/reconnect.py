"""The loop that keeps a connection to a server: after a failure it waits, longer each time, and connects again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from .backoff import backoff


def with_type(error: Exception) -> str:
    """Return the type and the text of an error: the text alone may be empty, or only a name."""
    return f"{type(error).__name__}: {str(error) or 'timed out'}"


class Reconnect:
    """Runs sessions over connections, one after the other.

    Args:
        errors: the exceptions that end a session. All others end the loop.
        logger, message: for the warning that reports a failure.
        describe: returns the text for an error in this warning.
    """

    def __init__(
        self,
        errors: tuple[type[Exception], ...],
        logger: logging.Logger,
        message: str,
        describe: Callable[[Exception], str] = with_type,
    ) -> None:
        self._errors = errors
        self._logger = logger
        self._message = message
        self._describe = describe
        self._attempt = 0

    def succeeded(self) -> None:
        """Note that the connection works: the next failure is the first one again."""
        self._attempt = 0

    async def run(self, session: Callable[[], Awaitable[None]], failed: Callable[[], None]) -> None:
        """Run sessions until cancelled.

        Args:
            session: connects, works, and closes its connection. If it returns, the next one follows immediately.
            failed: called when a session has failed, before the pause.
        """
        while True:
            try:
                await session()
            except self._errors as error:
                failed()
                delay = backoff(self._attempt)
                self._attempt += 1
                self._logger.warning(
                    self._message,
                    extra={"fields": {"error": self._describe(error), "retry_in_s": round(delay, 2)}},
                )
                await asyncio.sleep(delay)
