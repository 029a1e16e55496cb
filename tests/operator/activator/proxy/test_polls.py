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


async def test_few_sessions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polls, "MAX_SESSIONS", 2)
    known = Polls()
    for sid in "abc":
        known.authenticate(sid)
        known.reject(sid, sid.encode())
    assert [known.is_authenticated(sid) for sid in "abc"] == [False, True, True]
    assert await known.rejection("c") == b"c"
    waiting = [asyncio.create_task(known.rejection("a")) for _ in range(2)]
    await asyncio.sleep(0)
    known.reject("a", b"again")
    assert await asyncio.gather(*waiting) == [b"again"] * 2
    waiting = [asyncio.create_task(known.rejection("x"))]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert known._waiting == {}
