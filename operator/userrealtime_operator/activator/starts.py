"""The queue of the pods that are to start, in the order in which clients have asked for them."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from .metrics import Metrics
from .start_limit import StartLimit

STUCK_S: Final = 5.0
"""Seconds after which a start does not occupy a place any more: it may wait for something else than CPU."""


@dataclass(eq=False, slots=True)
class Start:
    """One start: it waits for its turn, and is then in progress."""

    turn: asyncio.Future[None]
    """Done when the start may begin."""
    measured: bool = False
    """To be set if the start was requested here, and its pod accepts connections."""
    began: float = 0.0
    expiry: asyncio.TimerHandle | None = None
    """Ends the time in which the start occupies a place. None: it does not occupy one yet, or not any more."""


class Starts:
    """The starts in progress, and the starts that wait for their turn.

    Args:
        stuck_s: how long a start occupies a place at most.
    """

    def __init__(self, metrics: Metrics, stuck_s: float = STUCK_S) -> None:
        self._stuck_s = stuck_s
        self._limit = StartLimit()
        self._waiting: deque[Start] = deque()
        self._in_progress = 0
        metrics.waiting_starts.set_function(lambda: len(self._waiting))
        metrics.starts.set_function(lambda: self._in_progress)
        metrics.start_limit.set_function(lambda: self._limit.value)

    @contextlib.contextmanager
    def enter(self) -> Iterator[Start]:
        """Join the queue; at the end of the block, leave it or end the start."""
        start = Start(asyncio.get_running_loop().create_future())
        self._waiting.append(start)
        self._begin_next()
        try:
            yield start
        finally:
            if not start.turn.done():
                self._waiting.remove(start)
            self._end(start)

    def _begin_next(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and self._in_progress < self._limit.value:
            start = self._waiting.popleft()
            start.began = loop.time()
            start.expiry = loop.call_later(self._stuck_s, self._end, start, True)
            self._in_progress += 1
            start.turn.set_result(None)

    def _end(self, start: Start, stuck: bool = False) -> None:
        if start.expiry is None:
            return
        start.expiry.cancel()
        start.expiry = None
        if start.measured or stuck:
            self._limit.adjust(asyncio.get_running_loop().time() - start.began, self._in_progress)
        self._in_progress -= 1
        self._begin_next()
