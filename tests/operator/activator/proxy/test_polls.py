"""What an activator knows of the sessions of long polling."""

from __future__ import annotations

import asyncio

import pytest

from testing.patience import PATIENCE_S
from userrealtime_operator.activator.proxy import polls
from userrealtime_operator.activator.proxy.polls import Polls


async def test_each_waiting_poll_gets_the_last_packets() -> None:
    """The end of one poll does not affect another poll of the same session."""
    known = Polls()
    first, second, third = (asyncio.create_task(known.rejection("s")) for _ in range(3))
    other = asyncio.create_task(known.rejection("t"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    known.reject("s", b"1")
    async with asyncio.timeout(PATIENCE_S):
        assert await second == await third == b"1"
        assert await known.rejection("s") == b"1"
    assert not other.done()
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert not known._waiting


def test_the_oldest_sessions_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polls, "MAX_SESSIONS", 2)
    known = Polls()
    for sid in ("a", "b", "c"):
        known.authenticate(sid)
        known.reject(sid, b"1")
    assert [known.is_authenticated(sid) for sid in ("a", "b", "c")] == [False, True, True]
    assert list(known._rejections) == ["b", "c"]
