"""The loop that reconnects: when it waits, and what it reports."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from userrealtime_core import reconnect
from userrealtime_core.reconnect import Reconnect

LOGGER = logging.getLogger("userrealtime_core.test")


class End(Exception):
    """Ends the loop."""


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of earlier failures that each pause was computed from. The pauses take no time."""
    seen: list[int] = []

    def backoff(attempt: int) -> float:
        seen.append(attempt)
        return 0.0

    monkeypatch.setattr(reconnect, "backoff", backoff)
    return seen


async def run(*outcomes: BaseException | str, failures: list[int] | None = None) -> None:
    """Run sessions with these outcomes: an exception, "works" before a failure, or "returns"."""
    loop = Reconnect((OSError, TimeoutError), LOGGER, "no connection, retrying")
    pending = list(outcomes)

    async def session() -> None:
        outcome = pending.pop(0) if pending else End()
        await asyncio.sleep(0)
        if outcome == "works":
            loop.succeeded()
            raise OSError("lost")
        if isinstance(outcome, BaseException):
            raise outcome

    with pytest.raises(End):
        await loop.run(session, lambda: failures.append(1) if failures is not None else None)


async def test_pauses_grow_until_a_connection_works(attempts: list[int]) -> None:
    failures: list[int] = []
    await run(OSError("a"), TimeoutError(), OSError("c"), "works", OSError("d"), failures=failures)
    assert attempts == [0, 1, 2, 0, 1]
    assert len(failures) == 5


async def test_a_session_that_returns_is_followed_without_a_pause(attempts: list[int]) -> None:
    await run("returns", "returns")
    assert attempts == []


async def test_a_failure_is_reported_with_its_error(attempts: list[int], caplog: pytest.LogCaptureFixture) -> None:
    await run(OSError("refused"), TimeoutError())
    fields: list[Any] = [getattr(record, "fields", None) for record in caplog.records]
    assert fields == [
        {"error": "OSError: refused", "retry_in_s": 0.0},
        {"error": "TimeoutError: timed out", "retry_in_s": 0.0},
    ]
