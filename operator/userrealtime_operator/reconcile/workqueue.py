"""A queue of keys, with the semantics of client-go's work queue.

A key waits at most once and is processed by one worker at a time. A key that fails is retried with a growing delay. A
key that is added while it is processed is processed once more. Urgent keys go first. A key can be added after a delay:
several changes are then processed together.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from userrealtime_operator.kube.types import TryLater

Key = TypeVar("Key", bound=Hashable)

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.5
LAST_DELAY_S = 60.0


def retry_delay(failures: int) -> float:
    """Return the seconds until a key is retried, after so many failures in a row before the last one."""
    delay = min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(failures, 16))
    return delay * random.uniform(0.8, 1.2)  # noqa: S311  (jitter)


class WorkQueue(Generic[Key]):
    """A queue whose size is bounded by the number of distinct keys.

    Args:
        waited: called with the seconds that a key has waited for a worker.
        failed: called after each failure.
    """

    def __init__(
        self,
        waited: Callable[[float], None] = lambda _seconds: None,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        self._waited = waited
        self._failed = failed
        self._ready: asyncio.PriorityQueue[tuple[bool, int, Key]] = asyncio.PriorityQueue()
        self._added = itertools.count()
        self._waiting: dict[Key, float] = {}
        self._urgent: set[Key] = set()
        """The waiting keys that go first. Their earlier entries without urgency are skipped."""
        self._working: set[Key] = set()
        self._again: dict[Key, bool] = {}
        """The keys that are added again when their processing ends, and whether that is urgent."""
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """Return the number of keys that wait for a worker."""
        return len(self._waiting)

    def add(self, key: Key, *, urgent: bool = False) -> None:
        """Add a key, which is processed as soon as a worker is free. Cheap, and safe to call too often."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._working:
            self._again[key] = urgent or self._again.get(key, False)
        elif key not in self._waiting or (urgent and key not in self._urgent):
            self._waiting.setdefault(key, time.monotonic())
            if urgent:
                self._urgent.add(key)
            self._ready.put_nowait((not urgent, next(self._added), key))

    def add_later(self, key: Key, delay_s: float) -> None:
        """Add a key after a delay, unless it is added earlier."""
        if key in self._waiting:
            return
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is None or timer.when() > loop.time() + delay_s:
            if timer is not None:
                timer.cancel()
            self._timers[key] = loop.call_later(delay_s, self.add, key)

    async def run(self, work: Callable[[Key], Awaitable[float | None]], workers: int) -> None:
        """Call `work` with each key until cancelled. At most `workers` keys are processed at the same time.

        `work` returns the seconds after which the key is added again, or None; a key whose work raises an exception is
        added again with a growing delay. `run` can be called again later; the queue keeps its keys in between.
        """
        now = time.monotonic()
        self._waiting = dict.fromkeys(self._waiting, now)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._worker(work))
        finally:
            for key in list(self._timers):
                self.add(key)

    async def _worker(self, work: Callable[[Key], Awaitable[float | None]]) -> None:
        while True:
            _, _, key = await self._ready.get()
            if key not in self._waiting:
                continue
            self._urgent.discard(key)
            self._waited(time.monotonic() - self._waiting.pop(key))
            self._working.add(key)
            delay: float | None = None
            try:
                delay = await work(key)
                self._failures.pop(key, None)
            except asyncio.CancelledError:
                self._again.setdefault(key, False)
                raise
            except Exception as error:
                failures = self._failures.get(key, 0)
                self._failures[key] = failures + 1
                delay = retry_delay(failures) + (error.after_s if isinstance(error, TryLater) else 0.0)
                self._failed()
                logger.warning("%s failed, retrying in %.1f s: %s", key, delay, error)
                logger.debug("the failure", exc_info=True)
            finally:
                self._working.discard(key)
                again = self._again.pop(key, None)
                if again is not None:
                    self.add(key, urgent=again)
            if again is None and delay is not None:
                self.add_later(key, delay)
